"""What dead processes left behind: spools, event logs and checkpoints, told to the database.

A folder of spools belongs to one store, by its id. What was recorded with no database in reach lies
in the folder `offline` instead: each spool there says which database it waits for (the address of
the run's settings; a run in mode "offline" without a DSN waits for any), and from the moment that
one has heard of it, it goes to no other.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from qigstore.checkpoints import open_store
from qigstore.errors import SpoolBusy, SpoolError, StoreError
from qigstore.recording.drain import Draining, DrainReport, drain_leftovers
from qigstore.recording.event_log import EventLog, LoggedEvent
from qigstore.recording.spool.identity import SpoolIdentity, acquire_lock, read_identity
from qigstore.recording.spool.leftover import spool_folders
from qigstore.records import Checkpoint, Event

if TYPE_CHECKING:
    from qigstore.repository import Store
    from qigstore.settings import Settings

__all__ = [
    "OFFLINE",
    "OtherLeftovers",
    "located",
    "resolved",
    "settle_leftovers",
    "spools",
    "waiting_events",
]

_log = logging.getLogger("qigstore")

OFFLINE = "offline"
"""Where spools and events lie that no database has heard of; beside the folders of stores."""

_JOIN_S = 5.0


def settle_leftovers(store: Store, settings: Settings, how: Draining) -> tuple[DrainReport, ...]:
    """Ship the spools and event logs of dead processes; show how their attempts ended.

    Raises:
        StoreUnavailable: the database went away; what is not stored stays for the next time.
    """
    own = drain_leftovers(settings.spool_root / str(store.id), store, how=how)
    offline = drain_leftovers(settings.spool_root / OFFLINE, store, how=how)
    EventLog(settings.event_root / str(store.id)).ship(store.events.add)
    EventLog(settings.event_root / OFFLINE).ship(
        store.events.add, resolve=lambda logged: resolved(store, logged)
    )
    for name in sorted({r.session for r in offline if r.settled and r.session is not None}):
        _index_checkpoints(store, settings, name)
    return (*own, *offline)


def resolved(store: Store, logged: LoggedEvent) -> Event | None:
    """An event with its numbers in this store; None while its attempt is not known here."""
    attempt = None if logged.attempt_id is None else store.sessions.attempt(logged.attempt_id)
    if attempt is None:
        return None
    return replace(logged.event, session_id=attempt.session_id, attempt=attempt.number)


def located(store: Store, session_id: int, checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint with its numbers in this store, where its attempt is known here."""
    written = checkpoint.metadata.get("attempt_id")
    attempt = None if written is None else store.sessions.attempt(UUID(written))
    if attempt is None:
        return replace(checkpoint, session_id=session_id)
    return replace(checkpoint, session_id=attempt.session_id, attempt=attempt.number)


def waiting_events(settings: Settings) -> int:
    """How many events lie in files and are not stored yet."""
    root = settings.event_root
    places = sorted(root.iterdir()) if root.is_dir() else []
    return sum(len(EventLog(place).pending()) for place in places)


def _index_checkpoints(store: Store, settings: Settings, session: str) -> None:
    """Give every committed folder of a session its row."""
    session_id = store.sessions.get(session).id
    for checkpoint in open_store(settings.checkpoint_root).scan(session):
        store.checkpoints.add(located(store, session_id, checkpoint))


def spools(root: Path) -> Iterator[tuple[SpoolIdentity, bool]]:
    """Every readable spool below `root`, in whatever place, and whether somebody holds it."""
    for place in sorted(root.iterdir()) if root.is_dir() else ():
        for folder in spool_folders(place):
            held = False
            try:
                os.close(acquire_lock(folder))
            except SpoolBusy:
                held = True
            except FileNotFoundError:
                continue  # shipped just now
            try:
                yield read_identity(folder), held
            except SpoolError as error:
                _log.debug("%s", error)  # `qigstore spool status` shows it; nobody's is not ours


class OtherLeftovers:
    """Ships in the background what processes of other sessions left; training waits for nothing.

    The fence makes every batch arrive once, so it may be ended between any two of them.
    """

    def __init__(self, store: Store, settings: Settings, own: str, address: str) -> None:
        self._store, self._settings = store, settings
        self._stopped = threading.Event()
        self._how = Draining(leave=own, address=address, stopped=self._stopped.is_set)
        self._thread = threading.Thread(target=self._run, name="qigstore-leftovers", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _run(self) -> None:
        try:
            for report in settle_leftovers(self._store, self._settings, self._how):
                if report.error is not None and not self._stopped.is_set():
                    _log.warning("the spool %s is left as it is: %s", report.spool, report.error)
        except StoreError as error:
            _log.warning("what dead processes left waits for another time: %s", error)
        except Exception:
            _log.exception("what dead processes left waits for another time")

    def close(self, limit_s: float) -> None:
        """Let it finish if it does so in time, else end it after the batch in flight."""
        self._thread.join(max(limit_s, 0.0))
        self._stopped.set()
        self._thread.join(_JOIN_S)
