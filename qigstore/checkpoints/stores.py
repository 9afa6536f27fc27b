"""The store that a place names: a folder, or by a URL whatever `fsspec` knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qigstore.checkpoints.base import BaseStore
from qigstore.checkpoints.remote_store import RemoteStore
from qigstore.checkpoints.store import CheckpointStore
from qigstore.errors import ConfigurationError
from qigstore.records import Url, location

__all__ = ["open_store"]


def open_store(place: Path | str, **options: Any) -> BaseStore:
    """Checkpoints in a folder, or at a URL; `options` go to the URL's file system.

    Raises:
        CheckpointUnsupported: fsspec, or the package of that protocol, is not installed.
        ConfigurationError: options for a folder.
    """
    found = location(place)
    if isinstance(found, Url):
        return RemoteStore(found, **options)
    if options:
        raise ConfigurationError(f"{sorted(options)} are for a URL; {place} is a folder")
    return CheckpointStore(found)
