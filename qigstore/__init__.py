"""qigstore: the flight recorder and the autopilot of a training run.

::

    import qigstore

    with qigstore.session("ocean-7", config={"lr": 3e-4}) as run:
        state = run.recover(default=fresh_state)
        for step in run.steps(state["step"], 10_000):
            state = train_step(state)
            run.record(step, loss=state["loss"], phi=state["phi"], basin=state["basin"])
            run.checkpoint(state, step=step, every=500)

Names load on first use, so that importing this package costs a training script nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qigstore.checkpoints import CheckpointManager, CheckpointStore
    from qigstore.errors import (
        CheckpointCorrupt,
        ConfigurationError,
        EmergencyStop,
        InvalidInput,
        NoHealthyCheckpoint,
        NotFound,
        NotStored,
        QigstoreError,
        SchemaOutdated,
        SessionBusy,
        StoreUnavailable,
    )
    from qigstore.records import (
        AttemptInfo,
        Checkpoint,
        Decision,
        Event,
        SessionInfo,
        TelemetryRow,
    )
    from qigstore.repository import Store, open_store
    from qigstore.run import Run, session
    from qigstore.safety.rules import RuleSet
    from qigstore.settings import Settings, load_settings

__version__ = "0.1.0"

_HOME = {
    "AttemptInfo": "records",
    "Checkpoint": "records",
    "CheckpointCorrupt": "errors",
    "CheckpointManager": "checkpoints",
    "CheckpointStore": "checkpoints",
    "ConfigurationError": "errors",
    "Decision": "records",
    "EmergencyStop": "errors",
    "Event": "records",
    "InvalidInput": "errors",
    "NoHealthyCheckpoint": "errors",
    "NotFound": "errors",
    "NotStored": "errors",
    "QigstoreError": "errors",
    "RuleSet": "safety.rules",
    "Run": "run",
    "SchemaOutdated": "errors",
    "SessionBusy": "errors",
    "SessionInfo": "records",
    "Settings": "settings",
    "Store": "repository",
    "StoreUnavailable": "errors",
    "TelemetryRow": "records",
    "load_settings": "settings",
    "open_store": "repository",
    "session": "run",
}

__all__ = [
    "AttemptInfo",
    "Checkpoint",
    "CheckpointCorrupt",
    "CheckpointManager",
    "CheckpointStore",
    "ConfigurationError",
    "Decision",
    "EmergencyStop",
    "Event",
    "InvalidInput",
    "NoHealthyCheckpoint",
    "NotFound",
    "NotStored",
    "QigstoreError",
    "RuleSet",
    "Run",
    "SchemaOutdated",
    "SessionBusy",
    "SessionInfo",
    "Settings",
    "Store",
    "StoreUnavailable",
    "TelemetryRow",
    "__version__",
    "load_settings",
    "open_store",
    "session",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'qigstore' has no attribute {name!r}")
    value: object = getattr(import_module(f"qigstore.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
