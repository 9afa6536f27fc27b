"""Recording: a row is safe when `record()` returns, and in PostgreSQL soon after, exactly once.

recorder   the hot path: checks a row and adds it to the spool
spool      mapped files that outlive the process
writer     ships the spool to the repository in the background
late_writer  the same for a run that opened without its database
drain      ships what dead processes left
geometry   metrics of the basins of successive rows
event_log  emergencies as files first, rows later
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qigstore.recording.drain import Draining, DrainReport, drain_leftovers
    from qigstore.recording.event_log import EventLog
    from qigstore.recording.geometry import BasinTrack
    from qigstore.recording.recorder import Recorder
    from qigstore.recording.spool import Spool, SpoolIdentity
    from qigstore.recording.writer import Health, Writer

_HOME = {
    "BasinTrack": "geometry",
    "DrainReport": "drain",
    "Draining": "drain",
    "EventLog": "event_log",
    "Health": "writer",
    "Recorder": "recorder",
    "Spool": "spool",
    "SpoolIdentity": "spool",
    "Writer": "writer",
    "drain_leftovers": "drain",
}

__all__ = [
    "BasinTrack",
    "DrainReport",
    "Draining",
    "EventLog",
    "Health",
    "Recorder",
    "Spool",
    "SpoolIdentity",
    "Writer",
    "drain_leftovers",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'qigstore.recording' has no attribute {name!r}")
    value: object = getattr(import_module(f"qigstore.recording.{_HOME[name]}"), name)
    globals()[name] = value
    return value
