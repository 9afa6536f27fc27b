"""The rooms of one attempt, built in order and joined by callables; closed in the reverse order.

Everything that one room needs of another passes through here, so that none of them knows another.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from signal import Signals
from typing import TYPE_CHECKING, Any
from uuid import UUID

from qigstore.attempt import Claim, claim
from qigstore.checkpoints import CheckpointManager, CheckpointStore, Retention
from qigstore.database.engine import open_database
from qigstore.errors import (
    CheckpointError,
    ConfigurationError,
    InvalidInput,
    NotStored,
    StoreError,
)
from qigstore.recording import EventLog, Recorder, Writer
from qigstore.records import AttemptStatus, CheckpointKind, Decision, Event
from qigstore.recovery import Policy, recover
from qigstore.repository import Store
from qigstore.safety.detectors import Alarm
from qigstore.safety.emergency import Emergency, LeaveStep, Origin, Outcome, leave
from qigstore.safety.rules import RuleSet
from qigstore.safety.signals import SignalWatch

if TYPE_CHECKING:
    from qigstore.settings import Settings

__all__ = ["Rooms", "open_rooms"]

_log = logging.getLogger(__name__)

_RULES, _REFERENCE = "rules", "reference_basin"
"""What a checkpoint remembers beside the state, so that a resumed run judges as before."""


@dataclass
class Rooms:
    """Everything that lives as long as one attempt does."""

    settings: Settings
    store: Store
    claim: Claim
    rules: RuleSet
    recorder: Recorder[Alarm]
    writer: Writer
    checkpoints: CheckpointManager
    emergency: Emergency
    signals: SignalWatch
    notice_signal: Callable[[int], None]
    """Ask for the stop that a signal means."""
    checkpoint_wanted: list[str] = field(default_factory=list)
    """Reasons of alarms that asked for a checkpoint since the last one."""

    # -- what a run does ----------------------------------------------------------------------

    @property
    def should_stop(self) -> bool:
        """Whether an alarm, a signal or a person asked this run to stop."""
        return self.emergency.stop.requested or self.signals.signum is not None

    def raise_alarms(self, alarms: Sequence[Alarm]) -> None:
        """Make the events of a step's alarms and act on them."""
        for alarm in alarms:
            self.emergency.raise_alarm(alarm)

    def recover(self, *, policy: Policy, has_default: bool) -> tuple[Any, Decision]:
        """Choose, verify and load; then judge as the run did that saved it."""
        state, decision = recover(
            self.checkpoints,
            self.store,
            attempt=self.claim.attempt,
            policy=policy,
            has_default=has_default,
        )
        if decision.chosen is not None:
            self._remember(decision.chosen.metadata)
        return state, decision

    def _remember(self, metadata: Mapping[str, Any]) -> None:
        try:
            if _RULES in metadata:
                self.rules.restore(metadata[_RULES])
            if metadata.get(_REFERENCE) is not None:
                self.recorder.set_reference_basin(metadata[_REFERENCE])
        except InvalidInput as error:
            warnings.warn(f"what the rules had learnt is lost: {error}", RuntimeWarning, 4)

    def save(self, state: Any, step: int) -> UUID | None:
        """Save a state with what was recorded at its step; waits when the run is to stop.

        Returns:
            The checkpoint's id; None where the disk failed (said by an event; training goes on).

        Raises:
            CheckpointError: this state cannot be saved, whatever the disk.
        """
        recorded = self.recorder.last if self.recorder.last_step == step else {}
        reference = self.recorder.reference_basin
        metadata = {
            _RULES: self.rules.state(),
            _REFERENCE: None if reference is None else reference.tolist(),
        }
        kind: CheckpointKind = "emergency" if self._in_alarm else "regular"
        if self.emergency.stop.event is not None:
            metadata["event"] = str(self.emergency.stop.event.id)
        saved = self.checkpoints.save(
            state,
            step=step,
            phi=recorded.get("phi"),
            kappa_eff=recorded.get("kappa_eff"),
            regime=self.recorder.last_regime if recorded else None,
            kind=kind,
            metadata=metadata,
        )
        self.checkpoint_wanted.clear()
        if self.should_stop:
            try:
                self.checkpoints.wait(self.settings.abort_deadline_s / 2)
            except CheckpointError as error:
                # on_error has made its event; what remains is to leave with what there is.
                _log.error("the last checkpoint was not committed: %s", error)
                return None
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
        steps = [
            LeaveStep("checkpoint", self.checkpoints.close),
            LeaveStep("events", self._close_events),
            LeaveStep("telemetry", self.writer.close, None if aborted else limit),
            LeaveStep("attempt", partial(self._close_attempt, status, reason, exit_status)),
        ]
        deadline_s = self.settings.abort_deadline_s if aborted else 300.0 + 2 * limit
        try:
            outcomes = leave(steps, deadline_s=deadline_s)
        finally:
            self.store.close()
        _raise_first(outcomes)

    def _close_events(self, limit_s: float) -> None:
        if not self.emergency.close(limit_s):
            _log.warning("events wait in %s for the next process", self.settings.event_root)

    def _close_attempt(
        self, status: AttemptStatus, reason: str | None, code: int | None, limit_s: float
    ) -> None:
        self.store.sessions.close_attempt(
            self.claim.attempt.id, status, reason=reason, exit_status=code
        )


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
    """Open the database, claim the session, build the rooms; on failure nothing stays open.

    Raises:
        StoreUnavailable, SchemaOutdated, SessionBusy, SpoolFull, ConfigurationError.
    """
    declared = RuleSet.of(rules)
    with ExitStack() as undo:
        store = Store(open_database(settings))
        undo.callback(store.close)
        try:
            claimed = claim(store, settings, name, config, takeover=takeover)
        except OSError as error:
            raise ConfigurationError(
                f"the data folder {settings.home} cannot be used: {error}. "
                "Set QIGSTORE_HOME to a folder that you can write."
            ) from error
        undo.callback(claimed.withdraw, store)
        rooms = _build(settings, store, claimed, declared)
        rooms.writer.start()
        rooms.signals.install()
        undo.pop_all()
    return rooms


def _build(settings: Settings, store: Store, claimed: Claim, rules: RuleSet) -> Rooms:
    wanted: list[str] = []
    emergency = _emergency(settings, store, claimed, wanted)
    recorder = Recorder(claimed.spool, bind_rules=rules.bind)

    def notice_signal(signum: int) -> None:
        reason = f"{Signals(signum).name} received"
        emergency.request_stop(reason, signum=signum, step=recorder.last_step)

    return Rooms(
        settings=settings,
        store=store,
        claim=claimed,
        rules=rules,
        recorder=recorder,
        writer=_writer(settings, store, claimed),
        checkpoints=_checkpoints(settings, store, claimed, emergency),
        emergency=emergency,
        # The orderly way out has the deadline; the watch's own is for when that way hangs.
        signals=SignalWatch(notice_signal, deadline_s=settings.abort_deadline_s + 5.0),
        notice_signal=notice_signal,
        checkpoint_wanted=wanted,
    )


def _emergency(settings: Settings, store: Store, claimed: Claim, wanted: list[str]) -> Emergency:
    session, attempt = claimed.session, claimed.attempt
    log = EventLog(settings.event_root / str(store.id))

    def write_event(event: Event) -> object:
        return log.write(session.name, event, attempt_id=attempt.id)

    return Emergency(
        Origin(session.id, attempt.number),
        write_event=write_event,
        store_event=store.events.add,
        ship=partial(log.ship, store.events.add),
        request_checkpoint=wanted.append,
    )


def _writer(settings: Settings, store: Store, claimed: Claim) -> Writer:
    attempt = claimed.attempt

    def heartbeat() -> None:
        store.sessions.heartbeat(attempt.id)

    return Writer(
        store,
        claimed.spool,
        session_id=attempt.session_id,
        attempt=attempt.number,
        epoch=claimed.epoch,
        flush_interval_s=settings.flush_interval_s,
        batch_rows_max=settings.batch_rows_max,
        heartbeat_interval_s=settings.heartbeat_interval_s,
        heartbeat=heartbeat,
    )


def _checkpoints(
    settings: Settings, store: Store, claimed: Claim, emergency: Emergency
) -> CheckpointManager:
    def report(checkpoint: UUID, step: int, error: Exception) -> None:
        message = f"checkpoint {checkpoint} was not saved: {error}"
        emergency.report("checkpoint save", message, step=step)

    return CheckpointManager(
        CheckpointStore(settings.checkpoint_root),
        store.checkpoints,
        session_id=claimed.session.id,
        session_name=claimed.session.name,
        attempt=claimed.attempt.number,
        retention=Retention(settle_steps=settings.settle_steps),
        phi_floor=settings.phi_floor,
        on_error=report,
    )
