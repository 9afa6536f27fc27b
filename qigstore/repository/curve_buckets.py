"""The stored buckets of curves, kept exact in each batch's own transaction.

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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qigstore.database.schema import CUSTOM_COLUMNS, CUSTOM_FROM
from qigstore.records import STANDARD_METRICS
from qigstore.repository import copy_binary as wire
from qigstore.repository.batches import STEP_MAX, RowGroup, TelemetryBatch
from qigstore.repository.buckets import Buckets, bucket_rows, distinct, join_buckets
from qigstore.repository.copy_stream import copy_in

if TYPE_CHECKING:
    import psycopg

    Cursor = psycopg.Cursor[tuple[Any, ...]]

__all__ = [
    "BUCKET_ROWS",
    "COUNTS",
    "FACTOR",
    "PLACES",
    "VALUES",
    "Past",
    "roll_up",
]

BUCKET_ROWS = 128
"""Rows of the narrowest bucket, about: all levels together take a thirtieth of the rows' bytes."""
FACTOR = 4
"""Parts of a wider bucket: reading a curve touches at most twice this many a point."""

_NO_BUCKETS = 0
_CELLS_READ_AT_ONCE = 1 << 18
PLACES = {name: place for place, name in enumerate(STANDARD_METRICS)}
_COLUMNS = ("writer", "width", "start", "rows")
VALUES, COUNTS = ("low", "high", "mean"), ("finite", "nans", "infs")

# Ranges of steps are parameters of their own: joined to an array of ranges, the planner expects a
# ninth of the table from each and reads all of it.
_ROWS = f"""
SELECT t.step, {", ".join(f"t.{name}" for name in STANDARD_METRICS)}, t.custom_more,
       {", ".join(f"t.{name}" for name in CUSTOM_COLUMNS)}
FROM qigstore.telemetry t WHERE t.writer = %(writer)s
 AND t.step >= %(start)s AND t.step < %(stop)s
 AND coalesce(t.seq, t.step + %(seq_less_step)s) <= %(last)s"""  # noqa: S608
_PARTS = """
SELECT c.start, c.rows, c.low, c.high, c.mean, c.finite, c.nans, c.infs, c.width
FROM unnest(%(widths)s::bigint[], %(starts)s::bigint[]) AS b (width, start)
JOIN qigstore.curve c ON c.writer = %(writer)s AND c.width = b.width AND c.start = b.start"""
_REMOVE = """
DELETE FROM qigstore.curve c USING unnest(%(widths)s::bigint[], %(starts)s::bigint[])
 AS b (width, start)
WHERE c.writer = %(writer)s AND c.width = b.width AND c.start = b.start"""


class Past(NamedTuple):
    """What a writer had stored before a batch.

    Attributes:
        writer: its number. seq_less_step: of rows that have no sequence number of their own.
        rows: how many. least, most: between which steps, or None.
        width: of its narrowest buckets; None: not decided yet, 0: it has none.
    """

    writer: int
    seq_less_step: int | None
    rows: int
    least: int | None
    most: int | None
    width: int | None


class _Roll:
    """The buckets that one batch closes or changes, level by level."""

    def __init__(self, cursor: Cursor, past: Past, last_seq: int, known: int, most: int) -> None:
        self._cursor, self._known, self._most = cursor, known, most
        self._writer = past.writer
        self._key = {"writer": past.writer, "seq_less_step": past.seq_less_step}
        self._last = last_seq
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
            again = distinct(again // width)
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
        copy_in(self._cursor, "curve", [*_COLUMNS, *VALUES, *COUNTS], self._fields())

    def _fields(self) -> Iterator[tuple[list[wire.Field], int]]:
        for width, buckets in self._made:
            plain = (buckets.finite == buckets.rows[:, None]).all(axis=1)
            for kept, counted in ((plain, False), (~plain, True)):
                if kept.any():
                    some = buckets.take(kept)
                    yield self._row(some, width, counted=counted), len(some)

    def _row(self, buckets: Buckets, width: int, *, counted: bool) -> list[wire.Field]:
        fields: list[wire.Field] = [
            wire.Constant(self._writer, 4),
            wire.Constant(width, 8),
            wire.Integers(buckets.start, 8),
            wire.Integers(buckets.rows, 8),
        ]
        if not len(buckets.places):
            return [*fields, wire.Nulls(len(VALUES + COUNTS))]
        fields += [wire.Array(getattr(buckets, name), buckets.places) for name in VALUES]
        if not counted:  # every row had a finite value of every metric
            return [*fields, wire.Nulls(len(COUNTS))]
        return fields + [wire.Array(getattr(buckets, name), buckets.places) for name in COUNTS]


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
    roll = _Roll(cursor, past, batch.last_seq, -1 if width is None else known, most)
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
    places = [PLACES[n] if n in PLACES else CUSTOM_FROM + positions[n] - 1 for n in names]
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
    longest = max((len(row[standard + 1] or ()) for row in found), default=0)
    more_from = CUSTOM_FROM + len(CUSTOM_COLUMNS)
    cells = np.full((len(found), more_from + longest), None, dtype=object)
    for line, row in zip(cells, found, strict=True):
        line[:standard], more = row[1 : standard + 1], row[standard + 1] or ()
        line[CUSTOM_FROM:more_from] = row[standard + 2 :]
        line[more_from : more_from + len(more)] = more
    present = _given(cells)
    places = np.flatnonzero(present.any(axis=0))
    values = cells[:, places].astype(np.float64)  # None becomes NaN, and is not present
    return _Rows(np.array([row[0] for row in found], np.int64), values, present[:, places], places)


def _parts(found: Sequence[tuple[Any, ...]]) -> Buckets:
    """Stored buckets as arrays, by start."""
    found = sorted(found, key=lambda row: row[0])
    longest = max((len(row[2] or ()) for row in found), default=0)
    shape = (len(found), longest)
    low, high, mean = (np.full(shape, None, dtype=object) for _ in VALUES)
    finite, nans, infs = (np.zeros(shape, np.int64) for _ in COUNTS)
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
