"""The spool: where a row is from the moment `record()` returns until PostgreSQL has it.

The rows go through a shared mapping straight into the kernel's pages, so they outlive the process;
a background thread makes them durable. Hot fields are plain attributes: `append` is the
nanosecond path of the whole package.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, time_ns
from zlib import crc32

from qigstore.errors import SpoolFull
from qigstore.recording.spool.cursor import Cursor
from qigstore.recording.spool.frame import (
    HEAD_BYTES,
    KIND_ROW,
    MARKER,
    Layout,
    seed_of,
)
from qigstore.recording.spool.identity import (
    IDENTITY_FILE,
    SpoolIdentity,
    acquire_lock,
)
from qigstore.recording.spool.layouts import Layouts
from qigstore.recording.spool.leftover import remove_folder
from qigstore.recording.spool.segment import Disk, Segment, segment_path

__all__ = ["Spool"]

_log = logging.getLogger("qigstore")
_PAGE = 4096
_BLOCK_BYTES = 1 << 16
"""Names are written again in each such block, so that damage to one copy costs at most a block."""
_AHEAD_BYTES_MAX = 1 << 16
_RETRY_INTERVAL_S = 0.1

_spools: weakref.WeakSet[Spool] = weakref.WeakSet()


def _forget_in_child() -> None:
    for spool in list(_spools):
        spool.forsake()


os.register_at_fork(after_in_child=_forget_in_child)


class Spool(Cursor):
    """The spool of one writer, owned by this process. `Spool.create` makes one.

    Any thread may append while it holds `lock`; the other methods take it themselves. A forked
    child has nothing of it: its rows are counted as dropped.

    Attributes:
        folder, identity: where and whose.
        lock: re-entrant; held around `put`, `append`, and the rules that look at the row.
        dropped: rows that found no room (or came from a forked child, in that child).
    """

    __slots__ = (
        "__weakref__", "_active", "_bytes_max", "_deferred", "_disk", "_folder_dirty", "_layouts",
        "_lock_descriptor", "_next_number", "_notice", "_ready_at", "_retry_at",
        "_segment_bytes", "_segments", "_spare", "_syncing", "_tending", "_warned", "closed",
        "dropped", "folder", "forked", "identity", "lock", "map", "words",
    )  # fmt: skip

    def __init__(
        self,
        folder: Path,
        identity: SpoolIdentity,
        lock_descriptor: int,
        *,
        segment_bytes: int,
        bytes_max: int,
        disk: Disk,
    ) -> None:
        super().__init__()
        self.folder, self.identity = folder, identity
        self.lock = threading.RLock()
        self.seed = seed_of(identity.writer)
        self.dropped = 0
        self.closed = self.forked = False
        self._lock_descriptor = lock_descriptor
        self._disk = disk
        self._bytes_max = bytes_max
        pages = min(segment_bytes, bytes_max // 4) // _PAGE
        self._segment_bytes = max(pages, 2) * _PAGE
        self._segments: list[Segment] = []
        self._active: Segment | None = None
        self._spare: Segment | None = None
        self._layouts = Layouts()
        self._deferred: list[tuple[Layout, int, int, Sequence[float]]] = []
        # One at a time syncs. Whoever unmaps, closes or deletes tends, and never waits for a disk
        # that takes its time to sync.
        self._syncing, self._tending = threading.Lock(), threading.Lock()
        self._next_number = 1
        self._ready_at, self._retry_at = 0, 0.0
        self._warned = False
        self._notice = ""
        self._folder_dirty = True
        self._go_on(self._allocate())
        _spools.add(self)

    @classmethod
    def create(
        cls,
        root: Path,
        identity: SpoolIdentity,
        *,
        segment_bytes: int = 4 << 20,
        bytes_max: int = 1 << 30,
        disk: Disk | None = None,
    ) -> Spool:
        """Make the spool `<root>/<writer>`, locked for as long as this process lives.

        Raises:
            SpoolFull: no room for its first segment.
        """
        disk = disk or Disk()
        disk.make_folders(root)
        folder = root / str(identity.writer)
        # Prepared beside and renamed: no other process ever sees a spool without lock and name.
        beside = root / f".new-{identity.writer}"
        descriptor, mine = -1, beside
        try:
            beside.mkdir(mode=0o700)
            descriptor = acquire_lock(beside, create=True)
            disk.write(beside / IDENTITY_FILE, identity.to_json())
            beside.rename(folder)
            mine = folder
            disk.sync_folder(root)
            return cls(
                folder, identity, descriptor,
                segment_bytes=segment_bytes, bytes_max=bytes_max, disk=disk,
            )  # fmt: skip
        except BaseException as error:
            if descriptor >= 0:
                os.close(descriptor)
            shutil.rmtree(mine, ignore_errors=True)
            if isinstance(error, OSError):
                raise SpoolFull(folder, str(error)) from error
            raise

    # -- the hot path -------------------------------------------------------------------------

    def layout(self, names: tuple[str, ...], dimension: int = 0) -> Layout:
        """The layout of rows with these metrics and a basin of `dimension` numbers.

        Raises:
            InvalidInput: the row, or its names together, would not fit a frame.
        """
        with self.lock:
            return self._layouts.of(names, dimension)

    def append(self, layout: Layout, step: int, regime: int, values: Sequence[float], /) -> bool:
        """Add one row; the caller holds `lock`. False: there was no room, and it is counted.

        Raises:
            struct.error, TypeError, OverflowError: what `struct` cannot pack; nothing was kept.
        """
        if self.busy:
            # A signal handler that records while this very thread is in here: after the row.
            self._deferred.append((layout, step, regime, values))
            return True
        self.busy = True
        try:
            at = self.at
            end = at + layout.size
            if end > self.limit or layout.block != self.block:
                if not self._make_room(layout):
                    self.dropped += 1
                    return False
                at = self.at
                end = at + layout.size
            seq = self.seq + 1
            body = layout.pack(
                layout.words, KIND_ROW, regime, layout.id, seq, step, time_ns(), *values
            )
            first = MARKER | crc32(body, self.seed) << 32
            # From here on nothing is called, so no signal handler can come between. One aligned
            # store comes last: without its marker and CRC the frame is nothing.
            self.map[at + 8 : end] = body
            self.words[at >> 3] = first
            self.seq = seq
            self.at = end
        finally:
            self.busy = False
        if self._deferred:
            self._append_deferred()
        return True

    def _append_deferred(self) -> None:
        while self._deferred:
            self.append(*self._deferred.pop(0))

    # -- room ---------------------------------------------------------------------------------

    def _make_room(self, layout: Layout) -> bool:
        """See that the row fits and that its names are written down in its block."""
        if self._notice:
            _log.warning("%s", self._notice)
            self._notice = ""
        active = self._active
        if active is None or self.closed or self.forked:
            self._warn_once(
                "this process is a fork of the one that records: its rows are not recorded"
                if self.forked
                else f"the spool {self.folder} is closed: rows recorded now are dropped"
            )
            return False
        if self.at + layout.size > active.size and monotonic() < self._retry_at:
            return False  # the disk is full: before anything is spent on the row's names
        if self.at + layout.size > self.limit:
            self._begin_block()
        names = layout.announcement(self.seed) if layout.block != self.block else b""
        if self.at + len(names) + layout.size > active.size:
            names = layout.announcement(self.seed)
            if not self._next_segment(2 * len(names) + layout.size):
                return False
            active = self._active
            assert active is not None
        if names:
            # Twice at first, so that a segment of a single block can lose a copy too.
            copies = 1 if layout.segment == active.number else 2
            if self.at + copies * len(names) + layout.size > active.size:
                copies = 1
            for _ in range(copies):
                self.map[self.at : self.at + len(names)] = names
                self.at += len(names)
            layout.block, layout.segment = self.block, active.number
        self.limit = min(active.size, max(self.limit, self.at + layout.size))
        return True

    def _begin_block(self) -> None:
        self.block += 1
        self.limit = self.at + _BLOCK_BYTES

    def _next_segment(self, need: int) -> bool:
        """Seal the segment in use and go on in a fresh one, unless there is no room."""
        if monotonic() < self._retry_at:
            return False
        segment, self._spare = self._spare, None
        if segment is not None and segment.size < HEAD_BYTES + need:
            segment.discard()
            segment = None
        if segment is None:
            try:
                segment = self._allocate(need)
            except SpoolFull as full:
                self._retry_at = monotonic() + _RETRY_INTERVAL_S
                self._warn_once(str(full))
                return False
        self._go_on(segment)
        return True

    def _go_on(self, segment: Segment) -> None:
        full, end = self._active, self.at
        segment.begin(self.identity.writer, self.seq + 1)
        self._segments.append(segment)
        self._active = segment
        self.map, self.words = segment.map, segment.words
        self.hold(segment.map)
        self.at = HEAD_BYTES
        if full is not None:
            full.seal(end, self.seq)  # last: from now on others may unmap it
        self._begin_block()
        self._warned = False

    def _allocate(self, need: int = 0) -> Segment:
        size = max(self._segment_bytes, -(-(HEAD_BYTES + need) // _PAGE) * _PAGE)
        with self.lock:
            used = sum(segment.size for segment in self._segments)
            number, self._next_number = self._next_number, self._next_number + 1
        if used + size > self._bytes_max:
            raise SpoolFull(self.folder, f"{used} bytes of at most {self._bytes_max} in use")
        try:
            segment = Segment(self._disk, segment_path(self.folder, number), number, size)
        except OSError as error:
            raise SpoolFull(self.folder, str(error)) from error
        self._folder_dirty = True
        return segment

    def _warn_once(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("%s", message)

    def notify(self, message: str) -> None:
        """Have the next `append` say this, once, in the log."""
        with self.lock:
            self._notice = message
            self.block += 1

    # -- behind the hot path: durability, reading, release ---------------------------------------

    def prepare(self) -> None:
        """Have the next pages and the next segment ready, and give back the memory of full ones."""
        self._prepare_pages()
        self._prepare_segment()
        with self._tending:
            # Not only once they are synced: a slow disk would keep all of them in memory.
            for segment in [s for s in self._segments if s.end is not None]:
                segment.unmap()

    def _prepare_pages(self) -> None:
        # A page's first row, and its first after a sync, waits for the kernel to make it writable.
        # As many pages as twice the rows of late: a slow run must not write empty pages all day.
        with self._tending:
            with self.lock:
                segment, at, since = self._active, self.at, self._ready_at
                self._ready_at = at
            if segment is not None and not self.closed and not self.forked and at != since:
                ahead = min(2 * max(at - since, 0), _AHEAD_BYTES_MAX)
                segment.make_writable(at, at + ahead + 1)

    def _prepare_segment(self) -> None:
        with self.lock:
            active = self._active
            if self._spare is not None or active is None or self.closed or self.forked:
                return
            if 2 * self.at < active.size:
                return
        # Made outside the lock: no row waits for it.
        try:
            spare = self._allocate()
        except SpoolFull:
            return  # said, and counted, when a row really needs the room
        with self.lock:
            if self._active is active and not self.closed:
                self._spare = spare
                return
        spare.discard()

    def sync(self) -> None:
        """Make every row recorded before this call durable, and give back memory.

        Raises:
            OSError: the disk refuses; the rows are still in the kernel's pages.
        """
        failed: list[OSError] = []
        with self._syncing:
            with self.lock:
                waiting = [(s, self.at if s is self._active else s.end) for s in self._segments]
            if self.closed or self.forked:
                return
            for segment, end in waiting:
                try:
                    if end is not None and segment.synced < end:
                        self._sync_segment(segment, end)
                except OSError as error:
                    failed.append(error)
                if segment.end is not None and segment.synced >= segment.end:
                    with self._tending:
                        segment.close()
            if self._folder_dirty:
                self._folder_dirty = False
                try:
                    self._disk.sync_folder(self.folder)
                except OSError as error:
                    self._folder_dirty = True
                    if not (self.closed and isinstance(error, FileNotFoundError)):
                        failed.append(error)  # else everything was stored meanwhile
        if failed:
            raise failed[0]
        self._prepare_pages()

    def _sync_segment(self, segment: Segment, end: int) -> None:
        with self._tending:
            # Of its own, so that the segment may be closed meanwhile.
            descriptor = os.dup(segment.descriptor) if segment.descriptor >= 0 else -1
        if descriptor >= 0:
            try:
                self._disk.sync(descriptor)
            except OSError as error:
                # The kernel may have marked the lost pages clean: asking again would lie.
                _log.warning("%s could not be synced (%s): rewriting it", segment.path, error)
            else:
                segment.synced = end
                return
            finally:
                os.close(descriptor)
        with self._tending:
            self._rewrite(segment)

    def _rewrite(self, segment: Segment) -> None:
        if segment not in self._segments or self.closed:
            return  # stored meanwhile, or the next process's
        segment.close_descriptor()
        with self.lock:
            self._retry_at = 0.0
            if segment is self._active and not self._next_segment(0):
                raise OSError(errno.ENOSPC, "no room to rewrite what could not be synced")
        assert segment.end is not None
        self._disk.write(segment.path, segment.read(0, segment.end))
        segment.synced = segment.end
        segment.unmap()

    def spans(self) -> list[tuple[int, int, int]]:
        """Number, first sequence and bytes in use of each segment, in order."""
        with self.lock:
            return [
                (s.number, s.first_seq, self.at if s.end is None else s.end) for s in self._segments
            ]

    def read(self, number: int, start: int, stop: int) -> bytes:
        """A copy of bytes of a segment; empty where it is gone."""
        for segment in list(self._segments):
            if segment.number == number and not self.closed:
                try:
                    return segment.read(start, stop)
                except FileNotFoundError:
                    if not self.closed:  # by now
                        raise
        return b""

    def mine(self, number: int) -> bool:
        """Whether a segment is mapped: what is read of it has never been away on a disk."""
        return any(s.number == number and not s.map.closed for s in self._segments)

    def release(self, acked_seq: int) -> None:
        """Delete the segments of which everything is stored."""
        with self._tending:
            with self.lock:
                done = [s for s in self._segments if s.end is not None and s.last_seq <= acked_seq]
                self._segments = [s for s in self._segments if s not in done]
                if done:
                    self._retry_at = 0.0
            if self.forked:
                return
            for segment in done:
                segment.close()
                segment.path.unlink(missing_ok=True)

    # -- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go: what is not stored is kept, for another process to ship."""
        self._let_go(remove=False)

    def remove(self) -> None:
        """Let go and delete the folder: everything in it is stored."""
        self._let_go(remove=True)

    def _let_go(self, *, remove: bool) -> None:
        with self._tending, self.lock:
            if self.closed or self.forked:
                return
            self.closed = True
            self.limit = self.at = 0
            self.block += 1
            self.hold(None)
            for segment in self._segments:
                segment.close()
            if self._spare is not None:
                self._spare.discard()
            try:
                if remove:
                    remove_folder(self.folder)
            except OSError as error:
                _log.warning("%s is stored but cannot be deleted: %s", self.folder, error)
            finally:
                os.close(self._lock_descriptor)

    def forsake(self) -> None:
        """In a forked child: this is the parent's; keep neither its lock nor its files."""
        self.lock = threading.RLock()
        self._syncing, self._tending = threading.Lock(), threading.Lock()
        self.busy = False
        self._warned = False
        self._deferred.clear()
        if self.closed or self.forked:
            return
        self.forked = True
        self.limit = 0
        self.dropped = 0
        # The lock belongs to the open file, which a fork shares: kept open here it would outlive
        # the parent.
        os.close(self._lock_descriptor)
        for segment in self._segments:
            segment.close_descriptor()
        if self._spare is not None:
            self._spare.close_descriptor()
