"""A run that wants its database and cannot have it when it opens: it trains, and stores later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from processes import wait_until
from unreached import FRESH, NOWHERE, child, spools, stored, train

import qigstore
from qigstore.database.engine import Database
from qigstore.database.migrate import upgrade
from qigstore.repository import Store
from qigstore.repository.sessions import Sessions
from qigstore.safety import Finite

pytestmark = pytest.mark.usefixtures("home")


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
        # What the collector says of other tests' leavings meanwhile is no warning of ours.
        assert [w.category for w in warned].count(RuntimeWarning) == 1
        state = train(run, 25, nan_at=12)
        health = run.health
        assert health is not None
        assert (health.connected, health.lag_rows) == (False, 25)
        assert health.last_error is not None
        refuse_connections(admin, name, refuse=False)
        run.flush(timeout_s=120)
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
                       "rows arrive", 120)  # fmt: skip
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
    said = [str(w.message) for w in warned if w.category is RuntimeWarning]
    told = str(waiting.value) + "".join(said) + spools(home)[0].read_text()
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
        run = qigstore.session("s", dsn=empty_dsn, quiet=True, close_timeout_s=120.0).open()
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
    store.sessions.open_attempt(
        session.id, uuid4(), host="another host", pid=7, config={}, heartbeat_limit_s=3600.0
    )
    store.database.engine.dispose()
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        refuse_connections(admin, name, refuse=True)
        with pytest.warns(RuntimeWarning, match="Training goes on"):
            run = qigstore.session("s", dsn=dsn, quiet=True).open()
        run.record(0, loss=1.0)
        refuse_connections(admin, name, refuse=False)
        run.flush(timeout_s=120)
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


# -- a database that goes as the run closes -------------------------------------------------------


def test_the_end_is_told_again_where_the_database_is_away_for_a_moment(
    dsn: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell, told = Sessions.close_attempt, []

    def cut(self: Sessions, *args: Any, **more: Any) -> bool:
        told.append(args)
        if len(told) == 1:
            raise qigstore.StoreUnavailable("nowhere", "cut before")
        done = tell(self, *args, **more)
        if len(told) == 2:
            raise qigstore.StoreUnavailable("nowhere", "cut after")
        return done

    with qigstore.session("s", dsn=dsn, quiet=True) as run:
        run.record(0, loss=1.0)
        run.flush()
        monkeypatch.setattr(Sessions, "close_attempt", cut)
    assert len(told) == 3
    (attempt,) = store.sessions.attempts(store.sessions.get("s").id)
    assert attempt.status == "completed"


def test_an_end_that_nobody_hears_is_an_error_and_no_row_waits(
    home: Path, dsn: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: Any, **__: Any) -> bool:
        raise qigstore.StoreUnavailable("nowhere", "gone for good")

    run = qigstore.session("s", dsn=dsn, quiet=True, close_timeout_s=0.5).open()
    run.record(0, loss=1.0)
    with monkeypatch.context() as patched:
        patched.setattr(Sessions, "close_attempt", cut)
        with pytest.raises(qigstore.StoreUnavailable, match="gone for good"):
            run.close()
    assert stored(store) == {1: [0]}
    assert spools(home) == []
