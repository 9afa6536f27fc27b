"""The rooms of one attempt, built in order and joined by callables; closed in the reverse order.

Everything that one room needs of another passes through here, so that none of them knows another.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from signal import Signals
from typing import TYPE_CHECKING, Any
from uuid import UUID

from qigstore.attempt import Claim, claim, claim_offline
from qigstore.checkpoints import CheckpointManager
from qigstore.database.engine import address_of, open_database
from qigstore.errors import (
    EXIT_EMERGENCY,
    CheckpointError,
    ConfigurationError,
    InvalidInput,
    NotStored,
    SchemaOutdated,
    StoreError,
    StoreUnavailable,
)
from qigstore.leftovers import OtherLeftovers
from qigstore.link import Link, folder_checkpoints, linked_checkpoints
from qigstore.recording import Recorder, Spool, Writer
from qigstore.recording.late_writer import LateWriter
from qigstore.records import AttemptStatus, CheckpointKind, Decision, Event, Location
from qigstore.recovery import Policy, recover
from qigstore.repository import Store
from qigstore.safety.detectors import Alarm
from qigstore.safety.emergency import Emergency, LeaveStep, Origin, Outcome, leave
from qigstore.safety.lookout import Lookout
from qigstore.safety.notify import Notifier
from qigstore.safety.pulse import Pulse
from qigstore.safety.reset import Resets, SoftReset
from qigstore.safety.rules import RuleSet
from qigstore.safety.signals import Deadline, SignalWatch

if TYPE_CHECKING:
    from qigstore.settings import Settings

__all__ = ["Rooms", "open_rooms"]

_log = logging.getLogger(__name__)
_LEEWAY_S = 1.0
_WATCHDOG_S = 5.0
"""More than the way out has: it ends by itself unless it hangs."""
_ROW_METRICS_MAX = 50
"""Of the row that an event keeps: a row may have thousands."""
_OTHERS_LIMIT_S = 5.0
"""How long closing waits for what other sessions left; it is shipped another time otherwise."""

_ATTEMPT, _RULES, _REFERENCE = "attempt_id", "rules", "reference_basin"
"""What a checkpoint remembers beside the state, so that a resumed run judges as before."""


@dataclass
class Rooms:
    """Everything that lives as long as one attempt does."""

    settings: Settings
    link: Link
    rules: RuleSet
    recorder: Recorder[Alarm]
    writer: Writer | LateWriter
    checkpoints: CheckpointManager
    emergency: Emergency
    signals: SignalWatch
    pulse: Pulse
    lookout: Lookout
    notifier: Notifier
    resets: Resets
    notice_signal: Callable[[int], None]
    """Ask for the stop that a signal means."""
    checkpoint_wanted: list[str] = field(default_factory=list)
    """Reasons of alarms that asked for a checkpoint since the last one."""
    asked_to_save: list[Event] = field(default_factory=list)
    """The events of these alarms."""
    saved_on_stop: UUID | None = None
    """The checkpoint that was saved because a stop was asked for."""
    others: OtherLeftovers | None = None
    """Ships what processes of other sessions left; there once there is a database."""

    # -- what a run does ----------------------------------------------------------------------

    @property
    def should_stop(self) -> bool:
        """Whether an alarm, a signal or a person asked this run to stop."""
        return self.emergency.stop.requested or self.signals.signum is not None

    @property
    def saves_on_stop(self) -> bool:
        """Whether the stop that was asked for wants a checkpoint first."""
        return self.should_stop and self.emergency.stop.checkpoint

    def raise_alarms(self, alarms: Sequence[Alarm]) -> None:
        """Make the events of a step's alarms, each with its row and rule, and act on them."""
        row = dict(list(self.recorder.last.items())[:_ROW_METRICS_MAX])
        for alarm in alarms:
            event = self.emergency.raise_alarm(
                alarm, {"row": row, "rule": self.rules.learnt(alarm)}
            )
            if alarm.action == "soft_reset":
                self.resets.want(event)
            elif alarm.action != "abort":
                self.lookout.follow(alarm, event)
            if alarm.action == "checkpoint":
                self.asked_to_save.append(event)

    def arm_soft_reset(
        self, take_in: Callable[[Any], object], policy: Policy, cooldown_s: float, resets_max: int
    ) -> None:
        """From now on a rule may go back to a healthy checkpoint, which `take_in` is given."""
        self.resets.soft = SoftReset(
            _HealthyNow(self, policy),
            reset_callback=take_in,
            cooldown_seconds=cooldown_s,
            resets_max=resets_max,
            progress_steps=self.settings.settle_steps,
        )

    def reset_if_wanted(self, step: int) -> bool:
        """Go back to a healthy checkpoint if an alarm asked for it; whether that was done now."""
        known = self.resets.perform(step)
        if known is not None:
            self._remember(known["metadata"])
        return known is not None

    def recover(
        self, *, policy: Policy, has_default: bool, load: bool | Callable[[Location], Any] = True
    ) -> tuple[Any, Decision]:
        """Choose, verify and load; then judge as the run did that saved it.

        With no database in reach the folders and the event log decide: then nothing is known of
        steps to skip, nor of checkpoints that several attempts resumed from in vain.
        """
        choose = partial(recover, policy=policy, has_default=has_default, load=load)
        try:
            if self.link.store is None:
                state, decision = self._recover_from_folders(choose)
            else:
                attempt = self.link.attempt
                state, decision = choose(self.checkpoints, self.link.store, attempt=attempt)
        except StoreUnavailable as away:
            warnings.warn(f"recovery goes by the folders alone: {away}", RuntimeWarning, 4)
            state, decision = self._recover_from_folders(choose)
        if decision.chosen is not None:
            self._remember(decision.chosen.metadata)
        return state, decision

    def _recover_from_folders(self, choose: partial[tuple[Any, Decision]]) -> tuple[Any, Decision]:
        state, decision = choose(folder_checkpoints(self.settings, self.link))
        if decision.chosen is not None:
            self.checkpoints.protect(decision.chosen.id)
        self.link.note_recovery(decision)
        return state, decision

    def go_back(self, policy: Policy) -> tuple[Any, Decision]:
        """Choose, verify and load for a soft reset: the attempt's lineage stays as it is.

        Raises:
            NoHealthyCheckpoint: there is nothing to go back to.
        """
        try:
            state, decision = recover(self.checkpoints, policy=policy)
            self.link.note_reset(decision)
        except StoreUnavailable as away:
            _log.warning("the soft reset goes by the folders alone: %s", away)
            state, decision = recover(folder_checkpoints(self.settings, self.link), policy=policy)
        return state, decision

    def _remember(self, metadata: Mapping[str, Any]) -> None:
        try:
            if _RULES in metadata:
                self.rules.restore(metadata[_RULES])
            if metadata.get(_REFERENCE) is not None:
                self.recorder.set_reference_basin(metadata[_REFERENCE])
        except InvalidInput as error:
            warnings.warn(f"what the rules had learnt is lost: {error}", RuntimeWarning, 4)

    @contextmanager
    def watched(self, what: str) -> Iterator[None]:
        """While the run leaves: whatever hangs is shown (all stacks), and the process ends."""
        stop = self.emergency.stop
        if not self.should_stop:
            yield
            return
        status = 128 + stop.signum if stop.signum else EXIT_EMERGENCY
        limit_s = self.settings.abort_deadline_s + _WATCHDOG_S
        with Deadline.during(limit_s, status, f"stopping ({stop.reason}), {what}"):
            yield

    def save(self, state: Any, step: int, *, by: Callable[..., UUID] | None = None) -> UUID | None:
        """Save a state with what was recorded at its step; waits when the run is to stop.

        `by`: another way of saving than the checkpoints' own `save`.

        Returns:
            The checkpoint's id; None where the disk failed (said by an event; training goes on).

        Raises:
            CheckpointError: this state cannot be saved, whatever the disk.
        """
        recorded = self.recorder.last if self.recorder.last_step == step else {}
        reference = self.recorder.reference_basin
        metadata = {
            # Its number may yet be another one, where no database knows the attempt.
            _ATTEMPT: str(self.link.attempt.id),
            _RULES: self.rules.state(),
            _REFERENCE: None if reference is None else reference.tolist(),
        }
        kind: CheckpointKind = "emergency" if self._in_alarm else "regular"
        if self.emergency.stop.event is not None:
            metadata["event"] = str(self.emergency.stop.event.id)
        saved = (by or self.checkpoints.save)(
            state,
            step=step,
            phi=recorded.get("phi"),
            kappa_eff=recorded.get("kappa_eff"),
            regime=self.recorder.last_regime if recorded else None,
            kind=kind,
            metadata=metadata,
        )
        self.checkpoint_wanted.clear()
        while self.asked_to_save:
            self.lookout.acted(self.asked_to_save.pop(), f"saved at step {step}", saved)
        if self.should_stop:
            try:
                self.checkpoints.wait(self.settings.abort_deadline_s / 2)
            except CheckpointError as error:
                # on_error has made its event; what remains is to leave with what there is.
                _log.error("the last checkpoint was not committed: %s", error)
                return None
            self.saved_on_stop = saved
        return saved

    @property
    def _in_alarm(self) -> bool:
        event = self.emergency.stop.event
        stopped_by_rule = event is not None and event.severity == "critical"
        return stopped_by_rule or bool(self.checkpoint_wanted)

    # -- leaving ------------------------------------------------------------------------------

    def close(self, status: AttemptStatus, reason: str | None, exit_status: int | None) -> None:
        """Store what waits, close the attempt, let go of the database.

        Raises:
            NotStored, StoreError, CheckpointError: what could not be done, after trying it all.
        """
        limit = self.settings.close_timeout_s
        aborted = status != "completed"
        # Before the spool is let go: from then on another process may ship it.
        self.link.note_end(status, reason, exit_status)
        steps = [
            LeaveStep("checkpoint", self.checkpoints.close),
            LeaveStep("events", self._close_events),
            LeaveStep("notifications", self.notifier.close, self.settings.notify_timeout_s),
            LeaveStep("telemetry", self._close_writer, None if aborted else limit + _LEEWAY_S),
            LeaveStep("attempt", lambda _limit_s: self._end_attempt()),
            LeaveStep("leftovers", partial(self._close_others, 0.0 if aborted else limit)),
        ]
        deadline_s = self.settings.abort_deadline_s if aborted else 300.0 + 2 * limit
        try:
            outcomes = leave(steps, deadline_s=deadline_s)
        finally:
            self.pulse.close()
            self.link.close()
        _raise_first(outcomes)

    def _end_attempt(self) -> None:
        self.pulse.close()
        if self.link.store is not None:
            self.lookout.look()
        event = self.emergency.stop.event
        if event is not None:
            self.link.answer(event, self.saved_on_stop)
        self.link.end()

    def _close_writer(self, limit_s: float) -> None:
        # Less than it has, so that it is the one to say how many rows wait, and where.
        self.writer.close(max(limit_s - _LEEWAY_S, 0.0))

    def _close_events(self, limit_s: float) -> None:
        if not self.emergency.close(limit_s):
            _log.warning("events wait in %s for the next process", self.settings.event_root)

    def _close_others(self, patience_s: float, limit_s: float) -> None:
        if self.others is not None:
            self.others.close(min(patience_s, limit_s, _OTHERS_LIMIT_S))


@dataclass(frozen=True, slots=True)
class _HealthyNow:
    """The checkpoint that recovery would take now, for a soft reset."""

    rooms: Rooms
    policy: Policy

    def load_best_checkpoint(self) -> tuple[Any, Mapping[str, Any]]:
        """The state, and what is known of its checkpoint."""
        state, decision = self.rooms.go_back(self.policy)
        chosen = decision.chosen
        assert chosen is not None
        return state, {
            "checkpoint_id": str(chosen.id), "attempt": chosen.attempt, "step": chosen.step,
            "metadata": chosen.metadata, "why": decision.reason,
        }  # fmt: skip


def _raise_first(outcomes: Sequence[Outcome]) -> None:
    """The error a caller can act on first: rows that wait, then whatever else went wrong."""
    errors = [item.error for item in outcomes if item.error is not None]
    for kind in (NotStored, StoreError, CheckpointError, BaseException):
        for error in errors:
            if isinstance(error, kind):
                raise error
    for item in outcomes:
        if item.status != "done":
            raise StoreError(f"closing the run: {item}")


def open_rooms(
    settings: Settings, name: str, config: Mapping[str, Any], *, rules: Any, takeover: bool
) -> Rooms:
    """Claim the session and build the rooms; on failure nothing stays open.

    A database that is away, refuses us or has another schema is no reason not to train: the rows
    wait in the spool, one warning says so, and the writer goes on asking.

    Raises:
        SessionBusy, SpoolFull, ConfigurationError, InvalidInput.
    """
    declared = RuleSet.of(settings.rules if rules is None else rules)
    with ExitStack() as undo:
        try:
            store, claimed, why = _claim(settings, name, config, takeover=takeover)
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
        if why is not None and settings.mode == "online":
            warnings.warn(
                f"{why} Training goes on; what is recorded waits in {claimed.spool.folder} and is "
                "stored as soon as the database can be had, in this run or by a later one.",
                RuntimeWarning,
                4,
            )
        rooms.writer.start()
        rooms.emergency.start()
        rooms.signals.install()
        undo.pop_all()
    return rooms


def _claim(
    settings: Settings, name: str, config: Mapping[str, Any], *, takeover: bool
) -> tuple[Store | None, Claim, str | None]:
    """The store, if there is one; the claim; and why there is none."""
    address: str | None = address_of(settings)
    why = "this run is offline: its rows wait for another process"
    if settings.mode == "online":
        try:
            store = Store(open_database(settings))
            try:
                return store, claim(store, settings, name, config, takeover=takeover), None
            except BaseException:
                store.close()
                raise
        except (StoreUnavailable, SchemaOutdated) as error:
            why = str(error)
    elif settings.dsn is None:
        address = None  # no database was named: the first that any process reaches is the one
    return None, claim_offline(settings, name, config, takeover=takeover, address=address), why


def _build(
    settings: Settings, link: Link, claimed: Claim, rules: RuleSet, why: str | None
) -> Rooms:
    wanted: list[str] = []
    notifier = Notifier.of(settings, link.session.name)
    emergency = _emergency(settings, link, wanted, notifier)
    recorder = Recorder(claimed.spool, bind_rules=rules.bind)

    def notice_signal(signum: int) -> None:
        reason = f"{Signals(signum).name} received"
        emergency.request_stop(reason, signum=signum, step=recorder.last_step)

    def connect() -> Writer:
        return _connect(rooms, claimed.spool)

    tell_idle = partial(emergency.report, "rules", severity="info")
    lookout = Lookout(
        rules,
        lambda: (claimed.spool.seq, recorder.last_step),
        lambda alarm: rooms.raise_alarms((alarm,)),
        link.tell_event,
        # Who declared no rules is not told that the default ones watch a loss.
        idle=None if rules.rules == RuleSet.of(None).rules else tell_idle,
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
        signals=SignalWatch(notice_signal, deadline_s=settings.abort_deadline_s + _WATCHDOG_S),
        pulse=Pulse(
            link.heartbeat,
            link.asked_to_stop,
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
    rooms.emergency.origin = Origin(target.session_id, target.attempt)
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
    """Begin what needs a database: the pulse, and shipping what others left."""
    rooms.pulse.start()
    session, address = rooms.link.session.name, address_of(rooms.settings)
    rooms.others = OtherLeftovers(rooms.link.needed(), rooms.settings, session, address)
    rooms.others.start()


def _emergency(settings: Settings, link: Link, wanted: list[str], notifier: Notifier) -> Emergency:
    asked = settings.mode == "online"
    return Emergency(
        Origin(link.session.id, link.attempt.number),
        write_event=link.write_event,
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
