"""The few calls through which checkpoints reach the disk, so that tests can make any one fail.

Every write, fsync, rename and removal goes through a `Disk`. Reading does not: what was read is
proved by its digest, whatever the disk did.

Large files go past the page cache (O_DIRECT): the kernel then reads the caller's memory itself, and
no core that trains spends time copying it. Where a file system refuses that, which is found out
once for each, they go through the cache, and `Disk.refusals` says so.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qigstore.errors import CheckpointError

__all__ = [
    "PAGE",
    "Disk",
    "open_folder",
    "replace_file",
    "write_all",
    "write_pages",
    "write_pieces",
]

PAGE = mmap.PAGESIZE
"""Memory, offset and length of what goes past the page cache are multiples of this."""

_CHUNK = 8 << 20
_CHUNK_PAST_CACHE = 64 << 20
_O_DIRECT = getattr(os, "O_DIRECT", 0)
_NO_DIRECT = {errno.EINVAL, errno.EOPNOTSUPP}
_log = logging.getLogger(__name__)
_NO_LOCKS = {errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class Disk:
    """The real disk; each method is one system call or two.

    Attributes:
        refusals: why files of a device (`st_dev`) go through the page cache.
        past_cache: whether the last large file went past it; None before there was one.
    """

    def __init__(self) -> None:
        self.refusals: dict[int, str] = {}
        self.past_cache: bool | None = None

    def mkdir(self, path: Path) -> None:
        """Make a folder; it must not exist."""
        path.mkdir()

    def create(self, path: Path, *, replace: bool = False) -> int:
        """Open a file for writing; without `replace` it must not exist. Links are not followed."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags | (os.O_TRUNC if replace else os.O_EXCL), 0o666)

    def write(self, fd: int, data: memoryview) -> int:
        """Write what the kernel takes at once and say how much that was."""
        return os.write(fd, data)

    def bypass(self, fd: int, wanted: bool) -> bool:
        """Have a file's writes go past the page cache or not; False where it cannot be had."""
        flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~_O_DIRECT
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | (_O_DIRECT if wanted else 0))
        except OSError as error:
            if error.errno in _NO_DIRECT:
                return False
            raise
        return bool(_O_DIRECT) or not wanted

    def begin_writing(self, fd: int) -> None:
        """Have the kernel begin to write what it holds of a file (which it then forgets)."""
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def truncate(self, fd: int, size: int) -> None:
        """Cut a file."""
        os.ftruncate(fd, size)

    def fsync(self, fd: int) -> None:
        """Wait until the file is on the disk."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Close the file."""
        os.close(fd)

    def fsync_folder(self, path: Path) -> None:
        """Wait until the folder's entries are on the disk."""
        fd = open_folder(path)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Rename in one step."""
        source.rename(target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def rmdir(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()

    def listdir(self, path: Path) -> list[str]:
        """Names in a folder, sorted."""
        return sorted(entry.name for entry in path.iterdir())

    def free_bytes(self, path: Path) -> int:
        """Bytes that this user may still write there."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def try_lock(self, path: Path) -> int | None:
        """Lock a folder for as long as the descriptor stays open; None where another has it.

        Raises:
            OSError: the file system has no locks (ENOLCK), or the folder is gone.
        """
        fd = open_folder(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError as error:
            os.close(fd)
            if error.errno in _NO_LOCKS:
                raise OSError(errno.ENOLCK, "this file system has no locks", str(path)) from error
            raise
        return fd

    def unlock(self, fd: int) -> None:
        """Give the lock back, also where a forked child still has the descriptor open."""
        try:
            fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)

    @contextmanager
    def locked(self, path: Path, *, timeout_s: float = 10.0) -> Iterator[None]:
        """Hold the folder's lock for a short while; without locks on that disk, go on without.

        Raises:
            CheckpointError: somebody else held it all that time.
        """
        fd = self._wait_for_lock(path, timeout_s)
        try:
            yield
        finally:
            if fd is not None:
                self.unlock(fd)

    def _wait_for_lock(self, path: Path, timeout_s: float) -> int | None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fd = self.try_lock(path)
            except OSError as error:
                if error.errno == errno.ENOLCK:
                    return None
                raise
            if fd is not None:
                return fd
            if time.monotonic() >= deadline:
                raise CheckpointError(
                    f"{path} has been locked by another process for {timeout_s:g} s. "
                    "Look for a stopped process that saves checkpoints there (`fuser -v`)."
                )
            time.sleep(0.01)


def open_folder(name: Path | str, *, dir_fd: int | None = None) -> int:
    """A descriptor of a real folder; a link in its place is refused.

    Raises:
        OSError: not there (ENOENT), a file or a link (ENOTDIR, ELOOP).
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=dir_fd)


def write_all(disk: Disk, path: Path, data: memoryview | bytes, *, replace: bool = False) -> None:
    """Write a whole file and fsync it; a failed fsync is never retried on the same file."""
    write_pieces(disk, path, [data], replace=replace)


def write_pieces(
    disk: Disk,
    path: Path,
    pieces: Iterable[memoryview | bytes],
    *,
    replace: bool = False,
    meanwhile: Callable[[], object] | None = None,
) -> None:
    """Write a file from pieces, one after the other, and fsync it.

    `meanwhile` is done in between, while the disk is at work already.
    """
    fd = disk.create(path, replace=replace)
    try:
        for piece in pieces:
            view = memoryview(piece)
            while view.nbytes:
                view = view[disk.write(fd, view[:_CHUNK]) :]
        if meanwhile is not None:
            disk.begin_writing(fd)
            meanwhile()
        disk.fsync(fd)
    finally:
        disk.close(fd)


def write_pages(disk: Disk, path: Path, pages: memoryview, size: int) -> None:
    """Write a whole file from whole pages of memory, past the page cache if it can be, and fsync.

    The last page is written whole and the file then cut to `size` bytes.
    """
    fd = disk.create(path)
    try:
        past, at = _try_bypass(disk, fd, path), 0
        while at < size:
            if past and at % PAGE:  # after a short write: only whole pages go past the cache
                past = not disk.bypass(fd, False)
            piece = pages[at : at + _CHUNK_PAST_CACHE] if past else pages[at:size][:_CHUNK]
            try:
                at += disk.write(fd, piece)
            except OSError as error:
                if not past or error.errno not in _NO_DIRECT:
                    raise
                past = not disk.bypass(fd, False)
                _refused(disk, fd, path, "write")
        if at > size:
            disk.truncate(fd, size)
        disk.past_cache = past
        disk.fsync(fd)
    finally:
        disk.close(fd)


def _try_bypass(disk: Disk, fd: int, path: Path) -> bool:
    if os.fstat(fd).st_dev in disk.refusals:
        return False
    if disk.bypass(fd, True):
        return True
    _refused(disk, fd, path, "open")
    return False


def _refused(disk: Disk, fd: int, path: Path, call: str) -> None:
    reason = f"the file system below {path.parent.parent} refuses O_DIRECT ({call})"
    disk.refusals[os.fstat(fd).st_dev] = reason
    _log.info("%s: checkpoints go through the page cache, which takes more of training", reason)


def replace_file(disk: Disk, path: Path, data: bytes) -> None:
    """Write a small file so that it is there whole or not at all, also after a power loss."""
    fresh = path.with_name(path.name + ".tmp")
    write_all(disk, fresh, data, replace=True)
    disk.rename(fresh, path)
    disk.fsync_folder(path.parent)
