"""Mode "offline", mode "off", and a disk that takes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from places import new_database
from processes import wait_until
from unreached import FRESH, NOWHERE, child, spools, stored, train

import qigstore
from qigstore.database.engine import Database
from qigstore.repository import Store
from qigstore.safety import Finite

pytestmark = pytest.mark.usefixtures("home")


def offline(name: str = "s", **more: Any) -> qigstore.Run:
    return qigstore.session(name, **{"mode": "offline", "quiet": True, **more})


# -- offline -----------------------------------------------------------------------------------


OFFLINE_SAVED = {(1, 19, "regular"), (2, 29, "regular"), (2, 35, "emergency")}


def rows_of_checkpoints(store: Store) -> set[tuple[int, int, str]]:
    found = store.checkpoints.list(store.sessions.get("s").id)
    return {(c.attempt, c.step, c.kind) for c in found}


def test_offline_rows_checkpoints_and_events_wait_and_arrive_once(
    home: Path, dsn: str, store: Store
) -> None:
    rules = [Finite("loss", action="abort")]
    with offline(config={"lr": 0.1}) as first:
        assert train(first, 25)["step"] == 25
        assert first.attempt == 1
        health = first.health
        assert health is not None
        assert (health.lag_rows, health.stored_rows, health.connected) == (25, 0, False)
        assert "offline" in (health.last_error or "")
        first.flush()
    # Recovery goes by the folders; a critical event is known from its file.
    second = offline(rules=rules, policy="newest").open()
    assert second.attempt == 2
    train(second, 60, nan_at=35)
    with pytest.raises(qigstore.EmergencyStop):
        second.close()
    with offline(settle_steps=10) as third:
        state = third.recover()
        assert third.decision is not None
        refused = {c.checkpoint.step: c.reason for c in third.decision.candidates if not c.healthy}
        assert state["step"] == 20
        assert set(refused) == {29, 35}
        assert "step 35" in refused[29]
        third.record(20, loss=1.0)
    assert not (home / "postgres").exists()
    assert len(spools(home)) == 3
    with qigstore.session("other", dsn=dsn, quiet=True) as run:
        run.record(0, loss=1.0)
        wait_until(
            lambda: not list((home / "spool" / "offline").iterdir()), "spools are shipped", 60
        )
        wait_until(lambda: rows_of_checkpoints(store) >= OFFLINE_SAVED, "and the index", 60)
    assert stored(store) == {1: list(range(25)), 2: list(range(20, 36)), 3: [20]}
    info = store.sessions.get("s")
    attempts = store.sessions.attempts(info.id)
    assert [a.status for a in attempts] == ["completed", "aborted", "completed"]
    assert [a.exit_status for a in attempts] == [0, 75, 0]
    assert [a.resumed_step for a in attempts] == [-1, 19, 19]
    assert attempts[0].config == {"lr": 0.1}
    assert all(a.ended_at is not None and a.ended_at >= a.started_at for a in attempts)
    (event,) = store.events.list(info.id)
    assert (event.attempt, event.step, event.severity) == (2, 35, "critical")
    with qigstore.session("s", dsn=dsn, quiet=True, settle_steps=10) as run:
        assert run.recover()["step"] == 20
        assert run.attempt == 4


def test_offline_says_at_the_end_how_many_rows_wait_and_where(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with offline(quiet=False) as run:
        run.record(0, loss=1.0)
        run.record(1, loss=1.0)
    said = capsys.readouterr().err
    assert "2 rows of session 's'" in said
    assert str(home / "spool" / "offline") in said
    assert "qigstore spool drain" in said


def test_offline_refuses_a_session_that_a_living_process_records(dsn: str, store: Store) -> None:
    with offline() as first:
        first.record(0, loss=1.0)
        with pytest.raises(qigstore.SessionBusy), offline():
            pytest.fail("two attempts at once")
        with pytest.raises(qigstore.SessionBusy, match="no database"):
            qigstore.session("s", dsn=dsn, quiet=True).open()
        with offline("t"):
            pass
    with qigstore.session("s", dsn=dsn, quiet=True) as run:
        assert run.attempt == 3  # the first was the one that was refused
    assert stored(store) == {1: [], 2: [0], 3: []}


@pytest.mark.parametrize("bad", [{"name": "a\nb"}, {"config": {"x": object()}}])
def test_offline_refuses_what_no_database_would_store(home: Path, bad: dict[str, Any]) -> None:
    given = {"name": "s", "mode": "offline", **bad}
    with pytest.raises(qigstore.InvalidInput):
        qigstore.session(**given).open()
    assert spools(home) == []


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_sigkill_without_a_database_loses_no_row(dsn: str, store: Store, mode: str) -> None:
    # Online, with a DSN where nothing answers: then the rows wait for that address.
    with child(mode, **({} if mode == "offline" else {"QIGSTORE_DSN": NOWHERE})) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(20)]
        process.kill()
        told += map(int, process.communicate()[0].splitlines())
    (spool,) = spools(Path(os.environ["QIGSTORE_HOME"]))
    with qigstore.session("s", dsn=dsn, quiet=True):
        pass
    if mode == "online":
        assert spool.exists(), "rows that wait for one address are not shipped to another"
        identity = json.loads(spool.read_text())
        identity["address"] = Database(dsn).address
        spool.write_text(json.dumps(identity))
        with qigstore.session("s", dsn=dsn, quiet=True):
            pass
    assert not spool.exists()
    recorded = max(stored(store).values(), key=len)
    assert recorded == list(range(len(recorded)))
    assert len(recorded) >= told[-1]


def test_rows_that_one_store_has_heard_of_go_to_no_other(
    dsn: str, store: Store, server_dsn: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qigstore.repository.telemetry import Telemetry

    with offline() as run:
        run.record(0, loss=1.0)

    def cut(*_: Any, **__: Any) -> None:
        raise qigstore.StoreUnavailable("nowhere", "cut")

    with monkeypatch.context() as patched:
        patched.setattr(Telemetry, "append", cut)
        with pytest.warns(RuntimeWarning, match="cut"):
            opened = qigstore.session("s", dsn=dsn, quiet=True, close_timeout_s=0.1).open()
        opened.close()
    with new_database(server_dsn, template) as other:
        with psycopg.connect(other) as connection:
            connection.execute("UPDATE qigstore.store SET id = gen_random_uuid()")
        with qigstore.session("s", dsn=other, quiet=True) as run:
            run.record(5, loss=1.0)
        elsewhere = Store(Database(other))
        assert stored(elsewhere) == {1: [5]}
        elsewhere.close()
    with qigstore.session("s", dsn=dsn, quiet=True):
        pass
    assert stored(store)[1] == [0]


# -- a disk that takes nothing -------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_data_folder_that_cannot_be_written_is_one_clear_error(
    dsn: str, home: Path, mode: str
) -> None:
    (home / "file").write_text("in the way")
    with pytest.raises(qigstore.QigstoreError, match="file"):
        qigstore.session("s", dsn=dsn, mode=mode, home=home / "file" / "data").open()


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_full_disk_at_the_start_is_one_clear_error(
    dsn: str, home: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qigstore.errors import SpoolFull
    from qigstore.recording.spool.segment import Disk

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Disk, "allocate", full)
    with pytest.raises(SpoolFull, match="No space left"):
        qigstore.session("s", dsn=dsn, mode=mode).open()
    assert spools(home) == []


# -- off ---------------------------------------------------------------------------------------


def test_mode_off_accepts_everything_and_does_nothing(home: Path) -> None:
    with qigstore.session("s", mode="off", dsn="host=nowhere.invalid") as run:
        state = run.recover(default=lambda: dict(FRESH))
        assert list(run.steps(state["step"], 3)) == [0, 1, 2]
        run.record(0, loss="anything")
        assert not run.checkpoint(state, step=0)
        assert (run.attempt, run.health, run.should_stop) == (0, None, False)
        run.set_reference_basin("anything")
        run.stop("no reason")
        run.flush()
        run.wait()
    assert list(home.iterdir()) == []


def test_mode_off_loads_nothing_heavy(home: Path) -> None:
    heavy = ("sqlalchemy", "psycopg", "alembic", "numpy", "scipy", "safetensors", "blake3", "rich")
    code = (
        "import sys, qigstore\n"
        "with qigstore.session('s') as run:\n"
        "    run.record(0, loss=1.0)\n"
        f"print(sorted(set(sys.modules) & set({heavy!r})))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "QIGSTORE_MODE": "off"},
    )  # fmt: skip
    assert shown.stdout.strip() == "[]"
    assert list(home.iterdir()) == []


def test_an_unknown_mode_is_refused_by_name() -> None:
    with pytest.raises(qigstore.ConfigurationError, match="mode"):
        qigstore.session("s", mode="on")


def test_a_forked_child_closes_nothing_of_its_parents_run(dsn: str, store: Store) -> None:
    with qigstore.session("s", dsn=dsn, quiet=True) as run:
        run.record(0, loss=1.0)
        child = os.fork()
        if child == 0:
            try:
                run.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        run.record(1, loss=1.0)
        (attempt,) = store.sessions.attempts(store.sessions.get("s").id)
        assert attempt.status == "running"
    assert stored(store) == {1: [0, 1]}
