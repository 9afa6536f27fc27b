"""Claiming a session: clean up after the dead, refuse the living, open the next attempt.

A claim is safe against two processes that open one session in the same moment: attempts are
numbered under the session's row lock, so the one with the lower number keeps the session and the
other withdraws.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from qigstore.errors import SessionBusy

if TYPE_CHECKING:
    from qigstore.recording import DrainReport, Spool
    from qigstore.records import AttemptInfo, SessionInfo
    from qigstore.repository import Store
    from qigstore.settings import Settings

__all__ = ["Claim", "claim", "settle_leftovers"]

_SHIPPING_LIMIT_S, _SHIPPING_POLL_S = 60.0, 0.05


@dataclass(frozen=True, slots=True)
class Claim:
    """What this process holds once a session is its own."""

    session: SessionInfo
    attempt: AttemptInfo
    spool: Spool
    epoch: int
    leftovers: tuple[DrainReport, ...]

    def withdraw(self, store: Store) -> None:
        """Give the session back: what was claimed could not be opened."""
        self.spool.close()
        store.sessions.close_attempt(self.attempt.id, "failed", reason="could not be opened")


def claim(
    store: Store, settings: Settings, name: str, config: Mapping[str, Any], *, takeover: bool
) -> Claim:
    """Ship what dead processes left, then open the next attempt of the session `name`.

    Raises:
        SessionBusy: a living process records this session and `takeover` is false.
        StoreUnavailable: no database answers.
        SpoolFull: the disk has no room for the first segment.
    """
    from qigstore.recording import Spool, SpoolIdentity

    leftovers = settle_leftovers(store, settings)
    session = store.sessions.open(name, config)
    mine = store.sessions.open_attempt(
        session.id, uuid4(), host=platform.node(), pid=os.getpid(), config=config
    )
    try:
        _settle_rivals(store, session, mine, leftovers, settings=settings, takeover=takeover)
        identity = SpoolIdentity(
            writer=uuid4(),
            attempt=mine.id,
            session=name,
            rank=0,
            config=dict(config),
            host=mine.host,
            pid=mine.pid,
            created_at=datetime.now(UTC),
        )
        spool = Spool.create(
            settings.spool_root / str(store.id),
            identity,
            segment_bytes=settings.segment_bytes,
            bytes_max=settings.spool_bytes_max,
        )
    except BaseException as error:
        store.sessions.close_attempt(mine.id, "failed", reason=f"not opened: {error}"[:2000])
        raise
    state = store.writers.register(identity.writer, mine.id, identity.rank)
    return Claim(session, mine, spool, state.epoch, leftovers)


def settle_leftovers(store: Store, settings: Settings) -> tuple[DrainReport, ...]:
    """Ship the spools and event logs of dead processes; show their attempts as lost."""
    from qigstore.recording import EventLog, drain_leftovers

    reports = tuple(drain_leftovers(settings.spool_root / str(store.id), store))
    for report in reports:
        if not report.busy and report.error is None and report.attempt_id is not None:
            store.sessions.close_attempt(
                report.attempt_id, "lost", reason="its process ended without closing it"
            )
    EventLog(settings.event_root / str(store.id)).ship(store.events.add)
    return reports


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
    busy = {report.attempt_id for report in leftovers if report.busy}
    limit_s = settings.heartbeat_limit_s
    for rival in store.sessions.attempts(session.id, heartbeat_limit_s=limit_s):
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
    from qigstore.recording import drain_leftovers

    end = time.monotonic() + _SHIPPING_LIMIT_S
    while any(
        report.busy and report.attempt_id == rival.id
        for report in drain_leftovers(settings.spool_root / str(store.id), store, only=name)
    ):
        if time.monotonic() > end:
            raise SessionBusy(name, f"a process that ships what {rival.pid} left")
        time.sleep(_SHIPPING_POLL_S)


def _may_live(rival: AttemptInfo, *, held: bool) -> bool:
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
