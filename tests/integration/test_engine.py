"""Reaching the database: addresses, settings of a session, failures, forks, first opening."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from places import CONNECT_S
from processes import run_python, servers_in, wait_until
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import text

from qigstore.database.embedded import EmbeddedServer, kept_port
from qigstore.database.engine import Database, open_database, parse_dsn, require_version
from qigstore.errors import ConfigurationError, SchemaOutdated, StoreDenied, StoreUnavailable
from qigstore.settings import load_settings

SECRET = "s3cr3t-p@ss/word"
QUOTED = "s3cr3t-p%40ss%2Fword"


@pytest.mark.parametrize(
    ("dsn", "address"),
    [
        (f"postgresql://u:{QUOTED}@h:6543/d", "postgresql://u:***@h:6543/d"),
        (f"postgres://u:{QUOTED}@h/d", "postgresql://u:***@h:5432/d"),
        (f"postgresql+psycopg://u:{QUOTED}@h/d", "postgresql://u:***@h:5432/d"),
        (f"host=h user=u password='{SECRET}' dbname=d", "postgresql://u:***@h:5432/d"),
        ("host=/run/pg dbname=d", "postgresql:///d?host=/run/pg&port=5432"),
        (
            f"postgresql://u:{QUOTED}@a,b:6543/d?target_session_attrs=read-write",
            "postgresql://u:***@a:5432,b:6543/d?target_session_attrs=read-write",
        ),
    ],
)
def test_every_form_of_address_is_read_and_its_password_masked(
    dsn: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    database = Database(dsn)
    assert database.address == address
    assert repr(database) == f"Database({address!r})"
    assert parse_dsn(dsn).get("password") in (None, SECRET)


@pytest.mark.parametrize(
    "dsn", [f"mysql://u:{QUOTED}@h/d", f"postgresql://u:{SECRET}@h:x y/d", f"hots={SECRET}"]
)
def test_an_unreadable_address_is_refused_without_showing_its_password(dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="expected") as caught:
        Database(dsn)
    shown = "".join(traceback.format_exception(caught.value))
    assert "s3cr3t" not in str(caught.value)
    assert "s3cr3t" not in shown


def test_variables_of_libpq_name_the_server(
    empty_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = conninfo_to_dict(empty_dsn)
    for name, variable in (
        ("host", "PGHOST"),
        ("port", "PGPORT"),
        ("user", "PGUSER"),
        ("password", "PGPASSWORD"),
        ("dbname", "PGDATABASE"),
    ):
        if name in given:
            monkeypatch.setenv(variable, str(given[name]))
    database = Database("")
    database.ping()
    assert str(given["dbname"]) in database.address
    assert str(given.get("password", "***")) not in database.address
    database.dispose()


def _settings(database: Database) -> tuple[str, ...]:
    names = ("statement_timeout", "timezone", "application_name", "client_encoding")
    with database.begin() as connection:
        return tuple(connection.execute(text(f"SHOW {name}")).scalar_one() for name in names)


@pytest.mark.parametrize("prepare_threshold", [5, None], ids=["direct", "pooler"])
def test_each_transaction_has_our_settings(empty_dsn: str, prepare_threshold: int | None) -> None:
    dsn = make_conninfo(empty_dsn, options="-c work_mem=5MB")
    if prepare_threshold is None:
        dsn = empty_dsn
    database = Database(dsn, statement_timeout_s=7.5, prepare_threshold=prepare_threshold)
    for _ in range(2):
        assert _settings(database) == ("7500ms", "UTC", "qigstore", "UTF8")
    if prepare_threshold is not None:
        with database.begin() as connection:
            assert connection.execute(text("SHOW work_mem")).scalar_one() == "5MB"
    database.dispose()


@pytest.mark.parametrize(("threshold", "expected"), [(1, True), (None, False)])
def test_behind_a_pooler_nothing_is_prepared(
    empty_dsn: str, threshold: int | None, expected: bool
) -> None:
    database = Database(empty_dsn, pool_size=1, prepare_threshold=threshold)
    for number in range(8):
        with database.begin() as connection:
            connection.execute(text("SELECT CAST(:number AS int)"), {"number": number})
    with database.begin() as connection:
        count = connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one()
    assert (count > 0) is expected
    database.dispose()


def _insert_and_fail(execute: Callable[[str], object]) -> None:
    execute("INSERT INTO kept VALUES (2)")
    raise ZeroDivisionError


def _terminate(admin: psycopg.Connection, execute: Callable[[str], Any]) -> None:
    """End the session that `execute` speaks in, and use it once more."""
    pid = execute("SELECT pg_backend_pid()").fetchone()[0]
    admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
    execute("SELECT 1")


def test_a_block_commits_or_leaves_nothing(empty_dsn: str) -> None:
    database = Database(empty_dsn)
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE kept (number int PRIMARY KEY)"))
    with database.raw() as driver, driver.cursor().copy("COPY kept FROM STDIN") as copy:
        copy.write_row((1,))
    with pytest.raises(ZeroDivisionError), database.raw() as driver:
        _insert_and_fail(driver.execute)
    with pytest.raises(ZeroDivisionError), database.begin() as connection:
        _insert_and_fail(connection.exec_driver_sql)
    with pytest.raises(sqlalchemy.exc.IntegrityError), database.begin() as connection:
        connection.execute(text("INSERT INTO kept VALUES (1)"))
    with database.begin() as connection:
        assert connection.execute(text("SELECT number FROM kept")).scalars().all() == [1]
    database.dispose()


def _make_and_fail(execute: Callable[[str], object]) -> None:
    execute("CREATE TABLE gone ()")
    raise ZeroDivisionError


@pytest.mark.parametrize("threshold", [5, None])
def test_what_only_reads_needs_no_transaction_and_leaves_none(
    empty_dsn: str, threshold: int | None
) -> None:
    database = Database(empty_dsn, pool_size=1, prepare_threshold=threshold)
    open_now = "SELECT now() < statement_timestamp() FROM pg_sleep(0.01)"
    for _ in range(2):
        with database.reading() as driver:
            driver.execute("SELECT 1")
            row = driver.execute(open_now).fetchone()
            # Behind a pooler the settings live in a transaction, so there is one.
            assert row == (threshold is None,)
            limit = driver.execute("SHOW statement_timeout").fetchone()
        assert limit == ("1min",)
        with pytest.raises(ZeroDivisionError), database.begin() as connection:
            _make_and_fail(connection.exec_driver_sql)
        with database.reading() as driver:
            assert driver.execute("SELECT to_regclass('gone')").fetchone() == (None,)
    database.dispose()


def _unavailable(dsn: str) -> StoreUnavailable:
    database = Database(dsn, connect_timeout_s=CONNECT_S)
    with pytest.raises(StoreUnavailable) as caught, database.begin():
        pass
    shown = "".join(traceback.format_exception(caught.value))
    assert "s3cr3t" not in shown + repr(caught.value)
    assert "qigstore db status" in str(caught.value)
    return caught.value


@pytest.mark.parametrize("block", ["begin", "raw", "reading", "snapshot"])
def test_a_block_that_outlives_the_close_closes_its_connection(empty_dsn: str, block: str) -> None:
    database = Database(empty_dsn)
    with getattr(database, block)() as connection:
        driver = connection if block in {"raw", "reading"} else connection.connection
        driver = getattr(driver, "driver_connection", driver)
        database.dispose()
        assert not driver.closed
    assert driver.closed
    database.ping()
    database.dispose()


def test_a_connection_that_is_made_while_its_pool_is_left_is_closed_after_use(
    empty_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, made = Database(empty_dsn), threading.Event()
    go, drivers, connect = threading.Event(), [], database._connect_once

    def slowly(*given: Any) -> psycopg.Connection[Any]:
        drivers.append(connect(*given))
        made.set()
        go.wait()
        return drivers[0]

    monkeypatch.setattr(database, "_connect_once", slowly)
    using = threading.Thread(target=database.ping)
    using.start()
    made.wait()
    database.dispose()
    go.set()
    using.join()
    assert drivers[0].closed


def test_a_refused_password_is_told_without_showing_it(empty_dsn: str) -> None:
    error = _unavailable(make_conninfo(empty_dsn, password=SECRET))
    assert "password authentication failed" in error.reason
    assert "***" in error.address


def test_a_server_that_is_not_there_is_told(empty_dsn: str) -> None:
    with kept_port() as port:
        error = _unavailable(f"postgresql://u:{QUOTED}@127.0.0.1:{port}/d")
    assert "refused" in error.reason


def test_a_missing_database_is_told(empty_dsn: str) -> None:
    assert "does not exist" in _unavailable(make_conninfo(empty_dsn, dbname="nowhere")).reason


def test_a_statement_that_takes_too_long_ends_as_unavailable(empty_dsn: str) -> None:
    # Only the statement's own time counts here, not how long a slow test says nothing.
    patient = "-c idle_in_transaction_session_timeout=0"
    database = Database(make_conninfo(empty_dsn, options=patient), statement_timeout_s=1.0)
    with pytest.raises(StoreUnavailable, match="statement timeout"), database.begin() as connection:
        connection.execute(text("SELECT pg_sleep(30)"))
    database.ping()
    database.dispose()


@pytest.mark.parametrize("way", ["begin", "raw", "reading"])
def test_a_lost_connection_is_told_and_the_next_block_has_a_new_one(
    empty_dsn: str, way: str
) -> None:
    database = Database(empty_dsn)
    with psycopg.connect(empty_dsn, autocommit=True) as admin:
        if way == "begin":
            with pytest.raises(StoreUnavailable), database.begin() as connection:
                _terminate(admin, connection.exec_driver_sql)
        else:
            with pytest.raises(StoreUnavailable), getattr(database, way)() as driver:
                _terminate(admin, driver.execute)
        database.ping()
        with database.raw() as driver:  # lost while it waits in the pool
            pid = driver.info.backend_pid
        admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
    database.ping()
    database.dispose()


def _leave_amid_a_copy(way: Callable[[], AbstractContextManager[Any]]) -> None:
    with way() as driver:
        driver.pgconn.exec_(b"COPY kept FROM STDIN")  # nobody ends it
        raise ZeroDivisionError


@pytest.mark.parametrize("way", ["raw", "reading"])
def test_a_block_left_amid_a_copy_gives_its_connection_up_without_a_word(
    empty_dsn: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(empty_dsn)
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE kept (number int)"))
    with pytest.raises(ZeroDivisionError):
        _leave_amid_a_copy(getattr(database, way))
    ours = [record for record in caplog.records if record.thread == threading.get_ident()]
    assert [record.getMessage() for record in ours] == []
    database.ping()
    database.dispose()


def test_a_role_without_a_right_is_one_error_that_says_so(dsn: str, server_dsn: str) -> None:
    role = str(conninfo_to_dict(dsn)["dbname"]).replace("test", "role")
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'of-a-test'")
        theirs = make_conninfo(dsn, user=role, password="of-a-test")
        database = Database(theirs)
        try:
            for way in (database.begin, database.raw, database.reading):
                with pytest.raises(StoreDenied, match=r"permission denied.*role that owns"):
                    _read_sessions(way)
            with pytest.raises(StoreDenied, match="permission denied for schema qigstore"):
                open_database(load_settings(dsn=theirs))
        finally:
            database.dispose()
            admin.execute(f"DROP ROLE {role}")


def _read_sessions(way: Callable[[], AbstractContextManager[Any]]) -> None:
    with way() as connection:
        speak = getattr(connection, "exec_driver_sql", None) or connection.execute
        speak("SELECT count(*) FROM qigstore.session")


def test_a_server_turned_read_only_is_unavailable(empty_dsn: str) -> None:
    database = Database(make_conninfo(empty_dsn, options="-c default_transaction_read_only=on"))
    with pytest.raises(StoreUnavailable, match="read-only"), database.begin() as connection:
        connection.execute(text("CREATE TABLE refused ()"))
    with pytest.raises(StoreUnavailable, match="read-only"), database.raw() as driver:
        driver.execute("CREATE TABLE refused ()")
    database.dispose()


def _is_read_only(dsn: str) -> bool:
    with psycopg.connect(dsn) as connection:
        return connection.execute("SHOW default_transaction_read_only").fetchone() == ("on",)


def test_of_several_hosts_the_one_that_writes_is_found(home: Path) -> None:
    with (
        EmbeddedServer.start(home / "a", tcp_port=0) as reads,
        EmbeddedServer.start(home / "b", tcp_port=0) as writes,
    ):
        with psycopg.connect(reads.dsn(), autocommit=True) as admin:
            password = writes.places.password()
            admin.execute(f"ALTER ROLE qigstore PASSWORD '{password}'")
            admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            admin.execute("SELECT pg_reload_conf()")
        # Heeded when the server comes to it.
        wait_until(
            lambda: _is_read_only(make_conninfo(reads.dsn(), password=password)),
            "a server that only reads",
            60,
        )
        with kept_port() as nobody:
            ports = f"{nobody},{reads.port},{writes.port}"
            database = Database(
                f"host=127.0.0.1,127.0.0.1,127.0.0.1 port={ports} user=qigstore "
                f"password={password} dbname=qigstore target_session_attrs=read-write",
                connect_timeout_s=CONNECT_S,
            )
            with database.raw() as driver:
                assert driver.info.port == writes.port
        assert password not in database.address
        database.dispose()


def test_only_supported_servers_are_taken() -> None:
    require_version(140000, "there")
    with pytest.raises(ConfigurationError, match=r"PostgreSQL 13\.12.*needs 14"):
        require_version(130012, "there")


FORK = """
import os, sys
from sqlalchemy import text
from qigstore.database.engine import Database
database, query = Database(sys.argv[1], pool_size=1), text("SELECT pg_backend_pid()")
with database.begin() as connection:
    parent = connection.execute(query).scalar_one()
receive, send = os.pipe()
child = os.fork()
if child == 0:
    try:
        with database.begin() as connection:
            os.write(send, str(connection.execute(query).scalar_one()).encode())
        database.dispose()
    finally:
        os._exit(0)
os.close(send)
with os.fdopen(receive) as answer:
    theirs = int(answer.read())
os.waitpid(child, 0)
with database.begin() as connection:
    again = connection.execute(query).scalar_one()
database.dispose()
print(parent, theirs, again)
"""


def test_a_forked_child_never_uses_its_parents_connections(empty_dsn: str) -> None:
    """In a process of its own: a fork takes along what other tests' threads hold at the moment."""
    parent, theirs, again = map(int, run_python(FORK, empty_dsn).split())
    assert theirs != parent
    assert again == parent


def test_elsewhere_opening_only_checks_the_schema(empty_dsn: str, home: Path) -> None:
    settings = load_settings(dsn=empty_dsn)
    with pytest.raises(SchemaOutdated, match=r"no qigstore schema.*qigstore db upgrade"):
        open_database(settings)
    with psycopg.connect(empty_dsn) as connection:
        row = connection.execute("SELECT to_regnamespace('qigstore')").fetchone()
    assert row == (None,)


def test_a_migrated_database_opens(dsn: str, home: Path) -> None:
    database = open_database(load_settings(dsn=dsn))
    database.check_schema()
    database.dispose()


def test_the_embedded_database_is_migrated_at_its_first_opening_and_closed_after_use(
    home: Path,
) -> None:
    for _ in range(2):
        begin = time.perf_counter()
        database = open_database(load_settings())
        print(f"opened in {time.perf_counter() - begin:.3f} s")
        database.check_schema()
        database.dispose()
        database.dispose()
        assert not servers_in(home)


def test_an_embedded_database_of_a_newer_version_is_refused_and_left_alone(home: Path) -> None:
    database = open_database(load_settings())
    with database.begin() as connection:
        connection.execute(text("UPDATE qigstore.alembic_version SET version_num = '9999'"))
    database.dispose()
    with pytest.raises(SchemaOutdated, match="9999"):
        open_database(load_settings())
    assert not servers_in(home)


@pytest.mark.parametrize("way", ["begin", "raw", "snapshot"])
def test_a_transaction_that_was_silent_too_long_is_a_lost_connection(dsn: str, way: str) -> None:
    """A process that stood still amid one: the server has ended it, and that is no other error."""
    database = Database(dsn, statement_timeout_s=3.0)  # a third of it may pass in silence

    def stand_still() -> None:
        with getattr(database, way)() as connection:
            ask = connection.execute if way == "raw" else connection.exec_driver_sql
            pid = ask("SELECT pg_backend_pid()").fetchone()[0]
            with psycopg.connect(dsn, autocommit=True) as other:
                here = "SELECT FROM pg_stat_activity WHERE pid = %s"
                wait_until(
                    lambda: other.execute(here, (pid,)).fetchone() is None, "it is ended", 60
                )
            ask("SELECT 1")

    try:
        with pytest.raises(StoreUnavailable):
            stand_still()
        database.ping()
    finally:
        database.dispose()
