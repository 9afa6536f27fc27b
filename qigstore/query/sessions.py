"""Sessions in rows and numbers: the newest rows, statistics, shares of regimes, pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qigstore.errors import NotFound
from qigstore.query.checks import check_bounded, check_span
from qigstore.query.cursors import Cursor, read_cursor
from qigstore.query.results import Latest, LatestRow, RegimeShares, RowPage, Statistics
from qigstore.query.spans import find_timeline, spans_of

if TYPE_CHECKING:
    from qigstore.records import TelemetryRow
    from qigstore.repository import Span, Store

__all__ = ["ROWS_MAX", "latest", "regime_shares", "rows", "statistics"]

ROWS_MAX = 10_000
"""Rows of one page, and sessions of `latest`."""


def latest(store: Store, sessions: Sequence[str] | None = None, *, limit: int = 100) -> Latest:
    """The newest row of each session: the greatest step of its newest attempt that stored any.

    Args:
        sessions: their names, in which order the rows come; None: the newest `limit` sessions.

    Raises:
        NotFound: one of the sessions does not exist.
        InvalidInput: more than `ROWS_MAX` sessions.
    """
    check_bounded("limit" if sessions is None else "sessions",
                  limit if sessions is None else max(len(sessions), 1), ROWS_MAX)  # fmt: skip
    found = store.overview.latest(sessions, limit)
    if sessions is not None and len(found) < len(sessions):
        for name in store.overview.unknown(sessions):
            store.sessions.get(name)  # says which names are near
    return Latest(tuple(LatestRow(name, row) for name, row in found))


def statistics(store: Store, session: str) -> Statistics:
    """A session in numbers.

    Raises:
        NotFound: there is no such session.
    """
    info = store.sessions.get(session)
    told = store.overview.numbers(session)
    if told is None:  # removed in this moment
        raise NotFound("session", session)
    names = ("rows", "repeated_rows", "first_step", "checkpoints", "best_phi", "best_step",
             "best_checkpoint", "critical", "warning", "info")  # fmt: skip
    return Statistics(
        session=info,
        **{name: told[name] for name in names},
        attempts=tuple(store.sessions.attempts(info.id)),
        counts=tuple(store.telemetry.counts(info.id)),
        metrics=tuple(store.overview.metrics(info.id)),
    )


def regime_shares(
    store: Store,
    session: str,
    *,
    attempt: int | None = None,
    rank: int = 0,
    start: int = 0,
    stop: int | None = None,
) -> RegimeShares:
    """How often each regime was, by rows of one attempt, or of the canonical timeline.

    Reads every row of the span.

    Raises:
        NotFound: there is no such session.
        InvalidInput: a span that is reversed or negative.
    """
    check_span(start, stop)
    timeline = find_timeline(store, session)
    spans = spans_of(timeline, attempt, rank=rank, start=start, stop=stop)
    counts = store.overview.regimes(timeline.session_id, spans)
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0] or "~"))
    rows = np.array([count for _, count in ordered], np.int64)
    share = rows / max(int(rows.sum()), 1)
    return RegimeShares(session, attempt, rank, tuple(name for name, _ in ordered), rows, share)


def rows(
    store: Store,
    session: str,
    *,
    attempt: int | None = None,
    rank: int | None = None,
    start: int = 0,
    stop: int | None = None,
    after: str | None = None,
    limit: int = 1000,
) -> RowPage:
    """One page of telemetry rows by attempt, rank and step.

    Whatever is recorded between two pages, a row that was there at the first one comes once.

    Args:
        attempt, rank: only these; None: all.
        after: the `next` of the page before; the other arguments must be the same.

    Raises:
        NotFound: there is no such session.
        InvalidInput: a span that is reversed or negative, `limit` out of 1 to `ROWS_MAX`, or a
            cursor that is none, or of another session.
    """
    check_bounded("limit", limit, ROWS_MAX)
    check_span(start, stop)
    timeline = find_timeline(store, session)
    at = None if after is None else read_cursor(after, timeline.session_id)
    spans = timeline.stored(attempt=attempt, rank=rank, start=start, stop=stop)
    found = _page(store, timeline.session_id, spans, at, limit + 1)
    last = found[limit - 1] if len(found) > limit else None
    following = None if last is None else str(
        Cursor(timeline.session_id, last.attempt, last.rank, last.step)
    )  # fmt: skip
    return RowPage(session, tuple(found[:limit]), following)


def _page(
    store: Store, session_id: int, spans: Sequence[Span], at: Cursor | None, wanted: int
) -> list[TelemetryRow]:
    """The first rows behind a place, span after span, until there are enough."""
    found: list[TelemetryRow] = []
    for span in spans:
        first = span.start
        if at is not None and (span.attempt, span.rank) <= (at.attempt, at.rank):
            if (span.attempt, span.rank) < (at.attempt, at.rank):
                continue
            first = max(first, at.step + 1)
        if first < span.stop:
            found += store.telemetry.rows(
                session_id,
                attempt=span.attempt,
                rank=span.rank,
                start=first,
                stop=span.stop,
                limit=wanted - len(found),
            )
        if len(found) >= wanted:
            break
    return found
