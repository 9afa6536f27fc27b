"""Basins: read at a few steps of many, and searched for the nearest ones.

They are stored as roots √p, on a sphere: the Fisher-Rao distance of two is 4·arcsin of half their
chord ‖√p − √q‖, so that the nearest by chord is the nearest. A search reads every basin, some at a
time; or, where pgvector is installed and its index was asked for, that index's candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import psycopg
import sqlalchemy
from numpy.typing import NDArray
from psycopg.adapt import Loader
from psycopg.pq import Format

from qigkernels.constants import BASIN_DIM
from qigstore.database.views import REGIMES
from qigstore.errors import InvalidInput, StoreError
from qigstore.repository.timelines import Span, of_writer

if TYPE_CHECKING:
    from psycopg.abc import Buffer

    from qigstore.database.engine import Database

__all__ = ["INDEX", "Basins", "FoundBasin", "SampledRow"]

INDEX = "ix_basin_root_vector"
"""Name of pgvector's index, which only `make_index` makes."""

_ROWS_AT_ONCE, _ENTRIES_AT_ONCE = 4_000, 1 << 20
_SAMPLED_AT_ONCE, _SAMPLED_ENTRIES_MAX = 100, 1 << 24
_INDEX_FROM_ROWS = 100_000
_CANDIDATES_A_NEIGHBOUR, _CANDIDATES_MAX = 4, 1_000
_FLOAT8_ARRAY = 1022
_ARRAY_HEAD = 20
_ELEMENT = np.dtype([("length", ">i4"), ("value", ">f8")])


class SampledRow(NamedTuple):
    """A row of telemetry at a step, with its basin (√p) where it has one."""

    attempt: int
    step: int
    recorded_at: datetime
    regime: str | None
    phi: float | None
    kappa_eff: float | None
    root: NDArray[np.float64] | None


class FoundBasin(NamedTuple):
    """A basin that a search found, and its chord ‖√p − √q‖ to the one searched for."""

    session: str
    attempt: int
    rank: int
    step: int
    chord: float


class _RootLoader(Loader):
    """A float8[] without NULL as an array, in a tenth of the time that a list takes."""

    format = Format.BINARY

    def load(self, data: Buffer) -> NDArray[np.float64]:
        """Its elements."""
        return np.frombuffer(data, _ELEMENT, offset=_ARRAY_HEAD)["value"].astype(np.float64)


class Basins:
    """Reads and searches basins."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def sample(self, session_id: int, cells: Sequence[Span]) -> list[SampledRow]:
        """The first row with a basin of each cell, or else its first row; by cell.

        Raises:
            InvalidInput: so many basins of that size do not fit into memory.
        """
        attempts, ranks, starts, stops, shared = zip(*cells, strict=True) if cells else [()] * 5
        values = {
            "session": session_id, "attempts": list(attempts), "ranks": list(ranks),
            "starts": list(starts), "stops": list(stops), "shared": list(shared),
        }  # fmt: skip
        found: list[SampledRow] = []
        entries = 0
        with self._database.raw() as connection, connection.cursor(name="sample") as cursor:
            cursor.adapters.register_loader(_FLOAT8_ARRAY, _RootLoader)
            cursor.execute(_SAMPLE, values, binary=True)
            while rows := cursor.fetchmany(_SAMPLED_AT_ONCE):
                sizes = [len(row[-1]) for row in rows if row[-1] is not None]
                entries += sum(sizes)
                if entries > _SAMPLED_ENTRIES_MAX:
                    most = _SAMPLED_ENTRIES_MAX // max(sizes)
                    raise InvalidInput("points", len(cells), f"at most {most}, of such basins")
                found += [
                    SampledRow(attempt, step, at, _regime(code), phi, kappa, root)
                    for attempt, step, at, code, phi, kappa, root in rows
                ]
        return found

    def nearest(
        self, root: NDArray[np.float64], k: int, session_id: int | None, *, exact: bool = False
    ) -> tuple[bool, list[FoundBasin]]:
        """The `k` nearest by chord to √q, (n,), the nearest first, and whether all were compared.

        `exact`: all are compared also where an index is there.
        """
        index = not exact and session_id is None and self._index_serves(len(root), k)
        with (
            self._database.raw() as connection,
            _candidates(connection, root, k, session_id, index) as cursor,
        ):
            best: list[tuple[float, tuple[Any, ...]]] = []
            at_once = max(1, min(_ROWS_AT_ONCE, _ENTRIES_AT_ONCE // len(root)))
            while rows := cursor.fetchmany(at_once):
                chords = np.linalg.norm(np.stack([row[-1] for row in rows]) - root, axis=1)
                keep = np.argsort(chords, kind="stable")[:k].tolist()
                best += [(float(chords[i]), rows[i][:-1]) for i in keep]
                best = sorted(best, key=lambda each: (each[0], each[1]))[:k]
            writers = _sources(connection, {number for _, (number, _) in best})
        # Of the index's candidates some may be a removed session's.
        found = [
            FoundBasin(*writers[number], step, chord)
            for chord, (number, step) in best
            if number in writers
        ]
        return not index, found

    def _index_serves(self, dimension: int, k: int) -> bool:
        """Whether the index is there and whole, of this dimension, and worth it."""
        if dimension != BASIN_DIM or k * _CANDIDATES_A_NEIGHBOUR > _CANDIDATES_MAX:
            return False
        with self._database.raw() as connection:
            row = connection.execute(_INDEX_STATE, (INDEX,)).fetchone()
        return row is not None and row[0] > _INDEX_FROM_ROWS

    def make_index(self) -> None:
        """Install pgvector and make its index, which later basins go into by themselves.

        Recording goes on meanwhile only after it is made.

        Raises:
            StoreError: pgvector is not there, or the role may not install it.
        """
        try:
            with self._database.begin_unlimited() as connection:
                connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS vector")
                connection.exec_driver_sql(
                    f"CREATE INDEX IF NOT EXISTS {INDEX} ON qigstore.basin USING hnsw "
                    f"((root::vector({BASIN_DIM})) vector_l2_ops) "
                    f"WHERE cardinality(root) = {BASIN_DIM}"
                )
        except sqlalchemy.exc.DBAPIError as error:
            reason = " ".join(str(error.orig).split())
            raise StoreError(
                f"{self._database.address} has no index of basins now: {reason}. It needs pgvector "
                "0.7 or later, and a role that owns the schema and may create extensions."
            ) from error

    def drop_index(self) -> None:
        """Remove the index; the extension stays."""
        with self._database.begin_unlimited() as connection:
            connection.exec_driver_sql(f"DROP INDEX IF EXISTS qigstore.{INDEX}")


def _regime(code: int | None) -> str | None:
    return None if code is None else REGIMES[code]


@contextmanager
def _candidates(
    connection: psycopg.Connection[Any],
    root: NDArray[np.float64],
    k: int,
    session_id: int | None,
    index: bool,
) -> Iterator[psycopg.ServerCursor[Any]]:
    """A cursor over the basins to compare: their key and root."""
    with connection.cursor(name="basins") as cursor:
        cursor.adapters.register_loader(_FLOAT8_ARRAY, _RootLoader)
        if index:
            wanted = k * _CANDIDATES_A_NEIGHBOUR
            connection.execute(f"SET LOCAL hnsw.ef_search = {max(100, wanted)}")
            point = "[" + ",".join(map(repr, root.tolist())) + "]"
            cursor.execute(_FROM_INDEX, (point, wanted), binary=True)
        else:
            mine = "" if session_id is None else _OF_SESSION
            values = {"dimension": len(root), "session": session_id}
            cursor.execute(_ALL + mine, values, binary=True)
        yield cursor


def _sources(
    connection: psycopg.Connection[Any], numbers: set[int]
) -> dict[int, tuple[str, int, int]]:
    """Session, attempt and rank of each writer's number."""
    rows = connection.execute(_SOURCES, (sorted(numbers),)).fetchall()
    return {number: (session, attempt, rank) for number, session, attempt, rank in rows}


# A row that no later attempt has; asked only in a shared span.
_MINE = f"""(NOT q.shared OR NOT EXISTS (
        SELECT FROM qigstore.attempt l
        JOIN qigstore.writer lw ON lw.attempt_id = l.id AND lw.rank = q.rank
        JOIN qigstore.telemetry n ON {of_writer("n", "lw")}
        WHERE l.session_id = %(session)s AND l.number > q.attempt AND n.step = {{0}}.step))"""
_SAMPLE = f"""
SELECT q.attempt, r.step, r.recorded_at, r.regime, r.phi, r.kappa_eff, b.root
FROM unnest(%(attempts)s::int[], %(ranks)s::int[], %(starts)s::bigint[], %(stops)s::bigint[],
            %(shared)s::bool[]) WITH ORDINALITY AS q (attempt, rank, start, stop, shared, place)
JOIN qigstore.attempt a ON a.session_id = %(session)s AND a.number = q.attempt
JOIN qigstore.writer w ON w.attempt_id = a.id AND w.rank = q.rank
LEFT JOIN LATERAL (
    SELECT b.step, b.root FROM qigstore.basin b
    WHERE {of_writer("b")} AND b.step >= q.start AND b.step < q.stop
     AND {_MINE.format("b")}
    ORDER BY b.step LIMIT 1
) b ON true
JOIN LATERAL (
    SELECT t.step, t.recorded_at, t.regime, t.phi, t.kappa_eff FROM qigstore.telemetry t
    WHERE {of_writer("t")} AND t.step >= coalesce(b.step, q.start) AND t.step < q.stop
     AND {_MINE.format("t")}
    ORDER BY t.step LIMIT 1
) r ON true
ORDER BY q.place"""  # noqa: S608
_BASIN = "SELECT writer, step, root FROM qigstore.basin"
# The rows of a session removed by SQL stay, and no writer has their number any more.
_ALL = f"""{_BASIN} WHERE cardinality(root) = %(dimension)s
 AND EXISTS (SELECT FROM qigstore.writer w WHERE w.number = writer)"""
_FROM_INDEX = f"""{_BASIN} WHERE cardinality(root) = {BASIN_DIM}
ORDER BY root::vector({BASIN_DIM}) <-> %s::vector({BASIN_DIM}) LIMIT %s"""
_OF_SESSION = """ AND writer = ANY (
    SELECT w.number FROM qigstore.attempt a JOIN qigstore.writer w ON w.attempt_id = a.id
    WHERE a.session_id = %(session)s)"""
_SOURCES = """
SELECT w.number, s.name, a.number, w.rank
FROM qigstore.writer w
JOIN qigstore.attempt a ON a.id = w.attempt_id
JOIN qigstore.session s ON s.id = a.session_id
WHERE w.number = ANY(%s)"""
_INDEX_STATE = """
SELECT t.reltuples FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_class t ON t.oid = i.indrelid
WHERE c.relnamespace = 'qigstore'::regnamespace AND c.relname = %s AND i.indisvalid"""
