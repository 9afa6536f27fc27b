"""The files of a checkpoint that several ranks saved, read as if one process had saved it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qigstore.checkpoints.arrays import CODES
from qigstore.checkpoints.format import MANIFEST, Manifest, WholeArray
from qigstore.errors import CheckpointCorrupt
from qigstore.records import Location

__all__ = ["AnyPayload", "Shards"]

Array = npt.NDArray[Any]


class AnyPayload(Protocol):
    """A payload that is open, wherever it lies."""

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays."""

    def read(
        self, names: Collection[str] | None = None, *, verify: bool = True
    ) -> dict[str, Array]:
        """These arrays, or all of them, their digests compared unless told not to."""

    def check(self, names: Collection[str] | None = None) -> None:
        """Verify every array, or these, without keeping them."""


class Shards:
    """The payload files of a sharded checkpoint, each open; arrays come back whole."""

    def __init__(
        self, payloads: Mapping[str, AnyPayload], folder: Location, manifest: Manifest
    ) -> None:
        self._payloads, self._manifest = payloads, manifest
        self._path = folder / MANIFEST

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays of the state."""
        return tuple(self._manifest.arrays)

    def read(
        self, names: Collection[str] | None = None, *, verify: bool = True
    ) -> dict[str, Array]:
        """These arrays of the state, or all of them, put together from their chunks.

        Raises:
            CheckpointCorrupt: what is there is not what the manifest describes.
        """
        found = {}
        for name, whole in self._manifest.arrays.items():
            if names is not None and name not in names:
                continue
            # One at a time, so that its chunks are let go of before the next one's are read.
            chunks = self.chunks(whole.chunks, verify=verify)
            found[name] = self._joined(name, whole, chunks)
        return found

    def chunks(self, names: Collection[str], *, verify: bool = True) -> dict[str, Array]:
        """Stored arrays by their names in the files.

        Raises:
            CheckpointCorrupt: what is there is not what the manifest describes.
        """
        found: dict[str, Array] = {}
        for file in {self._manifest.tensors[name].file for name in names}:
            mine = {name for name in names if self._manifest.tensors[name].file == file}
            found |= self._payloads[file].read(mine, verify=verify)
        return found

    def check(self, names: Collection[str] | None = None) -> None:
        """Verify every stored array, or these, without keeping it, in constant memory.

        Raises:
            CheckpointCorrupt: what is there is not what the manifest describes.
        """
        for payload in self._payloads.values():
            payload.check(names)

    def _joined(self, name: str, whole: WholeArray, chunks: Mapping[str, Array]) -> Array:
        if len(chunks) == 1:
            (only,) = chunks.values()  # the manifest was decoded: it fills the array
            return only
        try:
            array = np.zeros(whole.shape, CODES[whole.dtype])
        except (ValueError, TypeError, MemoryError) as error:
            what = f"shape of array {name!r:.60}"
            raise CheckpointCorrupt(self._path, what, expected="a shape", found=error) from None
        for key, chunk in chunks.items():
            starts = whole.chunks[key]
            array[
                tuple(slice(at, at + size) for at, size in zip(starts, chunk.shape, strict=True))
            ] = chunk
        return array
