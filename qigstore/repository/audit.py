"""The audit: who asked for what, line after line; nothing here changes or removes one."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import Connection, insert, select

from qigstore.database.schema import audit
from qigstore.repository.texts import document, optional_text, text_value

if TYPE_CHECKING:
    from qigstore.database.engine import Database

__all__ = ["Audit", "AuditLine", "note"]


@dataclass(frozen=True, slots=True)
class AuditLine:
    """Something that was asked for.

    Attributes:
        action: such as `abort`, `token.create`, `token.use`.
        actor: a token's name, or `user@host` of the command line.
        token_id: that token; None: the command line.
        session: which one it was about.
        address: where the request came from.
    """

    id: int
    at: datetime
    action: str
    actor: str
    token_id: UUID | None
    session: str | None
    address: str | None
    detail: Mapping[str, Any]


class Audit:
    """Adds lines and reads them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, action: str, actor: str, **more: Any) -> None:
        """Add a line; `more`: `token_id`, `session`, `address`, `detail`.

        Raises:
            InvalidInput: a text that cannot be stored.
        """
        with self._database.begin() as connection:
            note(connection, action, actor, **more)

    def list(self, *, before: int | None = None, limit: int = 100) -> builtins.list[AuditLine]:
        """Lines, the newest first; `before`: only those older than the line of that id."""
        query = select(audit).order_by(audit.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(audit.c.id < before)
        with self._database.begin() as connection:
            return [AuditLine(**row._mapping) for row in connection.execute(query)]


def note(
    connection: Connection,
    action: str,
    actor: str,
    *,
    token_id: UUID | None = None,
    session: str | None = None,
    address: str | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Add a line within a transaction of somebody else's: with what it tells of, or not at all."""
    values = {
        "action": text_value("action", action),
        "actor": text_value("actor", actor),
        "token_id": token_id,
        "session": optional_text("session", session),
        "address": optional_text("address", address),
        "detail": document("detail", detail or {}),
    }
    # Without RETURNING: who may add a line need not be one who may read them.
    connection.execute(insert(audit).inline().values(values))
