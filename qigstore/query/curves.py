"""A metric over steps at a cost that does not grow with them, of one session or of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qigstore.query.results import By, Comparison, Curve

if TYPE_CHECKING:
    from qigstore.repository import Store

__all__ = ["COMPARED_MAX", "POINTS_MAX", "compare", "curve"]

POINTS_MAX = 100_000
"""Buckets that one curve may be asked for."""
COMPARED_MAX = 100
"""Sessions that are compared at once."""


def curve(
    store: Store,
    session: str,
    metric: str,
    *,
    attempt: int | None = None,
    rank: int | None = 0,
    start: int = 0,
    stop: int | None = None,
    points: int = 1000,
    by: By = "step",
    abandoned: bool = True,
) -> Curve:
    """A metric at steps from `start` up to, not including, `stop`, as at most `points` buckets.

    Every stored value of the span is counted in exactly one bucket, the newest included; least and
    greatest keep every spike, NaN and ±inf are counted. Few rows come one by one.

    Args:
        attempt: one process life; None: the canonical timeline, for each rank and step the newest
            attempt that reached it.
        rank: one rank; None: all of them together.
        by: what `x` is: "step", "wall" (seconds since 1970) or "relative" (since the first row).
        abandoned: with attempt=None, also the steps after which a later attempt resumed and which
            it did not reach (yet).

    Raises:
        NotFound: no such session, or it never recorded such a metric.
        InvalidInput: a span that is reversed or negative, or `points` out of 1 to `POINTS_MAX`.
    """
    raise NotImplementedError


def compare(
    store: Store,
    sessions: Sequence[str],
    metric: str,
    *,
    by: By = "step",
    rank: int | None = 0,
    points: int = 1000,
) -> Comparison:
    """The same metric of several sessions, each on its canonical timeline.

    Raises:
        NotFound: no such session, or it never recorded such a metric.
        InvalidInput: none or more than `COMPARED_MAX` sessions, one twice, or as for `curve`.
    """
    raise NotImplementedError
