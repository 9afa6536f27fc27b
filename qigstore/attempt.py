"""Claiming a session: clean up after the dead, refuse the living, open the next attempt.

A claim is safe against two processes that open one session in the same moment: attempts are
numbered under the session's row lock, so the one with the lower number keeps the session and the
other withdraws. With no database in reach the spools of this data folder decide it the same way.
Of several ranks the first claims for all, and invites the others to join its attempt.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from qigstore.checkpoints import open_store
from qigstore.errors import NotRunning, SessionBusy, StoreError
from qigstore.leftovers import OFFLINE, settle_leftovers, spools
from qigstore.recording import Draining, Spool, SpoolIdentity
from qigstore.records import AttemptInfo, SessionInfo

if TYPE_CHECKING:
    from qigstore.recording import DrainReport
    from qigstore.repository import Store, WriterState
    from qigstore.settings import Settings

__all__ = [
    "Claim",
    "Newcomer",
    "claim",
    "claim_from_afar",
    "claim_offline",
    "join",
    "join_offline",
]

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

    @property
    def invitation(self) -> str:
        """What `join` needs to know of the attempt, as text."""
        return json.dumps({"attempt": str(self.attempt.id), "number": self.attempt.number})

    def withdraw(self, store: Store | None) -> None:
        """Give the session back: what was claimed could not be opened."""
        if store is None:
            self.spool.remove()
            return
        self.spool.close()
        if self.spool.identity.rank == 0:  # the others only joined
            store.sessions.close_attempt(self.attempt.id, "failed", reason="could not be opened")


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A process elsewhere that wants to record: its own ids, so that asking twice asks once.

    Attributes:
        attempt: of the run, the same for each of its ranks. writer: of this rank alone.
        host, pid: where it runs, for whoever looks for it.
    """

    attempt: UUID
    writer: UUID
    rank: int
    host: str
    pid: int


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
        session.id,
        uuid4(),
        host=platform.node(),
        pid=os.getpid(),
        config=config,
        heartbeat_limit_s=settings.heartbeat_limit_s,
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
    guessed = _Guess(name, config, uuid4(), _next_number(settings, name))
    claimed = guessed.claim(settings, 0, address)
    told = claimed.spool.identity
    if not takeover and (rival := _living_rival(settings, told)) is not None:
        claimed.spool.remove()
        raise SessionBusy(name, f"process {rival.pid} on {rival.host}")
    return claimed


@dataclass(frozen=True, slots=True)
class _Guess:
    """A session and an attempt that no database has heard of."""

    name: str
    config: Mapping[str, Any]
    attempt: UUID
    number: int

    def claim(self, settings: Settings, rank: int, address: str | None) -> Claim:
        from qigstore.repository.texts import document, line

        line("session name", self.name)
        config, now = document("config", self.config), datetime.now(UTC)
        session = SessionInfo(id=0, name=self.name, config=config, created_at=now)
        attempt = AttemptInfo(
            id=self.attempt,
            session_id=0,
            number=self.number,
            status="running",
            host=platform.node(),
            pid=os.getpid(),
            started_at=now,
            heartbeat_at=now,
            heartbeat_limit_s=settings.heartbeat_limit_s,
            config=config,
        )
        told = _identity(self.name, config, attempt, rank)
        spool = _create_spool(settings, OFFLINE, replace(told, offline=True, address=address))
        return Claim(session, attempt, spool, 0)


def join(
    store: Store, settings: Settings, name: str, config: Mapping[str, Any], *, told: str, rank: int
) -> Claim | None:
    """Join the attempt that rank 0 has claimed; None: this database has not heard of it.

    Args:
        told: rank 0's `Claim.invitation`.

    Raises:
        StoreUnavailable: no database answers.
        InvalidInput: another process is this rank of that attempt.
        SpoolFull: the disk has no room for the first segment.
    """
    attempt = store.sessions.attempt(UUID(json.loads(told)["attempt"]))
    if attempt is None:
        return None
    # Rank 0 has done so on its own host.
    settle_leftovers(store, settings, _mine(settings, name))
    session = store.sessions.by_id(attempt.session_id)
    spool = _create_spool(settings, str(store.id), _identity(name, config, attempt, rank))
    try:
        state = store.writers.register(spool.identity.writer, attempt.id, rank)
    except BaseException:
        spool.remove()
        raise
    return Claim(session, attempt, spool, state.epoch)


def join_offline(
    settings: Settings,
    name: str,
    config: Mapping[str, Any],
    *,
    told: str,
    rank: int,
    address: str | None,
) -> Claim:
    """Join the attempt of rank 0 with no database in reach of this rank.

    Raises:
        SpoolFull: the disk has no room for the first segment.
    """
    invited = json.loads(told)
    guessed = _Guess(name, config, UUID(invited["attempt"]), int(invited["number"]))
    return guessed.claim(settings, rank, address)


def _mine(settings: Settings, name: str) -> Draining:
    from qigstore.database.engine import address_of

    return Draining(only=name, address=address_of(settings))


def _identity(
    name: str, config: Mapping[str, Any], attempt: AttemptInfo, rank: int = 0
) -> SpoolIdentity:
    return SpoolIdentity(
        writer=uuid4(),
        attempt=attempt.id,
        session=name,
        rank=rank,
        config=dict(config),
        host=platform.node(),
        pid=os.getpid(),
        created_at=attempt.started_at,
        number=attempt.number,
        heartbeat_limit_s=attempt.heartbeat_limit_s,
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
    busy = [report for report in leftovers if report.busy]
    attempts = store.sessions.attempts(session.id)
    known = {attempt.id for attempt in attempts}
    offline = [report for report in busy if report.attempt_id not in known]
    if offline and not takeover:
        raise SessionBusy(session.name, f"{offline[0].owner}, which has no database in reach")
    for rival in attempts:
        held = [report for report in busy if report.attempt_id == rival.id]
        living = [report for report in held if _may_live(report.holder or rival, held=True)]
        # Lost: rank 0 is dead, as whoever shipped its spool found; another rank may not be.
        over = rival.ended_at is not None and not (rival.status == "lost" and living)
        if over or rival.number >= mine.number:
            continue
        if held and not living:
            # Its processes are dead, a spool is not free: another process ships it just now.
            _await_shipping(store, settings, session.name, rival)
        alive = bool(living) or (rival.status == "running" and _may_live(rival, held=False))
        if alive and not takeover:
            who = living[0].owner if living else f"process {rival.pid} on {rival.host}"
            raise SessionBusy(session.name, who or "an unknown process")
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


def claim_from_afar(
    store: Store,
    settings: Settings,
    name: str,
    config: Mapping[str, Any],
    newcomer: Newcomer,
    *,
    takeover: bool,
) -> tuple[AttemptInfo, WriterState]:
    """Open an attempt for a process that cannot reach the database itself; again: the same one.

    Its rows wait on its own side, so that here nothing is shipped for it. Several ranks of one run
    send the same attempt, each with its own writer.

    Raises:
        SessionBusy: a living process records this session and `takeover` is false.
        NotRunning: that attempt has ended.
        InvalidInput: the attempt or the writer is another's.
    """
    session = store.sessions.open(name, config)
    attempt = store.sessions.open_attempt(
        session.id,
        newcomer.attempt,
        host=newcomer.host,
        pid=newcomer.pid,
        config=config,
        heartbeat_limit_s=settings.heartbeat_limit_s,
    )
    if attempt.ended_at is not None:
        raise NotRunning(name, attempt.status, attempt.reason)
    try:
        _settle_rivals(store, session, attempt, (), settings=settings, takeover=takeover)
    except BaseException as error:
        _give_up(store, attempt, f"not opened: {error}"[:2000])
        raise
    return attempt, store.writers.register(newcomer.writer, attempt.id, newcomer.rank)
