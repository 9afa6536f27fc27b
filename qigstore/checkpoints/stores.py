"""The store that a place names: a folder, or by a URL whatever `fsspec` knows."""

from __future__ import annotations

from typing import Any

from qigstore.checkpoints.base import BaseStore
from qigstore.checkpoints.store import CheckpointStore
from qigstore.errors import ConfigurationError
from qigstore.records import Location, Url

__all__ = ["open_store"]


def open_store(place: Location, **options: Any) -> BaseStore:
    """Checkpoints in a folder, or at a URL; `options` go to the URL's file system.

    Raises:
        CheckpointUnsupported: fsspec, or the package of that protocol, is not installed.
        ConfigurationError: options for a folder.
    """
    if isinstance(place, Url):
        from qigstore.checkpoints.remote_store import RemoteStore

        return RemoteStore(place, **options)
    if options:
        raise ConfigurationError(f"{sorted(options)} are for a URL; {place} is a folder")
    return CheckpointStore(place)
