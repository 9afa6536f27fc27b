"""`EmergencyAbortHandler`: thresholds on geometry telemetry, two callbacks, no store needed."""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from qigkernels.config import QIGConfig
from qigkernels.safety import EmergencyCondition, SafetyMonitor
from qigkernels.telemetry import ConsciousnessTelemetry
from qigstore.safety.detectors import Action, Alarm
from qigstore.safety.emergency import Emergency, Outcome, bounded
from qigstore.safety.signals import SignalWatch

__all__ = ["EmergencyAbortHandler", "as_telemetry"]

_log = logging.getLogger(__name__)
_FIELDS = frozenset(field.name for field in fields(ConsciousnessTelemetry))


def as_telemetry(given: ConsciousnessTelemetry | Mapping[str, Any]) -> ConsciousnessTelemetry:
    """The standard record of a mapping; metrics that it does not know (loss …) are left aside."""
    if isinstance(given, ConsciousnessTelemetry):
        return given
    return ConsciousnessTelemetry(**{k: v for k, v in given.items() if k in _FIELDS})


class EmergencyAbortHandler:
    """Check each telemetry record; on a critical violation save a checkpoint and abort, once.

    Every rule is armed always here: the handler follows no history. The callbacks take no argument
    and run in a thread for at most `callback_limit_s`. One that fails or hangs is logged and kept
    in `failures`; an exception of `abort_callback` (`SystemExit` too) also goes on to the caller.

    SIGTERM and SIGINT (between `start` and `stop`) abort at the next `check_telemetry` or in
    `stop`, which then hands the signal on to whoever had it before.

    >>> handler = EmergencyAbortHandler()
    >>> handler.check_telemetry({"phi": 0.30}).reason
    'Consciousness collapse'
    >>> handler.is_aborted, handler.abort_reason
    (True, 'Consciousness collapse')
    """

    def __init__(
        self,
        checkpoint_callback: Callable[[], object] | None = None,
        abort_callback: Callable[[], object] | None = None,
        *,
        config: QIGConfig | None = None,
        emergency: Emergency | None = None,
        watch_signals: bool = True,
        callback_limit_s: float = 10.0,
    ) -> None:
        self._callbacks = (
            ("checkpoint_callback", checkpoint_callback),
            ("abort_callback", abort_callback),
        )
        self._monitor, self._emergency = SafetyMonitor(config), emergency
        self._watch_signals, self._limit_s = watch_signals, callback_limit_s
        self._watch: SignalWatch | None = None
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._condition: EmergencyCondition | None = None
        self._checked, self._told = 0, ""
        self.failures: tuple[Outcome, ...] = ()
        """Callbacks that failed or did not end in time."""

    @property
    def is_aborted(self) -> bool:
        """Whether an abort was triggered, or a signal asks for one."""
        return self.abort_reason is not None

    @property
    def abort_reason(self) -> str | None:
        """The first reason, in words."""
        return self._reason or self._signalled()

    def start(self) -> None:
        """Begin to watch SIGTERM and SIGINT; again: nothing."""
        if self._watch_signals and self._watch is None:
            self._watch = SignalWatch(self._on_signal)
            self._watch.install()

    def stop(self) -> None:
        """End it: abort where a signal asked for it, and hand that signal on."""
        watch = self._watch
        if watch is None:
            return
        reason = self._signalled()
        try:
            if reason is not None:
                self.trigger_abort(reason)
        finally:
            self._watch = None
            watch.re_raise()

    def check_telemetry(
        self, telemetry: ConsciousnessTelemetry | Mapping[str, Any], *, step: int | None = None
    ) -> EmergencyCondition | None:
        """The worst violated threshold, or None; a critical one aborts before this returns.

        Once aborted, it gives what aborted it. Warnings are returned and do not abort.
        """
        reason = self._signalled()
        if reason is not None:
            self.trigger_abort(reason)
        if self._reason is not None:
            return self._condition
        with self._lock:
            self._checked += 1
            number = self._checked
            condition = self._monitor.check(as_telemetry(telemetry))
            told, self._told = self._told, condition.reason if condition else ""
        if condition is not None:
            if condition.reason != told:  # once an episode
                self._tell(condition, number if step is None else step)
            if condition.severity == "critical":
                self._abort(condition.reason, condition)
        return condition

    def trigger_abort(self, reason: str) -> None:
        """Abort for a reason of the caller's own; the first reason stays, the rest do nothing."""
        self._abort(reason, EmergencyCondition(reason, "critical", "", math.nan, math.nan))

    def _abort(self, reason: str, condition: EmergencyCondition) -> None:
        with self._lock:
            if self._reason is not None:
                return
            self._reason, self._condition = reason, condition
        _log.critical("emergency abort: %s", reason)
        if self._emergency is not None:
            self._emergency.request_stop(reason, severity="critical")
        outcomes = [
            bounded(name, callback, self._limit_s)
            for name, callback in self._callbacks
            if callback is not None
        ]
        self.failures = tuple(outcome for outcome in outcomes if outcome.status != "done")
        for failure in self.failures:
            if failure.name == "abort_callback" and failure.error is not None:
                for other in self.failures:
                    if other is not failure:
                        failure.error.add_note(f"before it: {other}")
                raise failure.error

    def _tell(self, condition: EmergencyCondition, step: int) -> None:
        if self._emergency is None:
            return
        limit = condition.threshold if math.isfinite(condition.threshold) else None
        message = f"{condition.metric} = {condition.value:.6g}"
        if limit is not None:
            message += f" against a limit of {limit:.6g}"
        action: Action = "abort" if condition.severity == "critical" else "record"
        self._emergency.raise_alarm(
            Alarm(
                condition.reason, condition.severity, condition.metric, condition.value, limit,
                message, action, step,
            )
        )  # fmt: skip

    def _signalled(self) -> str | None:
        signum = None if self._watch is None else self._watch.signum
        return None if signum is None else f"Signal {signal.Signals(signum).name} received"

    def _on_signal(self, signum: int) -> None:
        _log.warning("%s received: aborting at the next safe point", signal.Signals(signum).name)
        if self._emergency is not None:
            self._emergency.request_stop(f"received {signal.Signals(signum).name}", signum=signum)
