"""The handle users hold, on a real server and in real processes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from processes import wait_until

import qigstore
from qigstore.repository import Store
from qigstore.safety import Finite, Threshold

pytestmark = pytest.mark.usefixtures("home")


def grow(state: dict[str, Any]) -> dict[str, Any]:
    return {"step": state["step"] + 1, "weights": [w + 1.0 for w in state["weights"]]}


FRESH = {"step": 0, "weights": [0.0, 0.0]}


def train(run: qigstore.Run, until: int, phi: Callable[[int], float] = lambda step: 0.8) -> Any:
    state = run.recover(default=FRESH)
    for step in run.steps(state["step"], until):
        state = grow(state)
        run.record(step, loss=1.0 / (step + 1), phi=phi(step))
        run.checkpoint(state, step=step, every=10)
    return state


def diverge(opened: qigstore.Run) -> None:
    """Φ rises with the step, so that the newest checkpoint is the best; loss is NaN at step 35."""
    with opened as run:
        state = run.recover(default=FRESH)
        for step in run.steps(0, 100):
            state = grow(state)
            loss = float("nan") if step == 35 else 1.0
            run.record(step, loss=loss, phi=0.5 + step / 1000)
            run.checkpoint(state, step=step, every=10)


def steps_of(store: Store, name: str) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    info = store.sessions.get(name)
    for attempt in store.sessions.attempts(info.id):
        rows = store.telemetry.rows(info.id, attempt=attempt.number)
        found[attempt.number] = [row.step for row in rows]
    return found


def test_a_run_records_every_row_and_a_second_one_goes_on(store: Store, dsn: str) -> None:
    with qigstore.session("s", dsn=dsn, quiet=True) as run:
        assert run.attempt == 1
        train(run, 25)
    with qigstore.session("s", dsn=dsn, quiet=True, policy="newest") as run:
        state = train(run, 40)
        assert run.attempt == 2
    assert state == {"step": 40, "weights": [40.0, 40.0]}
    assert steps_of(store, "s") == {1: list(range(25)), 2: list(range(20, 40))}
    info = store.sessions.get("s")
    assert [a.status for a in store.sessions.attempts(info.id)] == ["completed", "completed"]
    canonical = store.telemetry.canonical(info.id)
    assert [(row.attempt, row.step) for row in canonical] == [
        *((1, step) for step in range(20)),
        *((2, step) for step in range(20, 40)),
    ]


def test_an_alarm_stops_the_run_which_comes_back_from_a_healthy_checkpoint(
    store: Store, dsn: str
) -> None:
    # The checkpoint of step 29 ranks best, but lies within the settle time.
    options: dict[str, Any] = {"dsn": dsn, "quiet": True, "settle_steps": 10}
    with pytest.raises(qigstore.EmergencyStop) as stopped:
        diverge(qigstore.session("s", rules=[Finite("loss", action="abort")], **options))
    assert stopped.value.status == stopped.value.code == 75
    assert stopped.value.event is not None
    assert "loss = nan" in stopped.value.reason
    info = store.sessions.get("s")
    assert info.status == "aborted"
    assert steps_of(store, "s") == {1: list(range(36))}
    (event,) = store.events.list(info.id)
    assert (event.step, event.severity, event.id) == (35, "critical", stopped.value.event.id)
    with qigstore.session("s", **options) as run:
        state = run.recover()
        assert run.decision is not None
        assert run.decision.chosen is not None
        reasons = {c.checkpoint.step: c.reason for c in run.decision.candidates if not c.healthy}
        assert (run.decision.chosen.step, state["step"]) == (19, 20)
        assert set(reasons) == {29, 35}
        assert run.decision.skip_steps == (25, 45)
        assert list(run.steps(state["step"], 50)) == [*range(20, 25), *range(46, 50)]
    (first, second) = store.sessions.attempts(info.id)
    assert first.exit_status == 75
    assert second.resumed_step == 19


def test_a_session_that_measures_no_phi_goes_on_from_its_newest_healthy_checkpoint(
    store: Store, dsn: str
) -> None:
    rules = [Finite("loss", action="abort")]
    for attempt, (until, resumed) in enumerate([(25, None), (40, 19), (60, 39)], start=1):
        with qigstore.session("s", dsn=dsn, quiet=True, rules=rules) as run:
            state = run.recover(default=FRESH)
            for step in run.steps(state["step"], until):
                state = grow(state)
                run.record(step, loss=1.0)
                run.checkpoint(state, step=step, every=10)
        info = store.sessions.attempts(store.sessions.get("s").id)[attempt - 1]
        assert info.resumed_step == (-1 if resumed is None else resumed)


def test_a_failure_of_the_training_code_is_stored_and_passed_on(store: Store, dsn: str) -> None:
    def fail() -> None:
        with qigstore.session("s", dsn=dsn, quiet=True) as run:
            run.record(0, loss=1.0)
            run.record(1, loss=1 / 0)

    with pytest.raises(ZeroDivisionError):
        fail()
    info = store.sessions.get("s")
    (attempt,) = store.sessions.attempts(info.id)
    assert (attempt.status, attempt.reason) == ("failed", "ZeroDivisionError: division by zero")
    assert steps_of(store, "s") == {1: [0]}


def test_bad_input_is_refused_by_name_and_nothing_of_the_row_is_kept(
    store: Store, dsn: str
) -> None:
    with qigstore.session("s", dsn=dsn, quiet=True) as run:
        for bad in ("text", [1.0], object(), 1j):
            with pytest.raises(qigstore.InvalidInput, match="'loss'"):
                run.record(0, phi=0.5, loss=bad)
        with pytest.raises(qigstore.InvalidInput):
            run.record(-1, loss=1.0)
        with pytest.raises(qigstore.ConfigurationError, match="every=0"):
            run.checkpoint({}, step=0, every=0)
        run.record(0, loss=1.0)
    assert steps_of(store, "s") == {1: [0]}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        *((name, "another name") for name in ("step", "seq", "session", "recorded_at", "custom")),
        ("nul\0", "control"),
        ("", "1 to 200"),
        ("x" * (1 << 20), "1 to 200"),
        ("\ud800", "Unicode"),
    ],
)
def test_a_name_that_cannot_be_a_metric_is_refused_at_the_call(
    store: Store, dsn: str, name: str, told: str
) -> None:
    with qigstore.session("s", dsn=dsn, quiet=True) as run:
        with pytest.raises(qigstore.InvalidInput, match=told) as refused:
            run.record(0, loss=1.0, **{name: 1.0})
        assert len(str(refused.value)) < 400
        with pytest.raises(qigstore.InvalidInput, match="10000 of them"):
            run.record(0, **{f"m{number}": 1.0 for number in range(10_000)})
        run.record(1, loss=1.0)
    assert steps_of(store, "s") == {1: [1]}


@pytest.mark.parametrize("given", [{"name": "a\0b"}, {"name": ""}, {"config": {"x": object()}}])
def test_a_name_or_configuration_that_cannot_be_stored_is_refused(
    store: Store, dsn: str, home: Path, given: dict[str, Any]
) -> None:
    with pytest.raises(qigstore.InvalidInput):
        qigstore.session(**{"name": "s", "dsn": dsn, **given}).open()
    assert store.sessions.list() == []
    assert not list((home / "spool").glob("*/*/spool.json"))


def test_of_a_repeated_step_the_last_record_wins_and_a_step_may_go_back(
    store: Store, dsn: str
) -> None:
    with qigstore.session("s", dsn=dsn, quiet=True) as run:
        for step, loss in ((0, 1.0), (5, 2.0), (5, 3.0), (2, 4.0), (0, 5.0)):
            run.record(step, loss=loss)
        run.flush()
        run.record(2, loss=6.0)
        run.flush()
        health = run.health
        assert health is not None
        assert (health.stored_rows, health.repeated_rows) == (6, 3)
    info = store.sessions.get("s")
    rows = store.telemetry.rows(info.id)
    assert [(row.step, row.seq, row.metrics["loss"]) for row in rows] == [
        (0, 5, 5.0), (2, 6, 6.0), (5, 3, 3.0)
    ]  # fmt: skip


def test_a_run_that_is_not_open_says_so_instead_of_losing_rows(dsn: str) -> None:
    run = qigstore.session("s", dsn=dsn, quiet=True)
    calls: list[Callable[[], object]] = [
        lambda: run.record(0, loss=1.0),
        lambda: run.recover(default=FRESH),
        lambda: run.checkpoint(FRESH, step=0),
        run.flush,
        run.wait,
        lambda: run.stop("no"),
    ]
    for _ in range(2):
        for call in calls:
            with pytest.raises(qigstore.ConfigurationError, match="'s' is not open"):
                call()
        run.open()
        run.close()


def test_telemetry_objects_are_rows_and_an_emergency_leaves_the_loop(
    store: Store, dsn: str
) -> None:
    from qigkernels.telemetry import ConsciousnessTelemetry
    from qigstore.safety import create_monitor

    called: list[str] = []
    with qigstore.session("s", dsn=dsn, quiet=True) as run:
        monitor = create_monitor(lambda: called.append("checkpoint"), run=run)
        with monitor:
            for step in range(10):
                phi = 0.3 if step == 7 else 0.72
                telemetry = ConsciousnessTelemetry(phi=phi, kappa_eff=64.0, recursion_depth=3)
                if monitor.process(telemetry):
                    break
        # Leaving the monitor has flushed: what led to the abort is in the database.
        rows = store.telemetry.rows(store.sessions.get("s").id)
        assert [row.metrics["phi"] for row in rows] == [0.72] * 7 + [0.3]
    assert called == ["checkpoint"]
    assert dict(rows[0].metrics) == {"phi": 0.72, "kappa_eff": 64.0, "recursion_depth": 3.0}
    assert monitor.get_stats()["telemetry"]["total_collected"] == 8


def test_a_session_that_a_living_process_records_is_refused_or_taken_over(
    store: Store, dsn: str
) -> None:
    first = qigstore.session("s", dsn=dsn, quiet=True).open()
    first.record(0, loss=1.0)
    first.flush()
    with (
        pytest.raises(qigstore.SessionBusy, match="takeover=True"),
        qigstore.session("s", dsn=dsn, quiet=True),
    ):
        pytest.fail("two attempts at once")
    with qigstore.session("s", dsn=dsn, quiet=True, takeover=True) as second:
        second.record(0, loss=2.0)
        first.record(1, loss=3.0)
        with pytest.raises(qigstore.NotStored, match="later process took over"):
            first.flush(timeout_s=60)
    with pytest.raises(qigstore.NotStored, match="later process took over"):
        first.close()
    newest = store.sessions.attempts(store.sessions.get("s").id)[-1]
    assert newest.status == "completed"
    assert steps_of(store, "s")[newest.number] == [0]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"policy": "luckiest"}, "expected one of best, newest, best_recent"),
        ({"spool_bytes_max": "much"}, "spool_bytes_max"),
        ({"colour": "red"}, "colour"),
        ({"rules": "no-such-preset"}, "no rules preset 'no-such-preset'"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(given: dict[str, Any], error: str) -> None:
    with (
        pytest.raises(qigstore.ConfigurationError, match=error),
        qigstore.session("s", dsn="host=nowhere.invalid", **given),
    ):
        pytest.fail("opened")


def test_a_data_folder_that_cannot_be_written_is_one_clear_error(dsn: str, home: Path) -> None:
    (home / "file").write_text("in the way")
    with (
        pytest.raises(qigstore.QigstoreError, match="file"),
        qigstore.session("s", dsn=dsn, home=home / "file" / "data"),
    ):
        pytest.fail("opened")


def test_an_emergency_checkpoint_is_asked_for_and_training_goes_on(store: Store, dsn: str) -> None:
    rules = [Threshold("loss", above=5.0, action="checkpoint", severity="warning")]
    with qigstore.session("s", dsn=dsn, quiet=True, rules=rules) as run:
        state = FRESH
        for step in run.steps(0, 20):
            state = grow(state)
            run.record(step, loss=9.0 if step == 12 else 1.0, phi=0.8)
            run.checkpoint(state, step=step, every=10)
    info = store.sessions.get("s")
    kinds = {c.step: c.kind for c in store.checkpoints.list(info.id)}
    assert kinds == {9: "regular", 12: "emergency", 19: "regular"}
    assert info.status == "completed"


CHILD = """
import sys, time
import qigstore
with qigstore.session("s", quiet=True) as run:
    state = run.recover(default={"step": 0, "weights": [0.0]})
    for step in run.steps(state["step"], 10**8):
        state = {"step": step + 1, "weights": [step * 1.0]}
        run.record(step, loss=1.0, phi=0.8)
        run.checkpoint(state, step=step, every=10**8)
        if step % 10 == 9:
            print(step, flush=True)
        time.sleep(0.001)
"""


@contextmanager
def child(dsn: str, code: str = CHILD) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "QIGSTORE_DSN": dsn},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_step(process: subprocess.Popen[str], wanted: int) -> int:
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= wanted:
            return int(line)
    _, errors = process.communicate()
    pytest.fail(f"the child ended early: {errors}")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_its_true_status(
    store: Store, dsn: str, signum: signal.Signals
) -> None:
    with child(dsn) as process:
        wait_for_step(process, 50)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == -signum, errors
    info = store.sessions.get("s")
    (attempt,) = store.sessions.attempts(info.id)
    assert (attempt.status, attempt.exit_status) == ("aborted", 128 + signum)
    (event,) = store.events.list(info.id)
    assert (event.rule, event.severity) == (signum.name, "warning")
    (recorded,) = steps_of(store, "s").values()
    assert recorded == list(range(len(recorded)))
    (saved,) = store.checkpoints.list(info.id)
    # A good state, saved because someone asked: fit to go on from, and the newest there is.
    assert (saved.kind, saved.step) == ("regular", recorded[-1])


def test_sigkill_loses_no_row_and_the_next_attempt_ships_them(store: Store, dsn: str) -> None:
    with child(dsn) as process:
        wait_for_step(process, 200)
        process.kill()
        rest, _ = process.communicate()
        told = [int(line) for line in rest.splitlines()]
    with qigstore.session("s", dsn=dsn, quiet=True) as run:
        assert run.attempt == 2
        info = store.sessions.get("s")
        first = store.sessions.attempts(info.id)[0]
        assert first.status == "lost"
    recorded = steps_of(store, "s")[1]
    assert recorded == list(range(len(recorded)))
    assert recorded[-1] >= max([200, *told])


def test_a_spool_that_another_process_ships_is_waited_for_not_taken_for_alive(
    store: Store, dsn: str, home: Path
) -> None:
    with child(dsn) as process:
        wait_for_step(process, 50)
        process.kill()
    (lock,) = (home / "spool").glob("*/*/owner.lock")
    shipper = threading.Event()

    def hold() -> None:
        descriptor = os.open(lock, os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        shipper.set()
        time.sleep(1.0)
        os.close(descriptor)

    thread = threading.Thread(target=hold)
    thread.start()
    shipper.wait()
    with qigstore.session("s", dsn=dsn, quiet=True) as run:
        assert run.attempt == 2
        recorded = steps_of(store, "s")[1]
    thread.join()
    assert recorded == list(range(len(recorded)))
    assert len(recorded) > 50


def test_rows_of_one_store_are_never_shipped_into_another(
    dsn: str, store: Store, server_dsn: str, template: str
) -> None:
    from places import new_database

    from qigstore.database.engine import Database

    with child(dsn) as process:
        wait_for_step(process, 50)
        process.kill()
    with new_database(server_dsn, template) as other:
        # The copy has the template's id; a store of its own has its own.
        with psycopg.connect(other) as connection:
            connection.execute("UPDATE qigstore.store SET id = gen_random_uuid()")
        with qigstore.session("t", dsn=other, quiet=True) as run:
            run.record(0, loss=1.0)
        elsewhere = Store(Database(other))
        assert [info.name for info in elsewhere.sessions.list()] == ["t"]
        elsewhere.close()
    with qigstore.session("t", dsn=dsn, quiet=True):
        wait_until(lambda: len(steps_of(store, "s").get(1, ())) > 50, "they are shipped", 60)


def test_the_database_may_go_away_and_come_back(store: Store, dsn: str, server_dsn: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]

    def sever(connection: psycopg.Connection[Any], *, allow: bool) -> None:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {str(allow).lower()}")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )

    with (
        psycopg.connect(server_dsn, autocommit=True) as admin,
        qigstore.session("s", dsn=dsn, quiet=True) as run,
    ):
        for step in range(100):
            run.record(step, loss=1.0)
        run.flush()
        sever(admin, allow=False)
        for step in range(100, 1000):
            run.record(step, loss=1.0)
        wait_until(lambda: run.health is not None and not run.health.connected, "it knows", 60)
        health = run.health
        assert health is not None
        assert health.last_error is not None
        assert health.lag_rows == 900
        sever(admin, allow=True)
        run.flush(timeout_s=120)
        health = run.health
        assert health is not None
        assert (health.connected, health.lag_rows, health.dropped_rows) == (True, 0, 0)
    assert steps_of(store, "s") == {1: list(range(1000))}


def test_the_limit_of_silence_is_the_runs_own_with_a_database_or_without(
    store: Store, dsn: str
) -> None:
    def limits(name: str) -> list[float]:
        attempts = store.sessions.attempts(store.sessions.get(name).id)
        return [attempt.heartbeat_limit_s for attempt in attempts]

    with qigstore.session("s", dsn=dsn, quiet=True, heartbeat_limit_s=77.0):
        assert limits("s") == [77.0]
    with qigstore.session("t", mode="offline", quiet=True, heartbeat_limit_s=5.0) as run:
        run.record(0, loss=1.0)
    with qigstore.session("t", dsn=dsn, quiet=True):
        assert limits("t") == [5.0, 30.0]
