"""What a bound rule keeps for one metric: a few numbers, and how the next value changes them.

Each detector raises one alarm an episode: it stays latched until the metric has been well again
for as long as its rule says. Only finite values reach a statistic; `qigstore.safety.rules` sees to
that. Nothing here allocates, locks or calls out while the metric is quiet.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from qigstore.errors import InvalidInput
from qigstore.records import Severity
from qigstore.safety.statistic import Statistic

__all__ = [
    "Action",
    "Alarm",
    "Detector",
    "EwmaDetector",
    "FiniteDetector",
    "Observer",
    "PageHinkleyDetector",
    "RateDetector",
    "ThresholdDetector",
]

Action = Literal["record", "checkpoint", "soft_reset", "abort"]

# The square of a larger deviation would overflow, and an infinite variance never comes down again.
_DEVIATION_MAX = 1e148
_LAG = 5
"""Long-run variances that are kept, one each 32 values: the one in use is 128 values old."""
_KNOWN = 600
"""Values after which the long-run variance is known well enough."""
_TINY = sys.float_info.min
_MEMORY_MAX = 0.95
_FAR, _FAR_STEPS, _FAR_SHARE = 4.0, 1000.0, 0.0015
"""Deviations that are far; the window in which they are counted, and a share of them that counts.

Of normal noise one in 16,000 is far, of Laplace's or Student's with 5 degrees one in 290.
"""


@dataclass(frozen=True, slots=True)
class Alarm:
    """What one rule noticed at one step."""

    rule: str
    severity: Severity
    metric: str
    value: float
    threshold: float | None
    message: str
    action: Action
    step: int


class Detector(Statistic):
    """Base: the numbers named in `SAVED` are all that has to survive."""

    __slots__ = ()
    SAVED: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str, severity: Severity, action: Action, metric: str) -> None:
        self.name, self.severity, self.action, self.metric = name, severity, action, metric

    @property
    def latched(self) -> bool:
        """Whether an episode lasts: until it ends, no other alarm begins."""
        return bool(getattr(self, "open", False))

    def state(self) -> dict[str, Any]:
        """The numbers that have to survive, ready for JSON."""
        saved = {name: getattr(self, name) for name in self.SAVED}
        return {name: [*held] if isinstance(held, deque) else held for name, held in saved.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave.

        Raises:
            InvalidInput: a number is missing or is none.
        """
        taken: dict[str, Any] = {}
        for name in self.SAVED:
            value, held = state.get(name), getattr(self, name)
            several = isinstance(held, deque)
            numbers = value if several and isinstance(value, list) else [value]
            if not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
                where = f"rules state of {self.name!r} for {self.metric!r}: {name}"
                raise InvalidInput(where, value, "a finite number, as state() wrote it")
            taken[name] = deque(numbers, held.maxlen) if several else type(held)(value)
        for name, number in taken.items():
            setattr(self, name, number)

    def _alarm(self, step: int, value: float, limit: float | None, message: str) -> Alarm:
        return Alarm(
            self.name, self.severity, self.metric, value, limit, message, self.action, step
        )


class FiniteDetector(Detector):
    """NaN or ±inf `for_steps` times in a row; well again after `clear_steps` finite values."""

    __slots__ = ("bad", "clear_steps", "for_steps", "good", "open")
    SAVED = ("bad", "good", "open")

    def __init__(
        self, name: str, severity: Severity, action: Action, metric: str, **limits: int
    ) -> None:
        super().__init__(name, severity, action, metric)
        self.for_steps, self.clear_steps = limits["for_steps"], limits["clear_steps"]
        self.bad, self.good, self.open = 0, 0, False

    @property
    def busy(self) -> bool:
        """Whether the next value matters even when it is finite."""
        return self.open or self.bad > 0

    def fires(self, value: float) -> bool:
        """Take one value, finite or not; whether an episode begins with it."""
        if math.isfinite(value):
            self.bad = 0
            if self.open:
                self.good += 1
                self.open = self.good < self.clear_steps
            return False
        self.bad, self.good = self.bad + 1, 0
        if self.open or self.bad < self.for_steps:
            return False
        self.open = True
        return True


class Observer(Detector, ABC):
    """A detector that judges one finite value after the other."""

    __slots__ = ()

    @abstractmethod
    def observe(self, step: int, value: float, /) -> Alarm | None:
        """Take one finite value; the alarm that it raises, if any."""


class ThresholdDetector(Observer):
    """value > `on` for `for_steps` values in a row, until value ≤ `off`; both times `sign`."""

    __slots__ = ("armed", "for_steps", "healthy", "limit", "off", "on", "open", "over", "sign")
    SAVED = ("armed", "open", "over")

    def __init__(
        self, name: str, severity: Severity, action: Action, metric: str, **numbers: Any
    ) -> None:
        super().__init__(name, severity, action, metric)
        self.sign: float = numbers["sign"]
        self.on: float = numbers["on"]
        self.off: float = numbers["off"]
        self.limit: float = numbers["limit"]
        self.for_steps: int = numbers["for_steps"]
        self.healthy: float | None = numbers["healthy"]
        self.armed = self.healthy is None
        self.open, self.over = False, 0

    def observe(self, step: int, value: float) -> Alarm | None:
        signed = self.sign * value
        if self.open:
            if signed <= self.off:
                self.open, self.over = False, 0
            return None
        if signed > self.on:
            if not self.armed:
                return None
            self.over += 1
            if self.over < self.for_steps:
                return None
            self.open = True
            return self._alarm(step, value, self.limit, self._message(value))
        if self.over:
            self.over = 0
        if not self.armed and self.healthy is not None and signed <= self.healthy:
            self.armed = True
        return None

    def _message(self, value: float) -> str:
        side = "above" if self.sign > 0 else "below"
        if value == self.limit:
            side = "at"
        held = f" for {self.for_steps} steps" if self.for_steps > 1 else ""
        return f"{self.metric} = {value:.6g} is {side} {self.limit:.6g}{held}"


class _Numbered(Observer):
    """A detector whose limits come from its rule by name, and stay."""

    __slots__ = ()

    def __init__(
        self, name: str, severity: Severity, action: Action, metric: str, **limits: float
    ) -> None:
        super().__init__(name, severity, action, metric)
        for key, limit in limits.items():
            setattr(self, key, limit)


class EwmaDetector(_Numbered):
    """z = (x − μ)/s against the running mean and deviation, both from before x.

    μ ← μ + a·d, s² ← (1−a)(s² + a·d²) with d = x − μ, clipped at `clip`·s while alarming: so a
    spike does not hide the next one, and a lasting shift is taken in at last. The first `warm_up`
    values only teach (weight 1/n), and s never counts as less than `floor` nor as
    `floor_relative`·|μ|: a metric without noise has no scale of its own.

    Both limits are of white normal noise. Noise with a memory stays where it is: with the lag-one
    correlation ρ of the quiet values, `warn` counts √((1+ρ)/(1−ρ)) times. Noise with heavy tails
    goes far by itself: `fire` counts up to 2.5 times as values beyond 4·s become frequent, one in
    four hundred at most.
    """

    __slots__ = ("clear_steps", "clip", "far", "far_step", "fire", "good", "warn", "warn_run")
    SAVED = (
        "count", "covariance", "far", "far_step", "good", "last", "level", "mean", "run", "variance"
    )  # fmt: skip
    fire: float
    warn: float
    warn_run: int
    clip: float
    clear_steps: int
    observe = Statistic.take_level

    def __init__(
        self, name: str, severity: Severity, action: Action, metric: str, **limits: float
    ) -> None:
        super().__init__(name, severity, action, metric, **limits)
        self.warn_squared = self.warn * self.warn
        self.count, self.mean, self.variance = 0, 0.0, 0.0
        self.covariance, self.last = 0.0, 0.0  # of the quiet values, from one to the next
        self.far, self.far_step = 0.0, 0  # share of values beyond 4·s, as of that step
        self.run, self.good, self.level = 0, 0, 0

    @property
    def latched(self) -> bool:
        """Whether an episode lasts."""
        return self.level > 0

    def judge(self, step: int, value: float, /) -> Alarm | None:
        """Take one finite value; the alarm that it raises, if any."""
        deviation = value - self.mean
        weight = self.a
        if self.count < self.warm_up:
            self.count += 1
            weight = max(weight, 1.0 / self.count)
            deviation = max(-_DEVIATION_MAX, min(_DEVIATION_MAX, deviation))
        # The floors only make s larger: inside warn·s without them is quiet with them too.
        elif self.level or self.run or deviation * deviation > self.warn_squared * self.variance:
            return self._suspect(step, value, deviation)
        self.mean += weight * deviation
        self.variance = (1.0 - weight) * (self.variance + weight * deviation * deviation)
        self.covariance += weight * (deviation * self.last - self.covariance)
        self.last = deviation
        return None

    def _suspect(self, step: int, value: float, deviation: float) -> Alarm | None:
        mean = self.mean
        scale = max(math.sqrt(self.variance), self.floor_relative * abs(mean), self.floor)
        z = deviation / scale
        far = abs(z) > _FAR
        z = abs(z) if self.direction == 0 else z * self.direction
        warn = self.warn * self._wander()
        # In an episode it is the fault that goes far, not the noise.
        fire = self.fire * (1.0 if self.level else self._reach(step))
        self.run = self.run + 1 if z > warn else 0
        level = 2 if z > fire else 1 if self.run >= self.warn_run else 0
        if far and self.run <= 1 and not (self.level or level):  # by itself: no fault's beginning
            self.far += 1.0 / _FAR_STEPS
        bound = min(self.clip * scale, _DEVIATION_MAX) if level else _DEVIATION_MAX
        taken = max(-bound, min(bound, deviation))
        self.mean = mean + self.a * taken
        self.variance = (1.0 - self.a) * (self.variance + self.a * taken * taken)
        if self.run:
            self.good = 0
        elif self.level:
            self.good += 1
            if self.good >= self.clear_steps:
                self.level, self.good = 0, 0
        if level <= self.level:
            return None
        self.level, self.good = level, 0
        return self._raise(step, value, mean, scale, fire if level == 2 else warn)

    def _wander(self) -> float:
        """How much farther than white noise the metric stays away from its mean."""
        memory = self.covariance / self.variance if self.variance > 0.0 else 0.0
        memory = max(0.0, min(_MEMORY_MAX, memory))
        return math.sqrt((1.0 + memory) / (1.0 - memory))

    def _reach(self, step: int) -> float:
        """How much farther than normal noise the metric's tails go."""
        # A resumed run may be some steps back.
        self.far *= math.exp(min(0, self.far_step - step) / _FAR_STEPS)
        self.far_step = step
        return 1.0 + min(1.5, self.far / _FAR_SHARE)

    def _raise(self, step: int, value: float, mean: float, scale: float, times: float) -> Alarm:
        critical = self.level == 2
        above = value > mean
        message = (
            f"{self.metric} = {value:.6g} is {abs(value - mean) / scale:.1f} deviations "
            f"{'above' if above else 'below'} its running mean {mean:.6g}"
        ) + ("" if critical else f", {self.run} times in a row")
        severity: Severity = self.severity if critical else "warning"
        action: Action = self.action if critical else "record"
        limit = mean + (times if above else -times) * scale
        return Alarm(self.name, severity, self.metric, value, limit, message, action, step)


class RateDetector(_Numbered):
    """x(t) − x(t − `over`) beyond `limit`; `relative`: over |x(t − `over`)|."""

    __slots__ = ("direction", "limit", "open", "over", "recent", "relative")
    SAVED = ("open", "recent")
    limit: float
    over: int
    direction: int
    relative: int

    def __init__(
        self, name: str, severity: Severity, action: Action, metric: str, **limits: float
    ) -> None:
        super().__init__(name, severity, action, metric, **limits)
        self.recent: deque[float] = deque(maxlen=int(self.over))
        self.open = False

    def observe(self, step: int, value: float) -> Alarm | None:
        """Take one finite value; the alarm that it raises, if any."""
        recent = self.recent
        before = recent[0] if len(recent) == self.over else None
        recent.append(value)
        if before is None:
            return None
        change = value - before
        if self.relative:
            change /= max(abs(before), _TINY)
        size = abs(change) if self.direction == 0 else change * self.direction
        if size <= self.limit:
            self.open = False
            return None
        if self.open:
            return None
        self.open = True
        steps = f"{self.over} values" if self.over > 1 else "one value"
        times = " of itself" if self.relative else ""
        message = f"{self.metric} went from {before:.6g} to {value:.6g} within {steps}"
        message += f": {change:+.6g}{times}, {self.limit:.6g} allowed"
        return self._alarm(step, value, self.limit, message)


class PageHinkleyDetector(_Numbered):
    """A slow rise (or fall): S ← max(0, S + z − δ) against a mean over `window` values, S > λ.

    s² is the largest of half the running mean of squared successive differences, which a trend does
    not inflate; the slow variance about μ; and the long-run variance v, which noise with a memory
    needs, as sums of it wander farther. v = 32·E[(second difference of means over 32 values)²]/6:
    a trend leaves it alone, and it is taken as it was 128 values ago, so that what is to be noticed
    does not hide itself. Until it is known well, at 600 values, s counts 4 − 3·n/600 times.

    Four values are taken together: what a slow change costs in delay (three steps) is nothing, and
    three steps in four cost next to nothing. Their mean z is clipped at ±2.5, so that no single
    value adds more than 10 to S.
    """

    __slots__ = ("long_run", "means")
    SAVED = (
        "count", "gathered", "jitter", "last", "long_run", "mean", "means", "open", "scale",
        "total", "variance", "wide",
    )  # fmt: skip
    observe = Statistic.take_drift

    def __init__(
        self, name: str, severity: Severity, action: Action, metric: str, **limits: float
    ) -> None:
        super().__init__(name, severity, action, metric, **limits)
        self.count, self.mean, self.variance, self.jitter = 0, 0.0, 0.0, 0.0
        self.gathered, self.last, self.total, self.open = 0.0, 0.0, 0.0, False
        self.scale = _DEVIATION_MAX
        self.wide = 0.0
        self.means: deque[float] = deque(maxlen=3)
        # The newest last; the oldest, `lagged`, is the one in use.
        self.long_run: deque[float] = deque([0.0], maxlen=_LAG)
        self.lagged = 0.0

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave.

        Raises:
            InvalidInput: a number is missing or is none.
        """
        super().restore(state)
        self.lagged = self.long_run[0]

    def judge(self, step: int, value: float, /) -> Alarm | None:
        """Take one finite value; the alarm that it raises, if any."""
        self.count = count = self.count + 1
        if count & 3:
            self.gathered += 0.25 * value
            self.last = value
            return None
        return self._take_four(step, value)

    def _take_four(self, step: int, value: float) -> Alarm | None:
        scale, warming = self.scale, self.count <= self.warm_up
        least = 4.0 / self.count if warming else 0.0
        slow, quick = max(4.0 * self.weight, least), max(0.12, least)
        four = self.gathered + 0.25 * value
        if self.count == 4:
            self.mean = four
        deviation = _clipped(four - self.mean, 2.5 * scale)
        single = _clipped(value - self.mean, 10.0 * scale)
        change = _clipped(value - self.last, 10.0 * scale)
        self.gathered = 0.0
        self.wide += four / 8.0
        if not self.count & 31:
            self._take_wide()
        self.mean += slow * deviation
        self.variance += slow * (single * single - self.variance)
        self.jitter += quick * (0.5 * change * change - self.jitter)
        if warming:
            if self.count + 4 > self.warm_up:
                self._rescale()
            return None
        total = self.total + 4.0 * (self.direction * deviation / scale - self.delta)
        self._rescale()
        if total > self.lam:
            return self._exceeded(step, value)
        if total > 0.0:
            self.total = total
        else:
            self.total, self.open = 0.0, False
        return None

    def _take_wide(self) -> None:
        self.means.append(self.wide)
        self.wide = 0.0
        if len(self.means) < 3:
            return
        first, middle, last = self.means
        bound = 5.0 * math.sqrt(max(self.jitter, self.variance))
        bend = _clipped(first - 2.0 * middle + last, min(bound, _DEVIATION_MAX))
        seen, before = 32.0 * bend * bend / 6.0, self.long_run[-1]
        weight = max(16.0 * self.weight, 32.0 / self.count)
        self.long_run.append(before + weight * (seen - before))
        self.lagged = self.long_run[0]

    def _rescale(self) -> None:
        noise = math.sqrt(max(self.jitter, self.variance, self.lagged))
        if self.count < _KNOWN:
            noise *= 4.0 - 3.0 * self.count / _KNOWN
        scale = max(noise, self.floor_relative * abs(self.mean), self.floor)
        self.scale = min(scale, _DEVIATION_MAX)

    def _exceeded(self, step: int, value: float) -> Alarm | None:
        # Held at the limit, so that the episode can end once the metric is well.
        self.total = self.lam
        if self.open:
            return None
        self.open = True
        way = "risen" if self.direction > 0 else "fallen"
        message = f"{self.metric} = {value:.6g} has {way} steadily from about {self.mean:.6g}"
        return self._alarm(step, value, self.mean, message)


def _clipped(deviation: float, bound: float) -> float:
    return deviation if -bound < deviation < bound else math.copysign(bound, deviation)
