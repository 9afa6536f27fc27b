"""Rules, signals and the way out of a run: what notices trouble, and what then happens in order.

This room depends on nothing that can block: it receives callables for whatever stores or saves.
Names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qigstore.safety.emergency import Emergency, LeaveStep, Origin, Outcome, StopFlag, leave
    from qigstore.safety.handler import EmergencyAbortHandler
    from qigstore.safety.monitor import IntegratedMonitor, TelemetryCollector, create_monitor
    from qigstore.safety.rules import Alarm, Ewma, Finite, PageHinkley, Rule, RuleSet, Threshold
    from qigstore.safety.signals import Deadline, SignalWatch

_HOME = {
    "Alarm": "rules",
    "Deadline": "signals",
    "Emergency": "emergency",
    "EmergencyAbortHandler": "handler",
    "Ewma": "rules",
    "Finite": "rules",
    "IntegratedMonitor": "monitor",
    "LeaveStep": "emergency",
    "Origin": "emergency",
    "Outcome": "emergency",
    "PageHinkley": "rules",
    "Rule": "rules",
    "RuleSet": "rules",
    "SignalWatch": "signals",
    "StopFlag": "emergency",
    "TelemetryCollector": "monitor",
    "Threshold": "rules",
    "create_monitor": "monitor",
    "leave": "emergency",
}

__all__ = [
    "Alarm",
    "Deadline",
    "Emergency",
    "EmergencyAbortHandler",
    "Ewma",
    "Finite",
    "IntegratedMonitor",
    "LeaveStep",
    "Origin",
    "Outcome",
    "PageHinkley",
    "Rule",
    "RuleSet",
    "SignalWatch",
    "StopFlag",
    "TelemetryCollector",
    "Threshold",
    "create_monitor",
    "leave",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
