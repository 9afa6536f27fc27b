"""A metric over steps at a cost that does not grow with them, of one session or of several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from qigstore.errors import InvalidInput
from qigstore.query.checks import check_bounded, check_span
from qigstore.query.pieces import Piece, Pieces, join_pieces
from qigstore.query.results import By, Comparison, Curve
from qigstore.query.spans import find_timeline, spans_of
from qigstore.repository.buckets import Buckets, bucket_rows, join_buckets, widen
from qigstore.repository.curves import Wanted

if TYPE_CHECKING:
    from qigstore.records import TelemetryRow
    from qigstore.repository import Span, Store, Timeline

__all__ = ["COMPARED_MAX", "POINTS_MAX", "compare", "curve"]

POINTS_MAX = 100_000
"""Buckets that one curve may be asked for."""
COMPARED_MAX = 100
"""Sessions that are compared at once."""

_RAW_ROWS_A_POINT = 16
_ROWS_AT_ONCE = 5_000
_READ_MAX = 1_000_000
"""Buckets read for all ranks together, about: of thousands of ranks each gives fewer."""


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
    check_bounded("points", points, POINTS_MAX)
    check_span(start, stop)
    _check_by(by)
    timeline = find_timeline(store, session)
    spans = spans_of(timeline, attempt, rank=rank, start=start, stop=stop, abandoned=abandoned)
    pieces = _read(store, timeline, metric, spans, points)
    made = join_pieces(pieces, points, overlap=rank is None or any(s.shared for s in spans))
    values = (getattr(made.buckets, name).reshape(-1) for name in _VALUES)
    return Curve(
        session,
        metric,
        attempt,
        rank,
        by,
        made.start,
        made.stop,
        _positions(store, timeline, spans, made, by),
        *values,
    )


_VALUES = ("low", "high", "mean", "finite", "nans", "infs")


def _check_by(by: str) -> None:
    if by not in get_args(By):
        raise InvalidInput("by", by, f"one of {', '.join(get_args(By))}")


def _read(
    store: Store, timeline: Timeline, metric: str, spans: Sequence[Span], points: int
) -> list[Piece]:
    """The buckets of each span, as many as are its share of the steps."""
    if not spans:
        store.curves.check_metric(timeline.session_id, metric)
        return []
    extent = max(span.stop for span in spans) - min(span.start for span in spans)
    ranks = len({span.rank for span in spans})
    raw_rows, of_a_rank = max(1, _RAW_ROWS_A_POINT // ranks), min(points, _READ_MAX // ranks)
    shares = [max(1, of_a_rank * (span.stop - span.start) // extent) for span in spans]
    clear = [
        Wanted(span.attempt, span.rank, span.start, span.stop, share, raw_rows)
        for span, share in zip(spans, shares, strict=True)
        if not span.shared
    ]
    read = iter(store.curves.read_spans(timeline.session_id, metric, clear))
    return [
        Piece(
            span.start,
            span.stop,
            *(_read_shared(store, timeline, metric, span, share) if span.shared else next(read)),
        )
        for span, share in zip(spans, shares, strict=True)
    ]


def _read_shared(
    store: Store, timeline: Timeline, metric: str, span: Span, points: int
) -> tuple[int, Buckets]:
    """The rows of a span that no later attempt has, some at a time; the width and the buckets."""
    width, made = 1, join_buckets([], 1)
    for rows in _shared_rows(store, timeline, span):
        found = [
            (row.step, row.metrics[metric])
            for row in rows
            if row.attempt == span.attempt and metric in row.metrics
        ]
        steps = np.array([step for step, _ in found], np.int64)
        values = np.array([value for _, value in found], np.float64).reshape(-1, 1)
        more = bucket_rows(steps, values, np.zeros(1, np.int64), width)
        made = join_buckets([made, more], width)
        while len(made) > _RAW_ROWS_A_POINT * points:
            width *= 2
            made = widen(made, width)
    return width, made


def _shared_rows(store: Store, timeline: Timeline, span: Span) -> Iterator[list[TelemetryRow]]:
    """The rows of a span and of those that share its steps, about `_ROWS_AT_ONCE` at a time.

    By ranges of steps, so that a page does not sort all that follow it; and by a limit, as rows
    need not lie evenly.
    """
    part = next(p for p in timeline.parts if (p.attempt, p.rank) == (span.attempt, span.rank))
    window = _ROWS_AT_ONCE * max(1, (part.last - part.first) // part.rows)
    first = span.start
    while first < span.stop:
        stop = min(first + window, span.stop)
        rows = store.telemetry.canonical(
            timeline.session_id, rank=span.rank, start=first, stop=stop, limit=_ROWS_AT_ONCE
        )
        yield rows
        first = stop if len(rows) < _ROWS_AT_ONCE else rows[-1].step + 1


def _positions(
    store: Store, timeline: Timeline, spans: Sequence[Span], made: Pieces, by: By
) -> NDArray[np.float64]:
    """Where each bucket is on the x axis."""
    if by == "step":
        return made.start.astype(np.float64)
    starts, stops = made.start.tolist(), made.stop.tolist()
    probes = [
        spans[origin]._replace(start=first, stop=last)
        for origin, first, last in zip(made.origin.tolist(), starts, stops, strict=True)
    ]
    # The session's very first row, which relative time counts from.
    if by == "relative" and probes:
        first = timeline.parts[0]
        probes.insert(0, probes[0]._replace(
            attempt=first.attempt, rank=first.rank, start=first.first, stop=first.first + 1
        ))  # fmt: skip
    found = store.timelines.times(timeline.session_id, probes)
    seconds = np.array([np.nan if row is None else row[1].timestamp() for row in found])
    return seconds if by == "wall" or not probes else seconds[1:] - seconds[0]


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
        InvalidInput: none or more than `COMPARED_MAX` sessions, one twice, together more than
            `POINTS_MAX` points, or as for `curve`.
    """
    check_bounded("sessions", len(sessions), COMPARED_MAX)
    check_bounded("points", points, POINTS_MAX // len(sessions))
    if len(set(sessions)) < len(sessions):
        raise InvalidInput("sessions", list(sessions), "each session once")
    curves = {
        name: curve(store, name, metric, rank=rank, points=points, by=by) for name in sessions
    }
    return Comparison(metric, by, curves)
