"""Curves: a metric over steps, read from buckets and, where those are still open, from rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qigstore.database.schema import CUSTOM_COLUMNS, CUSTOM_FROM
from qigstore.errors import InvalidInput, NotFound
from qigstore.repository import curve_buckets as stored
from qigstore.repository.buckets import Buckets, bucket_rows, join_buckets, widen
from qigstore.repository.curve_buckets import COUNTS, PLACES, VALUES, Past
from qigstore.repository.texts import METRIC_CHARACTERS_MAX, text_value

if TYPE_CHECKING:
    import psycopg

    from qigstore.database.engine import Database

    Cursor = psycopg.Cursor[tuple[Any, ...]]

__all__ = ["Curve", "Curves", "Wanted"]

_RAW_ROWS_A_POINT = 16
"""Up to so many rows a point are read one by one."""
_PIECES_AT_ONCE = 64


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


class Wanted(NamedTuple):
    """Steps [start, stop) of an attempt and rank, as about `points` buckets; stop None: to its end.

    Up to `raw_rows` a point come from the rows one by one, with the width 1.
    """

    attempt: int
    rank: int
    start: int
    stop: int | None
    points: int
    raw_rows: int


class _Piece(NamedTuple):
    """What one statement reads: of which span and writer, how wide buckets, which steps."""

    span: int
    writer: int
    width: int
    start: int
    stop: int


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
        wanted = Wanted(attempt, rank, start, stop, points, _RAW_ROWS_A_POINT)
        ((width, buckets),) = self.read_spans(session_id, metric, [wanted])
        return _thin(buckets, width, points)

    def check_metric(self, session_id: int, metric: str) -> None:
        """Whether a session may have such a metric: a standard one, or one it has recorded.

        Raises:
            NotFound: it has not.
        """
        with self._database.raw() as connection, connection.cursor() as cursor:
            _find_metric(cursor, session_id, metric)

    def read_spans(
        self, session_id: int, metric: str, wanted: Sequence[Wanted]
    ) -> list[tuple[int, Buckets]]:
        """A metric at each of these spans, not thinned: the width, and its buckets.

        Raises:
            NotFound: the session never recorded such a metric.
        """
        with self._database.raw() as connection, connection.cursor(binary=True) as cursor:
            value, place = _find_metric(cursor, session_id, metric)
            known = {
                (attempt, rank): Past(*rest)
                for attempt, rank, *rest in cursor.execute(_PASTS, (session_id,))
            }
            pasts = [known.get((span.attempt, span.rank)) for span in wanted]
            widths = [
                1 if past is None else _width(past, span)
                for past, span in zip(pasts, wanted, strict=True)
            ]
            pieces = [
                _Piece(i, past.writer, *piece)
                for i, (past, span, width) in enumerate(zip(pasts, wanted, widths, strict=True))
                if past is not None
                for piece in _cover(*_within(past, span), width, past)
            ]
            raw = [piece for piece in pieces if piece.width == 1]
            rows = _read(cursor, _VALUES_OF_ROWS.replace("{value}", value), raw)
            wide = [piece for piece in pieces if piece.width > 1]
            buckets = _read(cursor, _VALUES_OF_BUCKETS.replace("{at}", str(place)), wide)
        return [
            (width, join_buckets([_rows_of(rows[i]), _buckets_of(buckets[i])], width))
            for i, width in enumerate(widths)
        ]


_PASTS = """
SELECT a.number, w.rank, w.number, w.seq_less_step, w.stored_rows, w.min_step, w.max_step,
       w.bucket_steps
FROM qigstore.writer w JOIN qigstore.attempt a ON a.id = w.attempt_id
WHERE a.session_id = %s AND w.max_step IS NOT NULL"""
_POSITION = "SELECT position FROM qigstore.metric WHERE session_id = %s AND name = %s"
# `{i}`: numbers of ours, so that the lines of all spans come in one answer and tell whose they are.
_VALUES_OF_ROWS = """
SELECT {span}, t.step, t.{value} FROM qigstore.telemetry t
WHERE t.writer = %(writer{i})s AND t.{value} IS NOT NULL
 AND t.step >= %(start{i})s AND t.step < %(stop{i})s"""
_VALUES_OF_BUCKETS = """
SELECT {span}, c.start, c.low[{at}], c.high[{at}], c.mean[{at}],
       coalesce(c.finite[{at}], c.rows), coalesce(c.nans[{at}], 0), coalesce(c.infs[{at}], 0)
FROM qigstore.curve c
WHERE c.writer = %(writer{i})s AND c.width = %(width{i})s AND c.low[{at}] IS NOT NULL
 AND c.start >= %(start{i})s AND c.start < %(stop{i})s"""


def _read(
    cursor: Cursor, query: str, pieces: Sequence[_Piece]
) -> defaultdict[int, list[tuple[Any, ...]]]:
    """What the query finds for each piece, by span; many pieces in one round trip."""
    found: defaultdict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for first in range(0, len(pieces), _PIECES_AT_ONCE):
        values: dict[str, int] = {}
        parts = []
        for i, piece in enumerate(pieces[first : first + _PIECES_AT_ONCE]):
            names = ("writer", "width", "start", "stop")
            values |= {f"{name}{i}": getattr(piece, name) for name in names}
            parts.append(query.replace("{span}", str(piece.span)).replace("{i}", str(i)))
        for span, *line in cursor.execute(" UNION ALL ".join(parts), values):
            found[span].append(tuple(line))
    return found


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


def _within(past: Past, span: Wanted) -> tuple[int, int]:
    """The steps [from, to) of the span that the writer may have."""
    assert past.most is not None
    assert past.least is not None
    stop = past.most + 1
    return max(span.start, past.least), stop if span.stop is None else min(span.stop, stop)


def _width(past: Past, span: Wanted) -> int:
    """The widest buckets of which there are still enough; 1: the rows are few."""
    assert past.most is not None
    assert past.least is not None
    low, high = _within(past, span)
    rows = past.rows * max(high - low, 1) / (past.most - past.least + 1)
    if not past.width or rows <= span.raw_rows * span.points:
        return 1
    width = past.width
    while (high - low) // (width * stored.FACTOR) >= span.points / 2:
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
