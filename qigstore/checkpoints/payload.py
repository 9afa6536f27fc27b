"""The arrays of a checkpoint on their way out: copied once into one buffer, hashed beside writing.

Staging copies every array to its place in one page-aligned buffer that holds exactly the bytes of
the file to be. That copy is all that training waits for. (`reading` is the way back.)
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from qigstore.checkpoints.arrays import ITEM_BYTES, NOT_FINITE_MASKS, Leaf
from qigstore.checkpoints.disk import PAGE, Disk, write_pages, write_pieces
from qigstore.checkpoints.format import Slot, TensorInfo, layout, root_digest
from qigstore.checkpoints.tree import FlatState, flatten

__all__ = [
    "SMALL_BYTES",
    "Beside",
    "Hashed",
    "Staged",
    "allocate",
    "reserve",
    "size_of",
    "stage",
    "stage_flat",
    "write_payload",
]

_SLACK = 4 << 20
SMALL_BYTES = 1 << 20
"""Below this neither going past the page cache pays nor a second thread that hashes meanwhile."""
_TWO_COPY = 32 << 20
"""Below this one thread copies: a second one would be there when all is done."""
_HOT = 1 << 20
"""A piece that fits a core's own cache, and holds whole items of every dtype."""
_QUICK = 128 << 10
"""Copied in less time than it takes to give Python's lock away and get it back."""


class Beside:
    """Work in a second thread beside this one; its error is raised where the result is asked for.

    `here`: in this thread instead, when it is waited for. So it is also done while an interpreter
    ends: it waits for a save in flight, and starts no thread any more.
    """

    def __init__(self, work: Callable[[], Any], *, here: bool = False) -> None:
        self._work = work
        self._value: Any = None
        self._error: BaseException | None = None
        self._done = False
        self._thread: threading.Thread | None = None
        if not here:
            thread = threading.Thread(target=self._run, name="qigstore-hash", daemon=True)
            with suppress(RuntimeError):
                thread.start()
                self._thread = thread

    def wait(self) -> None:
        """Wait for the end, whatever it is."""
        if self._thread is not None:
            self._thread.join()
        elif not self._done:
            self._run()

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
        self._done = True


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
        """Go over every array once; the second look at a piece finds it in the core's cache.

        Small neighbours of one dtype are looked at together: a call costs more than their bytes.
        """
        view = memoryview(self.buffer)
        tensors, bad = {}, []
        for group in _groups(self.slots):
            finite = True
            for slot in group:
                hasher = blake3()
                for at in range(slot.start, slot.stop, _HOT):
                    piece = view[at : min(at + _HOT, slot.stop)]
                    hasher.update(piece)
                    finite = finite and (len(group) > 1 or self._finite(slot, piece))
                tensors[slot.name] = TensorInfo(slot.code, slot.shape, hasher.hexdigest())
            if len(group) > 1:
                finite = self._finite(group[0], view[group[0].start : group[-1].stop])
            if not finite:
                parts = ((slot, view[slot.start : slot.stop]) for slot in group)
                bad += [slot.name for slot, part in parts if not self._finite(slot, part)]
        root = root_digest(self.header, (info.blake3 for info in tensors.values()))
        return Hashed(root, tensors, tuple(bad))

    def _finite(self, slot: Slot, piece: memoryview) -> bool:
        return not piece or _finite(piece, slot.code, self.raw[slot.name])


def _groups(slots: Iterable[Slot]) -> Iterator[list[Slot]]:
    """Neighbours of one stored dtype, together at most `_HOT` bytes, or one alone."""
    group: list[Slot] = []
    for slot in slots:
        fits = group and slot.code == group[0].code and slot.stop - group[0].start <= _HOT
        # Bytes may be numbers of extended precision, each array of another kind.
        if not fits or slot.code not in NOT_FINITE_MASKS:
            if group:
                yield group
            group = []
        group.append(slot)
    if group:
        yield group


def stage(state: Any, reuse: mmap.mmap | None = None) -> Staged:
    """Copy a state's arrays into one buffer, `reuse` where it is large enough and not far larger.

    Raises:
        CheckpointError: the state holds something that cannot be saved.
    """
    return stage_flat(flatten(state), reuse)


def stage_flat(flat: FlatState, reuse: mmap.mmap | None = None) -> Staged:
    """The same for a state that was taken apart already, each of its leaves a `Leaf`."""
    header, slots, size = _layout_of(flat)
    buffer = _buffer_for(size, reuse)
    buffer[: len(header)] = header

    def copy(part: Sequence[Slot]) -> None:
        for slot in part:
            _copy(flat.leaves[slot.name], slot, buffer)

    # Training waits, so that two cores are free to copy.
    beside = Beside(partial(copy, slots[::2]), here=size < _TWO_COPY)
    try:
        copy(slots[1::2])
    finally:
        beside.wait()
    beside.result()
    raw = {name: leaf.raw for name, leaf in flat.leaves.items()}
    return Staged(flat.skeleton, header, slots, raw, buffer, size)


def _copy(leaf: Leaf, slot: Slot, buffer: mmap.mmap) -> None:
    """Copy an array to its place: the same bytes, whatever the dtypes are called.

    A small one by one call that keeps Python's lock; a large one so that others may run.
    """
    if leaf.fetch is not None:
        # As the dtype that `data` has: bits of bfloat16 are an int16 to torch.
        leaf.fetch(np.ndarray(leaf.data.shape, leaf.data.dtype, buffer=buffer, offset=slot.start))
        return
    data = leaf.data if leaf.data.dtype.kind == leaf.raw.kind else leaf.data.view(leaf.raw)
    if data.nbytes <= _QUICK and data.flags.c_contiguous and data.dtype == leaf.raw:
        octets: Any = data  # some NumPy's stubs know of no buffer
        buffer[slot.start : slot.stop] = octets
    else:
        target = np.ndarray(data.shape, leaf.raw, buffer=buffer, offset=slot.start)
        np.copyto(target, data)


def write_payload(disk: Disk, file: Path, staged: Staged, beside: Beside, *, small: bool) -> None:
    """Write a staged state's file and fsync it; `beside` has ended when this returns.

    `beside` hashes, and encodes what it found, while this thread writes and fsyncs; of a small one
    this thread does so itself, while the disk is at work.
    """
    try:
        if small:
            data = staged.pages[: staged.size]
            write_pieces(disk, file, [data], meanwhile=beside.wait)
        else:
            write_pages(disk, file, staged.pages, staged.size)
    finally:
        beside.wait()  # the buffer may be used again when this returns


def size_of(state: Any) -> int:
    """Bytes that staging such a state takes; a tensor's numbers are not looked at.

    Raises:
        CheckpointError: the state holds something that cannot be saved.
    """
    return _layout_of(flatten(state))[2]


def reserve(size: int, reuse: mmap.mmap | None = None) -> mmap.mmap:
    """The buffer that `stage` would use for a state of this size, its pages there already."""
    buffer = _buffer_for(size, reuse)
    if buffer is not reuse:
        # By NumPy, which gives Python's lock away meanwhile; madvise would keep it.
        np.frombuffer(buffer, np.uint8)[::PAGE] = 0
    return buffer


def _layout_of(flat: FlatState) -> tuple[bytes, tuple[Slot, ...], int]:
    header, slots = layout({n: (leaf.code, leaf.shape) for n, leaf in flat.leaves.items()})
    return header, slots, slots[-1].stop if slots else len(header)


def _buffer_for(size: int, reuse: mmap.mmap | None) -> mmap.mmap:
    fits = reuse is not None and size <= len(reuse) <= 2 * size + _SLACK
    return reuse if reuse is not None and fits else allocate(size, private=True)


def allocate(size: int, *, private: bool = False) -> mmap.mmap:
    """Page-aligned memory of whole pages; `private`: a forked child does not get it.

    Hints only: a kernel without them does the same, slower. Large pages cost a third of small ones
    at first touch. Forked data loaders must not make every later write to the buffer of a save copy
    a page.
    """
    pages = max(-(-size // PAGE), 1) * PAGE
    buffer = mmap.mmap(-1, pages, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    hints = [getattr(mmap, "MADV_DONTFORK", None)] if private else []
    for hint in (*hints, getattr(mmap, "MADV_HUGEPAGE", None)):
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
