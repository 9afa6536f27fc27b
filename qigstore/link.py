"""An attempt's link to its database: there from the start, made later, or never.

Whatever an attempt has to tell its database goes through here: to the database where there is one,
else into the spool's notes and the event log, from which a later process tells it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING
from uuid import UUID

from qigstore.checkpoints import CheckpointManager, Retention, open_store
from qigstore.checkpoints.base import BaseStore
from qigstore.checkpoints.ranking import best_first, finite, judge, newest_first
from qigstore.checkpoints.rows import CheckpointRows
from qigstore.database.engine import address_of, open_database
from qigstore.errors import StoreUnavailable
from qigstore.leftovers import OFFLINE, located, resolved, settle_leftovers
from qigstore.recording.drain import Draining, register
from qigstore.recording.event_log import EventLog, LoggedEvent
from qigstore.recording.spool.notes import AttemptNotes, write_notes
from qigstore.records import (
    AttemptStatus,
    Candidate,
    Checkpoint,
    CheckpointStatus,
    Decision,
    Event,
)
from qigstore.repository import Store

if TYPE_CHECKING:
    from qigstore.attempt import Claim
    from qigstore.recording.shipper import Target
    from qigstore.settings import Settings

__all__ = [
    "FolderRows",
    "Link",
    "LinkedRows",
    "folder_checkpoints",
    "linked_checkpoints",
    "logged_events",
]

_log = logging.getLogger("qigstore")


class Link:
    """What one attempt tells its database.

    Attributes:
        store: None until there is one.
        session, attempt: as that store has them; before it, with id 0 and a guessed number.
        spool: of the attempt.
    """

    def __init__(self, settings: Settings, claimed: Claim, store: Store | None) -> None:
        self._settings, self.spool, self._notes = settings, claimed.spool, AttemptNotes()
        self._lock, self._closed = Lock(), False
        self.store, self.session, self.attempt = store, claimed.session, claimed.attempt
        self._log = EventLog(settings.event_root / (OFFLINE if store is None else str(store.id)))

    def needed(self) -> Store:
        """The store.

        Raises:
            StoreUnavailable: there is none yet.
        """
        if self.store is None:
            raise StoreUnavailable(address_of(self._settings), "this run opened without it")
        return self.store

    def open(self) -> Target:
        """Reach the database at last, and make it know this attempt.

        Raises:
            StoreError: still not.
        """
        store = Store(open_database(self._settings))
        try:
            target = self._register(store)
            with self._lock:
                if self._closed:
                    raise StoreUnavailable(store.database.address, "the run was closed meanwhile")
                self.store = store
        except BaseException:
            store.close()
            raise
        return target

    def _register(self, store: Store) -> Target:
        identity = self.spool.identity
        if self.spool.closed:
            raise StoreUnavailable(store.database.address, "the run was closed meanwhile")
        # Earlier attempts first, so that they get the lower numbers.
        how = Draining(only=identity.session, address=address_of(self._settings))
        settle_leftovers(store, self._settings, how)
        # Before anything is sent: rows that a database may have got go to no other one.
        self._note(replace(self._notes, store=store.id))
        target = register(store, identity)
        notes = self._notes
        if notes.resumed_step is not None:
            store.sessions.set_lineage(identity.attempt, notes.resumed_from, notes.resumed_step)
        attempt = store.sessions.attempt(identity.attempt)
        assert attempt is not None
        self.attempt = attempt
        self.session = store.sessions.by_id(target.session_id)
        return target

    def _note(self, notes: AttemptNotes) -> None:
        write_notes(self.spool.folder, notes)
        self._notes = notes

    def heartbeat(self) -> None:
        """Say that the attempt lives."""
        self.needed().sessions.heartbeat(self.attempt.id)

    def asked_to_stop(self) -> Event | None:
        """The request to stop that somebody left for the attempt, if any."""
        return self.needed().stops.heard(self.attempt.id)

    # -- events -------------------------------------------------------------------------------

    def write_event(self, event: Event) -> object:
        """Put an event into a file."""
        return self._log.write(self.session.name, event, attempt_id=self.attempt.id)

    def append_event(self, event: Event) -> None:
        """Put an event where it outlives this process, at once."""
        self._log.append(self.session.name, event, attempt_id=self.attempt.id)

    def prepare_log(self) -> None:
        """Have the event log ready for an event in a hurry."""
        try:
            self._log.prepare()
        except OSError as error:
            _log.warning("%s: an event will wait for the disk: %s", self._log.root, error)

    def store_event(self, event: Event) -> object:
        """Put an event into the database, with the numbers that the attempt has there."""
        store = self.needed()
        return store.events.add(
            replace(event, session_id=self.session.id, attempt=self.attempt.number)
        )

    def ship_events(self) -> object:
        """Send the events that lie in files."""
        store = self.needed()
        return self._log.ship(store.events.add, resolve=lambda logged: self._resolve(store, logged))

    def _resolve(self, store: Store, logged: LoggedEvent) -> Event | None:
        # In a store's own folder an event has its numbers already.
        return resolved(store, logged) if self._log.root.name == OFFLINE else logged.event

    def logged_events(self) -> Iterator[LoggedEvent]:
        """Events of this session in the files of this data folder, whatever database has them."""
        return logged_events(self._settings, self.session.name)

    # -- how the attempt began and ended --------------------------------------------------------

    def note_recovery(self, decision: Decision) -> None:
        """Write down what recovery chose without the database, to be told later."""
        chosen = decision.chosen
        source, step = (chosen.id, chosen.step) if chosen else (None, -1)
        self._try_note(replace(self._notes, resumed_from=source, resumed_step=step))

    def note_end(self, status: AttemptStatus, reason: str | None, code: int | None) -> None:
        """Write down how the attempt ends, for whoever ships what is left of it."""
        now = datetime.now(UTC)
        ended = replace(self._notes, status=status, reason=reason, exit_status=code, ended_at=now)
        self._try_note(ended)

    def _try_note(self, notes: AttemptNotes) -> None:
        self._notes = notes
        try:
            write_notes(self.spool.folder, notes)
        except OSError as error:
            _log.warning("%s takes no notes: %s", self.spool.folder, error)

    def tell_event(
        self, event_id: UUID, result: str, checkpoint: UUID | None, over: bool
    ) -> object:
        """Tell the database what became of an event, and whether it is over."""
        events = self.needed().events
        tell = events.resolve if over else events.note
        return tell(event_id, result, checkpoint_id=checkpoint)

    def note_reset(self, decision: Decision) -> None:
        """Store what a soft reset chose; the attempt's own lineage stays as it is."""
        words = f"soft reset: {decision.reason}"
        self.needed().decisions.add(replace(decision, attempt=self.attempt.number, reason=words))

    def answer(self, event: Event, checkpoint: UUID | None) -> None:
        """Note what became of the event that stopped the attempt."""
        code = self._notes.exit_status
        saved = "no checkpoint" if checkpoint is None else f"checkpoint {checkpoint}"
        result = f"{self._notes.status}, exit status {code}, {saved}"
        if self.store is not None:
            self.store.events.resolve(event.id, result, checkpoint_id=checkpoint)
            return
        detail, now = {**event.detail, "result": result}, datetime.now(UTC)
        self.write_event(replace(event, detail=detail, checkpoint_id=checkpoint, resolved_at=now))

    def end(self) -> None:
        """Tell the database what is noted of the attempt; nothing where it never knew it.

        Rank 0 speaks for all.
        """
        notes = self._notes
        if self.store is None or notes.status is None or self.spool.identity.rank != 0:
            return
        if notes.resumed_step is not None:
            self.store.sessions.set_lineage(self.attempt.id, notes.resumed_from, notes.resumed_step)
        self.store.sessions.close_attempt(
            self.attempt.id, notes.status, reason=notes.reason, exit_status=notes.exit_status
        )

    def close(self) -> None:
        """Let go of the database."""
        with self._lock:
            self._closed = True
        self._log.close()
        if self.store is not None:
            self.store.close()


def logged_events(settings: Settings, session: str) -> Iterator[LoggedEvent]:
    """Events of a session in the files of the data folder, whatever database has them."""
    root = settings.event_root
    for place in sorted(root.iterdir()) if root.is_dir() else ():
        log = EventLog(place)
        for logged in (*log.pending(), *log.read_shipped()):
            if logged.session == session:
                yield logged


class FolderRows:
    """Rows of checkpoints where no database answers: what the folders and the event log tell.

    The folders are the truth, and the log says which of them a critical event followed. What other
    hosts noticed is not known here.
    """

    def __init__(
        self, store: BaseStore, session: str, events: Callable[[], Iterable[LoggedEvent]]
    ) -> None:
        self._store, self._session, self._events = store, session, events

    def add(self, _checkpoint: Checkpoint, /) -> bool:
        """There is no index to add to: the next process with a database makes the row."""
        return False

    def set_status(
        self, _checkpoint_id: UUID, _status: CheckpointStatus, /, reason: str | None = None
    ) -> None:
        """There is no index to change."""

    def candidates(
        self,
        session_id: int,
        /,
        *,
        settle_steps: int,
        phi_floor: float | None = None,
        limit: int = 10_000,
        by_age: bool = False,
    ) -> list[Candidate]:
        """Every committed folder, with whether it is fit to recover from, and why."""
        found = self._store.scan(self._session, session_id=session_id)
        measured = any(finite(item.phi) is not None for item in found)
        critical = [logged for logged in self._events() if logged.event.severity == "critical"]
        unranked = newest_first(item for item in found if finite(item.phi) is None)
        judged = []
        for item in newest_first(found) if by_age else [*best_first(found), *unranked]:
            candidate = judge(item, phi_floor=phi_floor, measured=measured)
            if candidate.healthy and (why := _followed(item, critical, settle_steps)):
                candidate = replace(candidate, healthy=False, reason=why)
            judged.append(candidate)
        healthy = [candidate for candidate in judged if candidate.healthy]
        refused = [candidate for candidate in judged if not candidate.healthy]
        return [*healthy[:limit], *refused[:limit]]


class LinkedRows:
    """Rows of checkpoints through a link: kept back (`StoreUnavailable`) until there is a store.

    Until then `folders` says what is fit to recover from. Once there is one, it alone does.
    """

    def __init__(self, link: Link, folders: FolderRows) -> None:
        self._link, self._folders = link, folders

    def add(self, checkpoint: Checkpoint, /) -> bool:
        """Insert a row, with the numbers that its attempt has in this store."""
        store = self._link.needed()
        return store.checkpoints.add(located(store, self._link.session.id, checkpoint))

    def set_status(
        self, checkpoint_id: UUID, status: CheckpointStatus, /, reason: str | None = None
    ) -> None:
        """Say that a checkpoint was deleted or quarantined."""
        self._link.needed().checkpoints.set_status(checkpoint_id, status, reason=reason)

    def candidates(
        self,
        session_id: int,
        /,
        *,
        settle_steps: int,
        phi_floor: float | None = None,
        limit: int = 10_000,
        by_age: bool = False,
    ) -> list[Candidate]:
        """Every committed checkpoint, with whether it is fit to recover from, and why."""
        choose: Callable[..., list[Candidate]] = self._folders.candidates
        if self._link.store is not None:
            choose, session_id = self._link.store.checkpoints.candidates, self._link.session.id
        return choose(
            session_id,
            settle_steps=settle_steps,
            phi_floor=phi_floor,
            limit=limit,
            by_age=by_age,
        )


def _followed(item: Checkpoint, critical: Iterable[LoggedEvent], settle_steps: int) -> str | None:
    """Which critical event of its attempt came within `settle_steps` of a checkpoint, in words."""
    attempt = item.metadata.get("attempt_id")
    for logged in critical:
        event = logged.event
        if attempt is None or logged.attempt_id is None:
            same = event.attempt == item.attempt
        else:
            same = str(logged.attempt_id) == attempt
        if same and event.step is not None and 0 <= event.step - item.step <= settle_steps:
            return f"critical event {event.rule} at step {event.step}"
    return None


def linked_checkpoints(
    settings: Settings, link: Link, tell: Callable[..., object]
) -> CheckpointManager:
    """The checkpoints of an attempt; `tell(rule, message, step=…)` hears of a save that failed."""
    folders = open_store(settings.checkpoint_root)

    def report(checkpoint: UUID, step: int, error: Exception) -> None:
        message = f"checkpoint {checkpoint} was not saved: {error}"
        tell("checkpoint save", message, step=step)

    local = FolderRows(folders, link.session.name, link.logged_events)
    rows = local if settings.mode == "offline" else LinkedRows(link, local)
    return _manager(settings, link, folders, rows, on_error=report)


def folder_checkpoints(settings: Settings, link: Link) -> CheckpointManager:
    """The same checkpoints, by their folders and the event log alone."""
    folders = open_store(settings.checkpoint_root)
    rows = FolderRows(folders, link.session.name, link.logged_events)
    return _manager(settings, link, folders, rows)


def _manager(
    settings: Settings,
    link: Link,
    folders: BaseStore,
    rows: CheckpointRows,
    *,
    on_error: Callable[[UUID, int, Exception], None] | None = None,
) -> CheckpointManager:
    return CheckpointManager(
        folders,
        rows,
        session_id=link.session.id,
        session_name=link.session.name,
        attempt=link.attempt.number,
        retention=Retention(settle_steps=settings.settle_steps),
        phi_floor=settings.phi_floor,
        on_error=on_error,
    )
