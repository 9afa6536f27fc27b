"""What choosing a checkpoint costs among many rows: ratios to a bare round trip of the same run.

    python -m benchmarks.recovery [--rows N …] [--repeats K] [--json FILE]

For each number of rows two sessions with so many checkpoints, one in fifty without Φ. In *most
healthy* every 250 steps there is an event, every second one critical, so that a tenth of them is
unhealthy; in *three healthy* a critical event every 40 steps, except at the very start. Every
repeat asks the same connection pool, in turn: a bare round trip (`select 1`), the candidates by
rank, the candidates by age; so that a slow moment of the machine hits all alike. Client time is
from the call of the repository to its records; server time is what `EXPLAIN ANALYZE` says of
planning (once for a connection, then the plan is kept) and of execution. `first` is the first call
of a fresh pool, the connection included: recovery happens once in a process. The server is an
embedded one of this run's own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import psycopg
from psycopg import sql

from qigstore.database.embedded import EmbeddedServer
from qigstore.database.engine import Database
from qigstore.database.migrate import upgrade
from qigstore.repository import Store
from qigstore.repository.candidates import statement

__all__ = ["main"]

_ROWS = (1_000, 10_000, 100_000, 1_000_000)
_SETTLE, _LIMIT = 50, 20
_CHECKPOINTS = """
INSERT INTO qigstore.checkpoint
    (id, session_id, attempt, step, phi, weights_finite, path, bytes, digest)
SELECT gen_random_uuid(), %s, 1, g,
    CASE WHEN g %% 50 > 0 THEN (g * 7919::bigint %% 10007) / 10007.0 END, true, '/p', 1, 'x'
FROM generate_series(1, %s) g
"""
_EVENTS = """
INSERT INTO qigstore.event (id, session_id, attempt, step, rule, severity, message)
SELECT gen_random_uuid(), %(session)s, 1, g, 'loss',
    CASE WHEN g / %(every)s %% %(critical)s = 0 THEN 'critical' ELSE 'warning' END, 'm'
FROM generate_series(%(first)s::bigint, %(last)s::bigint, %(every)s::bigint) g
"""
_HEALTH = {
    "most healthy": {"first": 250, "every": 250, "critical": 2},
    "three healthy": {"first": _SETTLE + 4, "every": 40, "critical": 1},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table; `--json` also writes every figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=list(_ROWS))
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="qs-") as folder,
        EmbeddedServer.start(Path(folder) / "postgres") as server,
    ):
        database = Database(server.dsn())
        upgrade(database)
        store = Store(database)
        told = [
            _measure(server.dsn(), store, _fill(server.dsn(), store, rows, health), given.repeats)
            | {"rows": rows, "health": health}
            for rows in given.rows
            for health in _HEALTH
        ]
        database.dispose()
    _print(told)
    if given.json is not None:
        given.json.write_text(json.dumps(told, indent=2))


def _fill(dsn: str, store: Store, rows: int, health: str) -> int:
    """The id of a session with so many checkpoints, so many of them healthy."""
    print(f"… {rows:,} rows, {health}", file=sys.stderr, flush=True)
    session_id = store.sessions.open(f"{rows} rows, {health}", {}).id
    events = {"session": session_id, "last": rows + _SETTLE, **_HEALTH[health]}
    with store.database.begin_unlimited() as connection:
        connection.exec_driver_sql(_EVENTS, events)
        connection.exec_driver_sql(_CHECKPOINTS, (session_id, rows))
    with psycopg.connect(dsn, autocommit=True) as plain:
        plain.execute("VACUUM (ANALYZE) qigstore.checkpoint, qigstore.event")
    return session_id


def _measure(dsn: str, store: Store, session_id: int, repeats: int) -> dict[str, Any]:
    first = _first(dsn, session_id)

    def choose(*, by_age: bool) -> None:
        store.checkpoints.candidates(session_id, settle_steps=_SETTLE, by_age=by_age)

    def bare() -> None:
        with store.database.reading() as connection:
            connection.execute("SELECT 1").fetchall()

    asked: dict[str, Callable[[], None]] = {
        "bare": bare,
        "rank": lambda: choose(by_age=False),
        "age": lambda: choose(by_age=True),
    }
    times: dict[str, list[float]] = {name: [] for name in asked}
    for repeat in range(repeats + 10):
        for name, call in asked.items():
            begun = perf_counter()
            call()
            if repeat >= 10:  # the first ones prepare the statements
                times[name].append((perf_counter() - begun) * 1000)
    with psycopg.connect(dsn, autocommit=True) as plain:
        server = {
            name: _server(plain, session_id, by_age=name == "age") for name in ("rank", "age")
        }
    return {"first_ms": first, "client_ms": times, "server_ms": server}


def _first(dsn: str, session_id: int) -> float:
    """The first call of a fresh pool, its connection included; median of five."""
    taken = []
    for _ in range(5):
        database = Database(dsn)
        begun = perf_counter()
        Store(database).checkpoints.candidates(session_id, settle_steps=_SETTLE)
        taken.append((perf_counter() - begun) * 1000)
        database.dispose()
    return statistics.median(taken)


def _server(
    connection: psycopg.Connection[Any], session_id: int, *, by_age: bool
) -> dict[str, float]:
    """Median planning and execution time on the server, in ms."""
    asked = {"session": session_id, "settle": _SETTLE, "floor": None, "by_age": by_age}
    explain = sql.SQL("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) ") + statement(_LIMIT)
    told = []
    with psycopg.ClientCursor(connection) as cursor:
        for _ in range(15):
            row = cursor.execute(explain, asked).fetchone()
            assert row is not None
            told.append(row[0][0])
    return {
        name: statistics.median(plan[f"{name} Time"] for plan in told)
        for name in ("Planning", "Execution")
    }


def _print(told: Sequence[dict[str, Any]]) -> None:
    print(f"choosing {_LIMIT} candidates; ms, medians; ×: client time in bare round trips")
    columns = (
        "rows",
        "health",
        "order",
        "server",
        "planning",
        "client",
        "p95",
        "bare",
        "×",
        "first",
    )
    print("".join(name.rjust(14) for name in columns))
    for item in told:
        bare = statistics.median(item["client_ms"]["bare"])
        for order in ("rank", "age"):
            times, server = item["client_ms"][order], item["server_ms"][order]
            client = statistics.median(times)
            cells = (
                f"{item['rows']:,}", item["health"], order, f"{server['Execution']:.2f}",
                f"{server['Planning']:.2f}", f"{client:.2f}",
                f"{statistics.quantiles(times, n=20)[-1]:.2f}", f"{bare:.2f}",
                f"{client / bare:.1f}", f"{item['first_ms']:.1f}" if order == "rank" else "",
            )  # fmt: skip
            print("".join(cell.rjust(14) for cell in cells))


if __name__ == "__main__":
    main()
