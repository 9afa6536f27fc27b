"""Declared rules, bound once a layout to checks that cost nanoseconds while all is well.

::

    rules = RuleSet([Finite(), Ewma("loss"), Threshold("accuracy", below=0.2, armed="after_healthy",
                                                       healthy_when=0.5, action="abort")])
    check = rules.bind(("loss", "accuracy"))
    for alarm in check(step, values): ...

A rule whose metric is in no layout never fires: what nobody measured has no value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import isfinite, nextafter
from typing import Any, Literal, Protocol, TypeAlias, get_args

from qigstore.errors import ConfigurationError, InvalidInput
from qigstore.records import Severity
from qigstore.safety.detectors import (
    Action,
    Alarm,
    Detector,
    EwmaDetector,
    FiniteDetector,
    Observer,
    PageHinkleyDetector,
    ThresholdDetector,
)

__all__ = [
    "ALARMS_PER_STEP_MAX",
    "Action",
    "Alarm",
    "Check",
    "Ewma",
    "Finite",
    "PageHinkley",
    "Rule",
    "RuleSet",
    "Threshold",
]

ALARMS_PER_STEP_MAX = 8
"""Alarms that one step may raise, worst first; the rest is counted in `RuleSet.suppressed`."""

_NAMES_SHOWN = 5
_STATE_VERSION = 1

Armed: TypeAlias = Literal["always", "after_healthy"]


class Check(Protocol):
    """What `bind` returns."""

    def __call__(
        self, step: int, values: Sequence[float], total: float | None = None, /
    ) -> Sequence[Alarm]:
        """Judge a step by its values in the layout's order; the alarms, `()` when quiet.

        `total`: the sum of the values, where the caller has it.
        """


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
    No alarm in the first `warm_up` values. False alarms in 300,000 synthetic steps: none for
    normal, uniform or mildly skewed noise; about 1 for Laplace, gamma(4) or a lag-one correlation
    of 0.5; 11 for Student t with 5 degrees; 16 for a correlation of 0.9: raise `fire` there.
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


Rule: TypeAlias = Finite | Threshold | Ewma | PageHinkley


class RuleSet:
    """Rules and what they have learnt; `bind` compiles them for one layout of metrics.

    The state lives here, per rule and metric, so that it survives a change of layout. One training
    loop at a time may call the checks of one RuleSet.

    Raises:
        ConfigurationError: two different rules have the same name.
    """

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        named: dict[str, Rule] = {}
        for rule in rules:
            if named.setdefault(rule.name, rule) != rule:
                raise ConfigurationError(
                    f"two rules are named {rule.name!r}: give one of them another name"
                )
        self.rules: tuple[Rule, ...] = tuple(named.values())
        self.suppressed = 0
        """Alarms left out because a step had more than `ALARMS_PER_STEP_MAX`."""
        self._detectors: dict[str, dict[str, Detector]] = {name: {} for name in named}
        self._busy: set[FiniteDetector] = set()

    def __repr__(self) -> str:
        return f"RuleSet({', '.join(rule.name for rule in self.rules)})"

    @classmethod
    def preset(cls, *names: str) -> RuleSet:
        """The rules of one or more presets: "default", "loss", "qig-2025-12-17", …

        Raises:
            ConfigurationError: no preset has that name.
        """
        from qigstore.safety.presets import rules_of

        return cls([rule for name in names for rule in rules_of(name)])

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> RuleSet:
        """Rules from TOML or a dict: `{"preset": "loss", "rules": [{"kind": "threshold", …}]}`.

        Raises:
            ConfigurationError: an unknown key, kind or field (the nearest is named), or a value
                that cannot be used.
        """
        from qigstore.safety.presets import rules_from

        return cls(rules_from(mapping))

    @classmethod
    def of(cls, given: RuleSet | str | Mapping[str, Any] | Sequence[Rule] | None) -> RuleSet:
        """Whatever a user may pass as `rules=`: None is the default preset."""
        if given is None:
            return cls.preset("default")
        if isinstance(given, RuleSet):
            return given
        if isinstance(given, str):
            return cls.preset(given)
        return cls.from_mapping(given) if isinstance(given, Mapping) else cls(given)

    def unmatched(self) -> tuple[str, ...]:
        """Rules that no metric of any layout so far answers to."""
        return tuple(name for name, known in self._detectors.items() if not known)

    def bind(self, names: tuple[str, ...]) -> Check:
        """Compile the rules for rows whose values come in this order."""
        finite: list[tuple[Finite, list[tuple[int, FiniteDetector]]]] = []
        watchers: list[tuple[int, Observer]] = []
        for rule in self.rules:
            places = [(i, name) for i, name in enumerate(names) if _matches(rule.metric, name)]
            found = [(i, self._detector(rule, name)) for i, name in places]
            if isinstance(rule, Finite):
                kept = [(i, d) for i, d in found if isinstance(d, FiniteDetector)]
                finite.append((rule, kept))
            else:
                watchers += [(i, d) for i, d in found if isinstance(d, Observer)]
        return self._compile(names, finite, watchers)

    def _compile(
        self,
        names: tuple[str, ...],
        finite: list[tuple[Finite, list[tuple[int, FiniteDetector]]]],
        watchers: list[tuple[int, Observer]],
    ) -> Check:
        quiet: tuple[Alarm, ...] = ()
        observers = tuple((i, detector.observe) for i, detector in watchers)
        busy, bounded = self._busy, self._bounded

        def check(
            step: int, values: Sequence[float], total: float | None = None, /
        ) -> Sequence[Alarm]:
            if total is None:
                total = sum(values)
            # A sum of finite values is finite, or overflows, which the slow path then finds out.
            if total - total != 0.0 or busy:
                return slow(step, values)
            found: list[Alarm] | None = None
            for index, observe in observers:
                alarm = observe(step, values[index])
                if alarm is not None:
                    found = [alarm] if found is None else [*found, alarm]
            return quiet if found is None else bounded(found)

        def slow(step: int, values: Sequence[float]) -> Sequence[Alarm]:
            found = self._not_finite(step, values, finite)
            for index, observe in observers:
                if isfinite(values[index]):
                    alarm = observe(step, values[index])
                    if alarm is not None:
                        found.append(alarm)
            return bounded(found) if found else quiet

        return check

    def _not_finite(
        self,
        step: int,
        values: Sequence[float],
        finite: list[tuple[Finite, list[tuple[int, FiniteDetector]]]],
    ) -> list[Alarm]:
        alarms: list[Alarm] = []
        for rule, detectors in finite:
            turned: list[tuple[str, float]] = []
            for index, detector in detectors:
                if detector.fires(values[index]):
                    turned.append((detector.metric, values[index]))
                (self._busy.add if detector.busy else self._busy.discard)(detector)
            if turned:
                alarms.append(_finite_alarm(rule, step, turned))
        return alarms

    def _bounded(self, alarms: list[Alarm]) -> Sequence[Alarm]:
        if len(alarms) == 1:
            return (alarms[0],)
        alarms.sort(key=_rank)
        self.suppressed += max(0, len(alarms) - ALARMS_PER_STEP_MAX)
        return tuple(alarms[:ALARMS_PER_STEP_MAX])

    def _detector(self, rule: Rule, metric: str) -> Detector:
        known = self._detectors[rule.name]
        if metric not in known:
            known[metric] = rule.detector(metric)
        return known[metric]

    def state(self) -> dict[str, Any]:
        """What the rules have learnt, ready for JSON; goes into a checkpoint."""
        rules = {
            name: {metric: detector.state() for metric, detector in known.items()}
            for name, known in self._detectors.items()
        }
        return {"version": _STATE_VERSION, "rules": rules}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave, all or nothing; checks bound before go on with it.

        A rule that is no longer declared is left out; one that is new begins afresh.

        Raises:
            InvalidInput: not what `state` gives.
        """
        rules = state.get("rules") if isinstance(state, Mapping) else None
        if not isinstance(rules, Mapping) or state.get("version") != _STATE_VERSION:
            raise InvalidInput("rules state", state, "what RuleSet.state() gave, version 1")
        pending: list[tuple[Detector, Mapping[str, Any]]] = []
        for rule in self.rules:
            for metric, numbers in _mapping(rule.name, rules.get(rule.name, {})).items():
                # A trial on a fresh detector: nothing of ours changes unless all of it is good.
                rule.detector(metric).restore(_mapping(rule.name, numbers))
                pending.append((self._detector(rule, metric), numbers))
        for detector, numbers in pending:
            detector.restore(numbers)
            if isinstance(detector, FiniteDetector):
                (self._busy.add if detector.busy else self._busy.discard)(detector)


_ORDER = {"abort": 0, "checkpoint": 1, "record": 2, "critical": 0, "warning": 1, "info": 2}


def _rank(alarm: Alarm) -> tuple[int, int]:
    return _ORDER[alarm.action], _ORDER[alarm.severity]


def _finite_alarm(rule: Finite, step: int, turned: list[tuple[str, float]]) -> Alarm:
    shown = ", ".join(f"{metric} = {value}" for metric, value in turned[:_NAMES_SHOWN])
    more = f" and {len(turned) - _NAMES_SHOWN} more" if len(turned) > _NAMES_SHOWN else ""
    held = f" for {rule.for_steps} steps" if rule.for_steps > 1 else ""
    message = f"not finite{held}: {shown}{more}"
    metric, value = turned[0]
    return Alarm(rule.name, rule.severity, metric, value, None, message, rule.action, step)


def _matches(pattern: str, name: str) -> bool:
    return pattern == name or ("*" in pattern and fnmatchcase(name, pattern))


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInput(f"rules state of {name!r}", value, "a mapping, as state() wrote it")
    return value


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
