"""What differs between two checkpoints, told from their manifests; arrays are read only if asked.

Equal digests are equal arrays. Only where they differ, and only two arrays of one dtype and shape,
are the numbers read: a piece at a time, their digests verified on the way.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from blake3 import blake3

from qigstore.checkpoints.arrays import CODES
from qigstore.checkpoints.base import BaseStore
from qigstore.checkpoints.folders import open_file
from qigstore.checkpoints.format import Manifest, Slot, TensorInfo, layout
from qigstore.errors import CheckpointCorrupt, CheckpointUnsupported
from qigstore.records import Location

__all__ = ["Difference", "TensorDifference", "compare"]

Kind = Literal["equal", "values", "dtype or shape", "only first", "only second"]

_CHUNK = 4 << 20
_FIELDS = ("session", "attempt", "step", "kind", "phi", "kappa_eff", "regime", "weights_finite")
_BITS = {"BF16", "F8_E4M3", "F8_E5M2"}


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One array of the two; `largest` is max |a − b|, None where it was not (or cannot be) read."""

    name: str
    kind: Kind
    first: TensorInfo | None
    second: TensorInfo | None
    largest: float | None = None
    differing: int | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """Two checkpoints: what is said of them, by name, where it differs, and each array."""

    fields: Mapping[str, tuple[Any, Any]]
    tensors: tuple[TensorDifference, ...]

    @property
    def same(self) -> bool:
        """Whether the states hold the same arrays and nothing else is said of them."""
        return not self.fields and all(item.kind == "equal" for item in self.tensors)


def compare(
    store: BaseStore,
    first: Location,
    second: Location,
    *,
    numbers: bool = True,
    progress: Callable[[int, int], object] = lambda _done, _of: None,
) -> Difference:
    """Compare two checkpoints; `numbers=False` goes by the manifests alone.

    Of what several ranks saved, the chunks are compared, not the arrays that they make up.

    Raises:
        NotFound, CheckpointCorrupt, CheckpointFormatError: as for `CheckpointStore.manifest`.
        CheckpointUnsupported: numbers are asked for, and one is in an object store.
    """
    one, two = store.manifest(first), store.manifest(second)
    if numbers and not (isinstance(first, Path) and isinstance(second, Path)):
        raise CheckpointUnsupported(
            f"the arrays of {first} and {second} are not both on a disk of this machine, so that "
            "their numbers are not compared. Ask for the manifests alone (`--no-values`)."
        )
    sides = (_Side(Path(first), one), _Side(Path(second), two))
    total = sum(s.stop - s.start for s in sides[0].slots.values())
    found, done = [], 0
    for name in sorted(one.tensors.keys() | two.tensors.keys()):
        found.append(_tensor(name, sides, numbers=numbers))
        slot = sides[0].slots.get(name)
        done += slot.stop - slot.start if slot else 0
        progress(done, total)
    return Difference(_fields(one, two), tuple(found))


@dataclass(frozen=True, slots=True)
class _Side:
    folder: Path
    manifest: Manifest

    @property
    def slots(self) -> dict[str, Slot]:
        found: dict[str, Slot] = {}
        for file in self.manifest.files:
            tensors = self.manifest.of(file).tensors
            slots = layout({n: (t.dtype, t.shape) for n, t in tensors.items()})[1]
            found |= {slot.name: slot for slot in slots}
        return found


def _fields(one: Manifest, two: Manifest) -> dict[str, tuple[Any, Any]]:
    pairs = {name: (getattr(one, name), getattr(two, name)) for name in _FIELDS}
    for key in sorted(one.metadata.keys() | two.metadata.keys()):
        pairs[f"metadata.{key}"] = (one.metadata.get(key), two.metadata.get(key))
    pairs["structure"] = (one.skeleton, two.skeleton)
    return {name: (a, b) for name, (a, b) in pairs.items() if not _alike(a, b)}


def _alike(a: Any, b: Any) -> bool:
    both = isinstance(a, float) and isinstance(b, float)
    return a == b or (both and math.isnan(a) and math.isnan(b))


def _tensor(name: str, sides: tuple[_Side, _Side], *, numbers: bool) -> TensorDifference:
    first, second = (side.manifest.tensors.get(name) for side in sides)
    if first is None or second is None:
        return TensorDifference(
            name, "only second" if first is None else "only first", first, second
        )
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return TensorDifference(name, "dtype or shape", first, second)
    if first.blake3 == second.blake3:
        return TensorDifference(name, "equal", first, second)
    if not numbers or first.dtype in _BITS:
        return TensorDifference(name, "values", first, second)
    largest, differing = _numbers(name, sides, first.dtype)
    return TensorDifference(name, "values", first, second, largest, differing)


def _numbers(name: str, sides: tuple[_Side, _Side], code: str) -> tuple[float, int]:
    """max |a − b| over the elements (NaN where one is NaN and the other not), and how many differ.

    Raises:
        CheckpointCorrupt: an array's bytes are not those of its digest.
    """
    largest, differing = 0.0, 0
    dtype = np.dtype(CODES[code])
    for a, b in zip(*(_pieces(side, name) for side in sides), strict=True):
        x, y = np.frombuffer(a, dtype), np.frombuffer(b, dtype)
        other = ~((x == y) | (np.isnan(x) & np.isnan(y)))
        differing += int(other.sum())
        if other.any():
            with np.errstate(invalid="ignore", over="ignore"):
                gap = np.abs(x[other].astype(np.float64) - y[other].astype(np.float64)).max()
            largest = float(np.maximum(largest, gap))  # NaN stays
    return largest, differing


def _pieces(side: _Side, name: str) -> Iterator[bytes]:
    slot, path = side.slots[name], side.folder / side.manifest.tensors[name].file
    hasher, at = blake3(), slot.start
    folder = os.open(side.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fd = open_file(folder, path)
    finally:
        os.close(folder)
    try:
        while at < slot.stop:
            piece = os.pread(fd, min(_CHUNK, slot.stop - at), at)
            wanted = min(_CHUNK, slot.stop - at)
            if len(piece) != wanted:
                raise CheckpointCorrupt(path, "length", expected=wanted, found=len(piece))
            hasher.update(piece)
            at += len(piece)
            yield piece
    finally:
        os.close(fd)
    expected, found = side.manifest.tensors[name].blake3, hasher.hexdigest()
    if expected != found:
        what = f"BLAKE3 of array {name!r:.60}"
        raise CheckpointCorrupt(path, what, expected=expected, found=found)
