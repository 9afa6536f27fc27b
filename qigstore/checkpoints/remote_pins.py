"""Pins in an object store: small objects in `.held/`, as in a session's folder on a disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from qigstore.checkpoints.folders import parse_id
from qigstore.checkpoints.format import MANIFEST
from qigstore.checkpoints.json_text import canonical_json, strict_json
from qigstore.checkpoints.remote_files import RemoteFiles
from qigstore.errors import CheckpointCorrupt, InvalidInput, NotFound

__all__ = ["RemotePins"]

_FOLDER, _SUFFIX = ".held", ".json"


class RemotePins:
    """The pins of one session, whose folder this is.

    An object store has no locks: two that pin or prune at once each do all of it, which comes to
    the same.
    """

    def __init__(self, files: RemoteFiles, folder: str) -> None:
        self._files, self._folder = files, folder

    def pin(self, checkpoint_id: UUID, note: str = "") -> bool:
        """Keep a checkpoint until it is unpinned; False where it was pinned already.

        Raises:
            NotFound: it is not there.
        """
        if self._files.size(f"{self._folder}/{checkpoint_id}/{MANIFEST}") is None:
            hint = f"It is not at {self._files.url / self._folder}"
            raise NotFound("checkpoint", checkpoint_id, hint=hint)
        if self._files.size(self._name(checkpoint_id)) is not None:
            return False
        at = datetime.now(UTC).isoformat()
        said = {"id": str(checkpoint_id), "note": strict_json(note, "note"), "at": at}
        self._files.put(self._name(checkpoint_id), canonical_json(said) + b"\n")
        return True

    def unpin(self, checkpoint_id: UUID) -> bool:
        """Take the pin away; False where there was none."""
        there = self._files.size(self._name(checkpoint_id)) is not None
        self._files.remove(self._name(checkpoint_id))
        return there

    def all(self) -> dict[UUID, dict[str, Any]]:
        """Each pinned id, and what was noted; a pin that cannot be read still pins.

        Raises:
            CheckpointCorrupt: an object lies there that is none of ours.
        """
        found = {}
        folder = f"{self._folder}/{_FOLDER}"
        for name in self._files.names(folder):
            try:
                found[parse_id(name.removesuffix(_SUFFIX))] = self._read(f"{folder}/{name}")
            except InvalidInput as error:
                where = self._files.url / folder / name
                raise CheckpointCorrupt(where, "pin", expected="<id>.json", found=error) from None
        return found

    @contextmanager
    def pruning(self) -> Iterator[bool]:
        """The right to prune, which everybody has."""
        yield True

    def _name(self, checkpoint_id: UUID) -> str:
        return f"{self._folder}/{_FOLDER}/{checkpoint_id}{_SUFFIX}"

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(self._files.small(name))
        except (CheckpointCorrupt, OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}
