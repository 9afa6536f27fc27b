"""One preallocated, mapped file of the spool, and every call to the disk that the spool makes."""

from __future__ import annotations

import mmap
import os
import threading
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from qigstore.recording.spool.frame import HEAD_BYTES, pack_head

__all__ = ["Disk", "Segment", "segment_number", "segment_path"]

_SUFFIX = ".seg"
_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE of Linux 5.14 and later; Python has no name for it yet."""


class Disk:
    """The calls to the disk; tests put a failing one in its place."""

    def allocate(self, path: Path, size: int) -> int:
        """Create a file whose blocks exist, all of them zero; its descriptor.

        A sparse file would turn a full disk into SIGBUS on a later write through the mapping;
        here it is ENOSPC, now.

        Raises:
            OSError: no room, or no such folder; no file is left behind.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
        return descriptor

    def sync(self, descriptor: int) -> None:
        """Make the data of an open file durable."""
        os.fdatasync(descriptor)

    def sync_folder(self, folder: Path) -> None:
        """Make the entries of a folder durable."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def make_folders(self, folder: Path) -> None:
        """Make a folder and whatever is missing above it, each durable in the one above."""
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in made or [folder]:  # its maker may not have come to that yet
            self.sync_folder(path.parent)

    def write(self, path: Path, data: bytes) -> None:
        """Put a whole, durable file in place of `path`, or leave what was there."""
        beside = path.with_name(path.name + ".tmp")
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
            self.sync(descriptor)
        finally:
            os.close(descriptor)
        beside.replace(path)
        self.sync_folder(path.parent)


def segment_path(folder: Path, number: int) -> Path:
    """Where segment `number` lives."""
    return folder / f"{number:08d}{_SUFFIX}"


def segment_number(path: Path) -> int | None:
    """The number of a segment's file; None for any other file."""
    digits = path.name.removesuffix(_SUFFIX)
    return int(digits) if path.suffix == _SUFFIX and digits.isdecimal() else None


class Segment:
    """A file of frames. Mapped while rows are added to it, an ordinary file afterwards.

    Attributes:
        first_seq: sequence of its first row. last_seq: of its last one, once it is sealed.
        end: bytes in use, once it is sealed; None while rows are still added.
        synced: bytes known to be durable.
        map, view, words: its bytes, the same, and the same in words of 8.
    """

    __slots__ = (
        "_mapping", "descriptor", "end", "first_seq", "last_seq", "map", "number", "path", "size",
        "synced", "view", "words",
    )  # fmt: skip

    def __init__(self, disk: Disk, path: Path, number: int, size: int) -> None:
        self.path, self.number, self.size = path, number, size
        self.first_seq = self.last_seq = self.synced = 0
        self.end: int | None = None
        self._mapping = threading.Lock()
        self.descriptor = disk.allocate(path, size)
        try:
            # Populated, so that the first touch of a page is not paid for by a row.
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            self.map = mmap.mmap(self.descriptor, size, flags=flags)
        except OSError:
            os.close(self.descriptor)
            path.unlink()
            raise
        self.view = memoryview(self.map)
        self.words = self.view.cast("Q")

    def begin(self, writer: UUID, first_seq: int) -> None:
        """Write the head: from now on it belongs to the spool."""
        self.first_seq = first_seq
        self.map[:HEAD_BYTES] = pack_head(writer, first_seq)

    def make_writable(self, start: int, stop: int) -> None:
        """Take the page faults of the next rows now; whatever happens, they can be written."""
        stop = min(stop, self.size)
        start -= start % mmap.PAGESIZE
        if not self.map.closed and start < stop:
            # An older kernel does not know the advice, and the rows take their faults themselves.
            with suppress(OSError):
                self.map.madvise(_POPULATE_WRITE, start, stop - start)

    def seal(self, end: int, last_seq: int) -> None:
        """No row is added any more."""
        self.end, self.last_seq = end, last_seq

    def read(self, start: int, stop: int) -> bytes:
        """A copy of some bytes."""
        with self._mapping:
            if not self.map.closed:
                return bytes(self.view[start:stop])
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(max(stop - start, 0))

    def unmap(self) -> None:
        """Give the memory back (a long outage must not grow the process)."""
        with self._mapping:
            if not self.map.closed:
                self.words.release()
                self.view.release()
                self.map.close()

    def close_descriptor(self) -> None:
        """Close the file; once."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def close(self) -> None:
        """Unmap and close."""
        self.unmap()
        self.close_descriptor()

    def discard(self) -> None:
        """Close and delete: nothing in it is wanted."""
        self.close()
        self.path.unlink(missing_ok=True)
