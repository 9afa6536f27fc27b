"""A payload in an object store: only the ranges that are asked for are fetched, each verified."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from qigstore.checkpoints.arrays import CODES
from qigstore.checkpoints.format import Manifest, Slot, layout, root_digest
from qigstore.checkpoints.reading import runs
from qigstore.errors import CheckpointCorrupt, CheckpointError
from qigstore.records import Url

__all__ = ["RangedPayload"]

Array = npt.NDArray[Any]
_CHUNK = 8 << 20
_READERS = 4


class RangedPayload:
    """A payload whose size and header are what its manifest says.

    Args:
        fetch: bytes of it, from one place to another.
        size: how many there are; None: there is no such object.

    Raises:
        CheckpointCorrupt: they are not; no memory was taken for the arrays.
    """

    def __init__(
        self, fetch: Callable[[int, int], bytes], size: int | None, url: Url, manifest: Manifest
    ) -> None:
        self._fetch, self._url, self._manifest = fetch, url, manifest
        if size is None:
            raise CheckpointCorrupt(url, "file", expected="a payload", found="nothing")
        try:
            header, slots = layout({n: (t.dtype, t.shape) for n, t in manifest.tensors.items()})
        except (CheckpointError, ValueError) as error:
            raise CheckpointCorrupt(url, "arrays", expected="a layout", found=error) from None
        end = slots[-1].stop if slots else len(header)
        for what, said in (("size", manifest.payload.bytes), ("size of its arrays", end)):
            if said != size:
                raise CheckpointCorrupt(url, what, expected=f"{said} bytes", found=f"{size} bytes")
        self._slots = slots
        if self._range(0, len(header)) != header:
            raise CheckpointCorrupt(
                url, "header", expected="the arrays of the manifest", found="others"
            )
        root = root_digest(header, [manifest.tensors[slot.name].blake3 for slot in slots])
        self._compare("BLAKE3 of the file", manifest.payload.blake3, root)

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays, in the order of the file."""
        return tuple(slot.name for slot in self._slots)

    def read(
        self, names: Collection[str] | None = None, *, verify: bool = True
    ) -> dict[str, Array]:
        """These arrays, or all of them, their digests compared unless told not to.

        Raises:
            CheckpointCorrupt: what is there is not what the manifest describes.
        """
        wanted = list(runs(self._chosen(names)))

        def read_run(run: list[Slot]) -> dict[str, Array]:
            return self._read_run(run, verify)

        with ThreadPoolExecutor(_READERS, thread_name_prefix="qigstore-fetch") as pool:
            found = list(pool.map(read_run, wanted))
        return {name: array for arrays in found for name, array in arrays.items()}

    def check(self, names: Collection[str] | None = None) -> None:
        """Verify every array, or these, in constant memory.

        Raises:
            CheckpointCorrupt: what is there is not what the manifest describes.
        """
        for slot in self._chosen(names):
            hasher = blake3()
            for at in range(slot.start, slot.stop, _CHUNK):
                hasher.update(self._range(at, min(at + _CHUNK, slot.stop)))
            self._check(slot, hasher.hexdigest())

    def _chosen(self, names: Collection[str] | None) -> Iterator[Slot]:
        return (slot for slot in self._slots if names is None or slot.name in names)

    def _read_run(self, run: list[Slot], verify: bool) -> dict[str, Array]:
        low, high = run[0].start, run[-1].stop
        memory = bytearray(high - low)
        for at in range(low, high, _CHUNK):
            upto = min(at + _CHUNK, high)
            memory[at - low : upto - low] = self._range(at, upto)
        arrays: dict[str, Array] = {}
        for slot in run:
            part = memoryview(memory)[slot.start - low : slot.stop - low]
            if verify:
                self._check(slot, blake3(part).hexdigest())
            try:
                flat = np.frombuffer(part, CODES[slot.code])
                arrays[slot.name] = flat.reshape(slot.shape)
            except ValueError as error:
                what = f"shape of array {slot.name!r:.60}"
                raise CheckpointCorrupt(self._url, what, expected="a shape", found=error) from None
        return arrays

    def _range(self, start: int, stop: int) -> bytes:
        """Bytes from one place to another; fewer are a damaged payload."""
        if start == stop:
            return b""
        data = self._fetch(start, stop)
        if len(data) != stop - start:
            raise CheckpointCorrupt(
                self._url, "length", expected=f"{stop - start} bytes", found=len(data)
            )
        return data

    def _check(self, slot: Slot, found: str) -> None:
        expected = self._manifest.tensors[slot.name].blake3
        self._compare(f"BLAKE3 of array {slot.name!r:.60}", expected, found)

    def _compare(self, what: str, expected: str, found: str) -> None:
        if expected != found:
            raise CheckpointCorrupt(self._url, what, expected=expected, found=found)
