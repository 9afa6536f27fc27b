"""Checkpoints as rows: an index to the folders, ranked by Φ, with the health of each."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Any, get_args
from uuid import UUID

from sqlalchemy import Row, Select, Text, and_, func, literal_column, select, update
from sqlalchemy.dialects.postgresql import insert

from qigstore.database.schema import checkpoint as checkpoints
from qigstore.errors import InvalidInput, NotFound
from qigstore.records import Candidate, Checkpoint, CheckpointKind, CheckpointStatus
from qigstore.repository.candidates import CHECKPOINT_COLUMNS, candidates, record
from qigstore.repository.lookup import added, find, must_exist
from qigstore.repository.texts import document, optional_text, text_value

if TYPE_CHECKING:
    from qigstore.database.engine import Database

__all__ = ["CANDIDATES_MAX", "Checkpoints", "checkpoint_of"]

CANDIDATES_MAX = 20
_INT8_MAX = 2**63 - 1

_c = checkpoints.c
# The order of ix_checkpoint_ranking, word for word, so that the index serves it.
_RANKING = (_c.phi.desc().nulls_last(), _c.step.desc(), _c.id)
# Words, not parameters: only so does a prepared statement's plan see that a partial index fits.
_COMMITTED = literal_column("'committed'", Text)
_RANKED = and_(_c.status == _COMMITTED, _c.phi.is_not(None))


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

    def put(self, checkpoint: Checkpoint) -> None:
        """Make a checkpoint's row say this, whatever it said before: the folder is the truth.

        Raises:
            NotFound, InvalidInput: as for `add`; InvalidInput also where the id is another
                session's.
        """
        values = asdict(checkpoint) | _checked(checkpoint)
        kept = {"id", "session_id", "verified_at"}
        new = insert(checkpoints).values(**values)
        change = new.on_conflict_do_update(
            index_elements=[_c.id],
            set_={name: new.excluded[name] for name in CHECKPOINT_COLUMNS if name not in kept},
            where=_c.session_id == checkpoint.session_id,
        )
        with self._database.begin() as connection:
            must_exist(connection, checkpoint.session_id)
            if connection.execute(change.returning(_c.id)).first() is None:
                whose = "of a checkpoint that no other session has"
                raise InvalidInput("id", str(checkpoint.id), whose)

    def get(self, checkpoint_id: UUID | str) -> Checkpoint:
        """The checkpoint of that id, or whose id alone begins with those hex digits (4 or more).

        Raises:
            NotFound: there is none, or several begin so; the error names them.
        """
        with self._database.begin() as connection:
            return checkpoint_of(find(connection, checkpoints, "checkpoint", checkpoint_id))

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
        by_age: bool = False,
    ) -> builtins.list[Candidate]:
        """What recovery may choose from, the best first, and what it may not, each with why.

        Healthy: committed, regular, Φ finite (and at least `phi_floor`), weights finite, and no
        critical event of the same attempt from its step to `settle_steps` later. In a session that
        measures no Φ at all (and asks for no floor) the rest decides, and the newest come first.

        Args:
            by_age: the latest attempt's latest step first, instead of the highest Φ.

        Returns:
            Up to `limit` healthy ones, then up to `limit` refused ones, each in that order (by Φ:
            then the later step, then the id). Where there are more healthy ones than that, the
            refused ones are those that come before the last of them (or have no rank): nobody
            asks about the others.

        Raises:
            InvalidInput: `settle_steps` or `limit` is negative.
        """
        for name, value in (("settle_steps", settle_steps), ("limit", limit)):
            if not 0 <= value <= _INT8_MAX:
                raise InvalidInput(name, value, "a number of at least 0")
        asked = {
            "session": session_id, "settle": settle_steps, "floor": phi_floor, "by_age": by_age
        }  # fmt: skip
        return candidates(self._database, asked, limit=limit)

    def _read(self, query: Select[Any]) -> builtins.list[Checkpoint]:
        with self._database.begin() as connection:
            return [checkpoint_of(row) for row in connection.execute(query)]

    def _change(self, checkpoint_id: UUID, values: dict[str, Any]) -> None:
        change = update(checkpoints).where(_c.id == checkpoint_id).values(values)
        with self._database.begin() as connection:
            if connection.execute(change).rowcount == 0:
                raise NotFound("checkpoint", checkpoint_id)


def checkpoint_of(row: Row[Any]) -> Checkpoint:
    """The record of a row of the table."""
    return record(row._mapping)


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
