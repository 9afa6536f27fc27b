"""Soft reset: back to the last stable basin inside a living process.

The state goes back, the steps go on: what lies between the checkpoint and now is left out, as large
trainings do by hand after a spike. A reset that helps is followed by progress; when several in a
row are not, the next is refused, and whoever asked stops.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Literal, Protocol
from uuid import UUID

from qigstore.errors import CheckpointError, ConfigurationError
from qigstore.records import Event
from qigstore.safety.emergency import Emergency

__all__ = ["HealthyCheckpoints", "Reset", "Resets", "SoftReset"]

_HISTORY_MAX = 100
_SETTLE_LIMIT_S = 2.0


class HealthyCheckpoints(Protocol):
    """What a reset needs of a checkpoint manager."""

    def load_best_checkpoint(self) -> tuple[Any, Mapping[str, Any]]:
        """The state to go back to and what is known of it; `CheckpointError`: there is none."""


@dataclass(frozen=True, slots=True)
class Reset:
    """One reset, done or refused.

    Attributes:
        step: the step at which it was asked for, where it is known.
        checkpoint: what is known of the checkpoint that it went back to; empty where refused.
    """

    status: Literal["done", "refused", "failed"]
    reason: str
    at: datetime
    step: int | None
    checkpoint: Mapping[str, Any]

    @property
    def done(self) -> bool:
        """Whether the state went back."""
        return self.status == "done"


class SoftReset:
    """Watch the distance from a reference basin, and go back when it drifts.

    Drift is the Fisher-Rao distance 2·arccos Σ√(p·q) in radians, from 0 to π.

    Args:
        checkpoint_manager: gives the checkpoint to go back to, verified.
        drift_threshold: radians; farther from the reference is a drift.
        phi_threshold: Φ below is a drift too; None: Φ is not asked.
        reset_callback: called with the state; takes it into the living model.
        cooldown_seconds: between two resets at least.
        resets_max: so many in a row without progress; the next is refused.
        progress_steps: that many steps past the last failure are progress.

    Raises:
        ConfigurationError: a number out of its range.
    """

    def __init__(
        self,
        checkpoint_manager: HealthyCheckpoints,
        drift_threshold: float = 0.3,
        phi_threshold: float | None = None,
        reset_callback: Callable[[Any], object] | None = None,
        cooldown_seconds: float = 60.0,
        *,
        resets_max: int = 3,
        progress_steps: int = 50,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        _within("drift_threshold", drift_threshold, math.pi)
        if phi_threshold is not None:
            _within("phi_threshold", phi_threshold, 1.0)
        _within("cooldown_seconds", cooldown_seconds, math.inf, zero=True)
        _within("resets_max", resets_max, math.inf)
        _within("progress_steps", progress_steps, math.inf, zero=True)
        self._manager, self._callback = checkpoint_manager, reset_callback
        self.drift_threshold, self.phi_threshold = drift_threshold, phi_threshold
        self.cooldown_seconds, self.resets_max = cooldown_seconds, resets_max
        self._progress_steps, self._clock = progress_steps, clock
        self._reference: Any = None
        self._last_s: float | None = None
        self._last_step: int | None = None
        self.in_a_row = 0
        """Resets since there was progress."""
        self.history: deque[Reset] = deque(maxlen=_HISTORY_MAX)

    @property
    def cooling_s(self) -> float:
        """Seconds until the next reset is allowed; 0: now."""
        if self._last_s is None:
            return 0.0
        return max(0.0, self._last_s + self.cooldown_seconds - self._clock())

    def set_reference_basin(self, basin: Any) -> None:
        """Take a distribution as the stable basin that drift is measured from.

        Raises:
            ValidationError: it is no distribution.
        """
        import numpy as np

        from qigkernels import validate_distribution

        point = np.array(basin, dtype=np.float64)
        validate_distribution(point, "reference basin")
        self._reference = point

    def drift(self, basin: Any) -> float:
        """Fisher-Rao distance from the reference basin, in radians.

        Raises:
            ConfigurationError: there is no reference basin.
            ValidationError: no distribution, or of another dimension.
        """
        from qigkernels.simplex import distance

        if self._reference is None:
            raise ConfigurationError("no reference basin: call set_reference_basin first")
        return float(distance(self._reference, basin))

    def check_drift(self, basin: Any, phi: float | None = None) -> tuple[bool, str]:
        """Whether the state has left its basin, and in words why (or why not).

        The first basin seen becomes the reference where none was set.

        Raises:
            ValidationError: no distribution, or of another dimension.
        """
        if self._reference is None:
            self.set_reference_basin(basin)
        distance = self.drift(basin)
        if distance > self.drift_threshold:
            return True, f"basin drift {distance:.4g} is above {self.drift_threshold:.4g}"
        floor = self.phi_threshold
        if floor is not None and phi is not None and not phi >= floor:
            return True, f"Φ = {phi:.4g} is below {floor:.4g}"
        return False, f"basin drift {distance:.4g} is within {self.drift_threshold:.4g}"

    def perform_reset(self, reason: str = "", *, step: int | None = None) -> Reset:
        """Go back to the healthy checkpoint, unless it is too soon or has been in vain too often.

        A callback that raises fails the reset and its error goes on to the caller: the model may be
        half loaded.
        """
        why = self._refusal(step)
        if why is not None:
            return self._note("refused", f"{reason}: {why}" if reason else why, step, {})
        try:
            state, known = self._manager.load_best_checkpoint()
        except CheckpointError as error:
            return self._note("failed", str(error), step, {})
        self._last_s, self._last_step = self._clock(), step
        self.in_a_row += 1
        if self._callback is not None:
            try:
                self._callback(state)
            except BaseException as error:
                self._note("failed", f"the callback raised {error!r}", step, known)
                raise
        return self._note("done", reason, step, known)

    def _refusal(self, step: int | None) -> str | None:
        last = self._last_step
        if step is not None and last is not None and step - last > self._progress_steps:
            self.in_a_row = 0
        if self.in_a_row >= self.resets_max:
            return f"{self.in_a_row} resets in a row brought no progress"
        left = self.cooling_s
        return f"the last one is too recent, {left:.3g} s to wait" if left > 0.0 else None

    def _note(
        self,
        status: Literal["done", "refused", "failed"],
        reason: str,
        step: int | None,
        known: Mapping[str, Any],
    ) -> Reset:
        reset = Reset(status, reason, datetime.now(UTC), step, dict(known))
        self.history.append(reset)
        return reset


class Resets:
    """What the alarms of a run want to go back for, kept until its next safe point.

    Args:
        emergency: of the run; stops it where it cannot go back.
        over: told of an event that is over: the event, what became of it, the checkpoint.
    """

    def __init__(
        self, emergency: Emergency, over: Callable[[Event, str, UUID | None], object]
    ) -> None:
        self._emergency, self._over = emergency, over
        self._wanted: Event | None = None
        self.soft: SoftReset | None = None
        """How to go back inside this process; None: nobody said how a state is taken in."""

    def want(self, event: Event) -> None:
        """Go back at the next safe point; where nobody can, stop: the next start goes back."""
        if self.soft is None:
            self._emergency.stop.set(f"{event.rule}: {event.message}", event=event)
        elif self._wanted is None:
            self._wanted = event
        else:
            self._over(event, f"left to the reset for event {self._wanted.id}", None)

    def perform(self, step: int) -> Mapping[str, Any] | None:
        """Go back if that is wanted and not too soon; what is known of the checkpoint.

        In vain too often, or nothing to go back to: then the run is asked to stop.
        """
        event, soft = self._wanted, self.soft
        if event is None or soft is None or soft.cooling_s > 0.0:
            return None
        self._wanted = None
        # What the event makes unhealthy must be known before anything is chosen.
        self._emergency.settle(_SETTLE_LIMIT_S)
        reset = soft.perform_reset(f"{event.rule}: {event.message}", step=step)
        if not reset.done:
            self._emergency.stop.set(f"soft reset {reset.status}: {reset.reason}", event=event)
            return None
        known = reset.checkpoint
        checkpoint = UUID(known["checkpoint_id"])
        words = f"went back to step {known['step']} of attempt {known['attempt']}: {known['why']}"
        self._over(event, words, checkpoint)
        self._emergency.report(
            "soft reset", words, step=step, severity="info", action="soft_reset",
            checkpoint_id=checkpoint, detail={"event": str(event.id)},
        )  # fmt: skip
        return known


def _within(name: str, value: float, most: float, *, zero: bool = False) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not (value >= 0 if zero else value > 0) or value > most:
        raise ConfigurationError(f"{name}={value!r}; expected a number above 0 up to {most:.4g}")
