"""The rooms of one attempt, joined by callables; closed in the reverse order of their opening.

Everything that one room needs of another passes through here, so that none of them knows another.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from qigstore.checkpoints import CheckpointManager
from qigstore.errors import (
    EXIT_EMERGENCY,
    CheckpointError,
    ConfigurationError,
    InvalidInput,
    NotStored,
    RankError,
    StoreError,
    StoreUnavailable,
)
from qigstore.leftovers import OtherLeftovers
from qigstore.link import Link, folder_checkpoints
from qigstore.recording import Recorder, Writer
from qigstore.recording.late_writer import LateWriter
from qigstore.records import AttemptStatus, CheckpointKind, Decision, Event, Location
from qigstore.recovery import Policy, recover
from qigstore.safety.detectors import Alarm
from qigstore.safety.emergency import Emergency, LeaveStep, Outcome, leave
from qigstore.safety.lookout import Lookout
from qigstore.safety.notify import Notifier
from qigstore.safety.pulse import Pulse
from qigstore.safety.ranks import Together, Wish, led
from qigstore.safety.reset import Resets, SoftReset
from qigstore.safety.rules import RuleSet
from qigstore.safety.signals import Deadline, SignalWatch

if TYPE_CHECKING:
    from qigstore.settings import Settings

__all__ = ["WATCHDOG_S", "Rooms"]

_log = logging.getLogger(__name__)
_LEEWAY_S = 1.0
_AGAIN_S = 0.2
WATCHDOG_S = 5.0
"""More than the way out has: it ends by itself unless it hangs."""
_ROW_METRICS_MAX = 50
"""Of the row that an event keeps: a row may have thousands."""
_REASON_MAX = 2000
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
    together: Together | None = None
    """The other ranks; None: this process trains alone."""
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
    def asked_to_stop(self) -> bool:
        """Whether an alarm, a signal or a person asked this process to stop."""
        return self.emergency.stop.requested or self.signals.signum is not None

    @property
    def should_stop(self) -> bool:
        """Whether the run stops now: with other ranks, only once all of them do."""
        return self.asked_to_stop if self.together is None else self.together.stopping

    @property
    def saves_on_stop(self) -> bool:
        """Whether the stop that was asked for wants a checkpoint first, and from this process."""
        stop, together = self.emergency.stop, self.together
        wanted = stop.checkpoint if together is None else together.saves and together.first
        return self.should_stop and wanted

    @property
    def saves(self) -> bool:
        """Whether checkpoints are this process's to write: ranks hold the same state."""
        return self.together is None or self.together.first

    def is_due(self, step: int, every: int) -> bool:
        """Whether the state after that step is to be saved.

        Raises:
            ConfigurationError: `every` is no number of steps.
        """
        if every < 1:
            raise ConfigurationError(f"every={every}; expected a number of steps, at least 1")
        if self.should_stop:
            return self.saves_on_stop
        return (step + 1) % every == 0 or bool(self.checkpoint_wanted)

    def meet(self, step: int, *, last: bool = False) -> None:
        """Between two steps: have all ranks do what one of them wants.

        `last`: after the last step.
        """
        together = self.together
        if together is None or together.stopping or not (last or together.due(step)):
            return
        self.heed_signal()
        wish = Wish.CHECKPOINT if self.checkpoint_wanted else Wish.GO_ON
        if (stop := self.emergency.stop).requested:
            wish = Wish.STOP if stop.checkpoint else Wish.LEAVE
        agreed = together.meet(wish, step)
        if not together.first:
            self._answer_asked("left to rank 0", None)
        elif agreed == Wish.CHECKPOINT and not self.checkpoint_wanted:
            self.checkpoint_wanted.append("another rank wants it")

    def heed_signal(self) -> None:
        """Make a signal a wish to stop: the thread that does so may not have come to it yet."""
        if self.signals.signum is not None:
            self.notice_signal(self.signals.signum)

    def lose_rank(self, error: BaseException) -> None:
        """The training's own exchange failed: a rank is gone, and this one leaves, too."""
        assert self.together is not None
        self.heed_signal()
        why = f"the ranks' exchange broke off: {type(error).__name__}: {error}"
        self.together.lose(why, self.recorder.last_step)

    def report_failure(self, error: BaseException) -> None:
        """Say which rank failed: the attempt's end is told by rank 0 alone."""
        message = f"{type(error).__name__}: {error}"[:_REASON_MAX]
        self.emergency.report("rank failed", message, step=self.recorder.last_step)

    def report_unsaved(self, step: int, why: str) -> None:
        """Say why a state was not saved when a rank was lost."""
        message = f"the state of step {step} is not saved, the last checkpoint holds: {why}"
        self.emergency.report("not saved", message, step=step)

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
        if self.together is None or load is not True:  # ranks that load a part each ask together
            return self._recover(policy, has_default, load)
        return self._recover_together(self.together, policy, has_default)

    def _recover_together(
        self, together: Together, policy: Policy, has_default: bool
    ) -> tuple[Any, Decision]:
        """Rank 0 decides; each of the others loads, and verifies, what it chose."""
        found: list[tuple[Any, Decision]] = []

        def decide() -> str:
            found.append(self._recover(policy, has_default, True))
            return _told(found[0][1])

        told = led(together.ranks, "recover", decide)
        if found:
            return found[0]
        decision = _decision(told, self.checkpoints, policy)
        if decision.chosen is None:
            return None, decision
        state = self.checkpoints.load(decision.chosen.id)
        self._remember(decision.chosen.metadata)
        return state, decision

    def _recover(
        self, policy: Policy, has_default: bool, load: bool | Callable[[Location], Any]
    ) -> tuple[Any, Decision]:
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
        if not (self.should_stop or self.asked_to_stop):
            yield
            return
        status = 128 + stop.signum if stop.signum else EXIT_EMERGENCY
        limit_s = self.settings.abort_deadline_s + WATCHDOG_S
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
        if (why := self._why_stopping) is not None:
            metadata["event"] = why
        saved = (by or self.checkpoints.save)(
            state,
            step=step,
            phi=recorded.get("phi"),
            kappa_eff=recorded.get("kappa_eff"),
            regime=self.recorder.last_regime if recorded else None,
            kind=kind,
            metadata=metadata,
        )
        self._answer_asked(f"saved at step {step}", saved)
        if self.should_stop:
            try:
                self.checkpoints.wait(self.settings.abort_deadline_s / 2)
            except CheckpointError as error:
                # on_error has made its event; what remains is to leave with what there is.
                _log.error("the last checkpoint was not committed: %s", error)
                return None
            self.saved_on_stop = saved
        return saved

    def _answer_asked(self, result: str, saved: UUID | None) -> None:
        self.checkpoint_wanted.clear()
        while self.asked_to_save:
            self.lookout.acted(self.asked_to_save.pop(), result, saved)

    def tell_saved(self) -> None:
        """Have the other ranks wait until rank 0 has saved, and know what.

        They would leave earlier, and whoever started them all might not wait for rank 0.
        """
        together = self.together
        if together is None or together.lost:
            return
        try:
            told = together.ranks.tell(str(self.saved_on_stop or ""), 0)
        except RankError as error:
            _log.warning("what rank 0 saved is not known here: %s", error)
            return
        self.saved_on_stop = UUID(told) if told else None

    @property
    def _in_alarm(self) -> bool:
        event, together = self.emergency.stop.event, self.together
        stopped_by_rule = event is not None and event.severity == "critical"
        elsewhere = together is not None and together.alarm
        return stopped_by_rule or elsewhere or bool(self.checkpoint_wanted)

    @property
    def _why_stopping(self) -> str | None:
        """The id of the event that stops the run, of another rank's where it is that one."""
        if (event := self.emergency.stop.event) is not None:
            return str(event.id)
        return None if self.together is None else self.together.event

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
            LeaveStep("attempt", partial(self._end_attempt, 0.0 if aborted else limit)),
            LeaveStep("leftovers", partial(self._close_others, 0.0 if aborted else limit)),
        ]
        deadline_s = self.settings.abort_deadline_s if aborted else 300.0 + 2 * limit
        try:
            outcomes = leave(steps, deadline_s=deadline_s)
        finally:
            self.pulse.close()
            self.link.close()
        _raise_first(outcomes)

    def _end_attempt(self, patience_s: float, limit_s: float) -> None:
        self.pulse.close()
        if self.link.store is not None:
            self.lookout.look()
        event = self.emergency.stop.event
        if event is not None:
            self.link.answer(event, self.saved_on_stop)
        # Where rows wait, whoever ships them tells the end as well. Otherwise nobody else knows it.
        patience_s = 0.0 if self.writer.health.lag_rows else min(patience_s, limit_s - _LEEWAY_S)
        end = monotonic() + patience_s
        while True:
            try:
                return self.link.end()
            except StoreUnavailable:
                if monotonic() + _AGAIN_S > end:
                    raise
                sleep(_AGAIN_S)

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


def _told(decision: Decision) -> str:
    """What the other ranks need to know of rank 0's decision."""
    chosen = decision.chosen
    return json.dumps(
        {
            "chosen": None if chosen is None else str(chosen.id),
            "skip_steps": decision.skip_steps,
            "reason": decision.reason,
        }
    )


def _decision(told: str, manager: CheckpointManager, policy: Policy) -> Decision:
    """Rank 0's decision, as far as the other ranks need to know it."""
    answer = json.loads(told)
    chosen, skip = answer["chosen"], answer["skip_steps"]
    if chosen is not None:
        path = manager.store.locate(manager.session_name, chosen)
        chosen = manager.store.record(path, session_id=manager.session_id)
    return Decision(
        id=uuid4(), session_id=manager.session_id, policy=policy, chosen=chosen, candidates=(),
        reason=answer["reason"], decided_at=datetime.now(UTC), attempt=manager.attempt,
        skip_steps=None if skip is None else (skip[0], skip[1]),
    )  # fmt: skip
