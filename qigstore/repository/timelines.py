"""The canonical timeline: for each rank and step, which attempt's row counts.

What an attempt and rank stored lies between two steps, known without reading a row. A later attempt
that stored each step between its two (as many rows as steps) hides whatever earlier ones have
there: so a timeline is a few spans of steps, each of one attempt, however many rows there are. Only
where a later attempt left steps out it takes the rows to say whose a step is: a *shared* span.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from qigstore.errors import NotFound
from qigstore.repository.texts import line

if TYPE_CHECKING:
    from qigstore.database.engine import Database

__all__ = ["Part", "Span", "Timeline", "Timelines", "of_writer"]

Interval = tuple[int, int]


class Part(NamedTuple):
    """What one rank of an attempt stored: how many rows, and the first and last step of them."""

    attempt: int
    rank: int
    rows: int
    first: int
    last: int


class Span(NamedTuple):
    """Steps [start, stop) of one attempt and rank; shared: only those no later attempt has."""

    attempt: int
    rank: int
    start: int
    stop: int
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Timeline:
    """What a session stored, in which spans.

    Attributes:
        session_id: its number.
        parts: by attempt and rank.
        resumed: by attempt, the step it resumed from, where recovery was asked.
    """

    session_id: int
    parts: Sequence[Part]
    resumed: Mapping[int, int]

    def stored(
        self,
        *,
        attempt: int | None = None,
        rank: int | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> list[Span]:
        """What was stored at steps [start, stop), by attempt and rank; None: of every one."""
        return _within(
            (
                Span(part.attempt, part.rank, part.first, part.last + 1)
                for part in self.parts
                if attempt in (None, part.attempt) and rank in (None, part.rank)
            ),
            start,
            stop,
        )

    def canonical(
        self,
        *,
        rank: int | None = None,
        start: int = 0,
        stop: int | None = None,
        abandoned: bool = True,
    ) -> list[Span]:
        """The canonical timeline at steps [start, stop), by rank and step; None: of every rank.

        `abandoned`: also steps past one that a later attempt resumed from.
        """
        ranks = sorted({part.rank for part in self.parts if rank in (None, part.rank)})
        whole = [span for each in ranks for span in self._of_rank(each, abandoned)]
        return _within(whole, start, stop)

    def _of_rank(self, rank: int, abandoned: bool) -> list[Span]:
        """The spans of one rank, by step."""
        by_attempt = {part.attempt: part for part in self.parts if part.rank == rank}
        hidden: list[Interval] = []  # where a later attempt has every step
        loose: list[Interval] = []  # where one has some
        left_at: int | None = None
        found: list[Span] = []
        for number in sorted({*by_attempt, *self.resumed}, reverse=True):
            if (part := by_attempt.get(number)) is not None:
                end = part.last + 1
                if not abandoned and left_at is not None:
                    end = min(end, left_at + 1)
                for piece in _without([(part.first, end)], hidden):
                    alone = _without([piece], loose)
                    found += [Span(number, part.rank, *clear) for clear in alone]
                    both = _without([piece], alone)
                    found += [Span(number, part.rank, *some, shared=True) for some in both]
                whole = (part.first, part.last + 1)
                dense = part.rows == part.last + 1 - part.first
                (hidden if dense else loose).append(whole)
            if (resumed := self.resumed.get(number)) is not None:
                left_at = resumed if left_at is None else min(left_at, resumed)
        return sorted(found, key=lambda span: (span.start, span.attempt))


def _within(spans: Iterable[Span], start: int, stop: int | None) -> list[Span]:
    cut = (
        span._replace(
            start=max(span.start, start), stop=span.stop if stop is None else min(span.stop, stop)
        )
        for span in spans
    )
    return [span for span in cut if span.start < span.stop]


def _without(pieces: Sequence[Interval], holes: Iterable[Interval]) -> list[Interval]:
    """The parts of the pieces that no hole covers."""
    left = [piece for piece in pieces if piece[0] < piece[1]]
    for low, high in holes:
        left = [
            part
            for first, last in left
            for part in ((first, min(last, low)), (max(first, high), last))
            if part[0] < part[1]
        ]
    return left


class Timelines:
    """Finds what a session stored, and when single steps were recorded."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, session: str) -> Timeline | None:
        """The timeline of the session of that name; None: there is none.

        Raises:
            InvalidInput: that is no name.
        """
        line("session name", session)
        with self._database.raw() as connection:
            rows = connection.execute(_PARTS, (session,)).fetchall()
        if not rows:
            return None
        parts = [Part(*row[1:6]) for row in rows if row[5] is not None]
        resumed = {number: step for _, number, *_, step in rows if step is not None}
        return Timeline(rows[0][0], parts, resumed)

    def times(self, session_id: int, spans: Sequence[Span]) -> list[tuple[int, datetime] | None]:
        """Of each span the first row's step and when it was recorded; None: it has no row."""
        if not spans:
            return []
        attempts, ranks, starts, stops, _ = (list(part) for part in zip(*spans, strict=True))
        values = {
            "session": session_id, "attempts": attempts, "ranks": ranks, "starts": starts,
            "stops": stops,
        }  # fmt: skip
        with self._database.raw() as connection:
            rows = connection.execute(_TIMES, values).fetchall()
        if len(rows) != len(spans):
            known = {(number, rank) for number, rank, _, _ in rows}
            missing = next(s for s in spans if (s.attempt, s.rank) not in known)
            raise NotFound("attempt", f"{missing.attempt}, rank {missing.rank}")
        return [None if step is None else (step, at) for _, _, step, at in rows]


def of_writer(row: str, writer: str = "w") -> str:
    """SQL: a row of `telemetry` or `basin` is of that writer."""
    return f"{row}.writer = {writer}.number"


_PARTS = """
SELECT s.id, a.number, coalesce(w.rank, 0), w.stored_rows, w.min_step, w.max_step, a.resumed_step
FROM qigstore.session s
LEFT JOIN qigstore.attempt a ON a.session_id = s.id
LEFT JOIN qigstore.writer w ON w.attempt_id = a.id
WHERE s.name = %s ORDER BY a.number, w.rank"""
_TIMES = f"""
SELECT a.number, w.rank, r.step, r.recorded_at
FROM unnest(%(attempts)s::int[], %(ranks)s::int[], %(starts)s::bigint[], %(stops)s::bigint[])
     WITH ORDINALITY AS q (attempt, rank, start, stop, place)
JOIN qigstore.attempt a ON a.session_id = %(session)s AND a.number = q.attempt
JOIN qigstore.writer w ON w.attempt_id = a.id AND w.rank = q.rank
LEFT JOIN LATERAL (
    SELECT t.step, t.recorded_at FROM qigstore.telemetry t
    WHERE {of_writer("t")} AND t.step >= q.start AND t.step < q.stop
    ORDER BY t.step LIMIT 1
) r ON true
ORDER BY q.place"""  # noqa: S608
