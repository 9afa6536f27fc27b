"""`IntegratedMonitor`: telemetry kept and checked through one call a step.

::

    monitor = create_monitor(save_checkpoint, clean_up, run=run)
    monitor.start()
    for step in range(steps):
        ...
        if monitor.process(telemetry):      # True: aborted, leave the loop
            break
    monitor.stop()
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol

from qigkernels.config import QIGConfig
from qigkernels.telemetry import ConsciousnessTelemetry
from qigstore.safety.emergency import Emergency
from qigstore.safety.handler import EmergencyAbortHandler

__all__ = ["IntegratedMonitor", "RecordingRun", "TelemetryCollector", "create_monitor"]

Telemetry = ConsciousnessTelemetry | Mapping[str, Any]


class RecordingRun(Protocol):
    """What a collector needs of the handle of a run."""

    @property
    def name(self) -> str:
        """The session's name."""

    def record(self, step: int, **metrics: Any) -> object:
        """Record one step."""

    def flush(self) -> object:
        """Wait until what was recorded is stored."""


class TelemetryCollector:
    """Take telemetry records from any thread and record each at once in a run's session.

    The store is PostgreSQL. What was collected survives the process and waits for a database that
    is away, because a run keeps it in its spool and not in a list here: nothing has to be flushed
    for that, and it is stored within a second by itself. `flush` waits for it. A JSON Lines file is
    an export (`qigstore export SESSION FILE.jsonl`); with no database in reach that is made from
    the spool (mode "offline"), and `qigstore import` stores it elsewhere.

    Without a run the newest `kept_max` records stay in memory, for `recent`.

    >>> collector = TelemetryCollector()
    >>> collector.collect({"phi": 0.72})
    0
    >>> collector.get_stats()["total_collected"]
    1
    """

    def __init__(self, run: RecordingRun | None = None, *, kept_max: int = 1000) -> None:
        self._run, self._lock = run, threading.Lock()
        self._kept: deque[tuple[int, dict[str, Any]]] = deque(maxlen=kept_max)
        self._collected, self._next = 0, 0

    def collect(self, telemetry: Telemetry, step: int | None = None) -> int:
        """Record one; returns its step: `step`, else the record's own, else the next one.

        What nobody measured (None) is no metric, and neither is the flag `emergency`, which speaks
        to the abort handler. A record and its `to_dict()` give the same row.

        Raises:
            InvalidInput: a value that cannot be recorded, by name; nothing of it was kept.
        """
        metrics = (
            telemetry.to_dict() if isinstance(telemetry, ConsciousnessTelemetry) else telemetry
        )
        metrics = {
            name: value
            for name, value in metrics.items()
            if value is not None and not (name == "emergency" and isinstance(value, bool))
        }
        own = metrics.pop("step", None)
        with self._lock:
            number = next((n for n in (step, own) if n is not None), self._next)
            if self._run is not None:
                self._run.record(number, **metrics)
            else:
                self._kept.append((number, metrics))
            self._next, self._collected = number + 1, self._collected + 1
        return number

    def recent(self) -> list[tuple[int, dict[str, Any]]]:
        """Step and metrics of the records kept in memory, oldest first; none with a run."""
        with self._lock:
            return list(self._kept)

    def flush(self) -> None:
        """Wait until everything collected is stored.

        Raises:
            NotStored: the database did not take it in time; the rows are safe in the spool.
        """
        if self._run is not None:
            self._run.flush()

    def get_stats(self) -> dict[str, Any]:
        """`session_id`, `total_collected`, `buffer_size` (records in memory), `dropped`."""
        with self._lock:
            kept = len(self._kept)
            return {
                "session_id": None if self._run is None else self._run.name,
                "total_collected": self._collected,
                "buffer_size": kept,
                "dropped": 0 if self._run is not None else self._collected - kept,
            }


class IntegratedMonitor:
    """A `TelemetryCollector` and an `EmergencyAbortHandler` behind one call."""

    def __init__(self, collector: TelemetryCollector, handler: EmergencyAbortHandler) -> None:
        self.telemetry_collector, self.abort_handler = collector, handler

    def __enter__(self) -> IntegratedMonitor:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def is_aborted(self) -> bool:
        """Whether an abort was triggered."""
        return self.abort_handler.is_aborted

    @property
    def abort_reason(self) -> str | None:
        """Why, in words."""
        return self.abort_handler.abort_reason

    def start(self) -> None:
        """Begin to watch SIGTERM and SIGINT."""
        self.abort_handler.start()

    def process(self, telemetry: Telemetry, step: int | None = None) -> bool:
        """Record one step and check it; True once the training must stop.

        The record comes first: what led to an abort is in the database.
        """
        number = self.telemetry_collector.collect(telemetry, step)
        self.abort_handler.check_telemetry(telemetry, step=number)
        reason = self.abort_handler.abort_reason
        if reason is not None:
            # Nothing, unless a signal came since the check: then its callbacks have yet to run.
            self.abort_handler.trigger_abort(reason)
        return reason is not None

    def stop(self) -> None:
        """Flush, then end the watch; a signal received meanwhile is passed on from here."""
        try:
            self.telemetry_collector.flush()
        finally:
            self.abort_handler.stop()

    def get_stats(self) -> dict[str, Any]:
        """`{"telemetry": …, "abort_status": {"triggered", "reason", "failures"}}`."""
        return {
            "telemetry": self.telemetry_collector.get_stats(),
            "abort_status": {
                "triggered": self.is_aborted,
                "reason": self.abort_reason,
                "failures": [str(failure) for failure in self.abort_handler.failures],
            },
        }


def create_monitor(
    checkpoint_callback: Callable[[], object] | None = None,
    abort_callback: Callable[[], object] | None = None,
    *,
    run: RecordingRun | None = None,
    config: QIGConfig | None = None,
    emergency: Emergency | None = None,
) -> IntegratedMonitor:
    """A monitor with the default thresholds; with `run`, telemetry goes to its session.

    >>> monitor = create_monitor()
    >>> monitor.process({"phi": 0.72}), monitor.process({"phi": 0.30})
    (False, True)
    """
    handler = EmergencyAbortHandler(
        checkpoint_callback, abort_callback, config=config, emergency=emergency
    )
    return IntegratedMonitor(TelemetryCollector(run), handler)
