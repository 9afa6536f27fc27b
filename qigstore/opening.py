"""Opens the rooms of one attempt: claims the session, builds the rooms, begins what runs beside.

A database that is away is no reason not to train: it may also be reached later, while the run
records.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from signal import Signals
from typing import TYPE_CHECKING, Any, TypeAlias

from qigstore.attempt import Claim, claim, claim_offline, join, join_offline
from qigstore.database.engine import address_of, open_database
from qigstore.errors import ConfigurationError, SchemaOutdated, StoreUnavailable
from qigstore.leftovers import OtherLeftovers
from qigstore.link import Link, linked_checkpoints
from qigstore.recording import Recorder, Spool, Writer
from qigstore.recording.late_writer import LateWriter
from qigstore.repository import Store
from qigstore.rooms import WATCHDOG_S, Rooms
from qigstore.safety.emergency import Emergency, Origin
from qigstore.safety.lookout import Lookout
from qigstore.safety.notify import Notifier
from qigstore.safety.pulse import Pulse
from qigstore.safety.ranks import Ranks, Together, led
from qigstore.safety.reset import Resets
from qigstore.safety.rules import RuleSet
from qigstore.safety.signals import SignalWatch

if TYPE_CHECKING:
    from qigstore.settings import Settings

__all__ = ["open_rooms"]

_log = logging.getLogger(__name__)


def open_rooms(
    settings: Settings,
    name: str,
    config: Mapping[str, Any],
    *,
    rules: Any,
    takeover: bool,
    ranks: Ranks | None = None,
) -> Rooms:
    """Claim the session and build the rooms; on failure nothing stays open.

    A database that is away, refuses us or has another schema is no reason not to train: the rows
    wait in the spool, one warning says so, and the writer goes on asking.

    Raises:
        SessionBusy, SpoolFull, ConfigurationError, InvalidInput, RankError.
    """
    declared = RuleSet.of(settings.rules if rules is None else rules)
    wanted = _Wanted(settings, name, config, takeover)
    with ExitStack() as undo:
        try:
            store, claimed, why = _claim(wanted) if ranks is None else _claim_one(wanted, ranks)
        except OSError as error:
            raise ConfigurationError(
                f"the data folder {settings.home}, or where checkpoints lie "
                f"({settings.checkpoint_root}), cannot be used: {error}. Set QIGSTORE_HOME or "
                "QIGSTORE_CHECKPOINTS to a place that you can write."
            ) from error
        if store is not None:
            undo.callback(store.close)
        undo.callback(claimed.withdraw, store)
        rooms = _build(settings, Link(settings, claimed, store), claimed, declared, why)
        if ranks is not None:
            rooms.together = _together(rooms, ranks)
        if why is not None and settings.mode == "online":
            warnings.warn(
                f"{why} Training goes on; what is recorded waits in {claimed.spool.folder} and is "
                "stored as soon as the database can be had, in this run or by a later one.",
                RuntimeWarning,
                4,
            )
        rooms.writer.start()
        rooms.emergency.start()
        rooms.link.prepare_log()
        rooms.signals.install()
        undo.pop_all()
    return rooms


@dataclass(frozen=True, slots=True)
class _Wanted:
    settings: Settings
    name: str
    config: Mapping[str, Any]
    takeover: bool

    @property
    def address(self) -> str | None:
        """The database that rows wait for while none is in reach; None: whichever is first."""
        online = self.settings.mode == "online"
        return None if not online and self.settings.dsn is None else address_of(self.settings)


_Claimed: TypeAlias = tuple[Store | None, Claim, str | None]
"""The store, if there is one; the claim; and why there is none."""


def _claim(wanted: _Wanted) -> _Claimed:
    def with_store(store: Store) -> Claim:
        return claim(store, wanted.settings, wanted.name, wanted.config, takeover=wanted.takeover)

    store, claimed, why = _reach(wanted.settings, with_store)
    if claimed is None:
        claimed = claim_offline(
            wanted.settings, wanted.name, wanted.config,
            takeover=wanted.takeover, address=wanted.address,
        )  # fmt: skip
    return store, claimed, why


def _claim_one(wanted: _Wanted, ranks: Ranks) -> _Claimed:
    """Rank 0 claims the session; the others join its attempt."""
    mine: list[_Claimed] = []

    def claim_for_all() -> str:
        mine.append(_claim(wanted))
        return mine[0][1].invitation

    try:
        told = led(ranks, "open the session", claim_for_all)
    except BaseException:
        for store, claimed, _ in mine:
            claimed.withdraw(store)
            if store is not None:
                store.close()
        raise
    return mine[0] if mine else _join(wanted, told, ranks.rank)


def _join(wanted: _Wanted, told: str, rank: int) -> _Claimed:
    settings, name, config = wanted.settings, wanted.name, wanted.config

    def with_store(store: Store) -> Claim | None:
        return join(store, settings, name, config, told=told, rank=rank)

    store, claimed, why = _reach(settings, with_store)
    if claimed is None:
        if store is not None:
            store.close()
            why = "rank 0 opened this attempt without the database."
        claimed, store = join_offline(
            settings, name, config, told=told, rank=rank, address=wanted.address
        ), None  # fmt: skip
    return store, claimed, why


def _reach(
    settings: Settings, make: Callable[[Store], Claim | None]
) -> tuple[Store | None, Claim | None, str | None]:
    """The store and what is made with it, or why there is none."""
    if settings.mode != "online":
        return None, None, "this run is offline: its rows wait for another process"
    try:
        store = Store(open_database(settings))
        try:
            return store, make(store), None
        except BaseException:
            store.close()
            raise
    except (StoreUnavailable, SchemaOutdated) as error:
        return None, None, str(error)


def _build(
    settings: Settings, link: Link, claimed: Claim, rules: RuleSet, why: str | None
) -> Rooms:
    wanted: list[str] = []
    notifier = Notifier.of(settings, link.session.name)
    emergency = _emergency(settings, link, wanted, notifier)
    first = claimed.spool.identity.rank == 0
    recorder = Recorder(claimed.spool, bind_rules=rules.bind)

    def notice_signal(signum: int) -> None:
        reason = f"{Signals(signum).name} received"
        step = recorder.last_step
        emergency.request_stop(reason, signum=signum, step=step, at_once=True)

    def connect() -> Writer:
        return _connect(rooms, claimed.spool)

    tell_idle = partial(emergency.report, "rules", severity="info")
    lookout = Lookout(
        rules,
        lambda: (claimed.spool.seq, recorder.last_step),
        lambda alarm: rooms.raise_alarms((alarm,)),
        link.tell_event,
        # Who declared no rules is not told that the default ones watch a loss.
        idle=tell_idle if first and rules.rules != RuleSet.of(None).rules else None,
    )

    if why is None:
        writer: Writer | LateWriter = _writer(settings, link, claimed.spool, claimed.epoch)
    else:
        again = connect if settings.mode == "online" else None
        writer = LateWriter(claimed.spool, again, why)
    rooms = Rooms(
        settings=settings,
        link=link,
        rules=rules,
        recorder=recorder,
        writer=writer,
        checkpoints=linked_checkpoints(settings, link, emergency.report),
        emergency=emergency,
        # The orderly way out has the deadline; the watch's own is for when that way hangs.
        signals=SignalWatch(notice_signal, deadline_s=settings.abort_deadline_s + WATCHDOG_S),
        pulse=Pulse(
            link.heartbeat if first else _nothing,
            link.asked_to_stop if first else _nothing,
            emergency.heed,
            interval_s=settings.heartbeat_interval_s,
            look=lookout.look,
        ),
        lookout=lookout,
        notifier=notifier,
        resets=Resets(emergency, lookout.over),
        notice_signal=notice_signal,
        checkpoint_wanted=wanted,
    )
    if link.store is not None:
        _reached(rooms)
    return rooms


def _connect(rooms: Rooms, spool: Spool) -> Writer:
    """Reach the database after all; then go on as if it had been there from the start.

    Raises:
        StoreError: still not.
    """
    target = rooms.link.open()
    rooms.checkpoints.session_id, rooms.checkpoints.attempt = target.session_id, target.attempt
    rooms.emergency.origin = Origin(target.session_id, target.attempt, target.rank)
    store = rooms.link.needed()
    _log.info("the database can be had: %s", store.database.address)
    mine = rooms.link.attempt
    for other in store.sessions.attempts(target.session_id):
        if other.status == "running" and (other.host, other.pid) != (mine.host, mine.pid):
            # Nobody could tell when this run opened; both are kept, each as an attempt.
            message = f"process {other.pid} on {other.host} records this session at the same time"
            rooms.emergency.report("second attempt", message)
    _reached(rooms)
    return _writer(rooms.settings, rooms.link, spool, target.epoch)


def _reached(rooms: Rooms) -> None:
    """Begin what needs a database: the pulse, and on rank 0 shipping what others left."""
    rooms.pulse.start()
    if rooms.link.spool.identity.rank != 0:
        return
    session, address = rooms.link.session.name, address_of(rooms.settings)
    rooms.others = OtherLeftovers(rooms.link.needed(), rooms.settings, session, address)
    rooms.others.start()


def _together(rooms: Rooms, ranks: Ranks) -> Together:
    return Together(
        ranks,
        rooms.emergency,
        hurry=lambda: rooms.signals.signum is not None,
        hurry_s=rooms.settings.abort_deadline_s / 2,  # the rest is for saving
    )


def _nothing() -> None:
    """Rank 0 says that the attempt lives, and hears who asks it to stop."""


def _emergency(settings: Settings, link: Link, wanted: list[str], notifier: Notifier) -> Emergency:
    asked = settings.mode == "online"
    return Emergency(
        Origin(link.session.id, link.attempt.number, link.spool.identity.rank),
        write_event=link.write_event,
        append_event=link.append_event,
        store_event=link.store_event if asked else None,
        ship=link.ship_events if asked else None,
        request_checkpoint=wanted.append,
        notify=notifier.notify,
    )


def _writer(settings: Settings, link: Link, spool: Spool, epoch: int) -> Writer:
    return Writer(
        link.needed(),
        spool,
        session_id=link.session.id,
        attempt=link.attempt.number,
        epoch=epoch,
        flush_interval_s=settings.flush_interval_s,
        batch_rows_max=settings.batch_rows_max,
    )
