"""One writer per attempt (R13): stopped at any moment, taken over, continued, it stores nothing."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from figures import figure, in_parts
from processes import kill, nursery, state_of, wait_until
from run_nursery import counters

import qigstore

NURSERY = Path(__file__).with_name("run_nursery.py")
ROWS_AFTER = 200
"""How many rows the stale process still records once it knows that it is stale."""

ROWS = """
SELECT t.attempt, count(*), count(DISTINCT t.seq) FROM qigstore.all_telemetry t
WHERE t.session = %s GROUP BY 1
"""


def rows_of(connection: psycopg.Connection[Any], name: str) -> dict[int, int]:
    """Rows by attempt, after checking that each is there once."""
    found = {}
    for attempt, rows, different in connection.execute(ROWS, (name,)):
        assert rows == different, f"{name}, attempt {attempt}: doubles"
        found[attempt] = rows
    return found


def take_over(name: str, dsn: str, pid: int, told: memoryview) -> tuple[int, int]:
    """Stop it, take over, let it go on; rows it had at the take-over, and at the end."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: state_of(pid) == "T", "the process stands still")
    with (
        psycopg.connect(dsn, autocommit=True) as connection,
        qigstore.session(name, dsn=dsn, takeover=True, quiet=True) as run,
    ):
        before = rows_of(connection, name).get(1, 0)
        recorded = told[0]
        for step in range(50):
            run.record(step, loss=1.0)
        os.kill(pid, signal.SIGCONT)
        for step in range(50, 100):
            run.record(step, loss=1.0)
        wait_until(lambda: state_of(pid) == "-", f"{pid} noticed that it is stale", limit_s=120)
        assert (told[1], told[0] - recorded >= ROWS_AFTER) == (ROWS_AFTER, True)
        run.flush()
        after = rows_of(connection, name)
    assert after[run.attempt or 2] == 100
    return before, after.get(1, 0)


def rounds(count: int, folder: Path, dsn: str, rng: random.Random) -> None:
    began, kept, stale = time.monotonic(), 0, 0
    with nursery(NURSERY) as order, psycopg.connect(dsn, autocommit=True) as connection:
        for number in range(count):
            name, place = f"round {number}", folder / f"{number}"
            place.write_bytes(bytes(4096))
            told = counters(place)
            pid = order(session=name, dsn=dsn, counters=str(place), rows_after=ROWS_AFTER)
            try:
                wait_until(lambda told=told: told[0], "the first row is recorded")
                if number % 2:  # the other half may be stopped before anything is stored
                    wait_until(
                        lambda name=name: rows_of(connection, name).get(1, 0) > 3, "rows are stored"
                    )
                time.sleep(rng.uniform(0, 0.3))
                before, after = take_over(name, dsn, pid, told)
            finally:
                kill(pid)
            kept += before
            stale += after - before
    print(
        f"{count} take-overs in {time.monotonic() - began:.0f} s: "
        f"{kept} rows stored before, {stale} stale ones after"
    )
    assert stale == 0
    assert kept > count, "the process was stopped too early to mean anything"


@pytest.mark.timeout(1200)
def test_fifteen_take_overs_let_no_stale_row_through(
    tmp_path: Path, home: Path, dsn: str, rng: random.Random
) -> None:
    rounds(15, tmp_path, dsn, rng)


@pytest.mark.long(seconds=350)
@in_parts(1000)
def test_a_thousand_take_overs_let_no_stale_row_through(
    tmp_path: Path, home: Path, dsn: str, rng: random.Random, count: int
) -> None:
    rounds(figure(count), tmp_path, dsn, rng)
