"""A session by its name, and what it stored in which spans of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qigstore.repository import Timeline

if TYPE_CHECKING:
    from qigstore.repository import Store

__all__ = ["find_timeline"]


def find_timeline(store: Store, session: str) -> Timeline:
    """The timeline of a session.

    Raises:
        NotFound: there is no such session; the error names the nearest.
    """
    found = store.timelines.find(session)
    if found is None:  # or it was made in this moment; else this says which names are near
        return Timeline(store.sessions.get(session).id, (), {})
    return found
