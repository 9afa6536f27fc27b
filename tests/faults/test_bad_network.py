"""A bad network neither loses nor doubles a row (R3): cut, reset and deafened at random bytes."""

from __future__ import annotations

import random
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from figures import figure, in_parts
from line import Line, arrivals
from processes import wait_until
from proxy import HEALTHY, Fault, Proxy, random_fault

from qigstore.database import migrate
from qigstore.database.engine import Database
from qigstore.recording import writer as writer_module
from qigstore.repository import Store, writers

LINES = 4
LAG_ROWS_MAX = 5000
KINDS_MIN = 10
"""Of the twelve kinds of cut: those that go deaf are rare."""
LIMITS = {"statement_timeout_s": 0.8, "answer_margin_s": 0.2, "connect_timeout_s": 1}
DEAF = Fault("deaf", "before commit", 0)


@pytest.fixture(autouse=True)
def _short_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    # The pause between two attempts is not what is tested, and would be most of the time.
    monkeypatch.setattr(writer_module, "_BACK_OFF_S", (0.001, 0.02))


def record_until(lines: list[Line], proxy: Proxy, cuts: int, rng: random.Random) -> None:
    steps = [0] * len(lines)
    end = time.monotonic() + 60 + cuts
    while proxy.cuts < cuts or len(proxy.done) < KINDS_MIN:
        assert time.monotonic() < end, f"stuck after {proxy.cuts} cuts {dict(proxy.done)}"
        for k, line in enumerate(lines):
            if line.writer is None or line.writer.health.lag_rows > LAG_ROWS_MAX:
                continue
            for _ in range(rng.randrange(100)):
                line.recorder.record(steps[k], {"loss": steps[k] * 0.5})
                steps[k] += 1
        time.sleep(0.003)


def cut(cuts: int, root: Path, dsn: str, store: Store, rng: random.Random) -> None:
    began = time.monotonic()
    lines = [Line(root, store, f"line {k}", segment_bytes=1 << 16) for k in range(LINES)]
    with Proxy(dsn, lambda: random_fault(rng)) as proxy:
        through = Store(Database(proxy.dsn, **LIMITS))
        try:
            for line in lines:
                line.start(through, batch_rows_max=rng.choice([20, 200, 2000]))
            record_until(lines, proxy, cuts, rng)
            proxy.plan = lambda: HEALTHY
            recorded = [line.spool.seq for line in lines]
            for line in lines:
                assert line.writer is not None
                line.writer.close(120)
        finally:
            for line in lines:
                line.close()
            through.close()
    found = [arrivals(dsn, line.session.id) for line in lines]
    missing = sum(
        n - len({seq for seq, _, _ in rows}) for n, rows in zip(recorded, found, strict=True)
    )
    doubled = sum(len(rows) - len({seq for seq, _, _ in rows}) for rows in found)
    print(
        f"{proxy.cuts} cuts {dict(proxy.done)} in {time.monotonic() - began:.0f} s: "
        f"{sum(recorded)} rows recorded, {missing} missing, {doubled} doubled"
    )
    assert (missing, doubled) == (0, 0)
    for rows in found:
        assert all(row == (k, k - 1, (k - 1) * 0.5) for k, row in enumerate(rows, 1))


@pytest.mark.timeout(1200)
def test_three_hundred_cuts_lose_and_double_nothing(
    tmp_path: Path, dsn: str, store: Store, rng: random.Random
) -> None:
    cut(300, tmp_path, dsn, store, rng)


@pytest.mark.long(seconds=350)
@in_parts(10_000)
def test_ten_thousand_cuts_lose_and_double_nothing(
    tmp_path: Path, dsn: str, store: Store, rng: random.Random, count: int
) -> None:
    cut(figure(count), tmp_path, dsn, store, rng)


def test_a_network_that_went_deaf_is_noticed_and_said_in_health(
    tmp_path: Path, dsn: str, store: Store
) -> None:
    line = Line(tmp_path, store)
    with Proxy(dsn, lambda: DEAF) as proxy:
        through = Store(Database(proxy.dsn, **LIMITS))
        writer = line.start(through)
        line.recorder.record(0, {"loss": 0.0})
        wait_until(lambda: "no answer within 1 s" in (writer.health.last_error or ""), "a word")
        assert not writer.health.connected
        proxy.plan = lambda: HEALTHY
        writer.flush(60)
        line.close(60)
        through.close()
    assert arrivals(dsn, line.session.id) == [(1, 0, 0.0)]


def hold_fence(dsn: str, line: Line) -> psycopg.Connection[tuple[object, ...]]:
    """A transaction that has locked the fence row and then says nothing more."""
    held = psycopg.connect(dsn)
    query = "SELECT 1 FROM qigstore.writer WHERE id = %s FOR NO KEY UPDATE"
    held.execute(query, (line.spool.identity.writer,))
    return held


def test_a_transaction_lost_with_its_connection_does_not_keep_the_fence(
    tmp_path: Path, dsn: str, store: Store
) -> None:
    line = Line(tmp_path, store)
    line.recorder.record(0, {"loss": 0.0})
    with closing(hold_fence(dsn, line)) as held:
        line.start(store)
        assert line.writer is not None
        line.writer.flush(60)
        with pytest.raises(psycopg.OperationalError, match="terminating"):
            held.execute("SELECT 1")
    line.close(60)


def test_a_take_over_does_not_wait_for_whoever_holds_the_fence(
    tmp_path: Path, dsn: str, store: Store
) -> None:
    line = Line(tmp_path, store)
    with closing(hold_fence(dsn, line)):
        taker = threading.Thread(target=store.writers.take_over, args=(line.spool.identity.writer,))
        taker.start()
        taker.join(50)
        assert not taker.is_alive(), "the take-over waits for a transaction that never ends"
    assert store.writers.state(line.spool.identity.writer).epoch == line.epoch + 1
    line.close()


def test_a_take_over_ends_whoever_stands_still_while_it_asks_for_the_fence(
    tmp_path: Path, dsn: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the server after a third of a statement's time: it would wait so long."""
    line, stands_still, go_on = Line(tmp_path, store), threading.Event(), threading.Event()
    writer, state_of_writer = line.spool.identity.writer, writers._state
    failed: list[Exception] = []

    def state(connection: Any, writer_id: Any) -> Any:
        if threading.current_thread() is asker:
            stands_still.set()
            assert go_on.wait(60)
        return state_of_writer(connection, writer_id)

    def ask() -> None:
        with Store(Database(dsn)) as other:
            try:
                other.writers.settle(writer, line.epoch)
            except Exception as error:
                failed.append(error)

    monkeypatch.setattr(writers, "_state", state)
    asker = threading.Thread(target=ask)
    asker.start()
    assert stands_still.wait(60)
    taken = store.writers.take_over(writer)
    go_on.set()
    asker.join(60)
    assert taken.epoch == line.epoch + 1
    assert "administrator command" in str(failed)
    line.close()


def test_the_server_ends_a_transaction_whose_client_says_nothing_more(
    dsn: str, store: Store
) -> None:
    silent = Database(dsn, statement_timeout_s=6)  # and a third of it in a transaction
    with silent.engine.connect() as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        query = f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid}"

        def ended() -> bool:
            with store.database.begin() as other:
                return other.exec_driver_sql(query).first() is None

        wait_until(ended, "the server ends it")
        connection.invalidate()
    silent.dispose()


WAITS = """
SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def test_a_migration_may_take_longer_than_an_answer(empty_dsn: str) -> None:
    patient = Database(empty_dsn, statement_timeout_s=3, answer_margin_s=0.2)
    looking = Database(empty_dsn)
    taker = threading.Thread(target=migrate.upgrade, args=(patient,))
    with psycopg.connect(empty_dsn, autocommit=True) as other, other.transaction():
        other.execute("SELECT pg_advisory_xact_lock(%s)", (migrate._LOCK,))
        taker.start()
        wait_until(lambda: other.execute(WAITS).fetchone(), "the migration waits")
        time.sleep(3.5)  # beyond every limit of `patient`
        assert migrate.current(looking) is None
    taker.join(60)
    assert migrate.current(looking) == migrate.head()
    patient.dispose()
    looking.dispose()
