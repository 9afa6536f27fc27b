"""What recording costs, and how fast rows are readable: ratios against peers in the same run.

    python -m benchmarks.recording [--rows N] [--repeats K] [--json FILE]

Every repeat measures each of them, one after the other, so that a slow minute of the machine hits
all alike; the spread over the repeats is printed beside the median. The peers: psycopg's
`copy.write_row` of the same rows into the same server, and trackio (`pip install qigstore[bench]`).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, perf_counter_ns, sleep
from typing import Any
from uuid import uuid4

from qigstore.recording.recorder import Recorder
from qigstore.recording.spool import Spool, SpoolIdentity
from qigstore.recording.spool.leftover import LeftOver, spool_folders
from qigstore.recording.spool.reader import SpoolReader
from qigstore.recording.writer import Writer
from qigstore.records import STANDARD_METRICS
from qigstore.repository import Store

__all__ = ["main"]

NAMES = (*STANDARD_METRICS[:10], *(f"custom/{i}" for i in range(10)))
PACE_S = 0.002
PACED_CALLS = 500
HOT_CALLS = 20_000
PEER_HOT_CALLS = 2_000
KILLED_CALLS = 300

Log = Callable[[int, dict[str, float]], object]


def rows(count: int) -> list[dict[str, float]]:
    """Rows of 20 metrics, half of them standard ones."""
    rng = random.Random(1)
    return [{name: rng.random() for name in NAMES} for _ in range(count)]


@dataclass(frozen=True)
class Cost:
    """Nanoseconds of one call."""

    median: float
    p99: float
    p999: float

    @classmethod
    def of(cls, log: Log, data: Sequence[dict[str, float]], *, pace_s: float, first: int) -> Cost:
        """Time each call."""
        taken = []
        for step, row in enumerate(data, first):
            if pace_s:
                sleep(pace_s)
            began = perf_counter_ns()
            log(step, row)
            taken.append(perf_counter_ns() - began)
        taken.sort()
        pick = [taken[int(share * (len(taken) - 1))] for share in (0.5, 0.99, 0.999)]
        return cls(*map(float, pick))


# -- the three that are measured -------------------------------------------------------------


def new_spool(root: Path) -> Spool:
    """A spool of its own."""
    told = SpoolIdentity(
        writer=uuid4(),
        attempt=uuid4(),
        session=f"bench-{uuid4().hex[:8]}",
        rank=0,
        config={},
        host="bench",
        pid=os.getpid(),
        created_at=datetime.now(UTC),
    )
    return Spool.create(root, told)


@contextmanager
def recording(root: Path, store: Store) -> Iterator[tuple[Recorder[Any], Writer]]:
    """A recorder whose rows go to the database behind it; everything is stored at the end."""
    spool = new_spool(root)
    told = spool.identity
    session = store.sessions.open(told.session, {})
    attempt = store.sessions.open_attempt(
        session.id, told.attempt, host=told.host, pid=told.pid, config={}
    )
    epoch = store.writers.register(told.writer, told.attempt, 0).epoch
    writer = Writer(store, spool, session_id=session.id, attempt=attempt.number, epoch=epoch)
    writer.start()
    yield Recorder(spool), writer
    writer.close(120)


@contextmanager
def trackio_log() -> Iterator[Log]:
    """trackio's `log`, writing to a local folder."""
    import trackio

    trackio.init(project=f"bench-{uuid4().hex[:8]}", embed=False, auto_log_gpu=False,
                 auto_log_cpu=False)  # fmt: skip
    yield lambda step, row: trackio.log(row, step=step)
    trackio.finish()


def copy_rate(dsn: str, data: Sequence[dict[str, float]]) -> float:
    """Steps a second of `copy.write_row` in binary, into a table made as ours is."""
    import psycopg

    columns = ["session_id", "attempt", "rank", "step", "seq", "recorded_at",
               *STANDARD_METRICS[:10], "custom"]  # fmt: skip
    types = ["int8", "int4", "int4", "int8", "int8", "timestamptz", *["float8"] * 10, "float8[]"]
    now = datetime.now(UTC)
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE bench_copy (LIKE qigstore.telemetry INCLUDING ALL)")
        connection.commit()
        began = perf_counter()
        with cursor.copy(
            f"COPY bench_copy ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)"
        ) as copy:
            copy.set_types(types)
            for step, row in enumerate(data):
                values = list(row.values())
                copy.write_row((1, 1, 0, step, step, now, *values[:10], values[10:]))
        connection.commit()
        taken = perf_counter() - began
        cursor.execute("DROP TABLE bench_copy")
    return len(data) / taken


def stored_rate(root: Path, store: Store, data: Sequence[dict[str, float]]) -> dict[str, float]:
    """Steps a second from the first `record()` until all are readable; and their bytes."""
    with recording(root, store) as (recorder, writer):
        record = recorder.record
        began = perf_counter()
        for step, row in enumerate(data):
            record(step, row)
        recorded = perf_counter()
        writer.flush(300)
        stored = perf_counter()
    return {
        "stored_steps_s": len(data) / (stored - began),
        "recorded_steps_s": len(data) / (recorded - began),
    }


def backlog_rate(root: Path, store: Store, data: Sequence[dict[str, float]]) -> float:
    """Steps a second from a left-over spool to PostgreSQL, with nobody recording meanwhile."""
    from qigstore.recording.drain import drain_leftovers

    spool = new_spool(root)
    recorder: Recorder[Any] = Recorder(spool)
    for step, row in enumerate(data):
        recorder.record(step, row)
    spool.close()
    began = perf_counter()
    reports = drain_leftovers(root, store)
    taken = perf_counter() - began
    assert sum(report.rows for report in reports) == len(data)
    return len(data) / taken


# -- what each keeps when the process is killed right after the last call --------------------


def die_after_logging(peer: str, folder: Path) -> None:
    """In a child: log at the pace of a training loop, then SIGKILL."""
    data = rows(KILLED_CALLS)
    if peer == "qigstore":
        log: Log = Recorder(new_spool(folder)).record
    else:
        context = trackio_log()
        log = context.__enter__()
    for step, row in enumerate(data):
        sleep(PACE_S)
        log(step, row)
    os.kill(os.getpid(), 9)


def kept_after_kill(peer: str) -> int:
    """Rows that are on the disk after a child was killed right after its last call."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"TRACKIO_DIR": folder}
        subprocess.run(
            [sys.executable, "-m", "benchmarks.recording", "--die", peer, folder],
            env=environment, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if peer == "trackio":
            return sum(_metrics_in(path) for path in Path(folder).rglob("*.db"))
        kept = 0
        for spool in spool_folders(Path(folder)):
            from qigstore.recording.spool.identity import read_identity

            writer = read_identity(spool).writer
            take = SpoolReader(LeftOver(spool, writer), writer).take(10 * KILLED_CALLS)
            kept += take.count if take else 0
        return kept


def _metrics_in(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'metrics'")
        if tables.fetchone() is None:
            return 0
        return int(connection.execute("SELECT count(*) FROM metrics").fetchone()[0])


# -- the run ---------------------------------------------------------------------------------


@contextmanager
def server() -> Iterator[tuple[str, Store]]:
    """A migrated database: `QIGSTORE_BENCH_DSN`, else an embedded server of our own."""
    from qigstore.database.embedded import EmbeddedServer
    from qigstore.database.engine import Database
    from qigstore.database.migrate import upgrade

    with tempfile.TemporaryDirectory(prefix="qs-", dir="/tmp") as folder:
        given = os.environ.get("QIGSTORE_BENCH_DSN")
        started = None if given else EmbeddedServer.start(Path(folder) / "postgres")
        try:
            dsn = given or (started.dsn() if started else "")
            database = Database(dsn)
            upgrade(database)
            with Store(database) as store:
                yield dsn, store
        finally:
            if started is not None:
                started.close()


def one_repeat(root: Path, dsn: str, store: Store, data: list[dict[str, float]]) -> dict[str, Any]:
    """Each measure once."""
    told: dict[str, Any] = {}
    with recording(root, store) as (recorder, _):
        record = recorder.record
        Cost.of(record, data[:100], pace_s=0, first=0)
        told["hot"] = vars(Cost.of(record, data[:HOT_CALLS], pace_s=0, first=100))
        paced = data[:PACED_CALLS]
        told["paced"] = vars(Cost.of(record, paced, pace_s=PACE_S, first=100 + HOT_CALLS))
    if find_spec("trackio"):
        with trackio_log() as log:
            told["trackio_hot"] = vars(Cost.of(log, data[:PEER_HOT_CALLS], pace_s=0, first=0))
            paced = data[:PACED_CALLS]
            told["trackio_paced"] = vars(Cost.of(log, paced, pace_s=PACE_S, first=PEER_HOT_CALLS))
    told |= stored_rate(root, store, data)
    told["backlog_steps_s"] = backlog_rate(root, store, data)
    told["copy_steps_s"] = copy_rate(dsn, data)
    return told


def bytes_a_step(dsn: str, spool_row: int) -> dict[str, float]:
    """Bytes of one step in the spool and in the table with its index."""
    import psycopg

    with psycopg.connect(dsn) as connection:
        size, count = connection.execute(
            "SELECT pg_total_relation_size('qigstore.telemetry'), count(*) FROM qigstore.telemetry"
        ).fetchone() or (0, 1)
    return {"spool_bytes": float(spool_row), "postgres_bytes": size / max(count, 1)}


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """Median and range."""
    low, middle, high = (f(values) / scale for f in (min, statistics.median, max))
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def report(told: dict[str, Any]) -> Iterator[str]:
    """The figures as text."""
    repeats = told["repeats"]
    for kind, name in (("hot", "back to back"), ("paced", f"every {PACE_S * 1000:g} ms")):
        for who in ("", "trackio_"):
            if who + kind not in repeats[0]:
                continue
            costs = [repeat[who + kind] for repeat in repeats]
            parts = [
                f"{p} {spread([c[p] for c in costs], 1000)}" for p in ("median", "p99", "p999")
            ]
            yield f"{'trackio.log' if who else 'record()':12} {name:13} µs: {', '.join(parts)}"
        if f"trackio_{kind}" in repeats[0]:
            ratios = [r[f"trackio_{kind}"]["median"] / r[kind]["median"] for r in repeats]
            yield f"  trackio / qigstore, median: {spread(ratios)}"
    if "trackio_hot" not in repeats[0]:
        yield "trackio is not installed: no peer for record(). pip install 'qigstore[bench]'"
    for key, name in (
        ("stored_steps_s", "record() to readable in PostgreSQL"),
        ("backlog_steps_s", "left-over spool to PostgreSQL"),
        ("copy_steps_s", "psycopg copy.write_row, same rows"),
    ):
        yield f"{name:36} k steps/s: {spread([r[key] for r in repeats], 1000)}"
    for key in ("stored_steps_s", "backlog_steps_s"):
        ratios = [r[key] / r["copy_steps_s"] for r in repeats]
        yield f"  {key[:-8]} / copy.write_row: {spread(ratios, digits=2)}"
    sizes = told["bytes"]
    yield f"bytes a step: {sizes['spool_bytes']:.0f} in the spool, "\
          f"{sizes['postgres_bytes']:.0f} in PostgreSQL (index included)"  # fmt: skip
    for peer, kept in told["kept_after_sigkill"].items():
        yield f"kept after SIGKILL: {peer} {kept} of {KILLED_CALLS} logged rows"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--die", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.die:
        die_after_logging(given.die[0], Path(given.die[1]))
    logging.getLogger("httpx").setLevel(logging.WARNING)
    data = rows(max(given.rows, HOT_CALLS))
    with tempfile.TemporaryDirectory(prefix="qs-") as folder, server() as (dsn, store):
        os.environ["TRACKIO_DIR"] = f"{folder}/trackio"
        root = Path(folder) / "spool"
        repeats = [one_repeat(root, dsn, store, data) for _ in range(given.repeats)]
        spool = new_spool(root)
        size = spool.layout(NAMES).size
        spool.remove()
        told = {"rows": len(data), "repeats": repeats, "bytes": bytes_a_step(dsn, size)}
    peers = ["qigstore", *(["trackio"] if find_spec("trackio") else [])]
    told["kept_after_sigkill"] = {peer: kept_after_kill(peer) for peer in peers}
    print(f"20 metrics, {len(data)} rows, {given.repeats} repeats: median (range)")
    for line in report(told):
        print(line)
    if given.json:
        given.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
