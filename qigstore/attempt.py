"""Claiming a session: clean up after the dead, refuse the living, open the next attempt.

A claim is safe against two processes that open one session in the same moment: attempts are
numbered under the session's row lock, so the one with the lower number keeps the session and the
other withdraws. With no database in reach the spools of this data folder decide it the same way.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from qigstore.checkpoints import open_store
from qigstore.errors import SessionBusy, StoreError
from qigstore.leftovers import OFFLINE, settle_leftovers, spools
from qigstore.recording import Draining, Spool, SpoolIdentity
from qigstore.records import AttemptInfo, SessionInfo

if TYPE_CHECKING:
    from qigstore.recording import DrainReport
    from qigstore.repository import Store
    from qigstore.settings import Settings

__all__ = ["Claim", "claim", "claim_offline"]

_log = logging.getLogger("qigstore")
_SHIPPING_LIMIT_S, _SHIPPING_POLL_S = 60.0, 0.05


@dataclass(frozen=True, slots=True)
class Claim:
    """What this process holds once a session is its own.

    Attributes:
        session, attempt: as the database has them; offline: with id 0, and the number a guess.
        epoch: of its writer; offline: 0.
    """

    session: SessionInfo
    attempt: AttemptInfo
    spool: Spool
    epoch: int

    def withdraw(self, store: Store | None) -> None:
        """Give the session back: what was claimed could not be opened."""
        if store is None:
            self.spool.remove()
            return
        self.spool.close()
        store.sessions.close_attempt(self.attempt.id, "failed", reason="could not be opened")


def claim(
    store: Store, settings: Settings, name: str, config: Mapping[str, Any], *, takeover: bool
) -> Claim:
    """Ship what dead processes of this session left, then open its next attempt.

    Raises:
        SessionBusy: a living process records this session and `takeover` is false.
        StoreUnavailable: no database answers.
        SpoolFull: the disk has no room for the first segment.
    """
    leftovers = settle_leftovers(store, settings, _mine(settings, name))
    session = store.sessions.open(name, config)
    attempt = store.sessions.open_attempt(
        session.id, uuid4(), host=platform.node(), pid=os.getpid(), config=config
    )
    spool = None
    try:
        _settle_rivals(store, session, attempt, leftovers, settings=settings, takeover=takeover)
        spool = _create_spool(settings, str(store.id), _identity(name, config, attempt))
        told = spool.identity
        state = store.writers.register(told.writer, attempt.id, told.rank)
    except BaseException as error:
        if spool is not None:
            spool.remove()
        _give_up(store, attempt, f"not opened: {error}"[:2000])
        raise
    return Claim(session, attempt, spool, state.epoch)


def _give_up(store: Store, attempt: AttemptInfo, reason: str) -> None:
    try:
        store.sessions.close_attempt(attempt.id, "failed", reason=reason)
    except StoreError as error:
        # What kept it from opening is the news; the next process finds nobody alive behind it.
        _log.warning("attempt %s of %s stays open: %s", attempt.number, store, error)


def claim_offline(
    settings: Settings,
    name: str,
    config: Mapping[str, Any],
    *,
    takeover: bool,
    address: str | None,
) -> Claim:
    """Open the next attempt with no database in reach; a later process makes it known.

    Args:
        address: the database that the rows wait for; None: any.

    Raises:
        SessionBusy: a living process records this session into this data folder, and `takeover`
            is false.
        InvalidInput: a name or configuration that no database would store.
        SpoolFull: the disk has no room for the first segment.
    """
    from qigstore.repository.texts import document, line

    line("session name", name)
    config, now = document("config", config), datetime.now(UTC)
    session = SessionInfo(id=0, name=name, config=config, created_at=now)
    attempt = AttemptInfo(
        id=uuid4(),
        session_id=0,
        number=_next_number(settings, name),
        status="running",
        host=platform.node(),
        pid=os.getpid(),
        started_at=now,
        heartbeat_at=now,
        config=config,
    )
    told = replace(_identity(name, config, attempt), offline=True, address=address)
    spool = _create_spool(settings, OFFLINE, told)
    if not takeover and (rival := _living_rival(settings, told)) is not None:
        spool.remove()
        raise SessionBusy(name, f"process {rival.pid} on {rival.host}")
    return Claim(session, attempt, spool, 0)


def _mine(settings: Settings, name: str) -> Draining:
    from qigstore.database.engine import address_of

    return Draining(only=name, address=address_of(settings))


def _identity(name: str, config: Mapping[str, Any], attempt: AttemptInfo) -> SpoolIdentity:
    return SpoolIdentity(
        writer=uuid4(),
        attempt=attempt.id,
        session=name,
        rank=0,
        config=dict(config),
        host=attempt.host,
        pid=attempt.pid,
        created_at=attempt.started_at,
        number=attempt.number,
    )


def _create_spool(settings: Settings, place: str, identity: SpoolIdentity) -> Spool:
    return Spool.create(
        settings.spool_root / place,
        identity,
        segment_bytes=settings.segment_bytes,
        bytes_max=settings.spool_bytes_max,
    )


def _next_number(settings: Settings, name: str) -> int:
    """A guess, from what lies here: the database numbers attempts as it hears of them."""
    found = open_store(settings.checkpoint_root).scan(name)
    waiting = (told.number for told, _ in spools(settings.spool_root) if told.session == name)
    return 1 + max([0, *(item.attempt for item in found), *waiting])


def _living_rival(settings: Settings, mine: SpoolIdentity) -> SpoolIdentity | None:
    """A living process that records the session and came first: of two, one withdraws."""
    for told, held in spools(settings.spool_root):
        if not held or (told.session, told.rank) != (mine.session, mine.rank):
            continue
        first = (told.created_at, told.writer) < (mine.created_at, mine.writer)
        if first and _may_live(told, held=True):
            return told
    return None


def _settle_rivals(
    store: Store,
    session: SessionInfo,
    mine: AttemptInfo,
    leftovers: Sequence[DrainReport],
    *,
    settings: Settings,
    takeover: bool,
) -> None:
    """Close older running attempts whose process is dead; refuse or shut out a living one."""
    busy = {report.attempt_id: report.owner for report in leftovers if report.busy}
    limit_s = settings.heartbeat_limit_s
    attempts = store.sessions.attempts(session.id, heartbeat_limit_s=limit_s)
    offline = busy.keys() - {attempt.id for attempt in attempts}
    if offline and not takeover:
        raise SessionBusy(session.name, f"{busy[offline.pop()]}, which has no database in reach")
    for rival in attempts:
        if rival.number >= mine.number or rival.ended_at is not None:
            continue
        held = rival.id in busy
        if held and not _may_live(rival, held=True):
            # Its process is dead, its spool is not free: another process ships it just now.
            _await_shipping(store, settings, session.name, rival)
            held = False
        alive = held or (rival.status == "running" and _may_live(rival, held=False))
        if alive and not takeover:
            raise SessionBusy(session.name, f"process {rival.pid} on {rival.host}")
        if alive:
            for writer in store.writers.of_attempt(rival.id):
                store.writers.take_over(writer)
        how = "shut out by a later attempt" if alive else "its process ended without closing it"
        store.sessions.close_attempt(rival.id, "lost", reason=how)


def _await_shipping(store: Store, settings: Settings, name: str, rival: AttemptInfo) -> None:
    """Wait until the process that ships a dead one's spool is done, or do it in its place.

    Raises:
        SessionBusy: that took longer than `_SHIPPING_LIMIT_S`.
    """
    end = time.monotonic() + _SHIPPING_LIMIT_S
    while any(
        report.busy and report.attempt_id == rival.id
        for report in settle_leftovers(store, settings, _mine(settings, name))
    ):
        if time.monotonic() > end:
            raise SessionBusy(name, f"a process that ships what {rival.pid} left")
        time.sleep(_SHIPPING_POLL_S)


def _may_live(rival: AttemptInfo | SpoolIdentity, *, held: bool) -> bool:
    """Whether the process of an attempt may still be there; only its own host can tell.

    `held`: its spool is locked, by itself or by a process that ships it.
    """
    if rival.host != platform.node():
        return True
    if rival.pid == os.getpid():
        # Held: this very process has the session open. Else a predecessor with our number, as
        # every restarted container's PID 1 is.
        return held
    try:
        os.kill(rival.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
