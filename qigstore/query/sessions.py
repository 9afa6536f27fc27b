"""Sessions in rows and numbers: the newest rows, statistics, shares of regimes, pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qigstore.query.results import Latest, RegimeShares, RowPage, Statistics

if TYPE_CHECKING:
    from qigstore.repository import Store

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
    raise NotImplementedError


def statistics(store: Store, session: str, *, heartbeat_limit_s: float | None = None) -> Statistics:
    """A session in numbers.

    Raises:
        NotFound: there is no such session.
    """
    raise NotImplementedError


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
    raise NotImplementedError


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
    raise NotImplementedError
