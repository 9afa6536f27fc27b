"""Rules as they are declared: what to watch, where the limits are, and what to do.

A rule is checked when it is made; `detector` gives a fresh state of it for one metric.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import isfinite, nextafter
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from qigstore.errors import ConfigurationError
from qigstore.records import Severity
from qigstore.safety.detectors import (
    Action,
    EwmaDetector,
    FiniteDetector,
    PageHinkleyDetector,
    RateDetector,
    ThresholdDetector,
)
from qigstore.safety.occasional import EscalationDetector, HeartbeatDetector

__all__ = [
    "Armed",
    "Escalation",
    "Ewma",
    "Finite",
    "Heartbeat",
    "PageHinkley",
    "Rate",
    "Rule",
    "Threshold",
]

_OVER_MAX, _ALARMS_MAX = 10_000, 1_000
"""A rule's memory is bounded: it keeps one number for each of these."""

Armed: TypeAlias = Literal["always", "after_healthy"]


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """What every rule has."""

    name: str = ""
    severity: Severity = "critical"
    action: Action = "record"

    def _check_common(self, metric: str, name: str) -> None:
        if not isinstance(metric, str) or not metric:
            raise ConfigurationError(f"a rule's metric is a name or pattern, got {metric!r}")
        object.__setattr__(self, "name", self.name or name)
        _one_of(self.name, "severity", self.severity, get_args(Severity))
        _one_of(self.name, "action", self.action, get_args(Action))
        if self.action == "soft_reset" and self.severity != "critical":
            raise ConfigurationError(
                f"rule {self.name!r}: action = 'soft_reset' needs severity = 'critical': it goes "
                "back to before the event, and only a critical one makes a checkpoint unhealthy"
            )


@dataclass(frozen=True)
class Finite(_Rule):
    """NaN or ±inf, `for_steps` times in a row; an episode ends after `clear_steps` finite values.

    `metric` is a name or a shell pattern ("*", "loss/*"); one alarm names all that turned at once.
    """

    metric: str = "*"
    for_steps: int = 1
    clear_steps: int = 20

    def __post_init__(self) -> None:
        self._check_common(self.metric, f"{self.metric} finite")
        _counts(self, "for_steps", "clear_steps")

    def detector(self, metric: str) -> FiniteDetector:
        """A fresh state for one metric."""
        limits = {"for_steps": self.for_steps, "clear_steps": self.clear_steps}
        return FiniteDetector(self.name, self.severity, self.action, metric, **limits)


@dataclass(frozen=True)
class Threshold(_Rule):
    """A fixed limit with hysteresis: on beyond it for `for_steps` values, off again at `off`.

    Exactly one of `above` (>), `at_least` (≥), `below` (<). Armed "after_healthy", it cannot fire
    before the metric has once reached `healthy_when` on the good side.

    >>> Threshold("loss", above=10.0, off=8.0).name
    'loss > 10'
    """

    metric: str
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    off: float | None = None
    for_steps: int = 1
    armed: Armed = "always"
    healthy_when: float | None = None

    def __post_init__(self) -> None:
        given = [s for s in ("above", "at_least", "below") if getattr(self, s) is not None]
        if len(given) != 1:
            raise ConfigurationError(
                f"threshold on {self.metric!r}: give exactly one of above, at_least, below; "
                f"got {', '.join(given) or 'none'}"
            )
        side = given[0]
        limit = getattr(self, side)
        _number(f"threshold on {self.metric!r}", side, limit)
        symbol = {"above": ">", "at_least": "≥", "below": "<"}[side]
        self._check_common(self.metric, f"{self.metric} {symbol} {limit:g}")
        _counts(self, "for_steps")
        _one_of(self.name, "armed", self.armed, get_args(Armed))
        if (self.armed == "after_healthy") != (self.healthy_when is not None):
            raise ConfigurationError(
                f"rule {self.name!r}: armed = 'after_healthy' and healthy_when go together"
            )
        sign = -1.0 if side == "below" else 1.0
        for key in ("off", "healthy_when"):
            value = getattr(self, key)
            if value is None:
                continue
            _number(self.name, key, value)
            if sign * value > sign * limit:
                good = "at or above" if sign < 0 else "at or below"
                raise ConfigurationError(
                    f"rule {self.name!r}: {key} = {value:g} must be {good} {side} = {limit:g}"
                )

    def detector(self, metric: str) -> ThresholdDetector:
        """A fresh state for one metric."""
        sign, limit = (1.0, self.above) if self.below is None else (-1.0, self.below)
        limit = self.at_least if limit is None else limit
        assert limit is not None
        on = sign * limit
        if self.at_least is not None:
            on = nextafter(on, float("-inf"))
        off = on if self.off is None else min(on, sign * self.off)
        healthy = None if self.healthy_when is None else min(on, sign * self.healthy_when)
        return ThresholdDetector(
            self.name, self.severity, self.action, metric,
            sign=sign, on=on, off=off, limit=float(limit), healthy=healthy,
            for_steps=self.for_steps,
        )  # fmt: skip


_DIRECTIONS = {"up": 1, "down": -1, "both": 0}


@dataclass(frozen=True)
class Ewma(_Rule):
    """A jump: z against the running mean, z > `warn` `warn_run` times in a row, or z > `fire`.

    `severity` and `action` are those of z > `fire`; the warning is always a warning that records.
    No alarm in the first `warm_up` values. Both limits count more where the metric's own noise has
    a memory or heavy tails: then there was no false alarm in 960,000 steps each of white noise, of
    lag-one correlations up to 0.95, and of Student t with 5 degrees.
    """

    metric: str
    a: float = 0.03
    fire: float = 10.0
    warn: float = 3.0
    warn_run: int = 3
    clip: float = 6.0
    direction: Literal["up", "down", "both"] = "up"
    warm_up: int = 50
    clear_steps: int = 50
    floor: float = 1e-8
    floor_relative: float = 0.01

    def __post_init__(self) -> None:
        self._check_common(self.metric, f"{self.metric} ewma")
        _one_of(self.name, "direction", self.direction, tuple(_DIRECTIONS))
        _counts(self, "warn_run", "warm_up", "clear_steps")
        for key in ("a", "fire", "warn", "clip", "floor", "floor_relative"):
            _number(self.name, key, getattr(self, key), positive=True)
        if self.a >= 1:
            raise ConfigurationError(f"rule {self.name!r}: a must be below 1, got {self.a:g}")
        if self.warn >= self.fire:
            raise ConfigurationError(
                f"rule {self.name!r}: warn = {self.warn:g} must be below fire = {self.fire:g}"
            )

    def detector(self, metric: str) -> EwmaDetector:
        """A fresh state for one metric."""
        return EwmaDetector(
            self.name, self.severity, self.action, metric,
            a=self.a, fire=self.fire, warn=self.warn, warn_run=self.warn_run, clip=self.clip,
            direction=_DIRECTIONS[self.direction], warm_up=self.warm_up,
            clear_steps=self.clear_steps, floor=self.floor, floor_relative=self.floor_relative,
        )  # fmt: skip


@dataclass(frozen=True)
class PageHinkley(_Rule):
    """A slow rise that no jump rule sees, such as a loss that doubles over 100 steps.

    It warns of what does rise: a loss that follows a cyclic schedule up is reported each time.
    Noise with a memory wanders like that, too: of the lag-one correlation 0.95 it takes a rise in
    one of several hundred thousand steps, most of all in the first few hundred.
    """

    metric: str
    severity: Severity = field(default="warning", kw_only=True)
    delta: float = 0.5
    limit: float = 40.0
    window: int = 500
    direction: Literal["up", "down"] = "up"
    warm_up: int = 50
    floor: float = 1e-8
    floor_relative: float = 0.01

    def __post_init__(self) -> None:
        self._check_common(self.metric, f"{self.metric} drift")
        _one_of(self.name, "direction", self.direction, ("up", "down"))
        _counts(self, "window", "warm_up")
        for key in ("delta", "limit", "floor", "floor_relative"):
            _number(self.name, key, getattr(self, key), positive=True)

    def detector(self, metric: str) -> PageHinkleyDetector:
        """A fresh state for one metric."""
        return PageHinkleyDetector(
            self.name, self.severity, self.action, metric,
            delta=self.delta, lam=self.limit, weight=1.0 / self.window, warm_up=self.warm_up,
            direction=_DIRECTIONS[self.direction], floor=self.floor,
            floor_relative=self.floor_relative,
        )  # fmt: skip


@dataclass(frozen=True)
class Rate(_Rule):
    """A change of more than `limit` over the last `over` values, or (`relative`) of itself so much.

    >>> Rate("loss", limit=0.5, over=10, relative=True).name
    'loss rate'
    """

    metric: str
    limit: float
    over: int = 1
    direction: Literal["up", "down", "both"] = "up"
    relative: bool = False

    def __post_init__(self) -> None:
        self._check_common(self.metric, f"{self.metric} rate")
        _number(self.name, "limit", self.limit, positive=True)
        _counts(self, "over")
        _at_most(self, "over", _OVER_MAX)
        _one_of(self.name, "direction", self.direction, tuple(_DIRECTIONS))

    def detector(self, metric: str) -> RateDetector:
        """A fresh state for one metric."""
        return RateDetector(
            self.name, self.severity, self.action, metric,
            limit=self.limit, over=self.over, direction=_DIRECTIONS[self.direction],
            relative=int(self.relative),
        )  # fmt: skip


@dataclass(frozen=True)
class Escalation(_Rule):
    """So many `alarms` of rules named `of` (a name or shell pattern) within so many steps.

    >>> Escalation(alarms=3, within=500, action="abort").name
    'escalation of *'
    """

    metric: ClassVar[str] = "alarms"
    of: str = "*"
    alarms: int = 3
    within: int = 1000

    def __post_init__(self) -> None:
        if not isinstance(self.of, str) or not self.of:
            raise ConfigurationError(f"escalation: of is a rule's name or pattern, got {self.of!r}")
        self._check_common(self.metric, f"escalation of {self.of}")
        _counts(self, "alarms", "within")
        _at_most(self, "alarms", _ALARMS_MAX)

    def detector(self, _metric: str) -> EscalationDetector:
        """A fresh state."""
        return EscalationDetector(
            self.name, self.severity, self.action, self.of, alarms=self.alarms, within=self.within
        )


@dataclass(frozen=True)
class Heartbeat(_Rule):
    """No row recorded for longer than max(`floor_s`, `factor` × the longest pause so far).

    The first rows may take `first_s`. A run that hangs reaches no safe point: the action is at most
    a record or, for a run that comes back to life, an abort.
    """

    metric: ClassVar[str] = "silence_s"
    severity: Severity = field(default="warning", kw_only=True)
    floor_s: float = 60.0
    factor: float = 5.0
    first_s: float = 600.0

    def __post_init__(self) -> None:
        self._check_common(self.metric, "heartbeat")
        for key in ("floor_s", "factor", "first_s"):
            _number(self.name, key, getattr(self, key), positive=True)
        _one_of(self.name, "action", self.action, ("record", "abort"))

    def detector(self, _metric: str) -> HeartbeatDetector:
        """A fresh state."""
        return HeartbeatDetector(
            self.name, self.severity, self.action,
            floor_s=self.floor_s, factor=self.factor, first_s=self.first_s,
        )  # fmt: skip


Rule: TypeAlias = Finite | Threshold | Ewma | PageHinkley | Rate | Escalation | Heartbeat


def _one_of(name: str, what: str, value: object, allowed: Iterable[str]) -> None:
    choices = tuple(allowed)
    if value not in choices:
        near = get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigurationError(
            f"rule {name!r}: {what} is one of {', '.join(choices)}; got {value!r}{hint}"
        )


def _number(name: str, what: str, value: object, *, positive: bool = False) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
    if not good or (positive and not float(str(value)) > 0):
        kind = "a finite number above 0" if positive else "a finite number"
        raise ConfigurationError(f"rule {name!r}: {what} must be {kind}, got {value!r}")


def _counts(rule: Any, *fields: str) -> None:
    for what in fields:
        value = getattr(rule, what)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(
                f"rule {rule.name!r}: {what} must be a whole number ≥ 1, got {value!r}"
            )


def _at_most(rule: Any, what: str, most: int) -> None:
    if getattr(rule, what) > most:
        raise ConfigurationError(
            f"rule {rule.name!r}: {what} must be at most {most}, got {getattr(rule, what)}"
        )
