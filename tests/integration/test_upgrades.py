"""R16: a store of an earlier revision is upgraded with its data in it, and nobody loses a row.

`upgrades/0003.copy` is what the version of revision 0003 stored: two attempts, ranks, rows with
gaps and repeats in their sequence, NaN, infinities and denormals, more custom metrics than a row
has columns for, basins, buckets of curves.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from alembic import command
from exchanged import bits, telemetry_of
from processes import wait_until
from unreached import stored

import qigstore
from qigstore.database import migrate
from qigstore.database.engine import Database
from qigstore.repository import RowGroup, Store, TelemetryBatch

DUMP = Path(__file__).with_name("upgrades") / "0003.copy"
BLOCK = re.compile(r"^COPY ([^\n]*) FROM stdin;\n(.*?)^\\\.\n", re.MULTILINE | re.DOTALL)
VIEWS = ("canonical_telemetry", "latest_telemetry", "telemetry_metric", "session_stats")
STANDARD = {"loss", "phi", "kappa_eff"}
BUCKETS = "width, start, rows, low, high, mean, finite, nans, infs"
# Each table as revision 0003 had it: with session, attempt and rank in every row.
OF_WRITERS = (
    "SELECT a.session_id, a.number AS attempt, w.rank, {} FROM qigstore.{} t "
    "JOIN qigstore.writer w ON w.number = t.writer JOIN qigstore.attempt a ON a.id = w.attempt_id"
)
KEYED = "SELECT session_id, attempt, rank, {} FROM qigstore.{}"


@pytest.fixture
def old(empty_dsn: str) -> Iterator[Database]:
    """A store as revision 0003 left it."""
    database = Database(empty_dsn)
    migrate.upgrade(database, "0003")
    with psycopg.connect(empty_dsn) as connection:
        for table, lines in BLOCK.findall(DUMP.read_text()):
            with connection.cursor().copy(f"COPY {table} FROM STDIN") as copy:
                copy.write(lines)
        # A row that no session claims any more: it is in no view, and not kept.
        connection.execute(
            "INSERT INTO qigstore.telemetry (session_id, attempt, rank, step, seq, recorded_at) "
            "VALUES (99, 1, 0, 0, 1, now())"
        )
    yield database
    database.dispose()


def lines_of(database: Database, query: str) -> list[str]:
    """Rows as text, in which PostgreSQL writes each float so that it comes back to the bit."""
    with database.raw() as connection:
        found = connection.execute(f"SELECT t::text FROM ({query}) t").fetchall()
    return sorted(line for (line,) in found)


def views_of(database: Database) -> dict[str, list[str]]:
    return {view: lines_of(database, f"SELECT * FROM qigstore.{view}") for view in VIEWS}


def tables_of(database: Database, query: str) -> dict[str, list[str]]:
    parts = {"basin": "step, root", "curve": BUCKETS}
    return {table: lines_of(database, query.format(what, table)) for table, what in parts.items()}


def test_every_view_basin_and_bucket_is_the_same_to_the_bit_after_the_upgrade_and_back(
    old: Database,
) -> None:
    before, tables = views_of(old), tables_of(old, KEYED)
    rows = "SELECT * FROM qigstore.telemetry WHERE session_id < 99"
    table = lines_of(old, rows)
    assert len(table) == len(before["canonical_telemetry"]) + 19
    assert all(len(part) > 4 for part in tables.values())
    migrate.upgrade(old)
    assert migrate.check(old) == []
    assert views_of(old) == before
    assert tables_of(old, OF_WRITERS) == tables
    assert len(lines_of(old, "SELECT * FROM qigstore.all_telemetry")) == len(table)
    with old.begin_unlimited() as connection:
        command.downgrade(migrate._config(connection), "0003")
    assert views_of(old) == before
    assert tables_of(old, KEYED) == tables
    assert lines_of(old, rows) == table


def test_methods_find_what_was_stored_and_its_writer_goes_on(old: Database) -> None:
    with old.raw() as connection:
        told = connection.execute(
            "SELECT s.name, t.attempt, t.rank, t.step, t.seq, t.loss, t.custom "
            "FROM qigstore.telemetry t JOIN qigstore.session s ON s.id = t.session_id"
        ).fetchall()
    migrate.upgrade(old)
    store = Store(old)
    found = {
        (name, *row[:4]): row[6] for name in ("ocean", "few") for row in telemetry_of(store, name)
    }
    assert set(found) == {row[:5] for row in told}
    for *key, loss, custom in told:
        metrics = found[tuple(key)]
        assert metrics.get("loss") == (None if loss is None else bits(loss)), key
        kept = [bits(value) for value in custom or () if value is not None]
        assert sorted(kept) == sorted(v for n, v in metrics.items() if n not in STANDARD), key
    session = store.sessions.get("ocean").id
    earlier = list(map(repr, store.telemetry.rows(session, attempt=1)))  # NaN is not itself
    before = store.curves.read(session, "phi", attempt=1, points=1)
    with old.raw() as connection:
        (writer, acked) = connection.execute(
            "SELECT w.id, w.acked_seq FROM qigstore.writer w JOIN qigstore.attempt a "
            "ON a.id = w.attempt_id WHERE a.session_id = %s AND a.number = 1 AND w.rank = 0",
            (session,),
        ).fetchone() or (None, 0)
    assert writer is not None
    seq = np.arange(acked + 1, acked + 1001)
    regime, values = np.full(1000, -1, np.int16), np.ones((1000, 2))
    more = RowGroup(("phi", "new"), seq, seq + 1000, seq, values, regime)
    batch = TelemetryBatch(writer, 1, session, 1, 0, acked + 1, acked + 1000, (more,))
    assert store.telemetry.append(batch).rows == 1000
    rows = store.telemetry.rows(session, attempt=1)
    assert list(map(repr, rows[: len(earlier)])) == earlier
    assert [row.seq for row in rows[len(earlier) :]] == seq.tolist()
    curve = store.curves.read(session, "phi", attempt=1, points=1)
    assert curve.finite.sum() == before.finite.sum() + 1000


@pytest.mark.usefixtures("home")
def test_a_run_that_records_during_the_upgrade_loses_no_row(old: Database, empty_dsn: str) -> None:
    steps = 0
    done = threading.Event()

    def record(run: qigstore.Run) -> None:
        nonlocal steps
        while not done.is_set():
            run.record(steps, loss=float(steps))
            steps += 1
            done.wait(0.001)

    with pytest.warns(RuntimeWarning, match="qigstore db upgrade"):
        run = qigstore.session("live", dsn=empty_dsn, quiet=True, close_timeout_s=120.0).open()
    recording = threading.Thread(target=record, args=(run,))
    recording.start()
    try:
        wait_until(lambda: steps > 20, "rows before the upgrade", 60)
        migrate.upgrade(old)
        after = steps
        wait_until(lambda: steps > after + 20, "rows after it", 60)
    finally:
        done.set()
        recording.join()
    run.close()
    assert stored(Store(old), "live") == {1: list(range(steps))}


def test_a_writer_s_transaction_ends_before_the_upgrade_begins(
    old: Database, empty_dsn: str
) -> None:
    """What was open when the upgrade came is in it whole; nobody writes amid the copying."""
    upgrading = threading.Thread(target=migrate.upgrade, args=(old,))
    with psycopg.connect(empty_dsn) as writer:
        writer.execute(
            "INSERT INTO qigstore.telemetry (session_id, attempt, rank, step, seq, recorded_at) "
            "SELECT id, 1, 0, 5000, 5000, now() FROM qigstore.session WHERE name = 'few'"
        )
        upgrading.start()
        with psycopg.connect(empty_dsn, autocommit=True) as seen:
            waiting = (
                "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
                "WHERE NOT l.granted AND d.datname = current_database()"
            )
            wait_until(
                lambda: (seen.execute(waiting).fetchone() or (0,))[0], "the upgrade waits", 60
            )
        writer.commit()
    upgrading.join()
    found: Any = Store(old).telemetry.rows(Store(old).sessions.get("few").id)
    assert [row.step for row in found] == [7, 8, 5000]
