"""Migrations: complete, alone in their schema, safe at once, honest about differences."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from uuid import uuid4

import numpy as np
import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from processes import REPOSITORY, run_python
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import text

from qigstore.database import migrate
from qigstore.database.engine import Database
from qigstore.errors import ConfigurationError, SchemaOutdated, StoreError
from qigstore.repository import RowGroup, Store, TelemetryBatch


def _script() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(migrate.scripts()))
    return ScriptDirectory.from_config(config)


def test_the_files_are_read_as_alembic_reads_them() -> None:
    script = _script()
    assert migrate.head() == script.get_current_head()
    assert migrate.revisions() == {step.revision for step in script.walk_revisions()}


def test_an_upgraded_database_is_what_this_version_describes(empty_dsn: str) -> None:
    database = Database(empty_dsn)
    assert migrate.current(database) is None
    assert migrate.check(database) == [
        f"revision: the database has None, this version needs {migrate.head()}"
    ]
    migrate.upgrade(database)
    migrate.upgrade(database)
    assert migrate.current(database) == migrate.head()
    assert migrate.check(database) == []
    database.dispose()


def test_rows_of_the_first_revision_are_kept_and_their_writer_goes_on(empty_dsn: str) -> None:
    database = Database(empty_dsn)
    migrate.upgrade(database, "0001")
    writer, count = uuid4(), 3000
    with psycopg.connect(empty_dsn) as connection:
        connection.execute(
            """
            WITH s AS (INSERT INTO qigstore.session (name) VALUES ('ocean') RETURNING id),
                 a AS (INSERT INTO qigstore.attempt (id, session_id, number, host, pid)
                       SELECT gen_random_uuid(), id, 1, 'here', 1 FROM s RETURNING id),
                 m AS (INSERT INTO qigstore.metric SELECT id, 1, 'mine' FROM s)
            INSERT INTO qigstore.writer
                (id, attempt_id, acked_seq, stored_rows, min_step, max_step)
            SELECT %(writer)s, id, %(count)s, %(count)s, 0, %(count)s - 1 FROM a""",
            {"writer": writer, "count": count},
        )
        connection.execute(
            """
            INSERT INTO qigstore.telemetry
                (session_id, attempt, rank, step, seq, recorded_at, regime, phi, custom)
            SELECT s.id, 1, 0, i, i + 1, now(), i %% 4, i / 7.0, ARRAY[sin(i)]
            FROM qigstore.session s, generate_series(0, %s) i""",
            (count - 1,),
        )
        rows = "SELECT * FROM qigstore.canonical_telemetry ORDER BY step"
        before = connection.execute(rows).fetchall()
    migrate.upgrade(database)
    assert migrate.check(database) == []
    store = Store(database)
    session = store.sessions.get("ocean").id
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute(rows).fetchall() == before
    seq = np.arange(count + 1, 2 * count + 1)
    regime, values = np.full(count, -1, np.int16), np.ones((count, 1))
    more = RowGroup(("phi",), seq, seq - 1, seq, values, regime)
    batch = TelemetryBatch(writer, 1, session, 1, 0, count + 1, 2 * count, (more,))
    assert store.telemetry.append(batch).rows == count
    curve = store.curves.read(session, "phi", attempt=1, points=50)
    assert curve.finite.sum() == 2 * count
    assert curve.high.max() == (count - 1) / 7
    database.dispose()


def test_checkpoints_of_an_earlier_revision_are_as_healthy_as_before(empty_dsn: str) -> None:
    database = Database(empty_dsn)
    migrate.upgrade(database, "0003")
    with psycopg.connect(empty_dsn) as connection:
        connection.execute("INSERT INTO qigstore.session (name) VALUES ('ocean')")
        connection.execute(
            """
            INSERT INTO qigstore.checkpoint
                (id, session_id, attempt, step, phi, weights_finite, path, bytes, digest)
            SELECT gen_random_uuid(), s.id, 1, i * 10, i / 7.0, true, '/p', 1, 'x'
            FROM qigstore.session s, generate_series(0, 9) i"""
        )
        connection.execute(
            """
            INSERT INTO qigstore.event (id, session_id, attempt, step, rule, severity, message)
            SELECT gen_random_uuid(), s.id, 1, 75, 'loss', 'critical', 'm'
            FROM qigstore.session s"""
        )
    migrate.upgrade(database)
    assert migrate.check(database) == []
    store = Store(database)
    session = store.sessions.get("ocean").id
    for settle, healthy in (
        (4, [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]),
        (50, [90, 80, 20, 10, 0]),
    ):
        found = store.checkpoints.candidates(session, settle_steps=settle)
        assert [item.checkpoint.step for item in found if item.healthy] == healthy
    database.dispose()


def test_the_version_table_lives_in_our_schema_alone(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        found = connection.execute(
            "SELECT schemaname FROM pg_tables WHERE tablename = 'alembic_version'"
        ).fetchall()
        public = connection.execute(
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        ).fetchone()
    assert found == [("qigstore",)]
    assert public == (0,)


def test_migrations_that_start_at_once_do_not_collide(empty_dsn: str) -> None:
    failures: list[BaseException] = []

    def upgrade() -> None:
        database = Database(empty_dsn)
        try:
            migrate.upgrade(database)
        except BaseException as error:
            failures.append(error)
        finally:
            database.dispose()

    # Alembic's own environment is one a process, so the others are processes.
    code = (
        "import sys\nfrom qigstore.database import migrate\n"
        "from qigstore.database.engine import Database\n"
        "database = Database(sys.argv[1])\nmigrate.upgrade(database)\ndatabase.dispose()"
    )
    others = [threading.Thread(target=run_python, args=(code, empty_dsn)) for _ in range(2)]
    for other in others:
        other.start()
    upgrade()
    for other in others:
        other.join()
    assert failures == []
    database = Database(empty_dsn)
    assert migrate.check(database) == []
    database.dispose()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ALTER TABLE qigstore.session ADD COLUMN stray int", "remove_column"),
        ("DROP TABLE qigstore.recovery_event CASCADE", "add_table: qigstore.recovery_event"),
        ("ALTER TABLE qigstore.attempt ALTER COLUMN host DROP NOT NULL", "modify_nullable"),
        ("DROP VIEW qigstore.emergency_summary CASCADE", "add_view: emergency_summary"),
        ("CREATE VIEW qigstore.stray AS SELECT 1", "remove_view: stray"),
    ],
)
def test_every_kind_of_difference_is_found(database: Database, change: str, said: str) -> None:
    with database.begin() as connection:
        connection.execute(text(change))
    assert any(said in line for line in migrate.check(database))


def test_a_refused_migration_changes_nothing_and_says_so(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn) as connection:
        connection.execute("CREATE SCHEMA qigstore")
        connection.execute("CREATE TABLE qigstore.session (foreign_column int)")
    database = Database(empty_dsn)
    with pytest.raises(StoreError, match=r"nothing was changed.*already exists"):
        migrate.upgrade(database)
    with database.begin() as connection:
        tables = connection.execute(
            text("SELECT tablename FROM pg_tables WHERE schemaname = 'qigstore'")
        )
        assert tables.scalars().all() == ["session"]
    database.dispose()


def test_a_role_without_rights_is_told(empty_dsn: str) -> None:
    name = str(conninfo_to_dict(empty_dsn)["dbname"]).replace("test", "role")
    with psycopg.connect(empty_dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'of-a-test'")
        try:
            database = Database(make_conninfo(empty_dsn, user=name, password="of-a-test"))
            with pytest.raises(StoreError, match=r"permission denied.*role that owns"):
                migrate.upgrade(database)
            database.dispose()
        finally:
            admin.execute(f"DROP ROLE {name}")


def test_a_newer_database_is_never_downgraded(database: Database) -> None:
    with database.begin() as connection:
        connection.execute(text("UPDATE qigstore.alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaOutdated, match="9999"):
        migrate.upgrade(database)
    with pytest.raises(SchemaOutdated, match="9999"):
        database.check_schema()


def test_an_unknown_revision_is_refused(database: Database) -> None:
    with pytest.raises(ConfigurationError, match="no revision 'nine'"):
        migrate.upgrade(database, "nine")


def test_the_migrations_of_an_installed_package_are_found_inside_it(home: Path) -> None:
    installed = home / "site"
    # What other processes compile meanwhile comes and goes.
    compiled = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "qigstore", installed / "qigstore", ignore=compiled)
    shutil.copytree(migrate.scripts(), installed / "qigstore" / "migrations", ignore=compiled)
    said = run_python(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from qigstore.database import migrate\nprint(migrate.scripts(), migrate.head())",
        installed,
    )
    assert said.split() == [str(installed / "qigstore" / "migrations"), migrate.head()]
