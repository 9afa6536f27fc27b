"""With no database in reach: offline, away at the start, refusing us; and with nothing at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from places import new_database
from processes import wait_until

import qigstore
from qigstore.database.engine import Database
from qigstore.database.migrate import upgrade
from qigstore.repository import Store
from qigstore.safety import Finite

pytestmark = pytest.mark.usefixtures("home")

FRESH = {"step": 0, "weights": [0.0]}
NOWHERE = "postgresql://me:s3cret@127.0.0.1:1/x"


def train(run: qigstore.Run, until: int, *, nan_at: int = -1) -> Any:
    """Φ rises with the step, so that the newest checkpoint is the best."""
    state = run.recover(default=FRESH)
    for step in run.steps(state["step"], until):
        state = {"step": step + 1, "weights": [float(step)]}
        run.record(step, loss=float("nan") if step == nan_at else 1.0, phi=0.5 + step / 1000)
        run.checkpoint(state, step=step, every=10)
    return state


def offline(name: str = "s", **more: Any) -> qigstore.Run:
    return qigstore.session(name, **{"mode": "offline", "quiet": True, **more})


def stored(store: Store, name: str = "s") -> dict[int, list[int]]:
    info = store.sessions.get(name)
    return {
        attempt.number: [r.step for r in store.telemetry.rows(info.id, attempt=attempt.number)]
        for attempt in store.sessions.attempts(info.id)
    }


def spools(home: Path) -> list[Path]:
    return sorted((home / "spool").glob("*/*/spool.json"))


# -- offline -----------------------------------------------------------------------------------


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
        wait_until(lambda: not list((home / "spool" / "offline").iterdir()), "spools are shipped")
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
    index = {(c.attempt, c.step, c.kind) for c in store.checkpoints.list(info.id)}
    assert index >= {(1, 19, "regular"), (2, 29, "regular"), (2, 35, "emergency")}
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


CHILD = """
import sys
import qigstore
run = qigstore.session("s", mode=sys.argv[1], quiet=True).open()
step = 0
while True:
    run.record(step, loss=float(step))
    step += 1
    if step % 100 == 0:
        print(step, flush=True)
"""


@contextmanager
def child(mode: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CHILD, mode], text=True,
        env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


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

    def cut(*_: Any) -> None:
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


# -- online, but the database cannot be had when the run opens ----------------------------------


def refuse_connections(admin: psycopg.Connection[Any], name: str, *, refuse: bool) -> None:
    admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {str(not refuse).lower()}")


def test_a_database_away_at_the_start_is_one_warning_and_the_rows_arrive_when_it_is_back(
    home: Path, server_dsn: str, dsn: str
) -> None:
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        refuse_connections(admin, name, refuse=True)
        with pytest.warns(RuntimeWarning, match="Training goes on") as warned:
            run = qigstore.session(
                "s", dsn=dsn, quiet=True, rules=[Finite("loss", action="checkpoint")]
            ).open()
        assert len(warned) == 1
        state = train(run, 25, nan_at=12)
        health = run.health
        assert health is not None
        assert (health.connected, health.lag_rows) == (False, 25)
        assert health.last_error is not None
        refuse_connections(admin, name, refuse=False)
        run.flush(timeout_s=60)
        run.record(25, loss=1.0)
        run.checkpoint({**state, "step": 26}, step=25)
        run.wait()
        health = run.health
        assert health is not None
        assert (health.connected, health.last_error) == (True, None)
        run.close()
    with Store(Database(dsn)) as store:
        assert stored(store) == {1: list(range(26))}
        info = store.sessions.get("s")
        (attempt,) = store.sessions.attempts(info.id)
        assert (attempt.status, attempt.resumed_step) == ("completed", -1)
        (event,) = store.events.list(info.id)
        assert (event.step, event.attempt, event.session_id) == (12, 1, info.id)
        kept = {(c.attempt, c.step) for c in store.checkpoints.list(info.id, status="committed")}
        assert kept >= {(1, 19), (1, 25)}
    assert spools(home) == []


def test_sigkill_after_a_late_connection_neither_loses_nor_doubles_a_row(
    home: Path, server_dsn: str, dsn: str, store: Store
) -> None:
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        refuse_connections(admin, name, refuse=True)
        with child("online", QIGSTORE_DSN=dsn) as process:
            assert process.stdout is not None
            told = [int(process.stdout.readline()) for _ in range(3)]
            refuse_connections(admin, name, refuse=False)
            wait_until(lambda: any(stored(store).values()) if store.sessions.list() else False,
                       "rows arrive", 60)  # fmt: skip
            process.kill()
            told += map(int, process.communicate()[0].splitlines())
    (spool,) = spools(home)
    notes = json.loads((spool.parent / "attempt.json").read_text())
    assert notes["store"] == str(store.id)
    with qigstore.session("s", dsn=dsn, quiet=True):
        pass
    assert spools(home) == []
    found = stored(store)
    assert found[1] == list(range(len(found[1])))
    assert len(found[1]) >= told[-1]
    assert found[2] == []


def test_an_embedded_server_that_starts_late_gets_the_rows(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qigstore.database.embedded import EmbeddedServer
    from qigstore.errors import EmbeddedServerError

    whole, failures = EmbeddedServer.start, 2

    def fail_twice(*given: Any, **more: Any) -> EmbeddedServer:
        nonlocal failures
        if failures:
            failures -= 1
            raise EmbeddedServerError("the embedded server", "no space left on device")
        return whole(*given, **more)

    monkeypatch.setattr(EmbeddedServer, "start", fail_twice)
    with pytest.warns(RuntimeWarning, match="no space left"):
        run = qigstore.session("s", quiet=True).open()
    run.record(0, loss=1.0)
    run.flush(timeout_s=120)
    run.close()
    with qigstore.open_store() as store:
        assert stored(store) == {1: [0]}
    assert spools(home) == []


def test_a_database_away_for_the_whole_run_is_said_at_the_end(home: Path) -> None:
    with pytest.warns(RuntimeWarning, match="127.0.0.1:1") as warned:
        run = qigstore.session("s", dsn=NOWHERE, quiet=True, close_timeout_s=0.2).open()
    train(run, 15)
    for step in range(15, 100):
        run.checkpoint(FRESH, step=step, every=10)
    run.wait()
    # Retention goes by the folders: the disk does not fill up while the database is away.
    assert 3 <= len(list((home / "checkpoints").glob("*/*/manifest.json"))) <= 7
    with pytest.raises(qigstore.NotStored) as waiting:
        run.close()
    assert (waiting.value.rows, waiting.value.spool.parent.name) == (15, "offline")
    told = str(waiting.value) + str(warned[0].message) + spools(home)[0].read_text()
    assert "s3cret" not in told
    notes = json.loads((spools(home)[0].parent / "attempt.json").read_text())
    assert (notes["status"], notes["exit_status"]) == ("completed", 0)


def test_a_login_that_is_refused_is_a_warning_that_says_so(server_dsn: str, dsn: str) -> None:
    role = "qigstore_locked_out"
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(f"DROP ROLE IF EXISTS {role}")
        admin.execute(f"CREATE ROLE {role} NOLOGIN")
        try:
            wrong = psycopg.conninfo.make_conninfo(dsn, user=role, password="s3cret")
            with pytest.warns(RuntimeWarning, match=f"{role}.*not permitted to log in|password"):
                run = qigstore.session("s", dsn=wrong, quiet=True, close_timeout_s=0.2).open()
            run.record(0, loss=1.0)
            health = run.health
            assert health is not None
            assert role in (health.last_error or "")
            assert "s3cret" not in (health.last_error or "")
            with pytest.raises(qigstore.NotStored):
                run.close()
        finally:
            admin.execute(f"DROP ROLE {role}")


def test_an_outdated_schema_is_a_warning_and_the_upgrade_brings_the_rows(empty_dsn: str) -> None:
    with pytest.warns(RuntimeWarning, match="qigstore db upgrade"):
        run = qigstore.session("s", dsn=empty_dsn, quiet=True).open()
    run.record(0, loss=1.0)
    health = run.health
    assert health is not None
    assert "qigstore db upgrade" in (health.last_error or "")
    database = Database(empty_dsn)
    upgrade(database)
    run.close()
    assert stored(Store(database)) == {1: [0]}
    database.dispose()


def test_a_database_that_goes_away_in_the_middle_of_opening_leaves_nothing_half(
    home: Path, dsn: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qigstore.repository.writers import Writers

    whole, cuts = Writers.register, 1

    def cut_once(self: Writers, *given: Any) -> Any:
        nonlocal cuts
        if cuts:
            cuts -= 1
            raise qigstore.StoreUnavailable("nowhere", "cut")
        return whole(self, *given)

    monkeypatch.setattr(Writers, "register", cut_once)
    with pytest.warns(RuntimeWarning, match="cut"):
        run = qigstore.session("s", dsn=dsn, quiet=True).open()
    run.record(0, loss=1.0)
    run.close()
    assert spools(home) == []
    assert stored(store) == {1: [], 2: [0]}
    attempts = store.sessions.attempts(store.sessions.get("s").id)
    assert [attempt.status for attempt in attempts] == ["failed", "completed"]
    assert store.events.list() == []


def test_a_second_living_attempt_is_reported_once_the_database_is_back(
    home: Path, dsn: str, store: Store, server_dsn: str
) -> None:
    session = store.sessions.open("s", {})
    store.sessions.open_attempt(session.id, uuid4(), host="another host", pid=7, config={})
    store.database.engine.dispose()
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        refuse_connections(admin, name, refuse=True)
        with pytest.warns(RuntimeWarning, match="Training goes on"):
            run = qigstore.session("s", dsn=dsn, quiet=True).open()
        run.record(0, loss=1.0)
        refuse_connections(admin, name, refuse=False)
        run.flush(timeout_s=60)
        assert run.attempt == 2
        run.close()
    (event,) = store.events.list(session.id)
    assert (event.rule, event.attempt) == ("second attempt", 2)
    assert "another host" in event.message


def test_recovery_goes_by_the_folders_while_the_database_is_away(
    dsn: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with qigstore.session("s", dsn=dsn, quiet=True) as run:
        train(run, 25)
    with qigstore.session("s", dsn=dsn, quiet=True) as run:
        from qigstore.repository.sessions import Sessions

        def cut(*_: Any, **__: Any) -> None:
            raise qigstore.StoreUnavailable("nowhere", "cut")

        with monkeypatch.context() as patched:
            patched.setattr(Sessions, "attempts", cut)
            with pytest.warns(RuntimeWarning, match="by the folders alone"):
                assert run.recover()["step"] == 20
    # What was chosen meanwhile is told at the end.
    attempts = store.sessions.attempts(store.sessions.get("s").id)
    assert [attempt.resumed_step for attempt in attempts] == [-1, 19]


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
        time.sleep(0.05)
        run.record(1, loss=1.0)
        (attempt,) = store.sessions.attempts(store.sessions.get("s").id)
        assert attempt.status == "running"
    assert stored(store) == {1: [0, 1]}
