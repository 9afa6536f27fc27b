"""What questions cost among millions of rows: ratios against peers in the same run.

    python -m benchmarks.query [--rows N] [--steps N] [--basins N] [--repeats K] [--folder DIR]
                               [--json FILE]

Loads `--rows` rows of telemetry (5 metrics, through our own append, roll-ups included) into an
embedded server: a session of `--steps` steps, one of all the rest, and 98 of 1,000 steps. With
`--folder` the data stay there, and a later run goes on with the load where it was left.

Then every repeat asks in turn: a curve of 1,000 points of the shorter and of the longer session,
the newest row of 100 sessions, a bare round trip; and the peers' way to the same picture: fetching
every value and downsampling it with NumPy (once in ten repeats), MLflow's
`get_metric_history_bulk_interval` (what its UI draws: 1,000 sampled values, spikes left out) on the
same server, over as many steps (once in ten), `DISTINCT ON` for the newest rows (once). MLflow's
`metrics` table is filled by one INSERT … SELECT, which is kinder to it than its own calls.

`--basins` (120,000 of 64 dimensions, 0 for none) are another session's: its trajectory of 1,000
points, and the ten nearest to a point: all compared, by pgvector's index (made here, as by
`qigstore db index-basins`), and the way without either: all to the client, and
`qigkernels.simplex.distance` (once in ten).

`server` is what EXPLAIN ANALYZE says of planning and execution of each statement, added up: the
least of 15, as whatever else the machine does is no part of it. The rest are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any, TypeAlias
from uuid import UUID, uuid5

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from qigkernels import simplex
from qigkernels.constants import BASIN_DIM
from qigstore import query
from qigstore.database.embedded import EmbeddedServer
from qigstore.database.engine import Database
from qigstore.database.migrate import upgrade
from qigstore.repository import RowGroup, Store, TelemetryBatch

__all__ = ["main"]

_NAMES = ("loss", "grad_norm", "phi", "kappa_eff", "mine/throughput")
_SHORT, _SHORT_STEPS = 98, 1_000
_BATCH, _POINTS = 20_000, 1_000
_SPACE = UUID("5f1f7a57-52b5-4b4b-9d2f-6d3f6f6b8f10")
_MLFLOW, _PATH = "mlflow_peer", "path"
_Asked: TypeAlias = "dict[str, Callable[[], object]]"
_RARELY = 10
_BY_CURSOR = ("trajectory", "10 nearest")
"""Read with cursors of the server's, which EXPLAIN does not see."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Load, measure and print a table; `--json` also writes every figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--basins", type=int, default=120_000)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    sizes = _sizes(given.rows, given.steps)
    with _server(given.folder) as dsn:
        database = Database(dsn, pool_size=1)
        upgrade(database)
        store = Store(database)
        for name, steps in sizes.items():
            _load(store, name, steps)
        if given.basins:
            _load(store, _PATH, given.basins, with_basins=True)
            _say("pgvector's index")
            store.basins.make_index()
        with psycopg.connect(dsn, autocommit=True) as plain:
            _say("vacuum analyze")
            plain.execute("VACUUM (ANALYZE)")
        peer = _Mlflow(dsn, given.steps) if find_spec("mlflow") else None
        ours, peers = _questions(store, peer, given.basins)
        told = _measure(store, ours, peers, given.repeats)
        told["rows"], told["sizes"] = given.rows, dict(list(sizes.items())[:2])
        database.dispose()
    _print(told)
    if given.json is not None:
        given.json.write_text(json.dumps(told, indent=2))


def _say(words: str) -> None:
    print(f"… {words}", file=sys.stderr, flush=True)


def _sizes(rows: int, steps: int) -> dict[str, int]:
    rest = rows - steps - _SHORT * _SHORT_STEPS
    if rest < 1:
        raise SystemExit(f"--rows must be more than {steps + _SHORT * _SHORT_STEPS:,}")
    short = {f"short {number}": _SHORT_STEPS for number in range(_SHORT)}
    return {"shorter": steps, "longer": rest, **short}


@contextmanager
def _server(folder: Path | None) -> Iterator[str]:
    with (
        tempfile.TemporaryDirectory(prefix="qs-") as own,
        EmbeddedServer.start((folder or Path(own)) / "postgres") as server,
    ):
        yield server.dsn()


# -- loading ------------------------------------------------------------------------------------


def _load(store: Store, name: str, steps: int, *, with_basins: bool = False) -> None:
    """A session of so many steps; what is there already is left as it is."""
    session = store.sessions.open(name, {})
    attempt = store.sessions.open_attempt(
        session.id, uuid5(_SPACE, name), host="benchmark", pid=0, config={}
    )
    writer = uuid5(_SPACE, f"{name}, rank 0")
    state = store.writers.register(writer, attempt.id, 0)
    begun, first = perf_counter(), state.acked_seq
    for done in range(state.acked_seq, steps, _BATCH):
        count = min(_BATCH, steps - done)
        store.telemetry.append(
            TelemetryBatch(
                writer, state.epoch, session.id, attempt.number, 0, done + 1, done + count,
                (_group(done, count, with_basins),),
            )
        )  # fmt: skip
        if steps > _SHORT_STEPS and done % (25 * _BATCH) == 0:
            rate = (done + count - first) / (perf_counter() - begun)
            _say(f"{name}: {done + count:,} of {steps:,} rows, {rate / 1000:.0f} k rows/s")


def _group(first: int, count: int, with_basins: bool) -> RowGroup:
    steps = np.arange(first, first + count, dtype=np.int64)
    generator = np.random.default_rng(first)
    noise = generator.standard_normal((count, len(_NAMES)))
    values = np.stack([np.exp(-steps / 2e5), 1 + 0 * steps, np.sin(steps / 3e4), 64 + 0 * steps,
                       1e3 + 0 * steps], axis=1) + 0.01 * noise  # fmt: skip
    return RowGroup(
        names=_NAMES,
        seq=steps + 1,
        step=steps,
        time_ns=1_700_000_000_000_000_000 + steps * 10_000_000,
        values=values,
        regime=(steps // 1000 % 3).astype(np.int16),
        basins=generator.dirichlet([0.5] * BASIN_DIM, count) if with_basins else None,
    )


# -- the peers ----------------------------------------------------------------------------------


class _Mlflow:
    """A run of as many steps in MLflow's own store, in a database beside ours."""

    def __init__(self, dsn: str, steps: int) -> None:
        os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true",
                       "GIT_PYTHON_REFRESH": "quiet"}  # fmt: skip
        _say(f"MLflow: {steps:,} rows")
        with psycopg.connect(dsn, autocommit=True) as connection:
            known = "SELECT 1 FROM pg_database WHERE datname = %s"
            if connection.execute(known, (_MLFLOW,)).fetchone() is None:
                connection.execute(f"CREATE DATABASE {_MLFLOW}")
        parts = conninfo_to_dict(dsn)
        url = (
            f"postgresql+psycopg://{parts['user']}:{parts['password']}@/{_MLFLOW}"
            f"?host={parts['host']}&port={parts['port']}"
        )
        module = import_module("mlflow.store.tracking.sqlalchemy_store")
        self._store: Any = module.SqlAlchemyStore(url, "file:///tmp/unused")
        run = self._store.create_run("0", "bench", 0, [], "bench")
        self._run = run.info.run_id
        with psycopg.connect(make_conninfo(dsn, dbname=_MLFLOW), autocommit=True) as connection:
            connection.execute(_MLFLOW_ROWS, (self._run, steps))
            connection.execute("VACUUM (ANALYZE) metrics")

    def curve(self) -> int:
        """What its UI asks for."""
        return len(
            self._store.get_metric_history_bulk_interval([self._run], "loss", _POINTS, None, None)
        )


_MLFLOW_ROWS = """
INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan)
SELECT 'loss', random(), 1700000000000 + g * 10, %s, g, false FROM generate_series(0, %s - 1) g"""


def _fetch_and_downsample(store: Store, session: str) -> int:
    """Every value to the client, then least, greatest and mean of 1,000 buckets in NumPy."""
    statement = "SELECT step, loss FROM qigstore.canonical_telemetry WHERE session = %s"
    with store.database.raw() as connection, connection.cursor(binary=True) as cursor:
        lines = np.array(cursor.execute(statement, (session,)).fetchall(), np.float64)
    lines = lines[np.argsort(lines[:, 0], kind="stable")]
    width = -(-len(lines) // _POINTS)
    first = np.arange(0, len(lines), width)
    for reduce in (np.minimum, np.maximum, np.add):
        reduce.reduceat(lines[:, 1], first)
    return len(first)


_DISTINCT = """
SELECT DISTINCT ON (session_id) * FROM qigstore.canonical_telemetry
ORDER BY session_id, attempt DESC, step DESC"""


# -- measuring ----------------------------------------------------------------------------------


class _Explained(psycopg.Cursor[Any]):
    """Explains each statement before it runs it, and adds up the server's times."""

    spent_ms = 0.0

    def execute(self, query: Any, params: Any = None, **more: Any) -> Any:
        """As psycopg's own."""
        if isinstance(query, str) and query.lstrip().upper().startswith("SELECT"):
            explained: Any = f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {query}"
            row = super().execute(explained, params, **more).fetchone()
            assert row is not None
            _Explained.spent_ms += row[0][0]["Planning Time"] + row[0][0]["Execution Time"]
        return super().execute(query, params, **more)


@contextmanager
def _explaining(store: Store) -> Iterator[None]:
    with store.database.raw() as connection:  # the pool's only one
        connection.cursor_factory = _Explained
    try:
        yield
    finally:
        with store.database.raw() as connection:
            connection.cursor_factory = psycopg.Cursor


def _questions(store: Store, peer: _Mlflow | None, basins: int) -> tuple[_Asked, _Asked]:
    """Ours, each repeat; and the peers', now and then."""

    def bare() -> None:
        with store.database.raw() as connection:
            connection.execute("SELECT 1").fetchall()

    def one(session: str) -> Callable[[], object]:
        return lambda: query.curve(store, session, "loss", points=_POINTS)

    last = _last(store)
    ours: _Asked = {
        "bare round trip": bare,
        "curve, shorter session": one("shorter"),
        "curve, longer session": one("longer"),
        "curve of its last 5,000 steps": lambda: query.curve(
            store, "longer", "loss", points=_POINTS, start=max(0, last - 5000)
        ),
        "newest row of 100 sessions": lambda: query.latest(store, limit=100),
    }
    peers: _Asked = {
        "fetch and downsample, shorter": lambda: _fetch_and_downsample(store, "shorter"),
        "regimes of the shorter session (reads its rows)": lambda: query.regime_shares(
            store, "shorter"
        ),
    }
    if peer is not None:
        peers["MLflow's bulk interval, as many steps as shorter"] = peer.curve
    if basins:
        point = np.full(BASIN_DIM, 1 / BASIN_DIM)
        ours["trajectory, 1,000 of the basins"] = lambda: query.trajectory(store, _PATH)
        ours["10 nearest basins, by pgvector's index"] = lambda: query.nearest(store, point)
        peers["10 nearest basins, all compared"] = lambda: query.nearest(store, point, exact=True)
        peers["basins to the client, then distances"] = lambda: _fetch_and_compare(store, point)
    return ours, peers


def _fetch_and_compare(store: Store, point: NDArray[np.float64]) -> list[int]:
    statement = "SELECT step, root FROM qigstore.basin"
    with store.database.raw() as connection, connection.cursor(binary=True) as cursor:
        lines = cursor.execute(statement).fetchall()
    roots = np.array([line[1] for line in lines])
    nearest = np.argsort(simplex.distance_from_roots(np.sqrt(point), roots))[:10]
    return [lines[i][0] for i in nearest]


def _measure(store: Store, ours: _Asked, peers: _Asked, repeats: int) -> dict[str, Any]:
    wall: dict[str, list[float]] = {name: [] for name in (*ours, *peers)}
    thread: dict[str, list[float]] = {name: [] for name in (*ours, *peers)}
    for repeat in range(repeats + 3):
        for name, call in {**ours, **(peers if repeat % _RARELY == 3 else {})}.items():
            begun, used = perf_counter(), thread_time()
            call()
            if repeat >= 3:
                wall[name].append((perf_counter() - begun) * 1000)
                thread[name].append((thread_time() - used) * 1000)
    _say("DISTINCT ON")
    begun = perf_counter()
    with store.database.begin_unlimited() as connection:
        connection.exec_driver_sql(_DISTINCT).all()
    wall["DISTINCT ON, 100 sessions"] = [(perf_counter() - begun) * 1000]
    asked = {name: call for name, call in ours.items() if not name.startswith(_BY_CURSOR)}
    return {"wall_ms": wall, "thread_ms": thread, "server_ms": _server_times(store, asked)}


def _last(store: Store) -> int:
    timeline = store.timelines.find("longer")
    assert timeline is not None
    return timeline.parts[0].last


def _server_times(store: Store, asked: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Planning and execution of all statements of a question, in ms; the least of 15."""
    told: dict[str, list[float]] = {name: [] for name in asked}
    with _explaining(store):
        for _ in range(15):
            for name, call in asked.items():
                _Explained.spent_ms = 0.0
                call()
                told[name].append(_Explained.spent_ms)
    return {name: min(times) for name, times in told.items()}


def _print(told: dict[str, Any]) -> None:
    sizes = ", ".join(f"{name} {steps:,}" for name, steps in told["sizes"].items())
    print(f"{told['rows']:,} rows (steps: {sizes}; 98 sessions of 1,000); ms, medians")
    print(f"{'':52}{'client':>10}{'p95':>10}{'CPU':>10}{'server':>10}{'× ours':>10}")
    base = {
        "fetch": "curve, shorter session",
        "MLflow": "curve, shorter session",
        "DISTINCT": "newest row of 100 sessions",
        "10 nearest basins, all": "10 nearest basins, by pgvector's index",
        "basins to the client": "10 nearest basins, all compared",
    }
    for name, times in told["wall_ms"].items():
        client = statistics.median(times)
        most = statistics.quantiles(times, n=20)[-1] if len(times) > 2 else max(times)
        used = told["thread_ms"].get(name)
        server = told["server_ms"].get(name)
        against = next((own for start, own in base.items() if name.startswith(start)), None)
        ratio = client / statistics.median(told["wall_ms"][against]) if against else None
        cells = (client, most, statistics.median(used) if used else None, server)
        shown = "".join(("" if cell is None else f"{cell:.2f}").rjust(10) for cell in cells)
        print(f"{name:52}{shown}{'' if ratio is None else f'{ratio:.0f}':>10}")


if __name__ == "__main__":
    main()
