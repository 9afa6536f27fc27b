"""The arithmetic of roll-ups: rows become buckets, buckets become wider buckets; pure.

A bucket of width w holds the rows whose step is in [b·w, (b + 1)·w). Of each metric it keeps the
least and greatest finite value, the mean of the finite ones, and how many were finite, NaN and
±inf: NaN and ±inf are counted and left out of the rest. A metric without a finite value has the
least, greatest and mean NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Buckets", "bucket_rows", "distinct", "join_buckets", "widen"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Buckets:
    """Buckets of one width, by start; columns are metrics.

    Attributes:
        start: (b,), first step of each bucket's range. rows: (b,), rows in it.
        places: (k,), which metrics the columns are, rising.
        low, high, mean: (b, k). finite, nans, infs: (b, k), counts.
    """

    start: Counts
    rows: Counts
    places: Counts
    low: Floats
    high: Floats
    mean: Floats
    finite: Counts
    nans: Counts
    infs: Counts

    def __len__(self) -> int:
        return len(self.start)

    def take(self, kept: NDArray[Any]) -> Buckets:
        """The buckets that a mask or an order names."""
        parts = (self.start, self.rows, self.low, self.high, self.mean)
        start, rows, low, high, mean = (part[kept] for part in parts)
        finite, nans, infs = (part[kept] for part in (self.finite, self.nans, self.infs))
        return Buckets(start, rows, self.places, low, high, mean, finite, nans, infs)


def bucket_rows(
    step: Counts,
    values: Floats,
    places: Counts,
    width: int,
    *,
    present: NDArray[np.bool_] | None = None,
) -> Buckets:
    """Buckets of rows, in any order of steps.

    Args:
        step: (n,). values: (n, k). places: (k,), any order. width: steps a bucket covers.
        present: (n, k), where a metric was recorded; None: everywhere.
    """
    order = np.argsort(places, kind="stable")
    if (np.diff(order) != 1).any():
        values, places = values[:, order], places[order]
        present = None if present is None else present[:, order]
    if (np.diff(step) < 0).any():
        order = np.argsort(step, kind="stable")
        step, values = step[order], values[order]
        present = None if present is None else present[order]
    index = step // width
    first = _firsts(index)
    rows = np.diff(np.append(first, len(step)))
    sums = _sums(values, first) if present is None else None
    if sums is not None and np.isfinite(sums).all():  # so are all of the values
        low, high, mean = _summary((values, values, values), first, rows[:, None], sums)
        finite = np.broadcast_to(rows[:, None], low.shape)
        nans = infs = np.zeros(low.shape, np.int64)
    else:
        usable = np.isfinite(values)
        given = np.ones(values.shape, bool) if present is None else present
        usable &= given
        finite, nans, infs = (
            np.add.reduceat(mask, first, axis=0, dtype=np.int64)
            for mask in (usable, given & np.isnan(values), given & np.isinf(values))
        )
        least, most = (np.where(usable, values, other) for other in (np.inf, -np.inf))
        shares = np.where(usable, values, 0.0)
        low, high, mean = _summary((least, most, shares), first, finite, _sums(shares, first))
    return Buckets(index[first] * width, rows, places, low, high, mean, finite, nans, infs)


def widen(buckets: Buckets, width: int) -> Buckets:
    """The same rows in buckets of a multiple of their width."""
    index = buckets.start // width
    first = _firsts(index)
    if len(first) == len(index):
        return replace(buckets, start=index * width)
    rows, finite, nans, infs = (
        np.add.reduceat(part, first, axis=0)
        for part in (buckets.rows, buckets.finite, buckets.nans, buckets.infs)
    )
    share = buckets.finite / np.maximum(np.repeat(finite, _lengths(first, index), axis=0), 1)
    empty = buckets.finite == 0
    least, most = (np.where(empty, o, v) for o, v in ((np.inf, buckets.low),
                                                      (-np.inf, buckets.high)))  # fmt: skip
    low, high = np.minimum.reduceat(least, first, axis=0), np.maximum.reduceat(most, first, axis=0)
    mean = _mean(np.where(empty, 0.0, buckets.mean) * share, first, low, high)
    low, high, mean = (np.where(finite > 0, part, np.nan) for part in (low, high, mean))
    return Buckets(index[first] * width, rows, buckets.places, low, high, mean, finite, nans, infs)


def join_buckets(parts: Sequence[Buckets], width: int) -> Buckets:
    """One set of all parts' rows, in buckets of `width`; parts may share buckets and metrics."""
    full = [part for part in parts if len(part)]
    if len(full) <= 1:
        return widen(full[0], width) if full else _none()
    places = distinct(np.concatenate([part.places for part in full]))
    spread = [_spread(part, places) for part in full]
    start, rows, low, high, mean, finite, nans, infs = (
        np.concatenate([getattr(part, name) for part in spread])
        for name in ("start", "rows", "low", "high", "mean", "finite", "nans", "infs")
    )
    together = Buckets(start, rows, places, low, high, mean, finite, nans, infs)
    if (np.diff(start) < 0).any():
        together = together.take(np.argsort(start, kind="stable"))
    return widen(together, width)


def distinct(values: Counts) -> Counts:
    """Each value once, rising; `np.unique` would import masked arrays for it, 40 ms at first."""
    values = np.sort(values)
    return values[_firsts(values)]


def _sums(values: Floats, first: Counts) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.add.reduceat(values, first, axis=0)


def _summary(
    parts: tuple[Floats, Floats, Floats], first: Counts, finite: Counts, sums: Floats
) -> tuple[Floats, Floats, Floats]:
    """Least, greatest and mean of each bucket from what counts for each; NaN where nothing is."""
    least, most, shares = parts
    low, high = np.minimum.reduceat(least, first, axis=0), np.maximum.reduceat(most, first, axis=0)
    divisor = np.maximum(finite, 1)
    mean = sums / divisor
    if not np.isfinite(mean).all():  # the sum overflowed, the mean does not
        each = np.repeat(divisor, _lengths(first, shares), axis=0)
        mean = _mean(shares / each, first, low, high)
    none = finite == 0
    if none.any():
        low, high, mean = (np.where(none, np.nan, part) for part in (low, high, mean))
    return low, high, mean


def _mean(shares: Floats, first: Counts, low: Floats, high: Floats) -> Floats:
    """The sum of each bucket's shares; rounding takes it beyond no extreme, and not to ∞."""
    return np.clip(_sums(shares, first), low, high)


def _firsts(index: Counts) -> Counts:
    """Where each run of equal values begins; at least one place, unless empty."""
    changed = np.flatnonzero(np.diff(index)) + 1
    return np.concatenate([np.zeros(min(len(index), 1), np.int64), changed])


def _lengths(first: Counts, of: NDArray[Any]) -> Counts:
    return np.diff(np.append(first, len(of)))


def _spread(buckets: Buckets, places: Counts) -> Buckets:
    """With a column for each of `places`, which hold its own."""
    if len(places) == len(buckets.places):
        return buckets
    at = np.searchsorted(places, buckets.places)
    shape = (len(buckets), len(places))

    def wider(values: NDArray[Any], fill: float) -> NDArray[Any]:
        made = np.full(shape, fill, dtype=values.dtype)
        made[:, at] = values
        return made

    low, high, mean = (wider(p, np.nan) for p in (buckets.low, buckets.high, buckets.mean))
    finite, nans, infs = (wider(p, 0) for p in (buckets.finite, buckets.nans, buckets.infs))
    return Buckets(buckets.start, buckets.rows, places, low, high, mean, finite, nans, infs)


def _none() -> Buckets:
    none, grid = np.empty(0, np.int64), np.empty((0, 0))
    counts = np.empty((0, 0), np.int64)
    return Buckets(none, none, none, grid, grid, grid, counts, counts, counts)
