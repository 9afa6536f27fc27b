"""The arithmetic of curves made of pieces: buckets of several spans and ranks become one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm

import numpy as np
from numpy.typing import NDArray

from qigstore.repository.buckets import Buckets, join_buckets, widen

__all__ = ["Piece", "Pieces", "join_pieces"]

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Buckets of one metric from one span of steps.

    Attributes:
        start, stop: the span; a bucket at its edge ends there.
        width: steps a bucket covers. buckets: (b,) of one column.
    """

    start: int
    stop: int
    width: int
    buckets: Buckets


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Buckets by step that do not overlap.

    Attributes:
        start, stop: (b,), the steps [start, stop) of each.
        origin: (b,), which piece each one's first part came from.
        buckets: (b,) of one column; their own starts mean nothing.
    """

    start: Integers
    stop: Integers
    origin: Integers
    buckets: Buckets

    def __len__(self) -> int:
        return len(self.start)

    def grouped(self, group: Integers) -> Pieces:
        """Neighbours with the same number as one; numbers never fall."""
        first = np.flatnonzero(np.diff(group, prepend=group[:1] - 1))
        together = widen(replace(self.buckets, start=group), 1)
        stop = np.maximum.reduceat(self.stop, first)
        return Pieces(self.start[first], stop, self.origin[first], together)


def join_pieces(pieces: Sequence[Piece], points: int, *, overlap: bool) -> Pieces:
    """At most `points` buckets of all the pieces, by step, every value in one of them.

    A bucket covers whole buckets of each piece. Where pieces overlap (of several ranks, or a shared
    span and the attempt that it shares steps with), the steps that it covers are a multiple of
    every piece's width, which may be more than asked for.
    """
    full = [(place, piece) for place, piece in enumerate(pieces) if len(piece.buckets)]
    if not full:
        none = np.empty(0, np.int64)
        return Pieces(none, none, none, join_buckets([], 1))
    made = _concatenated(full)
    if overlap:
        made = made.grouped(_touching(made))
    if len(made) <= points:
        return made
    extent = int(made.stop[-1] - made.start[0])
    widths = {piece.width for _, piece in full}
    unit = lcm(*widths) if overlap else _most_common(full)
    cell = unit * -(-extent // (points * unit))
    while len(made) > points:  # cells need not begin where the steps do
        made = made.grouped(made.start // cell)
        if overlap:
            made = made.grouped(_touching(made))
        cell *= 2
    return made


def _concatenated(full: Sequence[tuple[int, Piece]]) -> Pieces:
    """All buckets by start, each with the steps it covers of its piece."""
    start = np.concatenate([np.maximum(p.buckets.start, p.start) for _, p in full])
    stop = np.concatenate([np.minimum(p.buckets.start + p.width, p.stop) for _, p in full])
    origin = np.repeat([place for place, _ in full], [len(p.buckets) for _, p in full])
    joined = _stacked([piece.buckets for _, piece in full])
    order = np.argsort(start, kind="stable")
    return Pieces(start[order], stop[order], origin[order], joined.take(order))


def _stacked(parts: Sequence[Buckets]) -> Buckets:
    names = ("start", "rows", "low", "high", "mean", "finite", "nans", "infs")
    start, rows, *rest = (np.concatenate([getattr(p, name) for p in parts]) for name in names)
    return Buckets(start, rows, parts[0].places, *rest)


def _touching(made: Pieces) -> Integers:
    """A number for each run of buckets that overlap their neighbours."""
    reached = np.maximum.accumulate(made.stop)
    apart = made.start[1:] >= reached[:-1]
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(apart, dtype=np.int64)])


def _most_common(full: Sequence[tuple[int, Piece]]) -> int:
    """The width that most buckets have."""
    counts: dict[int, int] = {}
    for _, piece in full:
        counts[piece.width] = counts.get(piece.width, 0) + len(piece.buckets)
    return max(counts, key=lambda width: (counts[width], width))
