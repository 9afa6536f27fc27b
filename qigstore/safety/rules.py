"""Declared rules, bound once a layout to checks that cost nanoseconds while all is well.

::

    rules = RuleSet([Finite(), Ewma("loss"), Threshold("accuracy", below=0.2, armed="after_healthy",
                                                       healthy_when=0.5, action="abort")])
    check = rules.bind(("loss", "accuracy"))
    for alarm in check(step, values): ...

A rule whose metric is in no layout never fires: what nobody measured has no value.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from math import isfinite
from pathlib import Path
from typing import Any

from qigstore.errors import ConfigurationError, InvalidInput
from qigstore.safety.check import Check
from qigstore.safety.declared import (
    Escalation,
    Ewma,
    Finite,
    Heartbeat,
    PageHinkley,
    Rate,
    Rule,
    Threshold,
)
from qigstore.safety.detectors import Action, Alarm, Detector, FiniteDetector, Observer
from qigstore.safety.occasional import EscalationDetector, HeartbeatDetector

__all__ = [
    "ALARMS_PER_STEP_MAX",
    "Action",
    "Alarm",
    "Check",
    "Escalation",
    "Ewma",
    "Finite",
    "Heartbeat",
    "PageHinkley",
    "Rate",
    "Rule",
    "RuleSet",
    "Threshold",
]

ALARMS_PER_STEP_MAX = 8
"""Alarms that one step may raise, worst first; the rest is counted in `RuleSet.suppressed`."""

_NAMES_SHOWN = 5
_STATE_VERSION = 3


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
        self.metrics: set[str] = set()
        """Every metric of any layout so far."""
        self.suppressed = 0
        """Alarms left out because a step had more than `ALARMS_PER_STEP_MAX`."""
        self._detectors: dict[str, dict[str, Detector]] = {name: {} for name in named}
        self._busy: set[FiniteDetector] = set()
        self._escalations: list[EscalationDetector] = []
        self._heartbeats: list[HeartbeatDetector] = []
        for rule in self.rules:
            if isinstance(rule, (Escalation, Heartbeat)):
                detector = self._detector(rule, rule.metric)
                if isinstance(detector, EscalationDetector):
                    self._escalations.append(detector)
                elif isinstance(detector, HeartbeatDetector):
                    self._heartbeats.append(detector)

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
    def from_file(cls, path: Path) -> RuleSet:
        """Rules from a TOML file; see `from_mapping`.

        Raises:
            ConfigurationError: it cannot be read, or says something that cannot be used.
        """
        try:
            with path.open("rb") as file:
                return cls.from_mapping(tomllib.load(file))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(f"the rules file {path} cannot be read: {error}") from error
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from error

    @classmethod
    def of(cls, given: RuleSet | str | Path | Mapping[str, Any] | Sequence[Rule] | None) -> RuleSet:
        """Whatever a user may pass as `rules=`: None is the default preset, a path a TOML file."""
        if given is None:
            return cls.preset("default")
        if isinstance(given, Path):
            return cls.from_file(given)
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
        self.metrics.update(names)
        for rule in self.rules:
            if isinstance(rule, (Escalation, Heartbeat)):
                continue
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
        observers = tuple((i, detector.observe) for i, detector in watchers)
        bounded = self._bounded

        def slow(step: int, values: Sequence[float]) -> Sequence[Alarm]:
            found = self._not_finite(step, values, finite)
            for index, observe in observers:
                if isfinite(values[index]):
                    alarm = observe(step, values[index])
                    if alarm is not None:
                        found.append(alarm)
            return bounded(found) if found else ()

        return Check(observers, self._busy, slow, bounded)

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

    def look(self, now_s: float, rows: int, step: int) -> Sequence[Alarm]:
        """Ask the heartbeat rules, now and then and from any one thread; `()` when quiet.

        Args:
            now_s: a monotonic clock. rows: how many were recorded so far. step: of the last one.
        """
        found = [detector.look(now_s, rows, step) for detector in self._heartbeats]
        return [alarm for alarm in found if alarm is not None]

    def is_open(self, alarm: Alarm) -> bool:
        """Whether the episode that this alarm began still lasts."""
        detector = self._detectors.get(alarm.rule, {}).get(alarm.metric)
        return detector is not None and detector.latched

    def learnt(self, alarm: Alarm) -> dict[str, Any]:
        """What the rule of this alarm knows of its metric."""
        detector = self._detectors.get(alarm.rule, {}).get(alarm.metric)
        return {} if detector is None else detector.state()

    def _bounded(self, alarms: list[Alarm]) -> Sequence[Alarm]:
        for escalation in self._escalations:
            raised = escalation.take(alarms)
            if raised is not None:
                alarms.append(raised)
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
            expected = f"what RuleSet.state() gave, version {_STATE_VERSION}"
            raise InvalidInput("rules state", state, expected)
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


_ORDER = {
    "abort": 0, "soft_reset": 1, "checkpoint": 2, "record": 3,
    "critical": 0, "warning": 1, "info": 2,
}  # fmt: skip


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
