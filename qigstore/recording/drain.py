"""Ships what dead processes left in their spools, exactly once, however often it is interrupted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from qigstore.errors import InvalidInput, NotFound, SpoolBusy, SpoolError, StaleWriter
from qigstore.recording.shipper import Shipper, Target
from qigstore.recording.spool.identity import SpoolIdentity, acquire_lock, read_identity
from qigstore.recording.spool.leftover import LeftOver, remove_folder, spool_folders
from qigstore.recording.spool.notes import AttemptNotes, read_notes, write_notes
from qigstore.recording.spool.quarantine import Quarantine
from qigstore.recording.spool.reader import SpoolReader

if TYPE_CHECKING:
    from qigstore.repository import Store

__all__ = ["DrainReport", "Draining", "drain_leftovers", "register"]

_ROWS_MAX = 50_000


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What became of one spool.

    Attributes:
        rows: stored now. gap_rows: lost to damage. refused_rows: put into quarantine.
        busy: its process is alive; nothing was touched. owner: which process that is, in words.
        holder: the same as the spool tells it.
        elsewhere: the database that its rows are meant for, which is not this one.
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
    holder: SpoolIdentity | None = None
    elsewhere: str | None = None
    error: str | None = None

    @property
    def settled(self) -> bool:
        """Whether everything of it is stored and the spool is gone."""
        return not self.busy and self.elsewhere is None and self.error is None


@dataclass(frozen=True, slots=True)
class Draining:
    """Which spools to ship, and how.

    Attributes:
        only, leave: this session's alone; every session's but this one's.
        address: ours; spools that wait for another one are left. None: whatever they wait for.
        stopped: asked between batches; what is left then is shipped another time.
        progress: told the spool's folder and the rows stored so far, after each batch.
    """

    only: str | None = None
    leave: str | None = None
    address: str | None = None
    stopped: Callable[[], bool] = lambda: False
    progress: Callable[[Path, int], object] = lambda _folder, _rows: None

    def wants(self, session: str | None) -> bool:
        """Whether it is asked for the spools of this session."""
        return self.only in (None, session) and (self.leave is None or self.leave != session)


def drain_leftovers(
    root: Path, store: Store, *, only: str | None = None, how: Draining | None = None
) -> list[DrainReport]:
    """Ship every spool below `root` whose process is dead (`only`: of one session).

    Raises:
        StoreUnavailable: the database went away; what is not stored stays for the next time.
    """
    return list(_drain(root, store, how or Draining(only=only)))


def register(store: Store, identity: SpoolIdentity) -> Target:
    """Make the database know the attempt and its writer, at the epoch that holds now."""
    session = store.sessions.open(identity.session, identity.config)
    attempt = store.sessions.open_attempt(
        session.id,
        identity.attempt,
        host=identity.host,
        pid=identity.pid,
        config=identity.config,
        started_at=identity.created_at,
        heartbeat_limit_s=identity.heartbeat_limit_s,
    )
    state = store.writers.register(identity.writer, identity.attempt, identity.rank)
    return Target(identity.writer, state.epoch, session.id, attempt.number, identity.rank)


def _drain(root: Path, store: Store, how: Draining) -> Iterator[DrainReport]:
    for folder in spool_folders(root):
        if how.stopped():
            return
        try:
            descriptor = acquire_lock(folder)
        except FileNotFoundError:
            continue  # another process has just shipped it
        except SpoolBusy as busy:
            held = _busy(folder, busy)
            if how.wants(held.session):
                yield held
            continue
        try:
            report = _drain_one(folder, store, how)
        finally:
            os.close(descriptor)
        if report is not None:
            yield report


def _busy(folder: Path, busy: SpoolBusy) -> DrainReport:
    try:
        identity = read_identity(folder)
    except SpoolError:
        return DrainReport(folder, busy=True, owner=busy.owner)
    return DrainReport(
        folder, identity.session, identity.attempt, busy=True, owner=busy.owner, holder=identity
    )


def _drain_one(folder: Path, store: Store, how: Draining) -> DrainReport | None:
    try:
        identity = read_identity(folder)
    except SpoolError as error:
        if remove_folder(folder, only_if_empty=True):
            return None
        return DrainReport(folder, error=str(error))
    if not how.wants(identity.session):
        return None
    report, notes = DrainReport(folder, identity.session, identity.attempt), read_notes(folder)
    if elsewhere := _elsewhere(identity, notes, store, how):
        return replace(report, elsewhere=elsewhere)
    try:
        if identity.offline and notes.store is None:
            # First of all: rows that a database may have got go to no other one.
            notes = replace(notes, store=store.id)
            write_notes(folder, notes)
        shipper = _shipper(folder, store, identity)
        while shipper.step():
            how.progress(folder, shipper.rows)
            if how.stopped():
                return replace(report, rows=shipper.rows, error="it was asked to stop")
    except (InvalidInput, NotFound, StaleWriter, OSError) as error:
        return replace(report, error=str(error))
    _conclude(store, identity, notes)
    remove_folder(folder)
    return replace(report, rows=shipper.rows, gap_rows=shipper.gap, refused_rows=shipper.refused)


def _elsewhere(
    identity: SpoolIdentity, notes: AttemptNotes, store: Store, how: Draining
) -> str | None:
    """The database that a spool waits for, where that is another one."""
    if notes.store is not None:
        return None if notes.store == store.id else f"the store {notes.store}"
    if how.address is None or identity.address in (None, how.address):
        return None
    return identity.address


def _shipper(folder: Path, store: Store, identity: SpoolIdentity) -> Shipper:
    target = register(store, identity)
    state = store.writers.take_over(identity.writer)  # whoever held the writer is shut out
    return Shipper(
        store,
        SpoolReader(LeftOver(folder, identity.writer), identity.writer, state.acked_seq),
        replace(target, epoch=state.epoch),
        quarantine=Quarantine(folder.parent, identity.writer),
        rows_max=_ROWS_MAX,
        acked=state.acked_seq,
    )


def _conclude(store: Store, identity: SpoolIdentity, notes: AttemptNotes) -> None:
    """Tell how the attempt began and ended, as far as anybody knows; rank 0 speaks for all."""
    if identity.rank != 0:
        return
    if notes.resumed_step is not None:
        store.sessions.set_lineage(identity.attempt, notes.resumed_from, notes.resumed_step)
    store.sessions.close_attempt(
        identity.attempt,
        notes.status or "lost",
        reason=notes.reason if notes.status else "its process ended without closing it",
        exit_status=notes.exit_status,
        ended_at=notes.ended_at,
    )
