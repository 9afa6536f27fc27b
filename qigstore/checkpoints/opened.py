"""A checkpoint that is open: its arrays are read when they are asked for, each verified then."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy.typing as npt

from qigstore.checkpoints.arrays import ITEM_BYTES
from qigstore.checkpoints.format import MANIFEST, Manifest
from qigstore.checkpoints.shards import AnyPayload, Shards
from qigstore.checkpoints.tree import Part, Reference, find, nearest, outline, references, restore
from qigstore.errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointMismatch,
    CheckpointUnsupported,
)
from qigstore.records import Location

__all__ = ["OpenCheckpoint"]


Array = npt.NDArray[Any]


class OpenCheckpoint(Mapping[str, Any]):
    """The arrays of a checkpoint by their names in the file (``"model.encoder.weight"``).

    What several ranks saved in parts is put together.

    Attributes:
        manifest: everything known of it except its arrays.
    """

    def __init__(self, manifest: Manifest, payload: AnyPayload, path: Location) -> None:
        self.manifest = manifest
        self._payload, self._path = payload, path
        self._outline: Any = None
        self._by_name: dict[str, Reference] = {}

    def __getitem__(self, name: str) -> Any:
        """Read one array, verify it, and give it as what it was saved from.

        Raises:
            KeyError: no array of that name.
            CheckpointCorrupt: what is there is not what was saved.
        """
        if name not in self:
            raise KeyError(f"{name!r} is no array of {self._path}{nearest(name, self)}")
        if not self._by_name:
            self._by_name = {found.name: found for found in references(self.outline())}
        return self._by_name[name].restore(self._payload.read({name})[name])

    def __contains__(self, name: object) -> bool:
        """Whether there is an array of that name; nothing is read for it."""
        return name in self._payload.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._payload.names)

    def __len__(self) -> int:
        return len(self._payload.names)

    def outline(self) -> Any:
        """The state with a `Reference` in place of every array; nothing is read for it.

        Raises:
            CheckpointCorrupt: the manifest describes no state.
        """
        if self._outline is None:
            try:
                self._outline = outline(self.manifest.skeleton)
            except CheckpointError as error:
                raise self._no_state(error) from error
        return self._outline

    def state(self, part: Part = (), *, verify: bool = True) -> Any:
        """The state, or a part of it, of which only the arrays are read.

        Raises:
            CheckpointCorrupt: what is there is not what was saved.
            CheckpointMismatch: there is no such part.
        """
        names = {r.name for r in references(find(self.outline(), part))} if part else None
        arrays = self._payload.read(names, verify=verify)
        try:
            return restore(self.manifest.skeleton, arrays, part)
        except (CheckpointMismatch, CheckpointUnsupported):
            raise
        except CheckpointError as error:
            raise self._no_state(error) from error

    def stored(self, names: Collection[str]) -> dict[str, Array]:
        """Arrays as the files hold them, by their names there, each verified.

        Raises:
            CheckpointCorrupt: what is there is not what was saved.
        """
        payload = self._payload
        return payload.chunks(names) if isinstance(payload, Shards) else payload.read(names)

    def size_of(self, name: str) -> int:
        """Bytes of an array as a file holds it."""
        info = self.manifest.tensors[name]
        return ITEM_BYTES[info.dtype] * math.prod(info.shape)

    def check(self, names: Collection[str] | None = None) -> None:
        """Verify what the files hold, or arrays of these names there, in constant memory.

        Raises:
            CheckpointCorrupt: what is there is not what was saved.
        """
        self._payload.check(names)

    def _no_state(self, error: CheckpointError) -> CheckpointCorrupt:
        return CheckpointCorrupt(self._path / MANIFEST, "skeleton", expected="a state", found=error)
