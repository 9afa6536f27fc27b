"""Rules by name, and rules from TOML.

::

    preset = ["loss", "qig-2025-12-17"]

    [[rules]]
    kind = "threshold"
    metric = "accuracy"
    below = 0.2
    armed = "after_healthy"
    healthy_when = 0.5
    action = "abort"

The geometry presets take their limits and their arming from `qigkernels`; only what a limit alone
does not say (hysteresis, action) stands here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Final

from qigstore.errors import ConfigurationError
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
from qigstore.safety.detectors import Action

__all__ = ["PRESETS", "rules_from", "rules_of"]

_LOSS: Final[tuple[Rule, ...]] = (
    Finite(),
    # One bad batch is worth an event; a loss that stays NaN will not come back by itself.
    Finite("loss", for_steps=10, action="abort", name="loss diverged"),
    Ewma("loss"),
    PageHinkley("loss"),
)

_KINDS: Final[Mapping[str, type[Rule]]] = {
    "finite": Finite,
    "threshold": Threshold,
    "ewma": Ewma,
    "page_hinkley": PageHinkley,
    "rate": Rate,
    "escalation": Escalation,
    "heartbeat": Heartbeat,
}

_GEOMETRY: Final = ("qig-2025-12-17", "qig-2026-01-10")
PRESETS: Final[tuple[str, ...]] = ("default", "loss", *_GEOMETRY)
"""Names of the presets. "default" (what a session has when nothing is asked) is "loss"."""

_ABORTING: Final = frozenset({"phi below", "breakdown_pct above"})
"""Metric and side of the critical rules that stop a run; the others record the event."""
_MARGIN: Final = 0.05
"""Hysteresis: a rule is off again this fraction of its limit on the good side."""
_COUNTED: Final = frozenset({"recursion_depth"})
"""Whole numbers: a margin would keep the rule latched at its own limit."""


def rules_of(name: str) -> tuple[Rule, ...]:
    """The rules of one preset.

    Raises:
        ConfigurationError: no preset has that name.
    """
    if name in ("default", "loss"):
        return _LOSS
    if name in _GEOMETRY:
        return (Finite(), *_geometry(name))
    raise ConfigurationError(
        f"no rules preset {name!r}; there are {', '.join(PRESETS)}{_near(name, PRESETS)}"
    )


def _geometry(name: str) -> list[Rule]:
    from qigkernels.config import QIGConfig
    from qigkernels.constants import get_preset
    from qigkernels.safety import RULES

    config = QIGConfig.from_preset(get_preset(name))
    sides = {"below": "below", "above": "above", "from": "at_least"}
    rules: list[Rule] = []
    for rule in RULES:
        limit = float(getattr(config, rule.setting))
        margin = 0.0 if rule.metric in _COUNTED else _MARGIN * limit
        guarded = rule.armed == "after_healthy"
        stops = rule.severity == "critical" and f"{rule.metric} {rule.side}" in _ABORTING
        given: dict[str, Any] = {
            sides[rule.side]: limit,
            "off": limit + margin if rule.side == "below" else limit - margin,
            "armed": rule.armed,
            "healthy_when": config.phi_threshold if guarded else None,
        }
        action: Action = "abort" if stops else "record"
        rules.append(
            Threshold(rule.metric, name=rule.reason, severity=rule.severity, action=action, **given)
        )
    return rules


def rules_from(mapping: Mapping[str, Any]) -> list[Rule]:
    """The rules that `RuleSet.from_mapping` reads.

    Raises:
        ConfigurationError: an unknown key, kind or field, or a value that cannot be used.
    """
    _known("rules", mapping, ("preset", "rules"))
    presets = mapping.get("preset", ())
    names = [presets] if isinstance(presets, str) else presets
    if not _is_list(names) or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(f"rules: preset is a name or a list of names, got {presets!r}")
    declared = mapping.get("rules", ())
    if not _is_list(declared) or not all(isinstance(rule, Mapping) for rule in declared):
        raise ConfigurationError(f"rules: rules is a list of tables, got {declared!r}")
    rules = [rule for name in names for rule in rules_of(name)]
    return rules + [_rule(place, table) for place, table in enumerate(declared, 1)]


def _rule(place: int, table: Mapping[str, Any]) -> Rule:
    kind = table.get("kind")
    where = f"rule {place}"
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigurationError(
            f"{where}: kind is one of {', '.join(_KINDS)}; got {kind!r}{_near(kind, tuple(_KINDS))}"
        )
    made = _KINDS[kind]
    allowed = tuple(field.name for field in fields(made))
    _known(f"{where} ({kind})", table, ("kind", *allowed))
    given = {key: value for key, value in table.items() if key != "kind"}
    if "metric" in allowed and "metric" not in given and made is not Finite:
        raise ConfigurationError(f"{where} ({kind}): metric is missing")
    return made(**given)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _known(where: str, table: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    for key in table:
        if key not in allowed:
            raise ConfigurationError(
                f"{where}: no field {key!r}; there are {', '.join(allowed)}{_near(key, allowed)}"
            )


def _near(given: object, choices: Sequence[str]) -> str:
    near = get_close_matches(str(given), choices, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
