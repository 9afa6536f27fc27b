"""A session by its name, and what it stored in which spans of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qigstore.repository import Timeline

if TYPE_CHECKING:
    from qigstore.repository import Span, Store

__all__ = ["find_timeline", "spans_of"]


def find_timeline(store: Store, session: str) -> Timeline:
    """The timeline of a session.

    Raises:
        NotFound: there is no such session; the error names the nearest.
    """
    found = store.timelines.find(session)
    if found is None:  # or it was made in this moment; else this says which names are near
        return Timeline(store.sessions.get(session).id, (), {})
    return found


def spans_of(
    timeline: Timeline,
    attempt: int | None,
    *,
    rank: int | None,
    start: int,
    stop: int | None,
    abandoned: bool = True,
) -> list[Span]:
    """The spans of one attempt, or of the canonical timeline."""
    if attempt is not None:
        return timeline.stored(attempt=attempt, rank=rank, start=start, stop=stop)
    return timeline.canonical(rank=rank, start=start, stop=stop, abandoned=abandoned)
