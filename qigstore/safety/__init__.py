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
    from qigstore.safety.pulse import Pulse
    from qigstore.safety.reset import SoftReset
    from qigstore.safety.rules import (
        Alarm,
        Escalation,
        Ewma,
        Finite,
        Heartbeat,
        PageHinkley,
        Rate,
        Rule,
        RuleSet,
        Threshold,
    )
    from qigstore.safety.signals import Deadline, SignalWatch

_HOME = {
    "Alarm": "rules",
    "Deadline": "signals",
    "Emergency": "emergency",
    "EmergencyAbortHandler": "handler",
    "Escalation": "rules",
    "Ewma": "rules",
    "Finite": "rules",
    "Heartbeat": "rules",
    "IntegratedMonitor": "monitor",
    "LeaveStep": "emergency",
    "Origin": "emergency",
    "Outcome": "emergency",
    "PageHinkley": "rules",
    "Pulse": "pulse",
    "Rate": "rules",
    "Rule": "rules",
    "RuleSet": "rules",
    "SignalWatch": "signals",
    "SoftReset": "reset",
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
    "Escalation",
    "Ewma",
    "Finite",
    "Heartbeat",
    "IntegratedMonitor",
    "LeaveStep",
    "Origin",
    "Outcome",
    "PageHinkley",
    "Pulse",
    "Rate",
    "Rule",
    "RuleSet",
    "SignalWatch",
    "SoftReset",
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
