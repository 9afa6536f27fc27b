"""The arrays of a checkpoint on their way back: sizes before memory, digests beside the reading.

Arrays that lie next to each other in the file are read together, in runs of some megabytes, into
page-aligned memory of the run; each array is a view of it. A file that is not in the page cache is
read past it, as it was written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from qigstore.checkpoints.arrays import CODES
from qigstore.checkpoints.disk import PAGE
from qigstore.checkpoints.format import Manifest, Slot, layout, root_digest
from qigstore.checkpoints.payload import allocate
from qigstore.errors import CheckpointCorrupt, CheckpointError

__all__ = ["Payload", "runs"]

Array = npt.NDArray[Any]

_CHUNK = 4 << 20
_HOT = 1 << 20
"""What comes from the page cache is hashed in pieces that a core's own cache still holds."""
_RUN = 8 << 20
_READERS = 6
_GAP = 64 << 10
_PAST_CACHE_MIN = 1 << 20


class Payload:
    """A payload file, open, whose kind, size and header are what its manifest says.

    Raises:
        CheckpointCorrupt: they are not; no memory was taken for the arrays.
    """

    def __init__(self, fd: int, path: Path, manifest: Manifest) -> None:
        self._fd, self._path, self._manifest = fd, path, manifest
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointCorrupt(
                path, "kind of file", expected="a regular file", found="another"
            )
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
        self.slots = slots
        self._past_cache = end >= _PAST_CACHE_MIN and not self._cached(end // 2 // PAGE * PAGE)
        self._check_header(header)

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays, in the order of the file."""
        return tuple(slot.name for slot in self.slots)

    def _check_header(self, header: bytes) -> None:
        start = bytearray(len(header))
        self._fill(memoryview(start), 0)
        if start != header:
            raise CheckpointCorrupt(
                self._path, "header", expected="the arrays of the manifest", found="others"
            )
        digests = [self._manifest.tensors[slot.name].blake3 for slot in self.slots]
        self._compare(None, root_digest(header, digests))

    def read(
        self, names: Collection[str] | None = None, *, verify: bool = True
    ) -> dict[str, Array]:
        """These arrays, or all of them, their digests compared unless told not to.

        A few threads each read a run and hash it, so that the disk and the cores both have work.
        The header was compared byte for byte and the arrays fill the rest of the file: that is all
        of it.

        Raises:
            CheckpointCorrupt: what is there is not what the manifest describes.
        """
        slots = [slot for slot in self.slots if names is None or slot.name in names]
        groups = list(runs(slots))
        self._direct(True)
        if len(groups) < 2:
            found = [self._read_run(run, verify) for run in groups]
        else:
            with ThreadPoolExecutor(_READERS, thread_name_prefix="qigstore-read") as pool:
                jobs = [pool.submit(self._read_run, run, verify) for run in groups]
                try:
                    found = [job.result() for job in jobs]
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        return {name: array for arrays in found for name, array in arrays.items()}

    def check(self, names: Collection[str] | None = None) -> None:
        """Verify every array, or these, without keeping it, in constant memory.

        Raises:
            CheckpointCorrupt: what is there is not what the manifest describes.
        """
        self._direct(False)  # one at a time: the kernel reads ahead while this one hashes
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        scratch = memoryview(bytearray(_CHUNK))
        for slot in self.slots:
            if names is not None and slot.name not in names:
                continue
            hasher = blake3()
            for at in range(slot.start, slot.stop, _CHUNK):
                piece = scratch[: min(slot.stop - at, _CHUNK)]
                self._fill(piece, at)
                hasher.update(piece)
            self._compare(slot.name, hasher.hexdigest())

    def _read_run(self, run: list[Slot], verify: bool) -> dict[str, Array]:
        """Read arrays that lie together, and compare their digests."""
        low = run[0].start // PAGE * PAGE
        memory = allocate(run[-1].stop - low)
        arrays = {}
        for slot in run:
            try:
                arrays[slot.name] = np.ndarray(
                    slot.shape, CODES[slot.code], buffer=memory, offset=slot.start - low
                )
            except (ValueError, TypeError) as error:
                what = f"shape of array {slot.name!r:.60}"
                raise CheckpointCorrupt(self._path, what, expected="a shape", found=error) from None
        view, ready = memoryview(memory), low
        chunk = _CHUNK if self._past_cache else _HOT
        for slot in run:
            hasher, at = blake3(), slot.start
            while at < slot.stop:
                if at >= ready:  # what was read just now is hashed while it is in the core's cache
                    end = min(ready + chunk, run[-1].stop)
                    self._fill(view[ready - low : -(-end // PAGE) * PAGE - low], ready, end - ready)
                    ready = end
                upto = min(slot.stop, ready)
                if verify:
                    hasher.update(view[at - low : upto - low])
                at = upto
            if verify:
                self._compare(slot.name, hasher.hexdigest())
        return arrays

    def _fill(self, view: memoryview, at: int, needed: int | None = None) -> None:
        """Read until that many bytes from `at` are there; a short read is carried on."""
        needed, got, cached = len(view) if needed is None else needed, 0, False
        while got < needed:
            try:
                more = os.preadv(self._fd, [view[got:]], at + got)
            except OSError as error:
                if error.errno != errno.EINVAL or cached:
                    raise
                # A disk of larger blocks, or a short read before, which ends between pages.
                self._direct(False)
                cached = True
                continue
            if not more:
                raise CheckpointCorrupt(
                    self._path, "length", expected=f"{needed - got} more bytes", found=0
                )
            got += more

    def _compare(self, name: str | None, found: str) -> None:
        """Compare an array's digest, or without a name the file's, with what the manifest says."""
        manifest = self._manifest
        expected = manifest.payload.blake3 if name is None else manifest.tensors[name].blake3
        if expected != found:
            what = "BLAKE3 of the file" if name is None else f"BLAKE3 of array {name!r:.60}"
            raise CheckpointCorrupt(self._path, what, expected=expected, found=found)

    def _cached(self, at: int) -> bool:
        """Whether that page is in the cache; True also where the kernel cannot tell."""
        try:
            os.preadv(self._fd, [bytearray(PAGE)], at, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
                raise
        return True

    def _direct(self, wanted: bool) -> None:
        """Have reads go past the page cache, where that was found better, or never again."""
        if not self._past_cache:
            return
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~os.O_DIRECT
        with suppress(OSError):  # a file system without it: the cache does, too
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | (os.O_DIRECT if wanted else 0))
        self._past_cache = wanted


def runs(slots: Iterable[Slot]) -> Iterator[list[Slot]]:
    """Neighbours in the file, in groups of some megabytes; a larger array is one by itself."""
    run: list[Slot] = []
    for slot in slots:
        if run and (slot.start - run[-1].stop > _GAP or slot.stop - run[0].start > _RUN):
            yield run
            run = []
        run.append(slot)
    if run:
        yield run
