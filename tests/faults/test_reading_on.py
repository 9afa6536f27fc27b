"""The next batch is read while one is stored; whatever happens to either, each row arrives once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from line import Line

from qigstore.errors import StoreUnavailable
from qigstore.recording.shipper import Shipper, Target
from qigstore.recording.spool.quarantine import Quarantine
from qigstore.recording.spool.reader import SpoolReader, Take
from qigstore.repository import Store

ROWS_MAX = 50


class Reader(SpoolReader):
    """Counts what is read, and fails where it is told to."""

    reads = 0
    failures: frozenset[int] = frozenset()

    def take(self, rows_max: int) -> Take | None:
        self.reads += 1
        if self.reads in self.failures:
            super().take(rows_max // 2)  # it has come some way
            raise OSError(5, f"reading failed at the {self.reads}th time")
        return super().take(rows_max)


@pytest.fixture
def line(tmp_path: Path, store: Store) -> Iterator[Line]:
    made = Line(tmp_path / "spool", store, segment_bytes=1 << 14)
    yield made
    made.close()


def shipper(line: Line, store: Any) -> tuple[Shipper, Reader]:
    told = line.spool.identity
    reader = Reader(line.spool, told.writer)
    target = Target(told.writer, line.epoch, line.session.id, line.attempt.number, 0)
    quarantine = Quarantine(line.root, told.writer)
    return Shipper(store, reader, target, quarantine=quarantine, rows_max=ROWS_MAX), reader


def record(line: Line, first: int, count: int) -> None:
    for step in range(first, first + count):
        line.recorder.record(step, {"loss": step + 0.5})


def stored(line: Line) -> list[tuple[int, int, float]]:
    rows = line.store.telemetry.rows(line.session.id)
    return [(row.seq, row.step, row.metrics["loss"]) for row in rows]


def expected(count: int) -> list[tuple[int, int, float]]:
    return [(step + 1, step, step + 0.5) for step in range(count)]


def test_a_full_batch_is_stored_while_the_next_one_is_read(line: Line) -> None:
    sent: list[tuple[int, int]] = []

    def append(batch: Any, *, meanwhile: Any) -> Any:
        before = reader.reads
        result = line.store.telemetry.append(batch, meanwhile=meanwhile)
        sent.append((batch.rows, reader.reads - before))
        return result

    store = SimpleNamespace(writers=line.store.writers, telemetry=SimpleNamespace(append=append))
    ship, reader = shipper(line, store)
    record(line, 0, 2 * ROWS_MAX + 10)
    while ship.step():
        pass
    assert sent == [(ROWS_MAX, 1), (ROWS_MAX, 1), (10, 0)]
    assert stored(line) == expected(2 * ROWS_MAX + 10)


def test_rows_that_come_while_the_last_ones_are_stored_are_not_passed_over(line: Line) -> None:
    ship, _ = shipper(line, line.store)
    for first in range(0, 10 * ROWS_MAX, ROWS_MAX):
        record(line, first, ROWS_MAX)
        assert ship.step()  # full, and nothing follows it yet
    assert not ship.step()
    assert stored(line) == expected(10 * ROWS_MAX)


def test_a_batch_is_stored_though_the_next_one_cannot_be_read(line: Line) -> None:
    ship, reader = shipper(line, line.store)
    reader.failures = frozenset({2, 3})
    record(line, 0, 3 * ROWS_MAX)
    assert ship.step()
    assert ship.acked == ROWS_MAX == len(stored(line))
    with pytest.raises(OSError, match="at the 3th time"):
        ship.step()  # the error itself, now that these rows are due
    assert ship.acked == ROWS_MAX
    while ship.step():
        pass
    assert stored(line) == expected(3 * ROWS_MAX)
    assert (ship.rows, ship.gap) == (3 * ROWS_MAX, 0)


def test_cut_answers_and_failing_reads_neither_lose_nor_double(
    line: Line, rng: random.Random
) -> None:
    def append(batch: Any, *, meanwhile: Any) -> Any:
        kind = rng.randrange(6)
        if kind == 0:
            raise StoreUnavailable("nowhere", "cut before")
        if kind == 1 and meanwhile is not None:
            meanwhile()  # it has read on, and then the batch is not stored
            raise StoreUnavailable("nowhere", "cut meanwhile")
        result = line.store.telemetry.append(batch, meanwhile=meanwhile)
        if kind == 2:
            raise StoreUnavailable("nowhere", "cut after")
        return result

    store = SimpleNamespace(writers=line.store.writers, telemetry=SimpleNamespace(append=append))
    ship, reader = shipper(line, store)
    reader.failures = frozenset(n for n in range(1, 2_000) if rng.random() < 0.15)
    total, faults = 0, 0
    while total < 6_000 or ship.acked < total:
        if total < 6_000:
            count = rng.randrange(3 * ROWS_MAX)
            record(line, total, count)
            total += count
        try:
            while ship.step():
                pass
        except (StoreUnavailable, OSError):
            faults += 1
        line.spool.release(ship.acked)
    assert faults > 20
    assert stored(line) == expected(total)
