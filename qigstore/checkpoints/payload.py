"""The arrays of a checkpoint: copied once into one buffer, hashed beside the writing, read back.

Staging copies every array to its place in one page-aligned buffer that holds exactly the bytes of
the file to be. That copy is all that training waits for.
"""

from __future__ import annotations

import mmap
import os
import stat
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from qigstore.checkpoints.arrays import CODES, NOT_FINITE_MASKS
from qigstore.checkpoints.format import Manifest, Slot, TensorInfo, layout
from qigstore.checkpoints.tree import flatten
from qigstore.errors import CheckpointCorrupt, CheckpointError

__all__ = ["Beside", "Staged", "check_payload", "read_payload", "stage"]

Array = npt.NDArray[Any]

_CHUNK = 4 << 20
_FINITE_CHUNK = 1 << 16


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
class Staged:
    """A copy of a state, in the bytes of its payload file."""

    skeleton: Any
    slots: tuple[Slot, ...]
    raw: Mapping[str, np.dtype[Any]]
    buffer: mmap.mmap
    size: int

    @property
    def view(self) -> memoryview:
        """The bytes of the file."""
        return memoryview(self.buffer)[: self.size]

    def digest(self) -> str:
        """BLAKE3 of the file."""
        return blake3(self.view).hexdigest()

    def tensors(self) -> tuple[dict[str, TensorInfo], list[str]]:
        """The digest of every array, and the names of those that hold NaN or ±inf."""
        view = self.view
        tensors, bad = {}, []
        for slot in self.slots:
            part = view[slot.start : slot.stop]
            tensors[slot.name] = TensorInfo(slot.code, slot.shape, blake3(part).hexdigest())
            if not _finite(part, slot.code, self.raw[slot.name]):
                bad.append(slot.name)
        return tensors, bad


def stage(state: Any, reuse: mmap.mmap | None = None) -> Staged:
    """Copy a state's arrays into one buffer, `reuse` where it is large enough and not far larger.

    Raises:
        CheckpointError: the state holds something that cannot be saved.
    """
    flat = flatten(state)
    header, slots = layout({n: (leaf.code, leaf.shape) for n, leaf in flat.leaves.items()})
    size = slots[-1].stop if slots else len(header)
    buffer = reuse if reuse is not None and size <= len(reuse) <= 2 * size + _CHUNK else None
    buffer = _allocate(size) if buffer is None else buffer
    buffer[: len(header)] = header
    for slot in slots:
        leaf = flat.leaves[slot.name]
        target = np.ndarray(leaf.data.shape, leaf.raw, buffer=buffer, offset=slot.start)
        # The same bytes, whatever the two dtypes are called (bits of bfloat16 are an int16).
        source = leaf.data if leaf.data.dtype.kind == leaf.raw.kind else leaf.data.view(leaf.raw)
        np.copyto(target, source)
    raw = {name: leaf.raw for name, leaf in flat.leaves.items()}
    return Staged(flat.skeleton, slots, raw, buffer, size)


def _allocate(size: int) -> mmap.mmap:
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    buffer = mmap.mmap(-1, pages, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Hints only: a kernel without them does the same, slower. Forked data loaders must not make
    # every later write to the buffer copy a page.
    for hint in ("MADV_DONTFORK", "MADV_HUGEPAGE"):
        with suppress(OSError):
            buffer.madvise(getattr(mmap, hint))
    return buffer


def _finite(part: memoryview, code: str, raw: np.dtype[Any]) -> bool:
    mask = NOT_FINITE_MASKS.get(code)
    if mask is None and raw.kind not in "fc":
        return True
    values = np.frombuffer(part, raw)
    for start in range(0, values.size, _FINITE_CHUNK):
        piece = values[start : start + _FINITE_CHUNK]
        bad = ((piece & mask) == mask).any() if mask else not np.isfinite(piece).all()
        if bad:
            return False
    return True


# ---------------------------------------------------------------- reading


def read_payload(
    fd: int, path: Path, manifest: Manifest, *, verify: bool = True
) -> dict[str, Array]:
    """Read every array into memory of its own, checking sizes first and digests on the way.

    Raises:
        CheckpointCorrupt: what is there is not what the manifest describes.
    """
    reader, _, slots = _open(fd, path, manifest)
    if not verify:
        return {slot.name: _read_array(reader, slot, path, None) for slot in slots}
    hashers = {slot.name: blake3() for slot in slots}
    arrays = {}
    # A second thread hashes what this one reads, so that reading sets the pace. The header was
    # compared byte for byte and the arrays fill the rest of the file, so their digests cover all
    # of it; hashing the file once more (`check_payload` does) would find nothing else.
    beside = _HashBeside()
    try:
        for slot in slots:
            arrays[slot.name] = _read_array(reader, slot, path, (beside, hashers[slot.name]))
    finally:
        beside.end()
    for slot in slots:
        _compare(path, manifest, slot.name, hashers[slot.name])
    return arrays


def check_payload(fd: int, path: Path, manifest: Manifest) -> None:
    """Verify a payload without keeping it, in constant memory.

    Raises:
        CheckpointCorrupt: what is there is not what the manifest describes.
    """
    reader, header, slots = _open(fd, path, manifest)
    whole = blake3(header)
    scratch = memoryview(bytearray(_CHUNK))
    for slot in slots:
        hasher, left = blake3(), slot.stop - slot.start
        while left:
            chunk = scratch[: min(left, _CHUNK)]
            _fill(reader, chunk, path)
            hasher.update(chunk)
            whole.update(chunk)
            left -= len(chunk)
        _compare(path, manifest, slot.name, hasher)
    _compare(path, manifest, None, whole)


def _open(fd: int, path: Path, manifest: Manifest) -> tuple[BinaryIO, bytes, tuple[Slot, ...]]:
    """Check kind, size and header before a byte is allocated for the arrays."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointCorrupt(path, "kind of file", expected="a regular file", found="another")
    try:
        header, slots = layout({n: (t.dtype, t.shape) for n, t in manifest.tensors.items()})
    except (CheckpointError, ValueError) as error:
        raise CheckpointCorrupt(path, "arrays", expected="a layout", found=error) from None
    end = slots[-1].stop if slots else len(header)
    for what, size in (("size", manifest.payload.bytes), ("size of its arrays", end)):
        if size != found.st_size:
            raise CheckpointCorrupt(
                path, what, expected=f"{size} bytes", found=f"{found.st_size} bytes"
            )
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    reader = os.fdopen(fd, "rb", 1 << 20, closefd=False)
    start = bytearray(len(header))
    _fill(reader, memoryview(start), path)
    if start != header:
        raise CheckpointCorrupt(
            path, "header", expected="the arrays of the manifest", found="others"
        )
    return reader, header, slots


def _fill(reader: BinaryIO, view: memoryview, path: Path) -> None:
    got = reader.readinto(view)  # type: ignore[attr-defined]
    if got != len(view):
        raise CheckpointCorrupt(path, "length", expected=f"{len(view)} more bytes", found=got)


def _read_array(
    reader: BinaryIO, slot: Slot, path: Path, hashing: tuple[_HashBeside, blake3] | None
) -> Array:
    """Read one array into memory of its own and have its bytes hashed on the way."""
    try:
        array = np.empty(slot.shape, CODES[slot.code])
    except ValueError as error:
        what = f"shape of array {slot.name!r:.60}"
        raise CheckpointCorrupt(path, what, expected="a shape", found=error) from None
    octets: Any = array.reshape(-1).view(np.uint8)  # some NumPy's stubs know of no buffer
    view = memoryview(octets)
    for start in range(0, len(view), _CHUNK):
        chunk = view[start : start + _CHUNK]
        _fill(reader, chunk, path)
        if hashing is not None:
            beside, hasher = hashing
            beside.add(hasher, chunk)
    return array


def _compare(path: Path, manifest: Manifest, name: str | None, hasher: blake3) -> None:
    """Compare an array's digest, or without a name the file's, with what the manifest says."""
    expected = manifest.payload.blake3 if name is None else manifest.tensors[name].blake3
    found = hasher.hexdigest()
    if expected != found:
        what = "BLAKE3 of the file" if name is None else f"BLAKE3 of array {name!r:.60}"
        raise CheckpointCorrupt(path, what, expected=expected, found=found)


class _HashBeside:
    """A thread that hashes pieces in their order while another one reads on.

    Small pieces go in batches: handing one over costs more than hashing a few kilobytes.
    """

    def __init__(self) -> None:
        self._batch: list[tuple[blake3, memoryview]] = []
        self._size = 0
        self._queue: SimpleQueue[list[tuple[blake3, memoryview]] | None] = SimpleQueue()
        self._job = Beside(self._run, or_here=False)

    def add(self, hasher: blake3, piece: memoryview) -> None:
        """Hash these bytes next; they must not change any more."""
        self._batch.append((hasher, piece))
        self._size += len(piece)
        if self._size >= _CHUNK:
            self._queue.put(self._batch)
            self._batch, self._size = [], 0

    def end(self) -> None:
        """Wait until all is hashed; call it also where reading failed, so that the thread ends."""
        self._queue.put(self._batch)
        self._queue.put(None)
        self._job.result()

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            for hasher, piece in batch:
                hasher.update(piece)
