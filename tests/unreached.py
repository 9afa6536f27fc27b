"""Runs with no database in reach: a small training, a child to kill, and what became of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qigstore
from qigstore.repository import Store

FRESH = {"step": 0, "weights": [0.0]}
NOWHERE = "postgresql://me:s3cret@127.0.0.1:1/x"


def train(run: qigstore.Run, until: int, *, nan_at: int = -1) -> Any:
    """Φ rises with the step, so that the newest checkpoint is the best."""
    state = run.recover(default=FRESH)
    for step in run.steps(state["step"], until):
        state = {"step": step + 1, "weights": [float(step)]}
        run.record(step, loss=float("nan") if step == nan_at else 1.0, phi=0.5 + step / 1000)
        run.checkpoint(state, step=step, every=10)
    return state


def stored(store: Store, name: str = "s") -> dict[int, list[int]]:
    info = store.sessions.get(name)
    return {
        attempt.number: [r.step for r in store.telemetry.rows(info.id, attempt=attempt.number)]
        for attempt in store.sessions.attempts(info.id)
    }


def spools(home: Path) -> list[Path]:
    return sorted((home / "spool").glob("*/*/spool.json"))


CHILD = """
import sys
import qigstore
run = qigstore.session("s", mode=sys.argv[1], quiet=True).open()
step = 0
while True:
    run.record(step, loss=float(step))
    step += 1
    if step % 100 == 0:
        print(step, flush=True)
"""


@contextmanager
def child(mode: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CHILD, mode], text=True,
        env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
