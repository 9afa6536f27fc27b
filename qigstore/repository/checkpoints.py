"""Checkpoints as rows: an index to the folders, ranked by Φ, with the health of each."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from uuid import UUID

from sqlalchemy import (
    Connection,
    FromClause,
    Row,
    Select,
    Text,
    and_,
    func,
    literal_column,
    not_,
    or_,
    select,
    true,
    update,
)

from qigstore.database.schema import checkpoint as checkpoints
from qigstore.database.schema import event as events
from qigstore.errors import InvalidInput, NotFound
from qigstore.records import Candidate, Checkpoint, CheckpointKind, CheckpointStatus
from qigstore.repository.lookup import added, find, must_exist
from qigstore.repository.texts import document, optional_text, text_value

if TYPE_CHECKING:
    from qigstore.database.engine import Database

__all__ = ["CANDIDATES_MAX", "Checkpoints"]

CANDIDATES_MAX = 20
_INT8_MAX = 2**63 - 1

_c = checkpoints.c
_NAMES = tuple(_c.keys())
# The order of ix_checkpoint_ranking, word for word, so that the index serves it.
_RANKING = (_c.phi.desc().nulls_last(), _c.step.desc(), _c.id)
# Words, not parameters: only so does a prepared statement's plan see that a partial index fits.
_COMMITTED = literal_column("'committed'", Text)
_QUARANTINED = literal_column("'quarantined'", Text)
_CRITICAL = literal_column("'critical'", Text)
_RANKED = and_(_c.status == _COMMITTED, _c.phi.is_not(None))
_UNMEASURED = and_(_c.status == _COMMITTED, _c.phi.is_(None))
_NEWEST = (_c.attempt.desc(), _c.step.desc(), _c.id)
_UNRANKED = or_(_c.status == _QUARANTINED, _UNMEASURED)


class Checkpoints:
    """Keeps the rows of checkpoints, ranks them and says which are fit to load."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, checkpoint: Checkpoint) -> bool:
        """Keep a checkpoint's row; False where that id was there already.

        Raises:
            NotFound: there is no such session.
            InvalidInput: a value that cannot be stored; Φ must be finite or None.
        """
        values = asdict(checkpoint) | _checked(checkpoint)
        with self._database.begin() as connection:
            must_exist(connection, checkpoint.session_id)
            return added(connection, checkpoints, values)

    def get(self, checkpoint_id: UUID | str) -> Checkpoint:
        """The checkpoint of that id, or whose id alone begins with those hex digits (4 or more).

        Raises:
            NotFound: there is none, or several begin so; the error names them.
        """
        with self._database.begin() as connection:
            return _record(find(connection, checkpoints, "checkpoint", checkpoint_id))

    def list(
        self, session_id: int, *, status: CheckpointStatus | None = None, limit: int = 100
    ) -> builtins.list[Checkpoint]:
        """Checkpoints of a session, the latest step first."""
        query = select(checkpoints).where(_c.session_id == session_id)
        if status is not None:
            _one_of("status", status, get_args(CheckpointStatus))
            query = query.where(_c.status == status)
        return self._read(query.order_by(_c.step.desc(), _c.created_at.desc(), _c.id).limit(limit))

    def ranked(self, session_id: int, *, limit: int = 100) -> builtins.list[Checkpoint]:
        """Committed checkpoints with a finite Φ: by Φ, then the later step, then the id."""
        query = select(checkpoints).where(_c.session_id == session_id, _RANKED)
        return self._read(query.order_by(*_RANKING).limit(limit))

    def set_status(
        self, checkpoint_id: UUID, status: CheckpointStatus, reason: str | None = None
    ) -> None:
        """Note that a checkpoint was quarantined, deleted or is committed after all.

        Raises:
            NotFound: there is no such checkpoint.
        """
        _one_of("status", status, get_args(CheckpointStatus))
        reason = optional_text("reason", reason)
        self._change(checkpoint_id, {"status": status, "status_reason": reason})

    def mark_verified(self, checkpoint_id: UUID) -> None:
        """Note that its files were read back now and found whole.

        Raises:
            NotFound: there is no such checkpoint.
        """
        self._change(checkpoint_id, {"verified_at": func.now()})

    def candidates(
        self,
        session_id: int,
        *,
        settle_steps: int,
        phi_floor: float | None = None,
        limit: int = CANDIDATES_MAX,
    ) -> builtins.list[Candidate]:
        """What recovery may choose from, the best first, and what it may not, each with why.

        Healthy: committed, regular, Φ finite (and at least `phi_floor`), weights finite, and no
        critical event of the same attempt from its step to `settle_steps` later. In a session that
        measures no Φ at all (and asks for no floor) the rest decides, and the newest come first.

        Returns:
            Up to `limit` healthy ones, then up to `limit` refused ones, each by Φ, the later step,
            the id. Where there are more healthy ones than that, the refused ones are those that
            rank above the last of them (or have no rank): nobody asks about the others.

        Raises:
            InvalidInput: `settle_steps` or `limit` is negative.
        """
        for name, value in (("settle_steps", settle_steps), ("limit", limit)):
            if not 0 <= value <= _INT8_MAX:
                raise InvalidInput(name, value, "a number of at least 0")
        with self._database.begin() as connection:
            measured = phi_floor is not None or _measures_phi(connection, session_id)
            seen = _Seen(session_id, settle_steps, phi_floor, measured=measured)
            fit = seen.healthy(connection, limit)
            unfit = seen.refused(connection, limit, fit[-1] if len(fit) == limit and fit else None)
        return [Candidate(_record(row), True, seen.reason(row)) for row in fit] + [
            Candidate(_record(row), False, seen.reason(row)) for row in unfit
        ]

    def _read(self, query: Select[Any]) -> builtins.list[Checkpoint]:
        with self._database.begin() as connection:
            return [_record(row) for row in connection.execute(query)]

    def _change(self, checkpoint_id: UUID, values: dict[str, Any]) -> None:
        change = update(checkpoints).where(_c.id == checkpoint_id).values(values)
        with self._database.begin() as connection:
            if connection.execute(change).rowcount == 0:
                raise NotFound("checkpoint", checkpoint_id)


class _Seen:
    """The checkpoints of one session as recovery sees them: the queries and the words."""

    def __init__(
        self, session_id: int, settle_steps: int, phi_floor: float | None, *, measured: bool
    ) -> None:
        self._settle, self._floor, self._measured = settle_steps, phi_floor, measured
        alarm = self._next_alarm()
        # Its step is not below the checkpoint's, so this cannot leave bigint.
        settled = or_(alarm.c.step.is_(None), alarm.c.step - _c.step > settle_steps)
        high_enough = true() if phi_floor is None else _c.phi >= phi_floor
        # NULL never happens here: Φ is not NULL where the ranking's condition holds.
        self._fit = and_(_c.kind == "regular", _c.weights_finite, high_enough, settled)
        columns = (alarm.c.rule.label("alarm_rule"), alarm.c.step.label("alarm_step"))
        source = checkpoints.outerjoin(alarm, true())
        self._all = (
            select(checkpoints, *columns).select_from(source).where(_c.session_id == session_id)
        )

    @staticmethod
    def _next_alarm() -> FromClause:
        """The next critical event, however far: the first entry that one index probe finds."""
        e = events.c
        return (
            select(e.rule, e.step)
            .where(e.session_id == _c.session_id, e.attempt == _c.attempt)
            .where(e.severity == _CRITICAL, e.step >= _c.step)
            .order_by(e.step, e.id)
            .limit(1)
            .lateral("alarm")
        )

    def healthy(self, connection: Connection, limit: int) -> Sequence[Row[Any]]:
        """The best ones that are fit, in the index's order, which is left as soon as possible."""
        if self._measured:
            query = self._all.where(_RANKED, self._fit).order_by(*_RANKING)
        else:
            query = self._all.where(_UNMEASURED, self._fit).order_by(*_NEWEST)
        return connection.execute(query.limit(limit)).all()

    def refused(
        self, connection: Connection, limit: int, last: Row[Any] | None
    ) -> Sequence[Row[Any]]:
        """The others, as far as the last healthy one."""
        if not self._measured:
            unfit = or_(_c.status == _QUARANTINED, and_(_UNMEASURED, not_(self._fit)))
            found = self._all.where(unfit).order_by(*_NEWEST).limit(limit)
            return connection.execute(found).all()
        query = self._all.where(_RANKED, not_(self._fit))
        if last is not None:
            # The first condition is the index's, the second cuts among equals.
            later = or_(_c.step > last.step, and_(_c.step == last.step, _c.id < last.id))
            query = query.where(_c.phi >= last.phi, or_(_c.phi > last.phi, later))
        rows = list(connection.execute(query.order_by(*_RANKING).limit(limit)))
        rest = self._all.where(_UNRANKED).order_by(*_RANKING).limit(limit)
        rows += connection.execute(rest).all()
        rows.sort(key=lambda row: (row.phi is None, -(row.phi or 0.0), -row.step, row.id))
        return rows[:limit]

    def reason(self, row: Row[Any]) -> str:
        """Why it is fit, or everything that speaks against it."""
        against = []
        if row.status == "quarantined":
            against.append(f"quarantined: {row.status_reason or 'no reason was given'}")
        if row.kind != "regular":
            against.append("an emergency checkpoint, saved while a stop was under way")
        if row.phi is None and self._measured:
            against.append("Φ was not measured")
        elif self._floor is not None and not row.phi >= self._floor:
            against.append(f"Φ {row.phi:.4f} is below the floor {self._floor:.4f}")
        if not row.weights_finite:
            against.append("the weights are not finite")
        if row.alarm_rule is not None and row.alarm_step - row.step <= self._settle:
            later = row.alarm_step - row.step
            after = "at the same step" if later == 0 else f"{later} steps later"
            against.append(f"critical event {row.alarm_rule} at step {row.alarm_step} ({after})")
        if against:
            return "; ".join(against)
        phi = f"Φ {row.phi:.4f}" if self._measured else "Φ is not measured in this session"
        return f"{phi}, no critical event within {self._settle} steps"


def _measures_phi(connection: Connection, session_id: int) -> bool:
    """Whether any checkpoint of the session ranks: one probe of the ranking's index."""
    ranked = select(_c.id).where(_c.session_id == session_id, _RANKED)
    return connection.execute(ranked.order_by(*_RANKING).limit(1)).first() is not None


def _record(row: Row[Any]) -> Checkpoint:
    found = row._mapping
    values = {name: found[name] for name in _NAMES}
    return Checkpoint(**values | {"path": Path(values["path"])})


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InvalidInput(name, value, f"one of {', '.join(known)}")


def _checked(checkpoint: Checkpoint) -> dict[str, Any]:
    """The columns that could hold something PostgreSQL refuses."""
    if checkpoint.phi is not None and not isfinite(checkpoint.phi):
        raise InvalidInput("phi", checkpoint.phi, "a finite number, or None: not measured")
    for name, value in (("step", checkpoint.step), ("bytes", checkpoint.bytes)):
        if not 0 <= value <= _INT8_MAX:
            raise InvalidInput(name, value, f"0 to {_INT8_MAX}")
    _one_of("kind", checkpoint.kind, get_args(CheckpointKind))
    _one_of("status", checkpoint.status, get_args(CheckpointStatus))
    return {
        "path": text_value("path", str(checkpoint.path)),
        "digest": text_value("digest", checkpoint.digest),
        "regime": optional_text("regime", checkpoint.regime),
        "status_reason": optional_text("status_reason", checkpoint.status_reason),
        "metadata": document("metadata", checkpoint.metadata),
    }
