"""Requests to stop: asked from outside of a running process, heard by it, answered at its end.

A request is an event whose id follows from the attempt's: asked twice it is one, and the process
finds it by the key of the table.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from sqlalchemy import Connection, Row, func, select, update

from qigstore.database.schema import attempt as attempts
from qigstore.database.schema import event as events
from qigstore.database.schema import session as sessions
from qigstore.errors import NotFound, NotRunning
from qigstore.records import Event
from qigstore.repository.lookup import added
from qigstore.repository.sessions import shown_status
from qigstore.repository.texts import document, optional_text, text_value

if TYPE_CHECKING:
    from qigstore.database.engine import Database

__all__ = ["Stops"]

_REQUEST = "qigstore stop request"


class Stops:
    """Asks running processes to stop, and tells them that they were asked."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def request(
        self,
        session_id: int,
        *,
        reason: str | None = None,
        by: str | None = None,
        checkpoint: bool = True,
    ) -> Event:
        """Ask the running attempt of a session to stop at its next safe point.

        Asked again, it changes nothing and gives the first request; so does one whose attempt has
        ended meanwhile.

        Args:
            reason, by: why, and who asks; shown wherever the session's end is.
            checkpoint: whether it saves its state first.

        Raises:
            NotFound: there is no such session.
            NotRunning: its newest attempt has ended or is lost; says how.
            InvalidInput: a text that cannot be stored.
        """
        words = "asked to stop"
        words += f" by {text_value('by', by)}" if by else ""
        words += f": {optional_text('reason', reason)}" if reason else ""
        with self._database.begin() as connection:
            newest = _newest(connection, session_id)
            request_id = uuid5(newest.id, _REQUEST)
            known = _find(connection, request_id)
            if known is not None:
                return known
            if newest.shown != "running":
                raise NotRunning(newest.session, newest.shown, newest.reason)
            request = Event(
                id=request_id, session_id=session_id, attempt=newest.number, rank=0, step=None,
                rule="stop", severity="warning", message=words, raised_at=datetime.now(UTC),
                action="abort", detail=document("detail", {"checkpoint": checkpoint}),
            )  # fmt: skip
            added(connection, events, asdict(request))
            found = _find(connection, request_id)
        assert found is not None
        return found

    def heard(self, attempt_id: UUID) -> Event | None:
        """The request to stop this attempt, if there is one; it counts as acknowledged then."""
        mine = events.c.id == uuid5(attempt_id, _REQUEST)
        with self._database.begin() as connection:
            found = _find(connection, uuid5(attempt_id, _REQUEST))
            if found is None or found.acknowledged_at is not None:
                return found
            first = func.coalesce(events.c.acknowledged_at, func.now())
            connection.execute(update(events).where(mine).values(acknowledged_at=first))
            return _find(connection, found.id)


def _newest(connection: Connection, session_id: int) -> Row[Any]:
    """The newest attempt, which cannot end while this transaction lasts."""
    query = (
        select(
            attempts.c.id, attempts.c.number, attempts.c.reason, sessions.c.name.label("session"),
            shown_status().label("shown"),
        )
        .select_from(attempts.join(sessions, sessions.c.id == attempts.c.session_id))
        .where(attempts.c.session_id == session_id)
        .order_by(attempts.c.number.desc())
        .limit(1)
        .with_for_update(read=True, of=attempts)
    )  # fmt: skip
    row = connection.execute(query).first()
    if row is not None:
        return row
    name = connection.execute(select(sessions.c.name).where(sessions.c.id == session_id)).scalar()
    if name is None:
        raise NotFound("session", session_id)
    raise NotRunning(name, None, None)


def _find(connection: Connection, event_id: UUID) -> Event | None:
    row = connection.execute(select(events).where(events.c.id == event_id)).first()
    return None if row is None else Event(**row._mapping)
