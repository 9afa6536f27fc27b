"""Checkpoints: a folder each, complete or absent, verified when loaded, ranked by finite Φ."""

from __future__ import annotations

from qigstore.checkpoints.info import SaveInfo
from qigstore.checkpoints.manager import CheckpointManager
from qigstore.checkpoints.opened import OpenCheckpoint
from qigstore.checkpoints.randomness import random_states, set_random_states
from qigstore.checkpoints.ranking import best_first, newest_first
from qigstore.checkpoints.remote import RemoteCopies
from qigstore.checkpoints.remote_store import RemoteStore
from qigstore.checkpoints.retention import Retention
from qigstore.checkpoints.store import CheckpointStore
from qigstore.checkpoints.stores import open_store

__all__ = [
    "CheckpointManager",
    "CheckpointStore",
    "OpenCheckpoint",
    "RemoteCopies",
    "RemoteStore",
    "Retention",
    "SaveInfo",
    "best_first",
    "newest_first",
    "open_store",
    "random_states",
    "set_random_states",
]
