"""The arrays of a checkpoint on their way out: copied once into one buffer, hashed beside writing.

Staging copies every array to its place in one page-aligned buffer that holds exactly the bytes of
the file to be. That copy is all that training waits for. (`reading` is the way back.)
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from blake3 import blake3

from qigstore.checkpoints.arrays import ITEM_BYTES, NOT_FINITE_MASKS
from qigstore.checkpoints.disk import PAGE
from qigstore.checkpoints.format import Slot, TensorInfo, layout, root_digest
from qigstore.checkpoints.tree import flatten

__all__ = ["Beside", "Hashed", "Staged", "allocate", "stage"]

_SLACK = 4 << 20
_TWO_THREADS_MIN = 32 << 20
_HOT = 1 << 20
"""A piece that fits a core's own cache, and holds whole items of every dtype."""
_POPULATE = 23
"""MADV_POPULATE_WRITE (Linux 5.14), which Python's mmap has no name for."""


class Beside:
    """Work in a second thread beside this one; its error is raised where the result is asked for.

    While an interpreter ends it waits for a save in flight, and may start no thread any more: then
    the work is done here at once (`or_here`), or RuntimeError says so.
    """

    def __init__(self, work: Callable[[], Any], *, or_here: bool = True) -> None:
        self._work = work
        self._value: Any = None
        self._error: BaseException | None = None
        thread = threading.Thread(target=self._run, name="qigstore-hash", daemon=True)
        self._thread: threading.Thread | None = thread
        try:
            thread.start()
        except RuntimeError:
            if not or_here:
                raise
            self._thread = None
            self._run()

    def wait(self) -> None:
        """Wait for the end, whatever it is."""
        if self._thread is not None:
            self._thread.join()

    def result(self) -> Any:
        """Wait for the end; return what the work returned, or raise what it raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._value

    def _run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:
            self._error = error


@dataclass(frozen=True, slots=True)
class Hashed:
    """What hashing a staged state finds: digests, and the names of arrays with NaN or ±inf."""

    root: str
    tensors: Mapping[str, TensorInfo]
    not_finite: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Staged:
    """A copy of a state, in the bytes of its payload file."""

    skeleton: Any
    header: bytes
    slots: tuple[Slot, ...]
    raw: Mapping[str, np.dtype[Any]]
    buffer: mmap.mmap
    size: int

    @property
    def pages(self) -> memoryview:
        """The bytes of the file, and of the buffer to the end of the last page."""
        return memoryview(self.buffer)[: -(-self.size // PAGE) * PAGE]

    def hashed(self) -> Hashed:
        """Go over every array once, in pieces that the second look finds in the core's cache."""
        view = memoryview(self.buffer)
        tensors, bad = {}, []
        for slot in self.slots:
            hasher, finite = blake3(), True
            for at in range(slot.start, slot.stop, _HOT):
                piece = view[at : min(at + _HOT, slot.stop)]
                hasher.update(piece)
                finite = finite and _finite(piece, slot.code, self.raw[slot.name])
            tensors[slot.name] = TensorInfo(slot.code, slot.shape, hasher.hexdigest())
            if not finite:
                bad.append(slot.name)
        root = root_digest(self.header, (info.blake3 for info in tensors.values()))
        return Hashed(root, tensors, tuple(bad))


def stage(state: Any, reuse: mmap.mmap | None = None) -> Staged:
    """Copy a state's arrays into one buffer, `reuse` where it is large enough and not far larger.

    Raises:
        CheckpointError: the state holds something that cannot be saved.
    """
    flat = flatten(state)
    header, slots = layout({n: (leaf.code, leaf.shape) for n, leaf in flat.leaves.items()})
    size = slots[-1].stop if slots else len(header)
    buffer = reuse if reuse is not None and size <= len(reuse) <= 2 * size + _SLACK else None
    buffer = allocate(size, private=True) if buffer is None else buffer
    buffer[: len(header)] = header

    def copy(part: Sequence[Slot]) -> None:
        for slot in part:
            leaf = flat.leaves[slot.name]
            target = np.ndarray(leaf.data.shape, leaf.raw, buffer=buffer, offset=slot.start)
            # The same bytes, whatever the dtypes are called (bits of bfloat16 are an int16).
            same = leaf.data.dtype.kind == leaf.raw.kind
            np.copyto(target, leaf.data if same else leaf.data.view(leaf.raw))

    if size < _TWO_THREADS_MIN:
        copy(slots)
    else:  # training waits, so that two cores are free to copy
        beside = Beside(lambda: copy(slots[::2]))
        try:
            copy(slots[1::2])
        finally:
            beside.result()
    raw = {name: leaf.raw for name, leaf in flat.leaves.items()}
    return Staged(flat.skeleton, header, slots, raw, buffer, size)


def allocate(size: int, *, private: bool = False) -> mmap.mmap:
    """Page-aligned memory of whole pages; `private`: a forked child does not get it.

    Hints only: a kernel without them does the same, slower. Large pages, all at once, cost a third
    of touching small ones one by one. Forked data loaders must not make every later write to the
    buffer of a save copy a page.
    """
    pages = max(-(-size // PAGE), 1) * PAGE
    buffer = mmap.mmap(-1, pages, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    hints = [getattr(mmap, "MADV_DONTFORK", None)] if private else []
    for hint in (*hints, getattr(mmap, "MADV_HUGEPAGE", None), _POPULATE):
        if hint is not None:
            with suppress(OSError):
                buffer.madvise(hint)
    return buffer


def _finite(piece: memoryview, code: str, raw: np.dtype[Any]) -> bool:
    """Whether no value is NaN or ±inf, without a copy of the array."""
    mask = NOT_FINITE_MASKS.get(code)
    if mask is None:  # extended precision is stored as bytes
        return raw.kind not in "fc" or bool(np.isfinite(np.frombuffer(piece, raw)).all())
    # As integers these bits are the largest of either sign, which two maxima show.
    width = ITEM_BYTES[code]
    bits = np.frombuffer(piece, f"<u{width}")
    sign = 1 << (8 * width - 1)
    return int(bits.max()) < sign | mask and int(bits.view(f"<i{width}").max()) < mask
