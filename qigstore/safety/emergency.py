"""From an alarm to the way out: stop flag, event, callbacks, and the order of leaving.

Nothing here waits for long: what may block (a disk, a database, a user's callback) runs in a thread
of its own, for a stated time, and what it did not manage is reported.
"""

from __future__ import annotations

import contextvars
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from signal import Signals
from typing import Any, Literal
from uuid import uuid4

from qigstore.records import Event, Severity
from qigstore.safety.detectors import Alarm

__all__ = ["Emergency", "LeaveStep", "Origin", "Outcome", "StopFlag", "bounded", "leave"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where events come from."""

    session_id: int
    attempt: int
    rank: int = 0


class StopFlag:
    """The wish to stop: set from any thread, polled at a safe point. The first reason stays."""

    __slots__ = ("_lock", "checkpoint", "event", "reason", "requested", "signum")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requested = False
        self.reason: str | None = None
        self.signum: int | None = None
        self.event: Event | None = None
        self.checkpoint = True

    def set(
        self,
        reason: str,
        *,
        signum: int | None = None,
        event: Event | None = None,
        checkpoint: bool = True,
    ) -> bool:
        """Ask for the stop, with or without a checkpoint first; False where it was asked before."""
        with self._lock:
            if self.requested:
                return False
            self.reason, self.signum, self.event = reason, signum, event
            self.checkpoint = checkpoint
            self.requested = True  # last: who polls it finds the reason
            return True


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one bounded call ended."""

    name: str
    status: Literal["done", "failed", "timed out", "skipped"]
    seconds: float
    error: BaseException | None = None

    def __str__(self) -> str:
        why = f": {type(self.error).__name__}: {self.error}" if self.error is not None else ""
        return f"{self.name} {self.status} after {self.seconds:.2f} s{why}"


def bounded(name: str, call: Callable[[], object], limit_s: float) -> Outcome:
    """Run a call in a thread for at most `limit_s`; a failure is logged and in the outcome.

    A call that outlives its limit goes on in its daemon thread; nothing waits for it any more.
    """
    errors: list[BaseException] = []
    context = contextvars.copy_context()

    def run() -> None:
        try:
            context.run(call)
        except BaseException as error:  # SystemExit too: the caller decides what becomes of it
            errors.append(error)

    began = time.monotonic()
    thread = threading.Thread(target=run, name=f"qigstore-{name}", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        _log.error("%s could not run: %s", name, error)
        return Outcome(name, "failed", 0.0, error)
    thread.join(max(0.0, limit_s))
    took = time.monotonic() - began
    if thread.is_alive():
        outcome = Outcome(name, "timed out", took)
        _log.error("%s", outcome)
    elif errors:
        outcome = Outcome(name, "failed", took, errors[0])
        _log.error("%s", outcome, exc_info=errors[0])
    else:
        outcome = Outcome(name, "done", took)
    return outcome


@dataclass(frozen=True, slots=True)
class LeaveStep:
    """One thing to do on the way out; `call` is told how many seconds it has."""

    name: str
    call: Callable[[float], object]
    limit_s: float | None = None
    """Its own limit within the deadline, so that one that hangs leaves time to the next."""


def leave(steps: Sequence[LeaveStep], *, deadline_s: float) -> tuple[Outcome, ...]:
    """Take the steps in their order, all of them under one deadline.

    A step that fails or hangs does not keep the next one from running; one that finds no time left
    is skipped and says so.
    """
    end = time.monotonic() + deadline_s
    outcomes: list[Outcome] = []
    for step in steps:
        left = end - time.monotonic()
        if left <= 0.0:
            outcomes.append(Outcome(step.name, "skipped", 0.0))
            _log.error("%s skipped: nothing is left of the %g s", step.name, deadline_s)
            continue
        allowed = left if step.limit_s is None else min(left, step.limit_s)

        def call(step: LeaveStep = step, allowed: float = allowed) -> object:
            return step.call(allowed)

        outcomes.append(bounded(step.name, call, allowed))
    return tuple(outcomes)


@dataclass(frozen=True, slots=True)
class _Entry:
    event: Event
    written: threading.Event


class Emergency:
    """Turn alarms and wishes to stop into events, and get these to disk and database.

    Args:
        origin: where the events come from; may be replaced once the session is registered.
        write_event: puts the event into a file (the readable log); may block and raise.
        append_event: writes the event so that it outlives the process, in microseconds;
            `write_event` of the same event then makes it durable.
        store_event: puts it into the database, idempotent by id; raises while that is away.
        ship: sends what lies in files and is not stored yet; called again every `retry_s` while
            `store_event` fails, and after it has succeeded.
        request_checkpoint: told the reason when an alarm wants a checkpoint; must not block.
        notify: has somebody told of the event; must not block.
        patience_s: the longest that `raise_alarm` waits for the file.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        write_event: Callable[[Event], object],
        append_event: Callable[[Event], object] | None = None,
        store_event: Callable[[Event], object] | None = None,
        ship: Callable[[], object] | None = None,
        request_checkpoint: Callable[[str], object] | None = None,
        notify: Callable[[Event], object] | None = None,
        patience_s: float = 0.05,
        retry_s: float = 5.0,
        queue_max: int = 1000,
    ) -> None:
        self.origin, self.stop = origin, StopFlag()
        self._write, self._append = write_event, append_event
        self._store, self._ship = store_event, ship
        self._request_checkpoint, self._notify = request_checkpoint, notify
        self._patience_s, self._retry_s, self._queue_max = patience_s, retry_s, queue_max
        self._queue: SimpleQueue[_Entry | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock, self._pid, self._closed = threading.Lock(), os.getpid(), False
        self._raised = self._done = self._written = self._stored = self._dropped = 0
        self._behind = False
        self._last_error: str | None = None

    def start(self) -> None:
        """Have the thread that delivers ready: to start it takes milliseconds on a busy machine."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._deliver, name="qigstore-events", daemon=True
            )
            self._thread.start()

    def raise_alarm(self, alarm: Alarm, detail: Mapping[str, Any] | None = None) -> Event:
        """Make the event of an alarm, act on it, and hand it on.

        The stop flag is set before anything else; then a checkpoint is asked for; then the event
        goes to its file, which this waits for no longer than `patience_s`.
        """
        event = self._event(
            alarm.rule, alarm.severity, alarm.message, alarm.step,
            {"metric": alarm.metric, "value": alarm.value, "threshold": alarm.threshold,
             "action": alarm.action, "detail": dict(detail or {})},
        )  # fmt: skip
        if alarm.action == "abort":
            self.stop.set(f"{alarm.rule}: {alarm.message}", event=event)
        if alarm.action in {"checkpoint", "abort"} and self._request_checkpoint is not None:
            try:
                self._request_checkpoint(alarm.message)
            except Exception as error:
                self._failed("an emergency checkpoint could not be asked for", error)
        self._hand_on(event)
        return event

    def request_stop(
        self,
        reason: str,
        *,
        signum: int | None = None,
        step: int | None = None,
        severity: Severity = "warning",
        rule: str = "stop",
        at_once: bool = False,
    ) -> Event:
        """Ask the run to stop at its next safe point, for a reason from outside.

        Asked again, it changes nothing and returns the event of the first time, if that had one.
        `at_once`: the caller's thread may wait for the disk, so the event is appended in it.
        """
        rule = rule if signum is None else Signals(signum).name
        detail = {} if signum is None else {"signum": signum}
        event = self._event(rule, severity, reason, step, {"action": "abort", "detail": detail})
        if not self.stop.set(reason, signum=signum, event=event):
            return self.stop.event or event
        if at_once and self._append is not None:
            try:
                self._append(event)
            except Exception as error:
                self._failed(f"event {event.id} could not be appended", error)
        self._hand_on(event)
        return event

    def heed(self, request: Event) -> bool:
        """Stop as a stored request from outside asks; False where the run stops already."""
        checkpoint = request.detail.get("checkpoint") is not False
        return self.stop.set(request.message, event=request, checkpoint=checkpoint)

    def report(
        self,
        rule: str,
        message: str,
        *,
        step: int | None = None,
        severity: Severity = "warning",
        **more: Any,
    ) -> Event:
        """Log and store something that no rule noticed, such as a save that failed."""
        given = {"action": "record", "detail": {}, **more}
        event = self._event(rule, severity, message, step, given)
        self._hand_on(event)
        return event

    def settle(self, timeout_s: float) -> bool:
        """Wait until every event so far is written and tried to store; False: not in time."""
        end = time.monotonic() + timeout_s
        while self._raised - self._done - self._dropped > 0:
            if time.monotonic() >= end:
                return False
            time.sleep(0.002)
        return True

    def close(self, timeout_s: float) -> bool:
        """Deliver what waits; False where that took longer (files then hold what was written)."""
        with self._lock:
            self._closed, thread = True, self._thread
        if thread is None or self._pid != os.getpid():
            return True
        self._queue.put(None)
        thread.join(max(0.0, timeout_s))
        return not thread.is_alive() and not self._behind

    def stats(self) -> dict[str, Any]:
        """Counts of events: raised, written to files, stored, dropped; and the last error."""
        return {
            "raised": self._raised,
            "written": self._written,
            "stored": self._stored,
            "dropped": self._dropped,
            "waiting": self._raised - self._done - self._dropped,
            "last_error": self._last_error,
        }

    def _event(
        self, rule: str, severity: Severity, message: str, step: int | None, more: dict[str, Any]
    ) -> Event:
        return Event(
            id=uuid4(), session_id=self.origin.session_id, attempt=self.origin.attempt,
            rank=self.origin.rank, step=step, rule=rule, severity=severity, message=message,
            raised_at=datetime.now(UTC), **more,
        )  # fmt: skip

    def _hand_on(self, event: Event) -> None:
        if self._pid != os.getpid():
            # A forked child has no thread, and the parent's log is not the child's to write.
            self._last_error = f"event of a forked child not kept: {event.rule}: {event.message}"
            _log.error("%s", self._last_error)
            return
        entry = _Entry(event, threading.Event())
        with self._lock:
            self._raised += 1
            waiting = self._raised - self._done - self._dropped
            if self._closed or waiting > self._queue_max:
                self._dropped += 1
                self._last_error = f"event dropped: {event.rule}: {event.message}"
                _log.error("%s", self._last_error)
                return
            self._start()
            self._queue.put(entry)
        # A storm is not waited for: the second of several finds the first still under way.
        if waiting <= 1:
            entry.written.wait(self._patience_s)

    def _deliver(self) -> None:
        while True:
            try:
                entry = self._queue.get(timeout=self._retry_s if self._behind else None)
            except Empty:
                self._catch_up()
                continue
            if entry is None:
                self._catch_up()
                return
            self._deliver_one(entry)

    def _deliver_one(self, entry: _Entry) -> None:
        written = stored = False
        try:
            self._write(entry.event)
            written = True
        except Exception as error:
            self._failed(f"event {entry.event.id} could not be written to a file", error)
        entry.written.set()
        if self._notify is not None:
            self._notify(entry.event)
        if self._store is not None:
            try:
                self._store(entry.event)
                stored = True
            except Exception as error:
                self._failed(f"event {entry.event.id} could not be stored", error)
        with self._lock:
            self._written += written
            self._stored += stored
            if written or stored:
                self._done += 1
            else:
                self._dropped += 1
        self._behind = self._behind or (self._store is not None and not stored)
        if stored and self._queue.empty():
            self._catch_up()

    def _catch_up(self) -> None:
        if self._ship is None:
            return
        try:
            self._ship()
            self._behind = False
        except Exception as error:
            self._behind = True
            self._failed("events in files could not be stored yet", error)

    def _failed(self, what: str, error: Exception) -> None:
        text = f"{what}: {type(error).__name__}: {error}"
        # Tried every few seconds while a database is away: said once.
        _log.log(logging.DEBUG if text == self._last_error else logging.ERROR, "%s", text)
        self._last_error = text
