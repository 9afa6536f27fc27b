"""Spool → PostgreSQL: exactly once, through lost answers, cut connections and take-overs."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import random
import resource
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import psycopg
import pytest
from processes import run_python, wait_until

from qigstore.database.engine import Database
from qigstore.errors import NotStored, StoreUnavailable
from qigstore.recording.drain import drain_leftovers
from qigstore.recording.recorder import Recorder
from qigstore.recording.spool import Spool, SpoolIdentity
from qigstore.recording.writer import Writer
from qigstore.repository import Store


class Line:
    """A session being recorded: spool, recorder, and a way to start writers on it."""

    def __init__(self, root: Path, store: Store, **spool_options: Any) -> None:
        self.root, self.store = root, store
        self.session = store.sessions.open("ocean", {})
        told = SpoolIdentity(
            writer=uuid4(), attempt=uuid4(), session="ocean", rank=0, config={}, host="here",
            pid=os.getpid(), created_at=datetime.now(UTC),
        )  # fmt: skip
        self.attempt = store.sessions.open_attempt(
            self.session.id, told.attempt, host="here", pid=os.getpid(), config={}
        )
        self.spool = Spool.create(root, told, **spool_options)
        self.recorder: Recorder[Any] = Recorder(self.spool)
        self.state = store.writers.register(told.writer, told.attempt, 0)
        self.writers: list[Writer] = []

    def writer(self, store: Any = None, **options: Any) -> Writer:
        made = Writer(
            store or self.store, self.spool, session_id=self.session.id,
            attempt=self.attempt.number, epoch=self.state.epoch,
            **{"flush_interval_s": 0.02, **options},
        )  # fmt: skip
        made.start()
        self.writers.append(made)
        return made

    def stored(self) -> list[tuple[int, int, dict[str, float]]]:
        rows = self.store.telemetry.rows(self.session.id)
        return [(row.seq, row.step, dict(row.metrics)) for row in rows]


@pytest.fixture
def line(tmp_path: Path, store: Store) -> Iterator[Line]:
    made = Line(tmp_path / "spool", store)
    yield made
    for writer in made.writers:
        try:
            writer.close(0.5)
        except NotStored as waiting:
            print(waiting)
    made.spool.close()


class Faulty:
    """A store on a bad network: `fault(n)` may raise around the n-th append, before or after."""

    def __init__(self, store: Store, before: Callable[[int], None], after: Callable[[int], None]):
        self.writers, self.calls = store.writers, 0
        self.telemetry = SimpleNamespace(append=self.append)
        self._store, self._before, self._after = store, before, after

    def append(self, batch: Any, *, meanwhile: Any = None) -> Any:
        self.calls += 1
        self._before(self.calls)
        result = self._store.telemetry.append(batch, meanwhile=meanwhile)
        self._after(self.calls)
        return result


def test_what_was_recorded_is_stored_and_the_spool_goes(line: Line) -> None:
    writer = line.writer()
    for step in range(2500):
        metrics = {"loss": step / 7, "mine": float(step)} if step % 3 else {"phi": 0.5}
        line.recorder.record(step, metrics)
    writer.flush(60)
    assert (writer.health.lag_rows, writer.health.stored_rows) == (0, 2500)
    assert writer.health.connected
    stored = line.stored()
    assert [(seq, step) for seq, step, _ in stored] == [(s + 1, s) for s in range(2500)]
    assert stored[2][2] == {"loss": 2 / 7, "mine": 2.0}
    assert stored[3][2] == {"phi": 0.5}
    writer.close(60)
    assert list(line.root.iterdir()) == []
    writer.close(60)


def test_nan_regime_basin_and_geometry_arrive(line: Line) -> None:
    writer = line.writer()
    p = np.full(64, 1 / 64)
    line.recorder.record(0, {"loss": math.nan, "phi": 0.8, "basin": p})
    writer.flush(60)
    (row,) = line.store.telemetry.rows(line.session.id)
    assert math.isnan(row.metrics["loss"])
    assert row.regime == "hyperdimensional"
    assert row.metrics["basin_distance"] == 0.0
    basin = line.store.telemetry.basin(line.session.id, 1, 0, 0)
    assert basin is not None
    np.testing.assert_allclose(basin, p, rtol=1e-15)


def test_a_repeated_step_is_replaced_and_counted(line: Line) -> None:
    writer = line.writer()
    for value in (1.0, 2.0, 3.0):
        line.recorder.record(5, {"loss": value})
        writer.flush(60)
    assert line.stored() == [(3, 5, {"loss": 3.0})]
    assert writer.health.repeated_rows == 2


def test_lost_answers_and_cut_connections_neither_lose_nor_double(
    line: Line, rng: random.Random
) -> None:
    def maybe(_: int) -> None:
        if rng.random() < 0.2:
            raise StoreUnavailable("nowhere", "the connection was cut")

    bad = Faulty(line.store, maybe, maybe)
    writer = line.writer(bad, batch_rows_max=31)
    for step in range(2000):
        line.recorder.record(step, {"loss": float(step)})
    # Many short streaks, not a few long ones: the pause grows with each failure in a row.
    writer.flush(200)
    assert bad.calls > 65
    assert [(seq, step) for seq, step, _ in line.stored()] == [(s + 1, s) for s in range(2000)]


def test_killed_backends_neither_lose_nor_double(line: Line, dsn: str) -> None:
    writer = line.writer(batch_rows_max=200)
    with psycopg.connect(dsn, autocommit=True) as admin:
        for step in range(4000):
            line.recorder.record(step, {"loss": float(step)})
            if step % 400 == 0:
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
    writer.flush(60)
    assert [(seq, step) for seq, step, _ in line.stored()] == [(s + 1, s) for s in range(4000)]


def test_a_database_that_is_away_costs_nothing_but_lag(line: Line) -> None:
    away = threading.Event()
    away.set()

    def gate(_: int) -> None:
        if away.is_set():
            raise StoreUnavailable("nowhere", "away for a while")

    writer = line.writer(Faulty(line.store, gate, lambda _: None))
    for step in range(1000):
        line.recorder.record(step, {"loss": 1.0})
    wait_until(lambda: not writer.health.connected, "it has tried", 60)
    with pytest.raises(NotStored, match="away for a while") as caught:
        writer.flush(0.3)
    assert (caught.value.rows, caught.value.spool) == (1000, line.spool.folder)
    health = writer.health
    assert (health.lag_rows, health.connected, health.stored_rows) == (1000, False, 0)
    assert "away" in (health.last_error or "")
    away.clear()
    writer.flush(60)
    assert writer.health.connected
    assert len(line.stored()) == 1000


def test_an_outage_grows_neither_the_mapping_nor_the_spool_past_its_bound(
    tmp_path: Path, store: Store
) -> None:
    line = Line(tmp_path / "spool", store, segment_bytes=1 << 16, bytes_max=1 << 20)
    away = threading.Event()
    away.set()

    def gate(_: int) -> None:
        if away.is_set():
            raise StoreUnavailable("nowhere", "away")

    writer = line.writer(Faulty(store, gate, lambda _: None))
    for step in range(30_000):
        line.recorder.record(step, {"loss": 1.0})
    kept, dropped = line.spool.seq, writer.health.dropped_rows
    assert kept + dropped == 30_000
    assert dropped > 0
    away.clear()
    writer.flush(60)
    while line.spool.seq == kept:
        line.recorder.record(40_000, {"loss": 2.0})
    writer.close(60)
    assert len(line.stored()) == kept + 1


def resident_mb() -> float:
    """Memory of this process, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def live_through_an_outage(line: Line) -> None:
    """In a process of its own, whose memory nobody else's work shares."""
    away, metrics = threading.Event(), {f"m{i}": float(i) for i in range(20)}

    def gate(_: int) -> None:
        if away.is_set():
            raise StoreUnavailable("nowhere", "gone for long")

    opened = monotonic()
    writer = line.writer(Faulty(line.store, gate, lambda _: None))
    for step in range(20_000):
        line.recorder.record(step, metrics)
    writer.flush(60)
    away.set()
    before = peak = resident_mb()
    began, rows = monotonic(), 250_000  # of 200 bytes: 50 MB in the spool
    for step in range(20_000, 20_000 + rows):
        line.recorder.record(step, metrics)
        if step % 1000 == 0:
            sleep(0.01)
            peak = max(peak, resident_mb())
    oldest, health, now = monotonic() - began, writer.health, monotonic()
    assert (health.lag_rows, health.stored_rows, health.dropped_rows) == (rows, 20_000, 0)
    assert not health.connected
    assert "gone for long" in (health.last_error or "")
    assert oldest * 0.9 <= health.lag_s <= now - opened
    away.clear()
    step = 20_000 + rows
    while writer.health.lag_rows > 1000:
        line.recorder.record(step := step + 1, metrics)
        sleep(0.0001)
        peak = max(peak, resident_mb())
    writer.flush(60)
    health = writer.health
    assert (health.lag_rows, health.lag_s, health.last_error) == (0, 0.0, None)
    assert health.stored_rows == line.spool.seq
    print(f"{rows} rows waited: {peak - before:.1f} MB more at the peak")
    assert peak - before <= 32
    writer.close(60)


OUTAGE = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from test_writer import Database, Line, Store, live_through_an_outage
with Store(Database(sys.argv[3])) as store:
    live_through_an_outage(Line(Path(sys.argv[4]), store))
"""


@pytest.mark.timeout(900)
def test_a_long_outage_costs_bounded_memory_and_so_does_catching_up(
    dsn: str, tmp_path: Path
) -> None:
    here = Path(__file__).parent
    print(run_python(OUTAGE, here, here.parent, dsn, tmp_path / "spool", limit_s=800))


def test_lag_is_the_age_of_the_oldest_waiting_row_even_when_there_is_always_one(line: Line) -> None:
    asked, too_old = [monotonic()], []

    def one_more(call: int) -> None:
        if call < 30:
            line.recorder.record(call, {"loss": 1.0})
            # Rows of the batch before the last are stored, so that none waits since before it.
            if call > 2 and writer.health.lag_s > monotonic() - asked[-2]:
                too_old.append(call)
            asked.append(monotonic())

    writer = line.writer(Faulty(line.store, one_more, lambda _: None))
    line.recorder.record(0, {"loss": 1.0})
    while line.spool.seq < 30:
        sleep(0.01)
    writer.flush(60)
    assert len(line.stored()) == 30
    assert too_old == []


def test_close_without_a_database_keeps_the_rows_for_the_next_process(line: Line) -> None:
    def gone(_: int) -> None:
        raise StoreUnavailable("nowhere", "gone")

    writer = line.writer(Faulty(line.store, gone, gone))
    for step in range(100):
        line.recorder.record(step, {"loss": 1.0})
    with pytest.raises(NotStored, match="100 recorded rows"):
        writer.close(0.3)
    (report,) = drain_leftovers(line.root, line.store)
    assert (report.rows, report.gap_rows, report.busy, report.error) == (100, 0, False, None)
    assert (report.session, report.attempt_id) == ("ocean", line.attempt.id)
    assert len(line.stored()) == 100
    assert list(line.root.iterdir()) == []
    assert drain_leftovers(line.root, line.store) == []


def shut_out(line: Line, writer: Writer) -> None:
    """A row is stored; another process takes over; the next row is not."""
    line.recorder.record(0, {"loss": 1.0})
    writer.flush(60)
    line.store.writers.take_over(line.spool.identity.writer)
    line.recorder.record(1, {"loss": 1.0})
    with pytest.raises(NotStored, match="took over"):
        writer.flush(60)


def test_a_stale_writer_stops_and_says_so(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    writer = line.writer()
    shut_out(line, writer)
    assert writer.health.stale
    line.recorder.record(2, {"loss": 1.0})
    assert any("must stop recording" in record.getMessage() for record in caplog.records)
    assert len(line.stored()) == 1
    with pytest.raises(NotStored, match="2 recorded rows"):
        writer.close(5)


def test_what_came_of_rows_is_said_in_one_with_the_reason(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No moment between, in which a flush would return, or a health be asked, with half of it."""
    seen: list[tuple[bool, str | None]] = []
    writer = line.writer(Faulty(line.store, cut_first, lambda _: None))
    tell, notify = writer._tell, Spool.notify

    def look(spool: Spool, words: str) -> None:
        seen.append((writer.health.stale, writer.health.last_error))
        notify(spool, words)

    def flush_and_tell(error: Exception | None, **more: Any) -> None:
        if error is None and line.spool.seq and not writer.health.connected:
            with contextlib.suppress(NotStored):
                writer.flush(0.0)
                seen.append((False, "a flush returned, and there was no connection"))
        tell(error, **more)

    monkeypatch.setattr(writer, "_tell", flush_and_tell)
    monkeypatch.setattr(Spool, "notify", look)
    shut_out(line, writer)
    assert seen == [(False, None)]


def cut_first(call: int) -> None:
    if call == 1:
        raise StoreUnavailable("nowhere", "cut")


def test_a_row_the_database_refuses_is_set_aside_and_the_rest_goes_on(line: Line) -> None:
    with line.store.database.raw() as connection:
        connection.execute(
            "ALTER TABLE qigstore.telemetry ADD CONSTRAINT poison CHECK (loss IS DISTINCT FROM 666)"
        )
    for step in range(300):
        line.recorder.record(step, {"loss": 666.0 if step in {17, 18, 250} else 1.0})
    writer = line.writer()
    writer.flush(60)
    assert (writer.health.refused_rows, writer.health.stored_rows) == (3, 297)
    assert [s for _, s, _ in line.stored()] == [s for s in range(300) if s not in {17, 18, 250}]
    writer.close(60)
    (kept,) = line.root.iterdir()
    lines = [json.loads(text) for text in kept.read_text().split("\n") if text]
    assert [(row["step"], row["metrics"]["loss"]) for row in lines] == [
        (17, 666.0), (18, 666.0), (250, 666.0),
    ]  # fmt: skip
    assert "poison" in lines[0]["reason"]


def test_a_living_spool_is_never_raced(line: Line) -> None:
    line.recorder.record(0, {"loss": 1.0})
    (report,) = drain_leftovers(line.root, line.store)
    assert report.busy
    assert report.owner == f"process {os.getpid()} on here"
    assert (report.session, report.rows) == ("ocean", 0)
    assert line.stored() == []
    assert drain_leftovers(line.root, line.store, only="another") == []


def test_drain_registers_what_the_database_never_heard_of(
    line: Line, empty_dsn: str, tmp_path: Path
) -> None:
    for step in range(10):
        line.recorder.record(step, {"loss": 1.0})
    line.spool.close()
    from qigstore.database.migrate import upgrade

    database = Database(empty_dsn)
    upgrade(database)
    with Store(database) as other:
        (report,) = drain_leftovers(line.root, other, only="ocean")
        assert report.rows == 10
        session = other.sessions.get("ocean")
        assert len(other.telemetry.rows(session.id)) == 10
        assert [a.id for a in other.sessions.attempts(session.id)] == [line.attempt.id]


def test_drain_interrupted_anywhere_ships_each_row_once(line: Line, rng: random.Random) -> None:
    for step in range(3000):
        line.recorder.record(step, {"loss": float(step)})
    line.spool.close()

    def maybe(_: int) -> None:
        if rng.random() < 0.5:
            raise StoreUnavailable("nowhere", "cut")

    bad = Faulty(line.store, maybe, maybe)
    bad.sessions = line.store.sessions  # type: ignore[attr-defined]
    interrupted = 0
    while line.spool.folder.exists():
        try:
            drain_leftovers(line.root, bad)  # type: ignore[arg-type]
        except StoreUnavailable:
            interrupted += 1
    print(f"interrupted {interrupted} times")
    assert [(seq, step) for seq, step, _ in line.stored()] == [(s + 1, s) for s in range(3000)]
    curve = line.store.curves.read(line.session.id, "loss", attempt=1, points=100)
    assert curve.width > 1
    assert curve.finite.tolist() == np.bincount(np.arange(3000) // curve.width).tolist()
    assert curve.low.tolist() == curve.start.tolist()
    assert np.average(curve.mean, weights=curve.finite) == pytest.approx(1499.5)


def test_a_spool_that_nobody_can_name_is_left_alone(line: Line) -> None:
    line.recorder.record(0, {"loss": 1.0})
    line.spool.close()
    (line.spool.folder / "spool.json").write_text("{")
    (report,) = drain_leftovers(line.root, line.store)
    assert "spool.json" in (report.error or "")
    assert (line.spool.folder / "00000001.seg").exists()


def test_flush_durable_has_synced_even_without_a_database(line: Line) -> None:
    def gone(_: int) -> None:
        raise StoreUnavailable("nowhere", "gone")

    writer = line.writer(Faulty(line.store, gone, gone))
    line.recorder.record(0, {"loss": 1.0})
    with pytest.raises(NotStored):
        writer.flush(0.1, durable=True)
    active = line.spool._active
    assert active is not None
    assert active.synced == line.spool.at


def test_a_fork_of_the_recording_process_closes_nothing(line: Line) -> None:
    writer = line.writer()
    line.recorder.record(0, {"loss": 1.0})
    child = os.fork()
    if child == 0:
        status = 1
        try:
            logging.disable()
            line.recorder.record(1, {"loss": 1.0})
            writer.flush(5, durable=True)
            writer.close(5)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    line.recorder.record(2, {"loss": 1.0})
    writer.flush(60)
    assert [step for _, step, _ in line.stored()] == [0, 2]
