"""From an alarm to the way out: at once, bounded, in order, and nothing swallowed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from qigkernels.telemetry import ConsciousnessTelemetry
from qigstore.errors import StoreUnavailable
from qigstore.records import Event
from qigstore.safety import (
    Alarm,
    Emergency,
    EmergencyAbortHandler,
    LeaveStep,
    Origin,
    StopFlag,
    leave,
)
from qigstore.safety.emergency import bounded

LIMIT_S = 60.0
ABORT = Alarm("collapse", "critical", "phi", 0.3, 0.5, "phi = 0.3 is below 0.5", "abort", 12)
RECORD = Alarm("jump", "warning", "loss", 9.0, 5.0, "loss jumped", "record", 3)
CHECKPOINT = Alarm("drift", "warning", "basin_distance", 0.4, 0.3, "drifts", "checkpoint", 5)
HEALTHY = ConsciousnessTelemetry(
    phi=0.72, kappa_eff=64.2, regime="geometric", basin_distance=0.05, recursion_depth=5
)


class Sink:
    """A file log and a database: each may fail or hang."""

    def __init__(self) -> None:
        self.written: list[Event] = []
        self.stored: list[Event] = []
        self.shipped = threading.Event()
        self.away = False
        self.disk: Callable[[], object] = lambda: None

    def write(self, event: Event) -> None:
        self.disk()
        self.written.append(event)

    def store(self, event: Event) -> None:
        if self.away:
            raise StoreUnavailable("nowhere", "connection refused")
        self.stored.append(event)

    def ship(self) -> None:
        if self.away:
            raise StoreUnavailable("nowhere", "connection refused")
        self.stored += [one for one in self.written if one not in self.stored]
        self.shipped.set()

    def emergency(self, **options: Any) -> Emergency:
        return Emergency(
            Origin(7, 2, 1), write_event=self.write, store_event=self.store, ship=self.ship,
            **options,
        )  # fmt: skip


@pytest.fixture
def sink() -> Sink:
    return Sink()


def test_the_first_reason_to_stop_stays() -> None:
    flag = StopFlag()
    assert not flag.requested
    assert flag.set("first", signum=15)
    assert not flag.set("second")
    assert (flag.requested, flag.reason, flag.signum) == (True, "first", 15)


def test_one_of_many_threads_sets_the_flag() -> None:
    flag, wins, barrier = StopFlag(), [], threading.Barrier(8)

    def ask(name: str) -> None:
        barrier.wait()
        if flag.set(name):
            wins.append(name)

    threads = [threading.Thread(target=ask, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wins == [flag.reason]


def test_an_alarm_becomes_an_event_in_file_and_row(sink: Sink) -> None:
    emergency = sink.emergency(patience_s=LIMIT_S)
    event = emergency.raise_alarm(RECORD, {"seen": 3})
    assert sink.written == [event]  # before raise_alarm returned
    assert emergency.close(LIMIT_S)
    assert sink.stored == [event]
    assert (event.session_id, event.attempt, event.rank, event.step) == (7, 2, 1, 3)
    assert (event.rule, event.severity, event.metric) == ("jump", "warning", "loss")
    assert (event.value, event.threshold, event.action) == (9.0, 5.0, "record")
    assert event.detail == {"seen": 3}
    assert event.raised_at.tzinfo is not None
    assert not emergency.stop.requested


def test_an_abort_sets_the_stop_flag_and_asks_for_a_checkpoint(sink: Sink) -> None:
    asked: list[str] = []
    emergency = sink.emergency(request_checkpoint=asked.append)
    emergency.raise_alarm(CHECKPOINT)
    assert asked == ["drifts"]
    assert not emergency.stop.requested
    event = emergency.raise_alarm(ABORT)
    assert emergency.stop.requested
    assert emergency.stop.event is event
    assert "phi = 0.3 is below 0.5" in str(emergency.stop.reason)
    assert len(asked) == 2
    emergency.close(LIMIT_S)


def test_a_checkpoint_that_cannot_be_asked_for_is_reported_and_the_event_goes_out(
    sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(reason: str) -> None:
        raise RuntimeError("manager is closed")

    emergency = sink.emergency(request_checkpoint=refuse)
    event = emergency.raise_alarm(ABORT)
    assert emergency.close(LIMIT_S)
    assert sink.stored == [event]
    assert "manager is closed" in caplog.text


def test_a_wish_to_stop_is_one_event_however_often_it_is_made(sink: Sink) -> None:
    emergency = sink.emergency()
    first = emergency.request_stop("received SIGTERM", signum=15)
    again = emergency.request_stop("from the dashboard")
    emergency.close(LIMIT_S)
    assert again is first
    assert sink.written == [first]
    assert (first.rule, first.detail) == ("SIGTERM", {"signum": 15})
    assert emergency.stop.reason == "received SIGTERM"


def test_a_wish_in_a_hurry_is_appended_by_who_has_it_before_anything_else(sink: Sink) -> None:
    seen: list[tuple[Event, bool, bool]] = []

    def append(event: Event) -> None:
        by_us = threading.current_thread() is threading.main_thread()
        seen.append((event, by_us, event in sink.written))

    emergency = sink.emergency(append_event=append)
    event = emergency.request_stop("received SIGTERM", signum=15, at_once=True)
    assert emergency.request_stop("again", signum=15, at_once=True) is event
    emergency.close(LIMIT_S)
    assert seen == [(event, True, False)]
    assert (sink.written, sink.stored) == ([event], [event])


def test_a_log_that_takes_no_hurried_event_is_said_and_the_event_goes_the_other_way(
    sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    def append(_event: Event) -> None:
        raise OSError("disk full")

    emergency = sink.emergency(append_event=append)
    event = emergency.request_stop("received SIGTERM", signum=15, at_once=True)
    emergency.close(LIMIT_S)
    assert emergency.stop.requested
    assert (sink.written, sink.stored) == ([event], [event])
    assert "disk full" in caplog.text


def test_a_disk_that_hangs_does_not_hold_training_up(sink: Sink) -> None:
    release = threading.Event()
    sink.disk = release.wait
    emergency = sink.emergency(patience_s=0.01)
    events = [emergency.raise_alarm(ABORT) for _ in range(3)]
    assert emergency.stop.requested
    assert sink.written == []
    assert not emergency.close(0.01)
    release.set()
    assert emergency.close(LIMIT_S)
    assert sink.written == sink.stored == events


def test_without_a_database_the_file_holds_the_event_and_it_is_shipped_later(sink: Sink) -> None:
    sink.away = True
    emergency = sink.emergency(retry_s=0.01)
    event = emergency.raise_alarm(RECORD)
    while emergency.stats()["last_error"] is None:
        time.sleep(0.005)
    assert sink.written == [event]
    assert sink.stored == []
    assert "connection refused" in emergency.stats()["last_error"]
    sink.away = False
    assert sink.shipped.wait(LIMIT_S)
    assert sink.stored == [event]
    assert emergency.close(LIMIT_S)


def test_leaving_without_a_database_says_so(sink: Sink) -> None:
    sink.away = True
    emergency = sink.emergency()
    emergency.raise_alarm(RECORD)
    assert not emergency.close(LIMIT_S)
    assert len(sink.written) == 1


def test_without_a_disk_the_row_is_stored_all_the_same(sink: Sink) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    sink.disk = full
    emergency = sink.emergency()
    event = emergency.raise_alarm(RECORD)
    emergency.close(LIMIT_S)
    assert sink.stored == [event]
    assert "No space left" in emergency.stats()["last_error"]
    assert emergency.stats()["dropped"] == 0


def test_a_storm_of_events_is_bounded_and_what_is_dropped_is_counted(
    sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    sink.disk = release.wait
    emergency = sink.emergency(patience_s=0.001, queue_max=10)
    for _ in range(100):
        emergency.raise_alarm(RECORD)
    release.set()
    assert emergency.close(LIMIT_S)
    stats = emergency.stats()
    assert (stats["raised"], stats["dropped"], stats["waiting"]) == (100, 90, 0)
    assert len(sink.written) == len(sink.stored) == 10
    assert "dropped" in caplog.text


def test_an_event_after_the_end_is_reported(sink: Sink) -> None:
    emergency = sink.emergency()
    assert emergency.close(LIMIT_S)
    emergency.raise_alarm(RECORD)
    assert emergency.stats()["dropped"] == 1


def test_a_forked_child_writes_nothing_into_its_parents_log() -> None:
    script = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from qigstore.safety import Alarm, Emergency, Origin
emergency = Emergency(Origin(1, 1), write_event=lambda e: print("wrote", os.getpid(), flush=True))
alarm = Alarm("r", "critical", "m", 1.0, 0.0, "x", "abort", 1)
emergency.raise_alarm(alarm); assert emergency.close(60)
again = Emergency(Origin(1, 1), write_event=lambda e: print("wrote", os.getpid(), flush=True))
pid = os.fork()
if pid == 0:
    again.raise_alarm(alarm)
    os._exit(0 if again.stop.requested and again.close(60) else 1)
assert os.waitpid(pid, 0)[1] == 0
print("parent", os.getpid())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    wrote, parent = done.stdout.splitlines()
    assert wrote.split()[1] == parent.split()[1]
    assert "forked child" in done.stderr


def test_a_bounded_call_ends_in_one_of_three_ways(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ValueError("broken")

    never = threading.Event()
    assert bounded("quick", lambda: 1, LIMIT_S).status == "done"
    failed = bounded("bad", fail, LIMIT_S)
    assert failed.status == "failed"
    assert isinstance(failed.error, ValueError)
    assert bounded("slow", never.wait, 0.01).status == "timed out"
    assert "broken" in caplog.text
    assert "slow timed out" in caplog.text
    never.set()


def test_leaving_takes_its_steps_in_order_whatever_each_of_them_does() -> None:
    done: list[str] = []
    never = threading.Event()

    def fail(left: float) -> None:
        raise OSError("no route")

    outcomes = leave(
        [
            LeaveStep("flush", lambda left: never.wait(), limit_s=0.01),
            LeaveStep("event", fail),
            LeaveStep("snapshot", lambda left: done.append(f"{left <= LIMIT_S}")),
        ],
        deadline_s=LIMIT_S,
    )
    never.set()
    assert [(o.name, o.status) for o in outcomes] == [
        ("flush", "timed out"), ("event", "failed"), ("snapshot", "done"),
    ]  # fmt: skip
    assert done == ["True"]


def test_a_step_without_time_left_is_skipped_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    never = threading.Event()
    outcomes = leave(
        [LeaveStep("flush", lambda left: never.wait()), LeaveStep("state", lambda left: None)],
        deadline_s=0.02,
    )
    never.set()
    assert [o.status for o in outcomes] == ["timed out", "skipped"]
    assert "state skipped" in caplog.text


def test_the_handler_tells_the_event_log_once_an_episode(sink: Sink) -> None:
    emergency = sink.emergency()
    handler = EmergencyAbortHandler(emergency=emergency)
    drifting = ConsciousnessTelemetry(phi=0.72, basin_distance=0.4)
    for telemetry in (drifting, drifting, HEALTHY, drifting, ConsciousnessTelemetry(phi=0.3)):
        handler.check_telemetry(telemetry)
    emergency.close(LIMIT_S)
    assert [(e.step, e.severity, e.action) for e in sink.stored] == [
        (1, "warning", "record"), (4, "warning", "record"), (5, "critical", "abort"),
    ]  # fmt: skip
    assert emergency.stop.requested


def test_importing_the_signals_and_the_rules_loads_nothing_heavy() -> None:
    script = (
        "import sys, qigstore.safety.rules, qigstore.safety.signals, qigstore.safety.emergency;"
        "print([m for m in ('numpy', 'scipy', 'sqlalchemy', 'psycopg') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_log_that_raises_an_event_itself_deadlocks_nothing(sink: Sink) -> None:
    """The lock is not held while something foreign runs."""
    emergency = sink.emergency(patience_s=LIMIT_S)
    nested: list[Event] = []

    def report_once() -> None:
        if not nested:
            nested.append(emergency.report("disk", "slow"))

    sink.disk = report_once
    first = emergency.raise_alarm(RECORD)
    assert emergency.settle(LIMIT_S)
    assert emergency.close(LIMIT_S)
    assert sink.written == [first, nested[0]]


def test_a_callback_may_ask_and_abort_the_handler_that_calls_it() -> None:
    seen: list[object] = []

    def ask() -> None:
        seen.append(handler.is_aborted)
        seen.append(handler.check_telemetry(HEALTHY))
        handler.trigger_abort("again")

    handler = EmergencyAbortHandler(ask, callback_limit_s=LIMIT_S)
    handler.trigger_abort("first")
    assert seen[0] is True
    assert (handler.abort_reason, handler.failures) == ("first", ())


def test_a_callback_that_wants_a_lock_of_its_caller_is_bounded() -> None:
    lock, called, aborted = threading.Lock(), threading.Event(), []

    def save() -> None:
        called.set()
        with lock:
            raise AssertionError("the training holds it")

    handler = EmergencyAbortHandler(save, lambda: aborted.append(1), callback_limit_s=0.05)
    with lock:
        handler.check_telemetry(ConsciousnessTelemetry(phi=0.3))
        assert aborted == [1]  # the second callback ran
        assert called.wait(LIMIT_S)
        assert [(f.name, f.status) for f in handler.failures] == [
            ("checkpoint_callback", "timed out")
        ]
        save_thread = next(
            t for t in threading.enumerate() if t.name.endswith("checkpoint_callback")
        )
    handler._callbacks = ()
    save_thread.join(LIMIT_S)
    assert not save_thread.is_alive()


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_request_from_outside_is_heeded_once_and_is_no_second_event(
    sink: Sink, checkpoint: bool
) -> None:
    asked = Sink().emergency().report("stop", "asked to stop", detail={"checkpoint": checkpoint})
    emergency = sink.emergency()
    assert emergency.heed(asked)
    assert not emergency.heed(asked)
    assert emergency.request_stop("later") is asked
    assert (emergency.stop.reason, emergency.stop.event) == ("asked to stop", asked)
    assert emergency.stop.checkpoint is checkpoint
    emergency.close(LIMIT_S)
    assert sink.stored == []
