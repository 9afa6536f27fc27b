"""Decisions of recovery, kept with every candidate and its reason, so that they can be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import Row, select

from qigstore.database.schema import recovery_event as decisions
from qigstore.errors import InvalidInput
from qigstore.records import Candidate, Checkpoint, Decision
from qigstore.repository.lookup import added, must_exist
from qigstore.repository.texts import document, text_value

if TYPE_CHECKING:
    from qigstore.database.engine import Database

__all__ = ["Decisions"]

_UUIDS = ("id",)
_TIMES = ("created_at", "verified_at")


class Decisions:
    """Keeps decisions and shows them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, decision: Decision) -> bool:
        """Keep a decision; False where that id was there already.

        Raises:
            NotFound: there is no such session.
            InvalidInput: a dry run, which is not kept, or a choice that is no candidate.
        """
        if decision.attempt is None:
            raise InvalidInput("attempt", None, "the attempt that it opened; a dry run is not kept")
        chosen = decision.chosen.id if decision.chosen else None
        if chosen is not None and chosen not in {c.checkpoint.id for c in decision.candidates}:
            raise InvalidInput("chosen", str(chosen), "one of the decision's candidates")
        listed = {"candidates": [_written(candidate) for candidate in decision.candidates]}
        skip = decision.skip_steps or (None, None)
        values = {
            "id": decision.id,
            "session_id": decision.session_id,
            "attempt": decision.attempt,
            "policy": text_value("policy", decision.policy),
            "checkpoint_id": chosen,
            "reason": text_value("reason", decision.reason),
            "candidates": document("candidates", listed)["candidates"],
            "skip_first": skip[0],
            "skip_last": skip[1],
            "decided_at": decision.decided_at,
        }
        with self._database.begin() as connection:
            must_exist(connection, decision.session_id)
            return added(connection, decisions, values)

    def list(self, session_id: int, *, limit: int = 100) -> list[Decision]:
        """Decisions of a session, the newest first."""
        query = (
            select(decisions)
            .where(decisions.c.session_id == session_id)
            .order_by(decisions.c.decided_at.desc(), decisions.c.id)
            .limit(limit)
        )
        with self._database.begin() as connection:
            return [_read(row) for row in connection.execute(query)]


def _written(candidate: Candidate) -> dict[str, Any]:
    checkpoint = asdict(candidate.checkpoint)
    times = {name: checkpoint[name] and checkpoint[name].isoformat() for name in _TIMES}
    return {
        "healthy": candidate.healthy,
        "reason": candidate.reason,
        "checkpoint": checkpoint | times,
    }


def _candidate(written: Mapping[str, Any]) -> Candidate:
    values = dict(written["checkpoint"])
    for name in _TIMES:
        values[name] = values[name] and datetime.fromisoformat(values[name])
    values |= {"id": UUID(values["id"]), "path": Path(values["path"])}
    return Candidate(Checkpoint(**values), written["healthy"], written["reason"])


def _read(row: Row[Any]) -> Decision:
    candidates = tuple(map(_candidate, row.candidates))
    by_id = {candidate.checkpoint.id: candidate.checkpoint for candidate in candidates}
    return Decision(
        id=row.id,
        session_id=row.session_id,
        policy=row.policy,
        chosen=by_id.get(row.checkpoint_id),
        candidates=candidates,
        reason=row.reason,
        decided_at=row.decided_at,
        attempt=row.attempt,
        skip_steps=None if row.skip_first is None else (row.skip_first, row.skip_last),
    )
