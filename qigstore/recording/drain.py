"""Ships what dead processes left in their spools, exactly once, however often it is interrupted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from qigstore.errors import InvalidInput, NotFound, SpoolBusy, SpoolError, StaleWriter
from qigstore.recording.shipper import Shipper, Target
from qigstore.recording.spool.identity import SpoolIdentity, acquire_lock, read_identity
from qigstore.recording.spool.leftover import LeftOver, remove_folder, spool_folders
from qigstore.recording.spool.quarantine import Quarantine
from qigstore.recording.spool.reader import SpoolReader

if TYPE_CHECKING:
    from qigstore.repository import Store

__all__ = ["DrainReport", "drain_leftovers"]

_ROWS_MAX = 20_000


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What became of one spool.

    Attributes:
        rows: stored now. gap_rows: lost to damage. refused_rows: put into quarantine.
        busy: its process is alive; nothing was touched. owner: which process that is.
        error: why it was left as it is.
    """

    spool: Path
    session: str | None = None
    attempt_id: UUID | None = None
    rows: int = 0
    gap_rows: int = 0
    refused_rows: int = 0
    busy: bool = False
    owner: str | None = None
    error: str | None = None


def drain_leftovers(root: Path, store: Store, *, only: str | None = None) -> list[DrainReport]:
    """Ship every spool below `root` whose process is dead (`only`: of one session).

    Raises:
        StoreUnavailable: the database went away; what is not stored stays for the next time.
    """
    return list(_drain(root, store, only))


def _drain(root: Path, store: Store, only: str | None) -> Iterator[DrainReport]:
    for folder in spool_folders(root):
        try:
            descriptor = acquire_lock(folder)
        except FileNotFoundError:
            continue  # another process has just shipped it
        except SpoolBusy as busy:
            held = _busy(folder, busy)
            if only is None or held.session == only:
                yield held
            continue
        try:
            report = _drain_one(folder, store, only)
        finally:
            os.close(descriptor)
        if report is not None:
            yield report


def _busy(folder: Path, busy: SpoolBusy) -> DrainReport:
    try:
        identity = read_identity(folder)
    except SpoolError:
        return DrainReport(folder, busy=True, owner=busy.owner)
    return DrainReport(folder, identity.session, identity.attempt, busy=True, owner=busy.owner)


def _drain_one(folder: Path, store: Store, only: str | None) -> DrainReport | None:
    try:
        identity = read_identity(folder)
    except SpoolError as error:
        if remove_folder(folder, only_if_empty=True):
            return None
        return DrainReport(folder, error=str(error))
    if only is not None and identity.session != only:
        return None
    try:
        target, acked = _register(store, identity)
        shipper = Shipper(
            store,
            SpoolReader(LeftOver(folder, identity.writer), identity.writer, acked),
            target,
            quarantine=Quarantine(folder.parent, identity.writer),
            rows_max=_ROWS_MAX,
            acked=acked,
        )
        while shipper.step():
            pass
    except (InvalidInput, NotFound, StaleWriter) as error:
        return DrainReport(folder, identity.session, identity.attempt, error=str(error))
    remove_folder(folder)
    return DrainReport(
        folder,
        identity.session,
        identity.attempt,
        rows=shipper.rows,
        gap_rows=shipper.gap,
        refused_rows=shipper.refused,
    )


def _register(store: Store, identity: SpoolIdentity) -> tuple[Target, int]:
    """Make the database know the writer, and shut out whoever held it."""
    session = store.sessions.open(identity.session, identity.config)
    attempt = store.sessions.open_attempt(
        session.id,
        identity.attempt,
        host=identity.host,
        pid=identity.pid,
        config=identity.config,
    )
    store.writers.register(identity.writer, identity.attempt, identity.rank)
    state = store.writers.take_over(identity.writer)
    target = Target(identity.writer, state.epoch, session.id, attempt.number, identity.rank)
    return target, state.acked_seq
