"""One row by its id: added once, and found by the first digits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, Table, select
from sqlalchemy.dialects.postgresql import insert

from qigstore.database.schema import session as sessions
from qigstore.errors import NotFound
from qigstore.repository.texts import prefix_range

__all__ = ["added", "find", "must_exist"]

_MATCHES_NAMED = 5


def added(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row; False where that id was there already."""
    new = insert(table).values(**values).on_conflict_do_nothing(index_elements=[table.c.id])
    return connection.execute(new.returning(table.c.id)).first() is not None


def find(connection: Connection, table: Table, kind: str, given: UUID | str) -> Row[Any]:
    """The row of that id, or the only one whose id begins with those hex digits.

    Raises:
        NotFound: there is none, or several begin so; the error names them.
    """
    least, most = (given, given) if isinstance(given, UUID) else prefix_range(kind, given)
    query = select(table).where(table.c.id.between(least, most)).order_by(table.c.id)
    rows = connection.execute(query.limit(_MATCHES_NAMED + 1)).all()
    if len(rows) == 1:
        return rows[0]
    if not rows:
        raise NotFound(kind, given, near=_neighbours(connection, table, least))
    matches = [str(row.id) for row in rows[:_MATCHES_NAMED]]
    more = " and more" if len(rows) > _MATCHES_NAMED else ""
    hint = f"{len(matches)} ids{more} begin so; give more digits"
    raise NotFound(kind, given, near=matches, hint=hint)


def _neighbours(connection: Connection, table: Table, wanted: UUID) -> list[str]:
    """The ids just below and above: those that share the most digits are among them."""
    below = select(table.c.id).where(table.c.id < wanted).order_by(table.c.id.desc()).limit(1)
    above = select(table.c.id).where(table.c.id > wanted).order_by(table.c.id).limit(1)
    return [str(row.id) for query in (below, above) for row in connection.execute(query)]


def must_exist(connection: Connection, session_id: int) -> None:
    """Lock a session's row against removal until the transaction ends.

    Raises:
        NotFound: there is no such session.
    """
    query = select(sessions.c.id).where(sessions.c.id == session_id)
    if connection.execute(query.with_for_update(read=True, key_share=True)).first() is None:
        raise NotFound("session", session_id)
