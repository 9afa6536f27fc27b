"""Curves: roll-up buckets of telemetry, kept exact in each batch's own transaction.

A writer's base width is decided once, from its first rows, so that a bucket has about
`BUCKET_ROWS` rows however far apart the steps are; each further level is `FACTOR` times as wide.
A bucket is stored when it *closes*, which is when the writer's greatest step has passed its end;
what is still open is read from the rows. So the table grows by COPY alone, and a bucket is written
a second time only when a row is stored behind its end (a step going backwards, a repeated step):
it is then computed anew from its rows, and each wider one from its `FACTOR` parts.

A bucket that starts after every step stored so far is computed from the batch alone, without
reading anything. Of the others a batch usually closes one a level: the one it began in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qigstore.errors import InvalidInput, NotFound
from qigstore.records import STANDARD_METRICS
from qigstore.repository import copy_binary as wire
from qigstore.repository.batches import STEP_MAX, RowGroup, TelemetryBatch
from qigstore.repository.buckets import Buckets, bucket_rows, join_buckets, widen
from qigstore.repository.copy_stream import copy_in

if TYPE_CHECKING:
    import psycopg

    from qigstore.database.engine import Database

    Cursor = psycopg.Cursor[tuple[Any, ...]]

__all__ = ["BUCKET_ROWS", "FACTOR", "Curve", "Curves", "Past", "roll_up"]

BUCKET_ROWS = 64
"""Rows of the narrowest bucket, about: the buckets of all levels take 4 % of the rows' bytes."""
FACTOR = 4
"""Parts of a wider bucket: reading a curve touches at most twice this many a point."""

_CUSTOM_FROM = 32
"""Place of the first custom metric in a bucket's arrays; the standard ones are before it."""
_NO_BUCKETS = 0
_CELLS_READ_AT_ONCE = 1 << 18
_RAW_ROWS_A_POINT = 8
_PLACES = {name: place for place, name in enumerate(STANDARD_METRICS)}
_COLUMNS = ("session_id", "attempt", "rank", "width", "start", "rows")
_VALUES, _COUNTS = ("low", "high", "mean"), ("finite", "nans", "infs")

_MINE = "{0}.session_id = %(session)s AND {0}.attempt = %(attempt)s AND {0}.rank = %(rank)s"
# Ranges of steps are parameters of their own: joined to an array of ranges, the planner expects a
# ninth of the table from each and reads all of it.
_ROWS = f"""
SELECT t.step, {", ".join(f"t.{name}" for name in STANDARD_METRICS)}, t.custom
FROM qigstore.telemetry t WHERE {_MINE.format("t")}
 AND t.step >= %(start)s AND t.step < %(stop)s AND t.seq <= %(last)s"""  # noqa: S608
_PARTS = f"""
SELECT c.start, c.rows, c.low, c.high, c.mean, c.finite, c.nans, c.infs, c.width
FROM unnest(%(widths)s::bigint[], %(starts)s::bigint[]) AS b (width, start)
JOIN qigstore.curve c ON {_MINE.format("c")} AND c.width = b.width AND c.start = b.start
"""  # noqa: S608
_REMOVE = f"""
DELETE FROM qigstore.curve c USING unnest(%(widths)s::bigint[], %(starts)s::bigint[])
 AS b (width, start)
WHERE {_MINE.format("c")} AND c.width = b.width AND c.start = b.start"""  # noqa: S608


class Past(NamedTuple):
    """What a writer had stored before a batch.

    Attributes:
        rows: how many. least, most: between which steps, or None.
        width: of its narrowest buckets; None: not decided yet, 0: it has none.
    """

    rows: int
    least: int | None
    most: int | None
    width: int | None


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


# -- writing ---------------------------------------------------------------------------------


class _Roll:
    """The buckets that one batch closes or changes, level by level."""

    def __init__(self, cursor: Cursor, batch: TelemetryBatch, known: int, most: int) -> None:
        self._cursor, self._known, self._most = cursor, known, most
        self._key = {"session": batch.session_id, "attempt": batch.attempt, "rank": batch.rank}
        self._last = batch.last_seq
        self._made: list[tuple[int, Buckets]] = []
        self._stale: list[tuple[int, int]] = []

    def up(self, touched: Buckets, width: int) -> None:
        """All levels; `touched` are the batch's rows alone, in buckets of the base width."""
        index = touched.start // width
        closed, fresh = index < self._most // width, index > self._known // width
        again = self._again(index[closed & ~fresh], width)
        parts = [touched.take(closed & fresh)]
        for some in _cut(again, BUCKET_ROWS, touched.places):
            for run in np.split(some, np.flatnonzero(np.diff(some) != width) + 1):
                start, stop = int(run[0]), int(run[-1]) + width
                parts.append(self.rows(start, stop, self._last).buckets(width))
        made = self._keep(join_buckets(parts, width), width)
        stored = self._parts(again, width, touched.places)
        while len(made) and self._most // (width * FACTOR):
            width *= FACTOR
            closed = made.start // width < self._most // width
            others = [
                part.take(~np.isin(part.start, made.start))
                for part in stored.get(width // FACTOR, [])
            ]
            made = self._keep(join_buckets([made.take(closed), *others], width), width)

    def _again(self, index: NDArray[np.int64], width: int) -> NDArray[np.int64]:
        """Starts of the closed buckets that hold rows from before this batch."""
        open_before = self._known // width
        found = set(index.tolist())
        if 0 <= open_before < self._most // width:
            found.add(open_before)
        return np.array(sorted(found), np.int64) * width

    def _parts(
        self, again: NDArray[np.int64], width: int, places: NDArray[np.int64]
    ) -> dict[int, list[Buckets]]:
        """By width, the stored parts of the wider buckets that hold those of `again`."""
        wanted: list[tuple[int, int]] = []
        while len(again):
            before = again[again // width < self._known // width]
            self._stale += [(width, start) for start in before.tolist()]
            part, width = width, width * FACTOR
            again = np.unique(again // width)
            again = again[again < self._most // width] * width
            wanted += [(part, start + i * part) for start in again.tolist() for i in range(FACTOR)]
        found: dict[int, list[Buckets]] = {}
        for some in _cut(np.array(wanted, np.int64).reshape(-1, 2), 1, places):
            widths, starts = some.T.tolist()
            values = self._key | {"widths": widths, "starts": starts}
            lines = self._cursor.execute(_PARTS, values, binary=True).fetchall()
            for part in set(widths):
                found.setdefault(part, []).append(_parts([r for r in lines if r[-1] == part]))
        return found

    def _keep(self, buckets: Buckets, width: int) -> Buckets:
        if len(buckets):
            self._made.append((width, buckets))
        return buckets

    def rows(self, start: int, stop: int, last_seq: int) -> _Rows:
        """Stored rows of steps [start, stop), recorded up to `last_seq`."""
        values = self._key | {"start": start, "stop": stop, "last": last_seq}
        return _rows(self._cursor.execute(_ROWS, values, binary=True).fetchall())

    def write(self) -> None:
        """Store them, in place of those that they replace."""
        if self._stale:
            widths, starts = (list(part) for part in zip(*self._stale, strict=True))
            self._cursor.execute(_REMOVE, self._key | {"widths": widths, "starts": starts})
        if not self._made:
            return
        copy_in(self._cursor, "curve", [*_COLUMNS, *_VALUES, *_COUNTS], self._fields())

    def _fields(self) -> Iterator[tuple[list[wire.Field], int]]:
        for width, buckets in self._made:
            plain = (buckets.finite == buckets.rows[:, None]).all(axis=1)
            for kept, counted in ((plain, False), (~plain, True)):
                if kept.any():
                    some = buckets.take(kept)
                    yield self._row(some, width, counted=counted), len(some)

    def _row(self, buckets: Buckets, width: int, *, counted: bool) -> list[wire.Field]:
        fields: list[wire.Field] = [
            wire.Constant(self._key["session"], 8),
            wire.Constant(self._key["attempt"], 4),
            wire.Constant(self._key["rank"], 4),
            wire.Constant(width, 8),
            wire.Integers(buckets.start, 8),
            wire.Integers(buckets.rows, 8),
        ]
        if not len(buckets.places):
            return [*fields, wire.Nulls(len(_VALUES + _COUNTS))]
        fields += [wire.Array(getattr(buckets, name), buckets.places) for name in _VALUES]
        if not counted:  # every row had a finite value of every metric
            return [*fields, wire.Nulls(len(_COUNTS))]
        return fields + [wire.Array(getattr(buckets, name), buckets.places) for name in _COUNTS]


def roll_up(
    cursor: Cursor,
    batch: TelemetryBatch,
    groups: Sequence[RowGroup],
    positions: dict[str, int],
    past: Past,
) -> int | None:
    """Store the buckets that the rows `groups` of a batch close or change; the base width.

    The rows themselves are stored already, and those that they replace are gone.
    """
    if not groups or past.width == _NO_BUCKETS:
        return past.width
    least = min(int(group.step.min()) for group in groups)
    most = max(-1 if past.most is None else past.most, *(int(g.step.max()) for g in groups))
    known, width = -1 if past.most is None else past.most, past.width
    if width is not None and min(least, known) // width == most // width:
        return width  # the ordinary small batch: nothing is closed by it or behind it
    earlier: list[_Rows] = []
    roll = _Roll(cursor, batch, -1 if width is None else known, most)
    if width is None:
        if past.rows + sum(map(len, groups)) < BUCKET_ROWS:
            return None
        if past.rows:
            earlier = [roll.rows(0, STEP_MAX + 1, batch.first_seq - 1)]
        width = _base_width(groups, earlier)
    touched = [
        bucket_rows(group.step, group.values, _places(group.names, positions), width)
        for group in groups
    ] + [rows.buckets(width) for rows in earlier]
    roll.up(join_buckets(touched, width), width)
    roll.write()
    return width


def _base_width(groups: Sequence[RowGroup], earlier: Sequence[_Rows]) -> int:
    """Steps that about `BUCKET_ROWS` rows cover."""
    steps = np.concatenate([g.step for g in groups] + [r.step for r in earlier])
    return BUCKET_ROWS * max(1, int(steps.max() - steps.min()) // max(len(steps) - 1, 1))


def _places(names: Sequence[str], positions: dict[str, int]) -> NDArray[np.int64]:
    """Where metrics are in a bucket's arrays, from 0."""
    places = [_PLACES[n] if n in _PLACES else _CUSTOM_FROM + positions[n] - 1 for n in names]
    return np.array(places, np.int64)


class _Rows(NamedTuple):
    """Stored rows as arrays: (n,), (n, k), (n, k) and (k,)."""

    step: NDArray[np.int64]
    values: NDArray[np.float64]
    present: NDArray[np.bool_]
    places: NDArray[np.int64]

    def buckets(self, width: int) -> Buckets:
        """The same, rolled up."""
        return bucket_rows(self.step, self.values, self.places, width, present=self.present)


def _cut(
    starts: NDArray[np.int64], rows: int, places: NDArray[np.int64]
) -> Iterator[NDArray[np.int64]]:
    """Pieces that are read at once: with thousands of metrics, few buckets of `rows` each."""
    cells = rows * int(places.max(initial=0) + 1)
    at_once = max(1, _CELLS_READ_AT_ONCE // cells)
    return (starts[first : first + at_once] for first in range(0, len(starts), at_once))


def _given(cells: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(cells != None, bool)  # noqa: E711 (element by element)


def _rows(found: Sequence[tuple[Any, ...]]) -> _Rows:
    standard = len(STANDARD_METRICS)
    longest = max((len(row[-1] or ()) for row in found), default=0)
    cells = np.full((len(found), _CUSTOM_FROM + longest), None, dtype=object)
    for line, row in zip(cells, found, strict=True):
        line[:standard] = row[1:-1]
        custom = row[-1] or ()
        line[_CUSTOM_FROM : _CUSTOM_FROM + len(custom)] = custom
    present = _given(cells)
    places = np.flatnonzero(present.any(axis=0))
    values = cells[:, places].astype(np.float64)  # None becomes NaN, and is not present
    return _Rows(np.array([row[0] for row in found], np.int64), values, present[:, places], places)


def _parts(found: Sequence[tuple[Any, ...]]) -> Buckets:
    """Stored buckets as arrays, by start."""
    found = sorted(found, key=lambda row: row[0])
    longest = max((len(row[2] or ()) for row in found), default=0)
    shape = (len(found), longest)
    low, high, mean = (np.full(shape, None, dtype=object) for _ in _VALUES)
    finite, nans, infs = (np.zeros(shape, np.int64) for _ in _COUNTS)
    for i, (_, rows, *arrays, _) in enumerate(found):
        for into, values in zip((low, high, mean), arrays, strict=False):
            into[i, : len(values or ())] = values or ()
        if arrays[3] is None:
            finite[i] = np.where(_given(low[i]), rows, 0)
            continue
        for into, counts in zip((finite, nans, infs), arrays[3:], strict=True):
            into[i, : len(counts)] = [count or 0 for count in counts]
    places = np.flatnonzero(_given(low).any(axis=0))
    start, rows = (np.array([row[i] for row in found], np.int64) for i in (0, 1))
    values = (part[:, places].astype(np.float64) for part in (low, high, mean))
    counts = (part[:, places] for part in (finite, nans, infs))
    return Buckets(start, rows, places, *values, *counts)


# -- reading ---------------------------------------------------------------------------------


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
        come one by one; more come as about `points` / 2 to `points` buckets where the metric is
        in all of them.

        Raises:
            NotFound: the session never recorded such a metric.
            InvalidInput: `points` is not positive.
        """
        if points < 1:
            raise InvalidInput("points", points, "at least 1")
        key = {"session": session_id, "attempt": attempt, "rank": rank}
        with self._database.raw() as connection, connection.cursor(binary=True) as cursor:
            value, place = _find_metric(cursor, session_id, metric)
            found = cursor.execute(_PAST, key).fetchone()
            if found is None:
                return _thin(join_buckets([], 1), 1, points)
            past = Past(*found)
            assert past.least is not None
            assert past.most is not None
            low = max(start, past.least)
            high = past.most + 1 if stop is None else min(stop, past.most + 1)
            width = _width(past, high - low, points)
            pieces = list(_cover(low, high, width, past)) if low < high else []
            query = _VALUES_OF_ROWS.replace("{value}", value)
            rows = _read(cursor, query, key, [piece for piece in pieces if piece[0] == 1])
            wide = [piece for piece in pieces if piece[0] > 1]
            buckets = _read(cursor, _VALUES_OF_BUCKETS, key | {"at": place}, wide)
            parts = [_rows_of(rows), _buckets_of(buckets)]
        if width == 1:
            width = 1 if len(parts[0]) <= points else -(-(high - low) // points)
        return _thin(join_buckets(parts, width), width, points)


_PAST = f"""
SELECT t.stored_rows, t.min_step, t.max_step, t.bucket_steps
FROM (SELECT w.*, a.session_id, a.number AS attempt
      FROM qigstore.writer w JOIN qigstore.attempt a ON a.id = w.attempt_id) t
WHERE {_MINE.format("t")} AND t.max_step IS NOT NULL"""  # noqa: S608
_POSITION = "SELECT position FROM qigstore.metric WHERE session_id = %s AND name = %s"
_VALUES_OF_ROWS = f"""
SELECT t.step, t.{{value}} FROM qigstore.telemetry t
WHERE {_MINE.format("t")} AND t.{{value}} IS NOT NULL
 AND t.step >= %(start{{i}})s AND t.step < %(stop{{i}})s"""  # noqa: S608
_VALUES_OF_BUCKETS = f"""
SELECT c.start, c.low[%(at)s], c.high[%(at)s], c.mean[%(at)s],
       coalesce(c.finite[%(at)s], c.rows), coalesce(c.nans[%(at)s], 0),
       coalesce(c.infs[%(at)s], 0)
FROM qigstore.curve c
WHERE {_MINE.format("c")} AND c.width = %(width{{i}})s AND c.low[%(at)s] IS NOT NULL
 AND c.start >= %(start{{i}})s AND c.start < %(stop{{i}})s"""  # noqa: S608


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
    if metric in _PLACES:
        return metric, _PLACES[metric] + 1
    row = cursor.execute(_POSITION, (session_id, metric)).fetchone()
    if row is None:
        raise NotFound("metric", metric)
    return f"custom[{int(row[0])}]", _CUSTOM_FROM + int(row[0])


def _width(past: Past, span: int, points: int) -> int:
    """The widest buckets of which there are still enough; 1: the rows are few."""
    assert past.most is not None
    assert past.least is not None
    rows = past.rows * max(span, 1) / (past.most - past.least + 1)
    if not past.width or rows <= _RAW_ROWS_A_POINT * points:
        return 1
    width = past.width
    while span // (width * FACTOR) >= points / 2:
        width *= FACTOR
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
        yield from _cover(low, high, width // FACTOR, past)
        return
    yield from _cover(low, first, width // FACTOR, past)
    yield width, first, last
    yield from _cover(last, high, width // FACTOR, past)


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
    times = -(-len(buckets) // points)
    if times > 1:
        width *= times
        buckets = widen(buckets, width)
        while len(buckets) > points:  # they need not begin at a multiple of the new width
            width *= 2
            buckets = widen(buckets, width)
    parts = (getattr(buckets, name).reshape(-1) for name in (*_VALUES, *_COUNTS))
    return Curve(width, buckets.start, *parts)
