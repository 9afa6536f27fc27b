"""Sessions of every kind, and what is stored of them, number by number."""

from __future__ import annotations

import math
import random
import struct
import sys
from typing import Any
from uuid import uuid4

import numpy as np

from qigstore.repository import Store
from qigstore.repository.batches import STEP_MAX, RowGroup, TelemetryBatch

SUFFIXES = (".jsonl", ".parquet", ".csv")
NASTY = (
    math.nan, math.inf, -math.inf, -0.0, 0.0, 5e-324, -2.2e-308, sys.float_info.max, 0.1, 1 / 3,
    1e-300, 123456789.123456789, 1.7976931348623157e308,
)  # fmt: skip
NAMES = (
    "eigenvalue λ₁", 'quote " comma , semicolon ;', "emoji 🧭", "العربية", "a b", "nan", "%s", "'",
    "=1+1", "\u2028", "x" * 200,
)  # fmt: skip


def bits(value: float) -> bytes:
    return struct.pack(">d", value)


def telemetry_of(store: Store, name: str) -> list[Any]:
    """Every row of a session, each number as its bytes."""
    found = []
    with store.exports.snapshot(name) as snapshot:
        for batch in snapshot.batches():
            for row in batch:
                metrics = {key: bits(value) for key, value in sorted(row.metrics.items())}
                found.append((*row[:6], metrics, row.basin and [bits(p) for p in row.basin]))
    return found


def roots_of(store: Store) -> list[Any]:
    with store.database.begin() as connection:
        query = (
            "SELECT a.number, w.rank, b.step, b.root FROM qigstore.basin b "
            "JOIN qigstore.writer w ON w.number = b.writer "
            "JOIN qigstore.attempt a ON a.id = w.attempt_id ORDER BY 1, 2, 3"
        )
        return [(*row[:3], [bits(x) for x in row[3]]) for row in connection.exec_driver_sql(query)]


def session_of(store: Store, name: str) -> Any:
    with store.exports.snapshot(name) as snapshot:
        return snapshot.session


def group(rng: random.Random, names: tuple[str, ...], seqs: list[int], steps: list[int]) -> Any:
    values = [[rng.choice(NASTY) for _ in names] for _ in seqs]
    basins = [np.array([rng.choice((5e-324, 1e-310, rng.random())) for _ in range(5)])
              for _ in seqs]  # fmt: skip
    return RowGroup(
        names=names,
        seq=np.array(seqs, np.int64),
        step=np.array(steps, np.int64),
        time_ns=np.array([rng.randrange(2**60) for _ in seqs], np.int64),
        values=np.array(values, np.float64).reshape(len(seqs), len(names)),
        regime=np.array([rng.randrange(-1, 4) for _ in seqs], np.int16),
        basins=np.array(basins) if rng.random() < 0.5 else None,
    )


def fill(store: Store, rng: random.Random, name: str = "s") -> None:
    """Attempts, ranks, layouts, gaps and steps of every kind."""
    session = store.sessions.open(name, {"lr": 0.1, "odd": "NaN", "deep": {"Φ": [1, None]}})
    for _ in range(3):
        attempt = store.sessions.open_attempt(
            session.id, uuid4(), host="höst", pid=2**40, config={"seed": 7}
        )
        for rank in (0, 5):
            writer = uuid4()
            epoch = store.writers.register(writer, attempt.id, rank).epoch
            first = 1
            for _ in range(3):
                seqs = sorted(rng.sample(range(first, first + 60), 20))
                steps = [rng.choice((seq, 3 * seq, STEP_MAX - seq)) for seq in seqs]
                names = tuple(rng.sample((*NAMES, "loss", "phi", "kappa_eff"), rng.randrange(8)))
                parts = (group(rng, names, seqs[:10], steps[:10]),
                         group(rng, ("loss",), seqs[10:], steps[10:]))  # fmt: skip
                store.telemetry.append(
                    TelemetryBatch(
                        writer, epoch, session.id, attempt.number, rank, first, seqs[-1], parts
                    )
                )
                first = seqs[-1] + 1
        store.sessions.close_attempt(attempt.id, "aborted", reason="x\ny", exit_status=75)
