"""Tokens of the REST server: made once, kept as a digest, checked in constant time, revoked.

A token is `qs_<id>_<secret>`: the id finds its row, and the SHA-256 of the whole is compared with
the row's. The secret has 256 bits of the system's randomness, so a plain digest will do: there is
nothing to guess that a slow one would protect.
"""

from __future__ import annotations

import builtins
import hmac
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, get_args
from uuid import UUID, uuid4

from sqlalchemy import Connection, and_, func, insert, select, update

from qigstore.database.schema import token as tokens
from qigstore.errors import InvalidInput, NotFound
from qigstore.records import Scope
from qigstore.repository.audit import note
from qigstore.repository.lookup import find
from qigstore.repository.texts import line

if TYPE_CHECKING:
    from qigstore.database.engine import Database

__all__ = ["SCOPES", "TOKEN_PATTERN", "Token", "Tokens", "matches"]

SCOPES: tuple[Scope, ...] = get_args(Scope)
"""What a token may do; `admin` is all of it."""

TOKEN_PATTERN = re.compile(r"qs_([0-9a-f]{32})_([A-Za-z0-9_-]{43})")
_USE_SEEN_EVERY = timedelta(minutes=1)
_c = tokens.c
_SHOWN = (
    _c.id, _c.name, _c.scopes, _c.sessions,
    _c.created_at, _c.expires_at, _c.revoked_at, _c.last_used_at,
)  # fmt: skip

# As plain as can be, in one round trip: every request asks it.
_FOUND = f"""
SELECT {", ".join(column.name for column in _SHOWN)}, digest
FROM qigstore.token WHERE id = %s"""  # noqa: S608 - our own column names


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token; not the token itself, which nobody can show again.

    Attributes:
        scopes: of `SCOPES`.
        sessions: the sessions it is for, `*` standing for any characters; None: every one.
    """

    id: UUID
    name: str
    scopes: tuple[str, ...]
    sessions: str | None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None

    def status(self, now: datetime | None = None) -> str:
        """active, expired or revoked."""
        if self.revoked_at is not None:
            return "revoked"
        expired = self.expires_at is not None and self.expires_at <= (now or datetime.now(UTC))
        return "expired" if expired else "active"


def matches(pattern: str | None, session: str) -> bool:
    """Whether a token of this pattern is for a session; None: for every one.

    >>> matches("ocean-*", "ocean-7"), matches("ocean-*", "lake-1"), matches(None, "lake-1")
    (True, False, True)
    """
    if pattern is None:
        return True
    parts = (re.escape(part) for part in pattern.split("*"))
    return re.fullmatch(".*".join(parts), session, re.DOTALL) is not None


class Tokens:
    """Makes tokens, recognises them, and takes them back."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        scopes: Collection[str],
        *,
        sessions: str | None = None,
        expires_at: datetime | None = None,
        by: str = "the command line",
    ) -> tuple[Token, str]:
        """A new token, and its text: the only time that it is shown.

        Raises:
            InvalidInput: a name that is taken, an unknown scope or none, an end that has passed.
        """
        line("token name", name)
        if sessions is not None:
            line("sessions", sessions)
        if not scopes or not set(scopes) <= set(SCOPES):
            raise InvalidInput("scopes", sorted(scopes), f"one or more of {', '.join(SCOPES)}")
        if expires_at is not None and expires_at <= datetime.now(UTC):
            raise InvalidInput("expires_at", expires_at.isoformat(), "a time to come")
        key = uuid4()
        text = f"qs_{key.hex}_{secrets.token_urlsafe(32)}"
        kept = [scope for scope in SCOPES if scope in scopes]
        values = {"id": key, "name": name, "scopes": kept, "sessions": sessions}
        values |= {"digest": _digest(text), "expires_at": expires_at}
        taken = select(_c.id).where(_c.name == name)
        with self._database.begin() as connection:
            if connection.execute(taken).first() is not None:
                raise InvalidInput("token name", name, "a name that no token has or had")
            row = connection.execute(insert(tokens).values(values).returning(*_SHOWN)).one()
            detail = {"name": name, "scopes": kept, "sessions": sessions}
            note(connection, "token.create", by, token_id=key, detail=detail)
        return _token(_named(row)), text

    def list(self) -> builtins.list[Token]:
        """Every token, the newest first."""
        with self._database.begin() as connection:
            found = connection.execute(select(*_SHOWN).order_by(_c.created_at.desc(), _c.id))
            return [_token(_named(row)) for row in found]

    def any_active(self) -> bool:
        """Whether anybody could use a server on this store."""
        return any(token.status() == "active" for token in self.list())

    def revoke(self, given: str, *, by: str = "the command line") -> Token:
        """Take a token back, by its name or the first digits of its id; from now on it is refused.

        Raises:
            NotFound: there is none, or several begin so.
        """
        with self._database.begin() as connection:
            key = self._key(connection, given)
            first = func.coalesce(_c.revoked_at, func.now())
            change = update(tokens).where(_c.id == key).values(revoked_at=first)
            row = connection.execute(change.returning(*_SHOWN)).one()
            note(connection, "token.revoke", by, token_id=key, detail={"name": row.name})
        return _token(_named(row))

    def identify(self, text: str, *, address: str | None = None) -> Token | None:
        """The active token of that text, or None: unknown, wrong, expired or revoked.

        Its use is noted: in `last_used_at` once a minute, in the audit with the first of an hour.
        That one is no longer active is noted each minute that it is tried.
        """
        match = TOKEN_PATTERN.fullmatch(text)
        if match is None:
            return None
        with self._database.reading() as connection:
            row = connection.execute(_FOUND, (UUID(match.group(1)),)).fetchone()
        # Compared even where there is no such id: how long it takes tells nothing.
        known = bytes(row[-1]) if row is not None else bytes(32)
        if not hmac.compare_digest(known, _digest(text)) or row is None:
            return None
        names = (column.name for column in _SHOWN)
        token = _token(dict(zip(names, row[:-1], strict=True)))
        self._note_use(token, address)
        return token if token.status() == "active" else None

    def _note_use(self, token: Token, address: str | None) -> None:
        now, before, status = datetime.now(UTC), token.last_used_at, token.status()
        if before is not None and before > now - _USE_SEEN_EVERY:
            return
        mine = and_(_c.id == token.id, _c.last_used_at.is_not_distinct_from(before))
        seen = update(tokens).where(mine).values(last_used_at=now)
        first_of_hour = before is None or before < now.replace(minute=0, second=0, microsecond=0)
        what = "token.use" if status == "active" else "token.refused"
        detail = {} if status == "active" else {"why": status}
        more: dict[str, Any] = {"token_id": token.id, "address": address, "detail": detail}
        with self._database.begin() as connection:
            if connection.execute(seen).rowcount == 0:
                return  # another request of this moment noted it
            if status != "active" or first_of_hour:
                note(connection, what, token.name, **more)

    @staticmethod
    def _key(connection: Connection, given: str) -> UUID:
        found = connection.execute(select(_c.id).where(_c.name == given)).scalar()
        if found is not None:
            return UUID(str(found))
        try:
            key: UUID = find(connection, tokens, "token", given).id
        except NotFound as error:
            raise NotFound("token", given, hint="See `qigstore token list`") from error
        return key


def _digest(text: str) -> bytes:
    return sha256(text.encode()).digest()


def _named(row: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = row._mapping
    return found


def _token(found: Mapping[str, Any]) -> Token:
    values = {column.name: found[column.name] for column in _SHOWN}
    return Token(**values | {"scopes": tuple(values["scopes"])})
