"""Roles on a real server: what a reader and a writer may do, and everything else refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psycopg
import pytest
from commands import data, environment, run
from psycopg.conninfo import make_conninfo
from roles import as_role

import qigstore
from qigstore.database import access, migrate, schema, views
from qigstore.database.engine import Database
from qigstore.errors import ConfigurationError, EmergencyStop, StoreDenied, StoreError
from qigstore.repository import Store


def refused(dsn: str, statement: str) -> bool:
    with psycopg.connect(dsn) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.commit()
        try:
            connection.execute(statement.encode())
        except psycopg.errors.InsufficientPrivilege:
            return True
    return False


TABLES = [table.name for table in schema.metadata.sorted_tables] + ["alembic_version"]
CHANGES = [
    "CREATE TABLE qigstore.mine (a int)",
    "DROP VIEW qigstore.session_stats",
    "ALTER TABLE qigstore.telemetry ADD COLUMN mine int",
    "TRUNCATE qigstore.telemetry",
    "DELETE FROM qigstore.session",
    "DELETE FROM qigstore.event",
    "DELETE FROM qigstore.checkpoint",
    "UPDATE qigstore.store SET id = gen_random_uuid()",
    "UPDATE qigstore.alembic_version SET version_num = '0'",
    "CREATE FUNCTION qigstore.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "DROP SCHEMA qigstore CASCADE",
]


def test_a_reader_sees_the_views_and_nothing_else(dsn: str, store: Store, role: str) -> None:
    store.sessions.open("ocean", {})
    mine = as_role(dsn, store.database, role, "reader")
    with psycopg.connect(mine) as connection:
        for view in views.VIEWS:
            connection.execute(f"SELECT * FROM qigstore.{view}".encode()).fetchall()
        assert connection.execute("SHOW default_transaction_read_only").fetchone() == ("on",)
    for table in TABLES:
        assert refused(mine, f"SELECT * FROM qigstore.{table}"), table
    for change in [*CHANGES, "INSERT INTO qigstore.session (name) VALUES ('x')"]:
        assert refused(mine, change), change


def record_until_it_stops(dsn: str) -> None:
    rules = {"rules": [{"kind": "threshold", "metric": "loss", "above": 5.0, "action": "abort"}]}
    with qigstore.session("ocean", dsn=dsn, rules=rules, quiet=True) as run_:
        state = run_.recover(default={"step": 0, "w": np.zeros(3)})
        for step in run_.steps(state["step"], 200):
            run_.record(step, loss=9.0 if step == 150 else 1.0, mine=1.0, basin=[0.5, 0.5])
            run_.record(step, loss=9.0 if step == 150 else 1.0, mine=2.0, basin=[0.4, 0.6])
            run_.checkpoint({"step": step + 1, "w": np.ones(3)}, step=step, every=50)


def test_a_writer_records_a_whole_run_and_cannot_migrate(
    dsn: str, store: Store, role: str, home: Path
) -> None:
    mine = as_role(dsn, store.database, role, "writer")
    with pytest.raises(EmergencyStop):
        record_until_it_stops(mine)
    with qigstore.session("ocean", dsn=mine, quiet=True) as again:
        again.recover()
    stats = store.overview.numbers("ocean")
    assert stats is not None
    assert (stats["attempts"], stats["rows"], stats["status"]) == (2, 151, "completed")
    assert stats["repeated_rows"] > 100
    for change in CHANGES:
        assert refused(mine, change), change


def test_a_writer_cannot_bring_the_schema_to_another_revision(empty_dsn: str, role: str) -> None:
    database = Database(empty_dsn)
    migrate.upgrade(database, "0001")
    mine = Database(as_role(empty_dsn, database, role, "writer"))
    with pytest.raises(StoreError, match="owns the schema"):
        migrate.upgrade(mine)
    assert migrate.current(database) == "0001"
    mine.dispose()
    database.dispose()


def test_rights_are_there_again_after_an_upgrade(empty_dsn: str, role: str) -> None:
    database = Database(empty_dsn)
    migrate.upgrade(database, "0003")
    mine = as_role(empty_dsn, database, role, "reader")
    migrate.upgrade(database)
    with psycopg.connect(mine) as connection:
        for view in views.VIEWS:
            connection.execute(f"SELECT * FROM qigstore.{view}".encode()).fetchall()
    with database.begin() as connection:
        assert access.granted(connection) == {role: "reader"}
    database.dispose()


def test_rights_replace_each_other_and_can_be_taken_away(dsn: str, store: Store, role: str) -> None:
    mine = as_role(dsn, store.database, role, "writer")
    assert access.grant(store.database, role, "reader") is None
    assert refused(mine, "SELECT * FROM qigstore.session")
    assert not refused(mine, "SELECT * FROM qigstore.session_stats")
    access.revoke(store.database, role)
    assert refused(mine, "SELECT * FROM qigstore.session_stats")
    with store.database.begin() as connection:
        assert access.granted(connection) == {}


def test_the_commands_say_what_they_did(dsn: str, role: str, home: Path) -> None:
    env = environment(home, dsn)
    missing = run(env, "db", "grant", role, "--as", "reader")
    assert missing.returncode == 5
    assert "--create" in missing.stderr
    told = data(env, "db", "grant", role, "--as", "reader", "--create")
    assert (told["role"], told["access"]) == (role, "reader")
    assert len(told["password"]) >= 32
    mine = make_conninfo(dsn, user=role, password=told["password"])
    reader = environment(home, mine)
    assert data(reader, "query", "select count(*) from session_stats")["rows"] == [[0]]
    denied = run(reader, "query", "select * from session")
    assert denied.returncode == 1
    assert "permission denied" in denied.stderr
    again = run(env, "db", "grant", role, "--as", "writer", "--create")
    assert "password" not in again.stdout
    assert run(env, "db", "revoke", role).returncode == 0
    assert run(env, "db", "revoke", "nobody").returncode == 5
    assert run(env, "db", "grant", "public", "--as", "reader").returncode == 5


def test_what_the_server_refuses_is_one_error(dsn: str, store: Store, role: str) -> None:
    mine = Database(as_role(dsn, store.database, role, "writer"))
    with pytest.raises(StoreDenied, match="CREATEROLE"):
        access.grant(mine, "another", "reader", create=True)
    mine.dispose()
    with pytest.raises(ConfigurationError, match="reader or writer"):
        access.grant(store.database, role, "owner")  # type: ignore[arg-type]


def test_an_index_of_basins_is_no_difference(dsn: str, store: Store, home: Path) -> None:
    with store.database.begin() as connection:
        there = connection.exec_driver_sql(
            "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'"
        ).scalar()
    if not there:
        pytest.skip("this server has no pgvector")
    env = environment(home, dsn)
    assert "has an index" in run(env, "db", "index-basins").stdout
    assert migrate.check(store.database) == []
    assert data(env, "db", "index-basins", "--drop") == {"index": None}


def test_a_writer_may_not_index_the_basins(dsn: str, store: Store, role: str) -> None:
    mine = Database(as_role(dsn, store.database, role, "writer"))
    try:
        with pytest.raises(StoreError, match=r"denied|denies|must be owner|not available"):
            Store(mine).basins.make_index()
    finally:
        mine.dispose()
