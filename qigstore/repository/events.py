"""Events: what a rule, a signal or a person raised, kept once however often it is sent."""

from __future__ import annotations

import builtins
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, func, select, update

from qigstore.database.schema import event as events
from qigstore.errors import InvalidInput
from qigstore.records import Event, Severity
from qigstore.repository.lookup import added, find, must_exist
from qigstore.repository.texts import document, optional_text, text_value

if TYPE_CHECKING:
    from qigstore.database.engine import Database

__all__ = ["Events", "with_result"]


def with_result(result: str) -> ColumnElement[Any]:
    """An event's detail, and in its `result` what became of it, after what was said before."""
    known = events.c.detail["result"].astext
    words = func.concat_ws("; ", known, text_value("result", result))
    return events.c.detail.op("||")(func.jsonb_build_object("result", words))


class Events:
    """Keeps events and finds them again."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, event: Event) -> bool:
        """Keep an event; False where that id was there already.

        Raises:
            NotFound: there is no such session.
            InvalidInput: a value that cannot be stored.
        """
        _known("severity", event.severity)
        values = asdict(event) | {
            "rule": text_value("rule", event.rule),
            "message": text_value("message", event.message),
            "metric": optional_text("metric", event.metric),
            "action": optional_text("action", event.action),
            "detail": document("detail", event.detail),
        }
        with self._database.begin() as connection:
            must_exist(connection, event.session_id)
            return added(connection, events, values)

    def list(
        self,
        session_id: int | None = None,
        *,
        severity: Severity | None = None,
        still_open: bool = False,
        limit: int = 100,
    ) -> builtins.list[Event]:
        """Events, the newest first; `still_open`: neither acknowledged nor resolved."""
        query = select(events).order_by(events.c.raised_at.desc(), events.c.id).limit(limit)
        if session_id is not None:
            query = query.where(events.c.session_id == session_id)
        if severity is not None:
            _known("severity", severity)
            query = query.where(events.c.severity == severity)
        if still_open:
            query = query.where(events.c.acknowledged_at.is_(None), events.c.resolved_at.is_(None))
        with self._database.begin() as connection:
            return [Event(**row._mapping) for row in connection.execute(query)]

    def get(self, event_id: UUID | str) -> Event:
        """The event of that id, or whose id alone begins with those hex digits (4 or more).

        Raises:
            NotFound: there is none, or several begin so; the error names them.
        """
        with self._database.begin() as connection:
            return _get(connection, event_id)

    def acknowledge(self, event_id: UUID | str) -> Event:
        """Note that somebody saw an event; the first time counts.

        Raises:
            NotFound: as `get`.
        """
        with self._database.begin() as connection:
            found = _get(connection, event_id)
            first = func.coalesce(events.c.acknowledged_at, func.now())
            change = update(events).where(events.c.id == found.id).values(acknowledged_at=first)
            connection.execute(change)
            return _get(connection, found.id)

    def note(self, event_id: UUID, result: str, *, checkpoint_id: UUID | None = None) -> bool:
        """Note what an event's action came to; False where there is no such event.

        Args:
            result: in words; kept as `detail["result"]`.
            checkpoint_id: what was saved because of it.

        Raises:
            InvalidInput: a text that cannot be stored.
        """
        return self._tell(event_id, result, checkpoint_id, {})

    def resolve(self, event_id: UUID, result: str, *, checkpoint_id: UUID | None = None) -> bool:
        """The same, and that the event is over; False where that was known already.

        Then only a checkpoint is noted, if the event has none: of several ranks the one that saved
        may have ended the attempt, and with it the event, before the one that raised it answers.

        Raises:
            InvalidInput: a text that cannot be stored.
        """
        return self._tell(event_id, result, checkpoint_id, {"resolved_at": func.now()})

    def _tell(
        self, event_id: UUID, result: str, checkpoint_id: UUID | None, more: dict[str, Any]
    ) -> bool:
        values = {**more, "detail": with_result(result)}
        if checkpoint_id is not None:
            values["checkpoint_id"] = checkpoint_id
        mine = events.c.id == event_id
        change = update(events).where(mine, events.c.resolved_at.is_(None)).values(values)
        late = update(events).where(mine, events.c.checkpoint_id.is_(None))
        with self._database.begin() as connection:
            if connection.execute(change).rowcount == 1:
                return True
            if checkpoint_id is not None:
                connection.execute(late.values(checkpoint_id=checkpoint_id))
            return False


def _get(connection: Connection, event_id: UUID | str) -> Event:
    row: Any = find(connection, events, "event", event_id)
    return Event(**row._mapping)


def _known(name: str, value: str) -> None:
    if value not in get_args(Severity):
        raise InvalidInput(name, value, f"one of {', '.join(get_args(Severity))}")
