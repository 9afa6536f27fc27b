"""The abort handler and the integrated monitor: thresholds, callbacks, records, signals."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from typing import Any

import pytest

from qigkernels.config import QIGConfig
from qigkernels.telemetry import ConsciousnessTelemetry
from qigstore.errors import InvalidInput
from qigstore.safety import EmergencyAbortHandler, TelemetryCollector, create_monitor

HEALTHY = ConsciousnessTelemetry(
    phi=0.72, kappa_eff=64.2, regime="geometric", basin_distance=0.05, recursion_depth=5
)


def test_healthy_telemetry_aborts_nothing() -> None:
    handler = EmergencyAbortHandler()
    assert handler.check_telemetry(HEALTHY) is None
    assert (handler.is_aborted, handler.abort_reason) == (False, None)


def test_the_first_record_with_phi_at_030_aborts() -> None:
    called: list[str] = []
    handler = EmergencyAbortHandler(
        lambda: called.append("checkpoint"), lambda: called.append("abort")
    )
    condition = handler.check_telemetry(ConsciousnessTelemetry(phi=0.30))
    assert condition is not None
    assert (condition.severity, condition.metric, condition.value) == ("critical", "phi", 0.30)
    assert handler.is_aborted
    assert handler.abort_reason == condition.reason
    assert called == ["checkpoint", "abort"]
    assert handler.check_telemetry(HEALTHY) == condition
    assert called == ["checkpoint", "abort"]


def test_a_metric_that_nobody_measured_aborts_nothing() -> None:
    assert EmergencyAbortHandler().check_telemetry({"loss": 0.3, "phi": 0.72}) is None


def test_a_metric_that_is_not_finite_aborts() -> None:
    handler = EmergencyAbortHandler()
    condition = handler.check_telemetry({"phi": math.nan})
    assert condition is not None
    assert handler.is_aborted


def test_a_warning_is_returned_and_aborts_nothing() -> None:
    handler = EmergencyAbortHandler()
    condition = handler.check_telemetry(ConsciousnessTelemetry(phi=0.72, basin_distance=0.4))
    assert condition is not None
    assert condition.severity == "warning"
    assert not handler.is_aborted


def test_thresholds_are_the_callers_own() -> None:
    handler = EmergencyAbortHandler(config=QIGConfig(phi_emergency=0.2))
    assert handler.check_telemetry({"phi": 0.30}) is None


def test_an_abort_by_hand_keeps_its_first_reason_and_runs_once() -> None:
    called: list[int] = []
    handler = EmergencyAbortHandler(abort_callback=lambda: called.append(1))
    handler.trigger_abort("Test abort")
    handler.trigger_abort("another")
    assert handler.abort_reason == "Test abort"
    condition = handler.check_telemetry(HEALTHY)
    assert condition is not None
    assert condition.reason == "Test abort"
    assert called == [1]


def test_a_checkpoint_callback_that_fails_is_kept_and_the_abort_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise OSError("disk is full")

    called: list[int] = []
    handler = EmergencyAbortHandler(fail, lambda: called.append(1))
    handler.trigger_abort("x")
    assert called == [1]
    assert [str(f.error) for f in handler.failures] == ["disk is full"]
    assert "disk is full" in caplog.text


def test_a_checkpoint_callback_that_hangs_is_bounded_and_the_abort_goes_on() -> None:
    never, called = threading.Event(), []
    handler = EmergencyAbortHandler(never.wait, lambda: called.append(1), callback_limit_s=0.02)
    handler.trigger_abort("x")
    never.set()
    assert called == [1]
    assert [f.status for f in handler.failures] == ["timed out"]


@pytest.mark.parametrize("error", [RuntimeError("no"), SystemExit(3), KeyboardInterrupt()])
def test_what_the_abort_callback_raises_reaches_the_training_loop(error: BaseException) -> None:
    def leave_loop() -> None:
        raise error

    handler = EmergencyAbortHandler(abort_callback=leave_loop)
    with pytest.raises(type(error)) as caught:
        handler.check_telemetry({"phi": 0.30})
    assert caught.value is error
    assert handler.is_aborted


SIGNALLED = """
import os, sys, time
from qigstore.safety import create_monitor
def say(word):
    print(word, flush=True)
monitor = create_monitor(lambda: say("checkpoint"), lambda: say("abort"))
monitor.start()
print("ready", flush=True)
while not monitor.process({"phi": 0.72}):
    time.sleep(0.005)
print(monitor.abort_reason, flush=True)
monitor.stop()
print("not reached", flush=True)
"""


def test_sigterm_saves_at_a_safe_point_and_the_parent_sees_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SIGNALLED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        out, _ = process.communicate(timeout=60)
    assert out.splitlines() == ["checkpoint", "abort", "Signal SIGTERM received"]
    assert process.returncode == -15


class Recording:
    """The part of a run that a collector uses."""

    name = "ocean-7"

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.flushed = 0

    def record(self, step: int, **metrics: Any) -> object:
        self.rows.append((step, metrics))
        return ()

    def flush(self) -> object:
        self.flushed += 1
        return None


def test_each_record_reaches_the_run_at_once_and_unmeasured_metrics_do_not() -> None:
    run = Recording()
    collector = TelemetryCollector(run)
    collector.collect(HEALTHY)
    collector.collect({"phi": 0.5, "loss": 2.0}, step=10)
    collector.collect({"phi": 0.6})
    assert [step for step, _ in run.rows] == [0, 10, 11]
    assert run.rows[0][1] == {
        "phi": 0.72, "kappa_eff": 64.2, "regime": "geometric", "basin_distance": 0.05,
        "recursion_depth": 5,
    }  # fmt: skip
    collector.flush()
    assert run.flushed == 1
    stats = collector.get_stats()
    assert (stats["session_id"], stats["total_collected"], stats["buffer_size"]) == (
        "ocean-7",
        3,
        0,
    )


def test_a_signal_between_check_and_return_runs_its_callbacks_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[str] = []
    monitor = create_monitor(lambda: called.append("checkpoint"), lambda: called.append("abort"))
    check = monitor.abort_handler.check_telemetry

    def check_then_signal(*given: Any, **more: Any) -> Any:
        result = check(*given, **more)
        monkeypatch.setattr(monitor.abort_handler, "_signalled", lambda: "Signal SIGTERM received")
        return result

    monkeypatch.setattr(monitor.abort_handler, "check_telemetry", check_then_signal)
    assert monitor.process(HEALTHY) is True
    assert called == ["checkpoint", "abort"]
    assert monitor.abort_reason == "Signal SIGTERM received"


def test_a_record_and_its_dictionary_give_the_same_row() -> None:
    run = Recording()
    collector = TelemetryCollector(run)
    assert collector.collect(HEALTHY, step=3) == 3
    assert collector.collect({**HEALTHY.to_dict(), "emergency": True, "step": 7}) == 7
    assert collector.collect({"phi": 0.5, "step": 9}, step=8) == 8
    assert collector.collect({"phi": 0.5}) == 9
    assert run.rows[0][1] == run.rows[1][1]
    assert [step for step, _ in run.rows] == [3, 7, 8, 9]


def test_what_cannot_be_recorded_is_refused_and_not_counted() -> None:
    class Strict(Recording):
        def record(self, step: int, **metrics: Any) -> object:
            raise InvalidInput("phi", metrics["phi"], "a real number")

    collector = TelemetryCollector(Strict())
    with pytest.raises(InvalidInput, match="'phi'"):
        collector.collect({"phi": "text"})
    assert collector.get_stats()["total_collected"] == 0


def test_records_from_many_threads_get_steps_of_their_own() -> None:
    run = Recording()
    collector = TelemetryCollector(run)

    def work() -> None:
        for _ in range(200):
            collector.collect({"phi": 0.7})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [step for step, _ in run.rows] == list(range(800))


def test_without_a_run_the_newest_stay_in_memory_and_the_rest_is_counted() -> None:
    collector = TelemetryCollector(kept_max=3)
    for _ in range(5):
        collector.collect({"phi": 0.7})
    assert [step for step, _ in collector.recent()] == [2, 3, 4]
    stats = collector.get_stats()
    assert (stats["total_collected"], stats["buffer_size"], stats["dropped"]) == (5, 3, 2)


def test_the_monitor_records_what_led_to_the_abort() -> None:
    run, called = Recording(), []
    with create_monitor(lambda: called.append("checkpoint"), run=run) as monitor:
        assert monitor.process(HEALTHY) is False
        assert monitor.process(ConsciousnessTelemetry(phi=0.30)) is True
        assert monitor.process(HEALTHY) is True
    assert [row["phi"] for _, row in run.rows] == [0.72, 0.30, 0.72]
    assert called == ["checkpoint"]
    assert run.flushed == 1
    status = monitor.get_stats()["abort_status"]
    assert status == {"triggered": True, "reason": "Consciousness collapse", "failures": []}
