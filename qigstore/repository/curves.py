"""Curves: a metric over steps, read from buckets and, where those are still open, from rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qigstore.database.schema import CUSTOM_COLUMNS
from qigstore.errors import InvalidInput, NotFound
from qigstore.repository import curve_buckets as stored
from qigstore.repository.buckets import Buckets, bucket_rows, join_buckets, widen
from qigstore.repository.curve_buckets import COUNTS, CUSTOM_FROM, PLACES, VALUES, Past
from qigstore.repository.texts import METRIC_CHARACTERS_MAX, text_value

if TYPE_CHECKING:
    import psycopg

    from qigstore.database.engine import Database

    Cursor = psycopg.Cursor[tuple[Any, ...]]

__all__ = ["Curve", "Curves"]

_RAW_ROWS_A_POINT = 16
"""Up to so many rows a point are read one by one."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A metric over steps, one element a bucket that has it, by step.

    Attributes:
        width: steps a bucket covers; 1: every row is an element.
        start: (n,), first step of each bucket's range.
        low, high, mean: (n,), of the finite values; NaN where there is none.
        finite, nans, infs: (n,), how many values were finite, NaN and ±inf.
    """

    width: int
    start: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: NDArray[np.float64]
    finite: NDArray[np.int64]
    nans: NDArray[np.int64]
    infs: NDArray[np.int64]


class Curves:
    """Reads a metric over any span of steps at a cost that does not grow with the span."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(
        self,
        session_id: int,
        metric: str,
        *,
        attempt: int,
        rank: int = 0,
        start: int = 0,
        stop: int | None = None,
        points: int = 1000,
    ) -> Curve:
        """One metric of one attempt and rank at steps from `start` up to, not including, `stop`.

        Every stored value of the span is in exactly one element, the newest included. Few rows
        come one by one; more come as `points` / 8 to `points` buckets where the metric is in all
        of them, from 64 · `points` rows on as at least about half of `points`.

        Raises:
            NotFound: the session never recorded such a metric.
            InvalidInput: `points` is not positive.
        """
        if points < 1:
            raise InvalidInput("points", points, "at least 1")
        width, buckets = self.read_buckets(
            session_id, metric, attempt=attempt, rank=rank, start=start, stop=stop, points=points
        )
        return _thin(buckets, width, points)

    def check_metric(self, session_id: int, metric: str) -> None:
        """Whether a session may have such a metric: a standard one, or one it has recorded.

        Raises:
            NotFound: it has not.
        """
        with self._database.raw() as connection, connection.cursor() as cursor:
            _find_metric(cursor, session_id, metric)

    def read_buckets(
        self,
        session_id: int,
        metric: str,
        *,
        attempt: int,
        rank: int,
        start: int,
        stop: int | None,
        points: int,
        raw_rows: int | None = None,
    ) -> tuple[int, Buckets]:
        """The same before it is thinned: the width, and at most about 2·`points` buckets of it.

        Up to `raw_rows` a point come from the rows one by one, with the width 1.

        Raises:
            NotFound: the session never recorded such a metric.
        """
        key = {"session": session_id, "attempt": attempt, "rank": rank}
        with self._database.raw() as connection, connection.cursor(binary=True) as cursor:
            value, place = _find_metric(cursor, session_id, metric)
            found = cursor.execute(_PAST, key).fetchone()
            if found is None:
                return 1, join_buckets([], 1)
            past = Past(*found)
            key = {"writer": past.writer}
            assert past.least is not None
            assert past.most is not None
            low = max(start, past.least)
            high = past.most + 1 if stop is None else min(stop, past.most + 1)
            few = points * (_RAW_ROWS_A_POINT if raw_rows is None else raw_rows)
            width = _width(past, high - low, points, few)
            pieces = list(_cover(low, high, width, past)) if low < high else []
            query = _VALUES_OF_ROWS.replace("{value}", value)
            rows = _read(cursor, query, key, [piece for piece in pieces if piece[0] == 1])
            wide = [piece for piece in pieces if piece[0] > 1]
            buckets = _read(cursor, _VALUES_OF_BUCKETS, key | {"at": place}, wide)
            parts = [_rows_of(rows), _buckets_of(buckets)]
        return width, join_buckets(parts, width)


_PAST = """
SELECT w.number, w.seq_less_step, w.stored_rows, w.min_step, w.max_step, w.bucket_steps
FROM qigstore.writer w JOIN qigstore.attempt a ON a.id = w.attempt_id
WHERE a.session_id = %(session)s AND a.number = %(attempt)s AND w.rank = %(rank)s
 AND w.max_step IS NOT NULL"""
_POSITION = "SELECT position FROM qigstore.metric WHERE session_id = %s AND name = %s"
_VALUES_OF_ROWS = """
SELECT t.step, t.{value} FROM qigstore.telemetry t
WHERE t.writer = %(writer)s AND t.{value} IS NOT NULL
 AND t.step >= %(start{i})s AND t.step < %(stop{i})s"""
_VALUES_OF_BUCKETS = """
SELECT c.start, c.low[%(at)s], c.high[%(at)s], c.mean[%(at)s],
       coalesce(c.finite[%(at)s], c.rows), coalesce(c.nans[%(at)s], 0),
       coalesce(c.infs[%(at)s], 0)
FROM qigstore.curve c
WHERE c.writer = %(writer)s AND c.width = %(width{i})s AND c.low[%(at)s] IS NOT NULL
 AND c.start >= %(start{i})s AND c.start < %(stop{i})s"""


def _read(
    cursor: Cursor, query: str, values: dict[str, int], spans: Sequence[tuple[int, int, int]]
) -> list[tuple[Any, ...]]:
    """The rows of the query for each span (width, from, to), in one round trip."""
    for i, span in enumerate(spans):
        names = (f"width{i}", f"start{i}", f"stop{i}")
        values = values | dict(zip(names, span, strict=True))
    parts = [query.replace("{i}", str(i)) for i in range(len(spans))]
    return cursor.execute(" UNION ALL ".join(parts), values).fetchall() if parts else []


def _find_metric(cursor: Cursor, session_id: int, metric: str) -> tuple[str, int]:
    """How a row's value is written in SQL, and the place in a bucket's arrays, from 1."""
    if metric in PLACES:
        return metric, PLACES[metric] + 1
    text_value("metric name", metric, METRIC_CHARACTERS_MAX)
    row = cursor.execute(_POSITION, (session_id, metric)).fetchone()
    if row is None:
        raise NotFound("metric", metric)
    position, columns = int(row[0]), len(CUSTOM_COLUMNS)
    plain = position <= columns
    value = CUSTOM_COLUMNS[position - 1] if plain else f"custom_more[{position - columns}]"
    return value, CUSTOM_FROM + position


def _width(past: Past, span: int, points: int, few: int) -> int:
    """The widest buckets of which there are still enough; 1: the rows are few."""
    assert past.most is not None
    assert past.least is not None
    rows = past.rows * max(span, 1) / (past.most - past.least + 1)
    if not past.width or rows <= few:
        return 1
    width = past.width
    while span // (width * stored.FACTOR) >= points / 2:
        width *= stored.FACTOR
    return width


def _cover(low: int, high: int, width: int, past: Past) -> Iterator[tuple[int, int, int]]:
    """[low, high) as spans of stored buckets (width, from, to), the edges narrower, and rows."""
    if low >= high:
        return
    if not past.width or width < past.width or width == 1:
        yield 1, low, high
        return
    assert past.most is not None
    first = -(-low // width) * width
    last = min(high, past.most) // width * width
    if first >= last:
        yield from _cover(low, high, width // stored.FACTOR, past)
        return
    yield from _cover(low, first, width // stored.FACTOR, past)
    yield width, first, last
    yield from _cover(last, high, width // stored.FACTOR, past)


def _rows_of(lines: Sequence[tuple[Any, ...]]) -> Buckets:
    """Values of rows, each its own bucket."""
    step = np.array([line[0] for line in lines], np.int64)
    values = np.array([line[1:] for line in lines], np.float64).reshape(-1, 1)
    return bucket_rows(step, values, np.zeros(1, np.int64), 1)


def _buckets_of(lines: Sequence[tuple[Any, ...]]) -> Buckets:
    """One metric of stored buckets, by start."""
    columns = np.array(lines, dtype=object).reshape(-1, 7).T
    order = np.argsort(columns[0].astype(np.int64), kind="stable")
    start, *counts = (columns[i].astype(np.int64)[order] for i in (0, 4, 5, 6))
    low, high, mean = (columns[i].astype(np.float64)[order, None] for i in (1, 2, 3))
    finite, nans, infs = (count[:, None] for count in counts)
    rows = (finite + nans + infs)[:, 0]
    found = Buckets(start, rows, np.zeros(1, np.int64), low, high, mean, finite, nans, infs)
    return found.take(rows > 0)  # without a value where only other metrics have some


def _thin(buckets: Buckets, width: int, points: int) -> Curve:
    """At most `points` of them."""
    if len(buckets) > points:
        extent = int(buckets.start[-1] - buckets.start[0]) + width
        width *= -(-extent // (points * width)) if width == 1 else -(-len(buckets) // points)
        buckets = widen(buckets, width)
        while len(buckets) > points:  # they need not begin at a multiple of the new width
            width *= 2
            buckets = widen(buckets, width)
    parts = (getattr(buckets, name).reshape(-1) for name in (*VALUES, *COUNTS))
    return Curve(width, buckets.start, *parts)
