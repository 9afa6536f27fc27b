"""Fork-safe (R12): children of a recording process write neither its spool nor its socket."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from figures import figure
from line import arrivals

from qigstore.repository import Store

NURSERY = Path(__file__).with_name("fork_nursery.py")


def raise_children(count: int, seed: int, dsn: str, store: Store) -> None:
    began = time.monotonic()
    command = [sys.executable, str(NURSERY), str(count), str(seed), dsn]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300 + count, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    session = store.sessions.get("forks")
    rows = arrivals(dsn, session.id)
    foreign = sum(loss < 0 for _, _, loss in rows)
    print(
        f"{sum(told['children'].values())} children {told['children']} in "
        f"{time.monotonic() - began:.0f} s: {len(rows)} rows, {foreign} foreign"
    )
    assert foreign == 0
    assert all(key.endswith(": done") for key in told["children"]), done.stderr[-4000:]
    assert sum(told["children"].values()) == count
    assert told["status"] == "running", "a child closed the attempt of its parent"
    recorded = sorted(2 * step + k for k, n in enumerate(told["steps"]) for step in range(n))
    assert sorted(step for _, step, _ in rows) == recorded
    assert [seq for seq, _, _ in rows] == list(range(1, len(rows) + 1))
    assert [a.status for a in store.sessions.attempts(session.id)] == ["completed"]


@pytest.mark.timeout(1200)
def test_a_hundred_children_neither_hang_nor_write(
    seed: int, home: Path, dsn: str, store: Store
) -> None:
    raise_children(100, seed, dsn, store)


@pytest.mark.long(seconds=200)
def test_a_thousand_children_neither_hang_nor_write(
    seed: int, home: Path, dsn: str, store: Store
) -> None:
    raise_children(2 * (figure(1000) // 2), seed, dsn, store)
