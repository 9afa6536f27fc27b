"""Removing what no role keeps: one process at a time, never what somebody reads or pinned."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING
from uuid import UUID

from qigstore.checkpoints.retention import Retention, roles
from qigstore.errors import CheckpointError
from qigstore.records import Checkpoint

if TYPE_CHECKING:
    from qigstore.checkpoints.keeper import CheckpointKeeper

__all__ = ["planned", "prune"]


def planned(
    keeper: CheckpointKeeper, retention: Retention | None = None
) -> list[tuple[Checkpoint, tuple[str, ...]]]:
    """Every committed checkpoint and its roles, the newest first; without any it would go.

    Raises:
        StoreError: the database is away; who is healthy is not known then.
        CheckpointCorrupt: something that is no pin lies among the pins.
    """
    known = keeper.known()
    healthy = {item.checkpoint.id for item in keeper.candidates() if item.healthy}
    held: Mapping[str, Collection[UUID]] = {
        "pinned": keeper.store.pins(keeper.session_name).all(),
        "resumed from": keeper.protected(),
    }
    found = roles(known.values(), retention or keeper.retention, healthy=healthy, held=held)
    return [(known[key], names) for key, names in found.items()]


def prune(
    keeper: CheckpointKeeper, retention: Retention | None = None
) -> tuple[list[UUID], list[UUID]]:
    """Remove what no role keeps: what went, and what stays only because it is read now.

    Nothing is removed while another process prunes the session: it sees to it. One that cannot be
    removed does not keep the others.

    Raises:
        StoreError: as for `planned`.
        CheckpointError, OSError: one could not be removed; the first of them.
    """
    gone: list[UUID] = []
    used: list[UUID] = []
    problem: Exception | None = None
    with keeper.store.pins(keeper.session_name).pruning() as mine:
        if not mine:
            return gone, used
        for item, names in planned(keeper, retention):
            if names:
                continue
            path = keeper.store.locate(keeper.session_name, item.id)
            try:
                with keeper.store.removing(path) as free:
                    if not free:
                        if keeper.store.has(path):
                            used.append(item.id)
                    elif keeper.remove(item.id, "retention: no role"):
                        gone.append(item.id)
            except (CheckpointError, OSError) as error:
                problem = problem or error
    if problem is not None:
        raise problem
    return gone, used
