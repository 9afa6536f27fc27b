"""Folders of checkpoints: `<root>/<session folder>/<id>/`, complete or absent.

A save writes into a fresh `.tmp-<id>`: files, then the manifest, each fsynced; then it fsyncs the
folder, renames it to `<id>` and fsyncs the parent. What has the name of an id is therefore whole.
An id is never written twice. The folder is the truth; a row in the database is an index to it.

A marker file with the store's id lies in the root and in each session's folder, and a save holds
a lock on its `.tmp-` folder: what carries no marker of ours, or is locked, is never removed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import UUID

from qigstore.checkpoints.base import BaseStore
from qigstore.checkpoints.disk import Disk, replace_file, write_all, write_pieces
from qigstore.checkpoints.folders import Folders, open_file, parse_id
from qigstore.checkpoints.format import (
    MANIFEST,
    PAYLOAD,
    Manifest,
    is_payload,
)
from qigstore.checkpoints.holds import Pins, in_use, removing
from qigstore.checkpoints.info import Contents, SaveInfo, contents_of, manifest_of, record_of
from qigstore.checkpoints.json_text import canonical_json
from qigstore.checkpoints.opened import OpenCheckpoint
from qigstore.checkpoints.payload import SMALL_BYTES, Beside, Staged, write_payload
from qigstore.checkpoints.reading import Payload
from qigstore.checkpoints.shards import Shards
from qigstore.errors import CheckpointError, InvalidInput, NotFound
from qigstore.records import Checkpoint

__all__ = ["CheckpointStore"]

_TMP, _TRASH, _QUARANTINE = ".tmp-", ".trash-", ".quarantine"
_SPARE_BYTES = 4 << 20
_PIECE = 8 << 20


class CheckpointStore(BaseStore):
    """Checkpoints of any number of sessions below one root; every write goes through `disk`.

    Payloads below `small_bytes` go through the page cache, which is quicker for them.
    """

    root: Path

    def __init__(
        self, root: Path | str, *, disk: Disk | None = None, small_bytes: int = SMALL_BYTES
    ) -> None:
        self.root = Path(root).expanduser().resolve()
        self._disk = disk or Disk()
        self._small_bytes = small_bytes
        self._folders = Folders(self.root, self._disk)

    def __repr__(self) -> str:
        return f"CheckpointStore({str(self.root)!r})"

    @property
    def id(self) -> UUID | None:
        """The id in the root's marker; None where nothing was saved yet."""
        return self._folders.find_id()

    @property
    def past_cache(self) -> bool | None:
        """Whether the last large payload went past the page cache; None before there was one."""
        return self._disk.past_cache

    # ------------------------------------------------------------ saving

    def commit(self, staged: Staged, info: SaveInfo) -> Checkpoint:
        """Write a staged state; complete or absent, whatever happens.

        Raises:
            CheckpointError: it was not saved (`__cause__` says what failed).
        """
        return self.commit_by(info, staged.size, lambda fresh: self._write(fresh, staged, info))

    def commit_by(self, info: SaveInfo, size: int, write: Callable[[Path], Manifest]) -> Checkpoint:
        """Commit what `write` puts into a fresh folder: about `size` bytes, the manifest last.

        It is locked meanwhile, and removed where `write` fails.

        Raises:
            CheckpointError: it was not saved (`__cause__` says what failed).
        """
        with self._said(info.id, info.session_name, info.step):
            folder = self._folders.session(info.session_name)
            return self._commit(folder, info.id, size, info.session_id, write)

    def finish(self, fresh: Path, info: SaveInfo, contents: Contents) -> Manifest:
        """Write the manifest of a fresh folder whose files are there and fsynced: the last one.

        Raises:
            CheckpointError: larger than any reader would take.
            OSError: the disk refused.
        """
        return self._put(fresh, *manifest_of(info, self._folders.store_id(), contents))

    def _put(self, fresh: Path, manifest: Manifest, data: bytes) -> Manifest:
        write_all(self._disk, fresh / MANIFEST, data)
        self._disk.fsync_folder(fresh)
        return manifest

    def adopt(
        self, known: Manifest, manifest: bytes, fetch: Callable[[str, int, int], bytes]
    ) -> Checkpoint:
        """Commit a checkpoint of this store that was copied elsewhere; verified before it counts.

        Args:
            known, manifest: its manifest, decoded and as it was.
            fetch: bytes of one of its files, from one place to another.

        Raises:
            CheckpointCorrupt: the copy is not what was saved.
            CheckpointError: it is of another store, there already, or was not written.
        """
        with self._said(known.id, known.session, known.step):
            folder = self._folders.session(known.session, store=known.store)
            if known.store != self._folders.store_id():
                raise CheckpointError(
                    f"checkpoint {known.id} is of store {known.store}, here is "
                    f"{self._folders.store_id()} ({self.root}). Adopt it in an empty folder."
                )

            def write(fresh: Path) -> Manifest:
                for name, file in known.files.items():
                    path, size = fresh / name, file.bytes
                    starts = range(0, size, _PIECE)
                    pieces = (fetch(name, at, min(at + _PIECE, size)) for at in starts)
                    write_pieces(self._disk, path, pieces)
                    with path.open("rb") as written:
                        Payload(written.fileno(), path, known.of(name)).check()
                return self._put(fresh, known, manifest)

            return self._commit(folder, known.id, known.bytes, 0, write)

    @contextmanager
    def _said(self, key: UUID, session: str, step: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {key} of session {session!r} (step {step}) was not saved below "
                f"{self.root}: {error}. Earlier ones are as they were."
            ) from error

    def _commit(
        self, folder: Path, key: UUID, size: int, session_id: int, write: Callable[[Path], Manifest]
    ) -> Checkpoint:
        disk, needed, free = self._disk, size + _SPARE_BYTES, self._disk.free_bytes(folder)
        if free < needed:
            raise OSError(errno.ENOSPC, f"it needs {needed} bytes, {free} are free", str(folder))
        target, fresh = folder / str(key), folder / f"{_TMP}{key}"
        made, lock = False, None
        try:
            with disk.locked(folder):
                if os.path.lexists(target) or os.path.lexists(fresh):
                    raise CheckpointError(f"{target} exists already; an id is never written twice")
                disk.mkdir(fresh)
                made = True
                lock = self._lock(fresh)
            manifest = write(fresh)
            disk.rename(fresh, target)
            disk.fsync_folder(folder)
        except BaseException:
            # What stays behind on a disk that fails is found by clean() later.
            with suppress(OSError):
                if made:
                    self._discard(fresh)
            raise
        finally:
            if lock is not None:
                disk.unlock(lock)
        return record_of(manifest, target, session_id, (target / MANIFEST).stat().st_size)

    def _write(self, fresh: Path, staged: Staged, info: SaveInfo) -> Manifest:
        small = staged.size < self._small_bytes
        beside = Beside(partial(self._manifest_of, staged, info), here=small)
        write_payload(self._disk, fresh / PAYLOAD, staged, beside, small=small)
        return self._put(fresh, *beside.result())

    def _manifest_of(self, staged: Staged, info: SaveInfo) -> tuple[Manifest, bytes]:
        return manifest_of(info, self._folders.store_id(), contents_of(staged))

    # ------------------------------------------------------------ reading

    def folder_of(self, session: str) -> Path:
        """The folder of a session, whatever its name."""
        return self._folders.of(session)

    def locate(self, session: str, checkpoint_id: UUID | str) -> Path:
        """Where a checkpoint lies if this store has it.

        Raises:
            InvalidInput: not an id.
        """
        return self.folder_of(session) / str(parse_id(checkpoint_id))

    @contextmanager
    def open(self, path: Path | str) -> Iterator[OpenCheckpoint]:
        """Open a checkpoint whose arrays are read one by one, each verified when it is asked for.

        Raises:
            NotFound, CheckpointCorrupt, CheckpointFormatError: as for `load`.
        """
        with self._folders.open(path) as found:
            manifest = found.manifest
            with ExitStack() as stack:
                payloads = {}
                for name in manifest.files:
                    fd = open_file(found.fd, found.path / name)
                    stack.callback(os.close, fd)
                    payloads[name] = Payload(fd, found.path / name, manifest.of(name))
                whole = payloads.get(PAYLOAD) or Shards(payloads, found.path, manifest)
                yield OpenCheckpoint(manifest, whole, found.path)

    def has(self, path: Path | str) -> bool:
        """Whether anything has that name, whole or not."""
        return os.path.lexists(path)

    def manifest(self, path: Path | str) -> Manifest:
        """The manifest alone, its own digest verified."""
        with self._folders.open(path) as found:
            return found.manifest

    def ids(self, session: str) -> set[UUID]:
        """The ids that a session's folder holds, whole or not, by their names alone."""
        found = set()
        for name in self._names(self.folder_of(session)):
            with suppress(InvalidInput):  # ours are named by an id, everything else is none of ours
                found.add(parse_id(name))
        return found

    def record(self, path: Path | str, *, session_id: int = 0) -> Checkpoint:
        """A checkpoint's record, made from its folder alone."""
        with self._folders.open(path) as found:
            return record_of(found.manifest, found.path, session_id, found.manifest_bytes)

    def _names(self, folder: Path) -> list[str]:
        try:
            return self._disk.listdir(folder)
        except FileNotFoundError:
            return []

    # ------------------------------------------------------------ holding

    def pins(self, session: str) -> Pins:
        """What stays whatever retention says."""
        return Pins(self.folder_of(session), self._disk)

    def in_use(self, path: Path | str) -> AbstractContextManager[None]:
        """Keep a checkpoint from being removed while it is read.

        Raises:
            NotFound: it is being removed now.
        """
        return in_use(Path(path))

    def removing(self, path: Path | str) -> AbstractContextManager[bool]:
        """Hold a checkpoint against readers; False where one reads it, or it is gone."""
        return removing(Path(path), self._disk)

    # ------------------------------------------------------------ putting away

    def quarantine(self, path: Path | str, reason: str) -> Path:
        """Put a checkpoint aside, with the reason beside it; it is never loaded nor deleted.

        Raises:
            NotFound: no such folder.
            OSError: the disk refused.
        """
        session, name = self._folders.inside(Path(path))
        folder = self.root / session
        aside = folder / _QUARANTINE
        with self._disk.locked(folder):
            if not os.path.lexists(folder / name):
                raise NotFound("checkpoint", name, hint=f"There is no folder {folder / name}")
            if not aside.exists():
                self._disk.mkdir(aside)
            target, n = aside / name, 1
            while os.path.lexists(target):
                n += 1
                target = aside / f"{name}-{n}"
            said = {"id": name, "reason": reason, "at": datetime.now(UTC).isoformat()}
            replace_file(self._disk, aside / f"{target.name}.json", canonical_json(said) + b"\n")
            self._disk.rename(folder / name, target)
            self._disk.fsync_folder(aside)
            self._disk.fsync_folder(folder)
        return target

    def delete(self, path: Path | str) -> None:
        """Remove a checkpoint, by rename first, so that it is never seen half there.

        Raises:
            NotFound: no such folder.
            CheckpointError: it cannot be proved to be one of this store; quarantine it instead.
        """
        with self._folders.open(path) as found, self._disk.locked(found.path.parent):
            # Under the lock: another process may have removed it since it was opened.
            if not os.path.lexists(found.path):
                raise NotFound("checkpoint", found.path.name, hint="It was deleted just now")
            ours = all(_is_ours(entry.name) for entry in found.path.iterdir())
            if found.manifest.store != self._folders.store_id() or not ours:
                raise CheckpointError(
                    f"{found.path} is not provably a checkpoint of this store ({self.root}), so "
                    "it is not deleted. Quarantine it, or remove it yourself."
                )
            folder = found.path.parent
            trash = folder / f"{_TRASH}{found.path.name}"
            self._disk.rename(found.path, trash)
            self._disk.fsync_folder(folder)
            self._discard(trash)

    def clean(self, session: str) -> list[Path]:
        """Remove what dead processes left of unfinished saves and deletions; return what it was.

        Removed is only what lies in a folder with this store's marker, holds nothing but a
        checkpoint's files, and is locked by nobody. Anything in doubt stays.
        """
        folder = self.folder_of(session)
        try:
            ours = self._folders.marker(folder).get("store") == str(self._folders.find_id())
        except (CheckpointError, OSError):
            ours = False  # what cannot be read proves nothing
        if not ours:
            return []
        gone = []
        with self._disk.locked(folder):
            for name in self._names(folder):
                if name.startswith((_TMP, _TRASH)) and self._clean_one(folder / name):
                    gone.append(folder / name)
        return gone

    def _clean_one(self, path: Path) -> bool:
        try:
            lock = self._disk.try_lock(path)
        except OSError:
            return False  # no locks on this disk, a link, or gone: in doubt it stays
        if lock is None:
            return False
        try:
            files = [path / name for name in self._disk.listdir(path)]
            if not all(_is_ours(f.name) and stat.S_ISREG(f.lstat().st_mode) for f in files):
                return False
            self._discard(path)
        finally:
            self._disk.unlock(lock)
        return True

    def _discard(self, path: Path) -> None:
        for name in self._names(path):
            self._disk.unlink(path / name)
        if path.exists():
            self._disk.rmdir(path)

    def _lock(self, path: Path) -> int | None:
        try:
            return self._disk.try_lock(path)
        except OSError as error:
            if error.errno == errno.ENOLCK:
                return None
            raise


def _is_ours(name: str) -> bool:
    return name == MANIFEST or is_payload(name)
