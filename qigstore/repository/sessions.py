"""Sessions and their attempts: opened, numbered, kept alive, closed."""

from __future__ import annotations

import builtins
import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, get_args
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    case,
    func,
    insert,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from qigstore.database.schema import attempt as attempts
from qigstore.database.schema import event as events
from qigstore.database.schema import session as sessions
from qigstore.database.schema import writer as writers
from qigstore.errors import InvalidInput, NotFound
from qigstore.records import AttemptInfo, AttemptStatus, SessionInfo
from qigstore.repository.events import with_result
from qigstore.repository.texts import document, like_pattern, line, near, optional_text, text_value

if TYPE_CHECKING:
    from qigstore.database.engine import Database

__all__ = ["Sessions", "shown_status"]

_NAMES_COMPARED = 1000
_INT4_MAX, _INT8_MAX = 2**31 - 1, 2**63 - 1


def shown_status() -> ColumnElement[str]:
    """The stored status, but 'lost' for one that runs and was not heard of within its limit."""
    limit = attempts.c.heartbeat_limit_s * literal(timedelta(seconds=1))
    silent = attempts.c.heartbeat_at < func.now() - limit
    return case(
        (and_(attempts.c.status == "running", silent), literal("lost")), else_=attempts.c.status
    )


class Sessions:
    """Opens sessions and attempts, and says how they stand."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open(self, name: str, config: Mapping[str, Any]) -> SessionInfo:
        """The session of that name; made where it is new, with `config` as its first one.

        Raises:
            InvalidInput: a name or configuration that cannot be stored.
        """
        values = {"name": line("session name", name), "config": document("config", config)}
        with self._database.begin() as connection:
            found = _find(connection, name)
            if found is None:
                connection.execute(upsert(sessions).values(values).on_conflict_do_nothing())
                found = _find(connection, name)
            assert found is not None
            return found

    def get(self, name: str) -> SessionInfo:
        """The session of that name.

        Raises:
            NotFound: there is none; the error names the nearest.
        """
        line("session name", name)
        with self._database.begin() as connection:
            found = _find(connection, name)
            if found is not None:
                return found
            names = select(sessions.c.name).order_by(sessions.c.id.desc()).limit(_NAMES_COMPARED)
            known = list(connection.execute(names).scalars())
        raise NotFound("session", name, near=near(name, known), hint="See `qigstore sessions list`")

    def by_id(self, session_id: int) -> SessionInfo:
        """The session of that number, as other records refer to it.

        Raises:
            NotFound: there is none.
        """
        query = _info().where(sessions.c.id == session_id)
        with self._database.begin() as connection:
            row = connection.execute(query).first()
        if row is None:
            raise NotFound("session", session_id)
        return SessionInfo(*row)

    def list(
        self, limit: int = 50, offset: int = 0, *, like: str | None = None
    ) -> builtins.list[SessionInfo]:
        """Sessions, the newest first; `like`: those of that name, `*` for any characters."""
        query = _info().order_by(sessions.c.id.desc()).limit(limit).offset(offset)
        if like is not None:
            query = query.where(sessions.c.name.like(like_pattern(like), escape="\\"))
        with self._database.begin() as connection:
            return [SessionInfo(*row) for row in connection.execute(query)]

    def open_attempt(
        self,
        session_id: int,
        attempt_id: UUID,
        *,
        host: str,
        pid: int,
        config: Mapping[str, Any],
        started_at: datetime | None = None,
        heartbeat_limit_s: float = 30.0,
    ) -> AttemptInfo:
        """Open the next attempt; the same id again gives the same attempt.

        `started_at`: where it began before the database heard of it. `heartbeat_limit_s`: for how
        long it may be silent before it is shown as lost.

        Raises:
            NotFound: there is no such session.
            InvalidInput: the id is of another session, or a value cannot be stored.
        """
        if not 0 <= pid <= _INT8_MAX:
            raise InvalidInput("pid", pid, f"0 to {_INT8_MAX}")
        if not 0.0 < heartbeat_limit_s < math.inf:
            raise InvalidInput("heartbeat_limit_s", heartbeat_limit_s, "seconds above 0")
        values: dict[str, Any] = {
            "host": text_value("host", host), "config": document("config", config),
            "heartbeat_limit_s": heartbeat_limit_s,
        }  # fmt: skip
        if started_at is not None:
            values["started_at"] = started_at
        lock = select(sessions.c.id).where(sessions.c.id == session_id)
        last = select(func.coalesce(func.max(attempts.c.number), 0)).where(
            attempts.c.session_id == session_id
        )
        with self._database.begin() as connection:
            if connection.execute(lock.with_for_update(key_share=True)).first() is None:
                raise NotFound("session", session_id)
            if (known := _attempt(connection, attempt_id)) is None:
                number = connection.execute(last).scalar_one() + 1
                connection.execute(
                    insert(attempts).values(
                        id=attempt_id, session_id=session_id, number=number, pid=pid, **values
                    )
                )
                known = _attempt(connection, attempt_id)
        assert known is not None
        if known.session_id != session_id:
            raise InvalidInput("attempt", str(attempt_id), f"an attempt of session {session_id}")
        return known

    def set_lineage(self, attempt_id: UUID, resumed_from: UUID | None, resumed_step: int) -> None:
        """Note the checkpoint that an attempt resumed from; step -1: it started afresh.

        Raises:
            NotFound: there is no such attempt.
        """
        if not -1 <= resumed_step <= _INT8_MAX:
            raise InvalidInput("resumed_step", resumed_step, "a step, or -1")
        change = update(attempts).where(attempts.c.id == attempt_id)
        with self._database.begin() as connection:
            changed = connection.execute(
                change.values(resumed_from=resumed_from, resumed_step=resumed_step)
            )
            if changed.rowcount == 0:
                raise NotFound("attempt", attempt_id)

    def heartbeat(self, attempt_id: UUID) -> bool:
        """Say that an attempt lives; False where somebody closed it."""
        mine = and_(attempts.c.id == attempt_id, attempts.c.status == "running")
        with self._database.begin() as connection:
            beat = connection.execute(update(attempts).where(mine).values(heartbeat_at=func.now()))
            return beat.rowcount == 1

    def close_attempt(
        self,
        attempt_id: UUID,
        status: AttemptStatus,
        *,
        reason: str | None = None,
        exit_status: int | None = None,
        ended_at: datetime | None = None,
    ) -> bool:
        """Note how an attempt ended; False where that was known already.

        `ended_at`: when, where that was before the database heard of it; None: now.
        A lost one may turn out to have ended otherwise; any other end is final. A lost attempt
        ended at its last heartbeat, as far as anybody knows. What asked it to stop is resolved.

        Raises:
            NotFound: there is no such attempt.
            InvalidInput: a status that is no end.
        """
        ends = [known for known in get_args(AttemptStatus) if known != "running"]
        if status not in ends:
            raise InvalidInput("status", status, f"one of {', '.join(ends)}")
        if exit_status is not None and not -_INT4_MAX <= exit_status <= _INT4_MAX:
            raise InvalidInput("exit_status", exit_status, "a 32-bit number")
        is_open = or_(
            attempts.c.status == "running",
            and_(attempts.c.status == "lost", literal(status) != "lost"),
        )
        ended = attempts.c.heartbeat_at if status == "lost" else ended_at or func.now()
        values = {
            "status": status,
            "reason": optional_text("reason", reason),
            "exit_status": exit_status,
            "ended_at": ended,
        }
        with self._database.begin() as connection:
            closed = connection.execute(
                update(attempts).where(attempts.c.id == attempt_id, is_open).values(values)
            )
            if closed.rowcount == 0 and _attempt(connection, attempt_id) is None:
                raise NotFound("attempt", attempt_id)
            if closed.rowcount:
                _answer_stops(connection, attempt_id, status, exit_status)
            return closed.rowcount == 1

    def attempt(self, attempt_id: UUID) -> AttemptInfo | None:
        """The attempt of that id, or None where the database has not heard of it."""
        with self._database.begin() as connection:
            return _attempt(connection, attempt_id)

    def attempts(self, session_id: int) -> builtins.list[AttemptInfo]:
        """Attempts of a session by number; one that runs unheard of is shown as lost."""
        query = _attempts().where(attempts.c.session_id == session_id)
        with self._database.begin() as connection:
            return [
                _attempt_info(row) for row in connection.execute(query.order_by(attempts.c.number))
            ]


def _answer_stops(
    connection: Connection, attempt_id: UUID, status: str, exit_status: int | None
) -> None:
    """Say of each event that wanted the attempt to stop how the attempt ended."""
    code = "" if exit_status is None else f", exit status {exit_status}"
    mine = attempts.c.id == attempt_id
    asked = (
        events.c.session_id == select(attempts.c.session_id).where(mine).scalar_subquery(),
        events.c.attempt == select(attempts.c.number).where(mine).scalar_subquery(),
        events.c.action == "abort",
        events.c.resolved_at.is_(None),
    )
    answer = {"resolved_at": func.now(), "detail": with_result(f"{status}{code}")}
    connection.execute(update(events).where(*asked).values(answer))


def _info() -> Select[Any]:
    """Sessions with the standing of their newest attempt, in the order of `SessionInfo`."""
    newest = (
        select(shown_status().label("status"))
        .where(attempts.c.session_id == sessions.c.id)
        .order_by(attempts.c.number.desc())
        .limit(1)
        .lateral("newest")
    )
    mine = select(
        func.count(attempts.c.id.distinct()).label("attempts"),
        func.greatest(func.max(attempts.c.heartbeat_at), func.max(writers.c.stored_at)).label(
            "last_seen_at"
        ),
    )
    both = attempts.outerjoin(writers, writers.c.attempt_id == attempts.c.id)
    seen = mine.select_from(both).where(attempts.c.session_id == sessions.c.id).lateral("seen")
    last = (
        select(func.max(writers.c.max_step).label("step"))
        .select_from(attempts.join(writers, writers.c.attempt_id == attempts.c.id))
        .where(attempts.c.session_id == sessions.c.id, writers.c.max_step.is_not(None))
        .group_by(attempts.c.number)
        .order_by(attempts.c.number.desc())
        .limit(1)
        .lateral("last")
    )
    columns = (sessions.c.id, sessions.c.name, sessions.c.config, sessions.c.created_at)
    standing = (seen.c.attempts, newest.c.status, last.c.step, seen.c.last_seen_at)
    joined = sessions.join(seen, true()).outerjoin(newest, true()).outerjoin(last, true())
    return select(*columns, *standing).select_from(joined)


def _find(connection: Connection, name: str) -> SessionInfo | None:
    row = connection.execute(_info().where(sessions.c.name == name)).first()
    return None if row is None else SessionInfo(*row)


def _attempts() -> Select[Any]:
    columns = [column for column in attempts.c if column.name != "status"]
    return select(*columns, shown_status().label("status"))


def _attempt(connection: Connection, attempt_id: UUID) -> AttemptInfo | None:
    row = connection.execute(_attempts().where(attempts.c.id == attempt_id)).first()
    return None if row is None else _attempt_info(row)


def _attempt_info(row: Row[Any]) -> AttemptInfo:
    return AttemptInfo(**row._mapping)
