"""What holds a checkpoint besides retention's own roles: pins, and whoever reads it now.

A pin is a small file in the session's folder, `.held/<id>.json`: like the checkpoint itself it is
there whatever becomes of the database, and every process sees it. Who reads a checkpoint has a
shared lock on its folder, and who removes one asks for the exclusive lock first. The lock of
`.held` itself orders pinning, unpinning and pruning: two never prune one session at once.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from qigstore.checkpoints.disk import Disk, open_folder, replace_file
from qigstore.checkpoints.folders import parse_id
from qigstore.checkpoints.json_text import canonical_json, strict_json
from qigstore.errors import CheckpointCorrupt, InvalidInput, NotFound

__all__ = ["Pins", "in_use", "removing"]

_FOLDER, _SUFFIX = ".held", ".json"
_PIN_BYTES_MAX = 1 << 16
_SHARE_WAIT_S = 5.0


class Pins:
    """The pins of one session, whose folder this is."""

    def __init__(self, folder: Path, disk: Disk | None = None) -> None:
        self._folder, self._disk = folder / _FOLDER, disk or Disk()

    def pin(self, checkpoint_id: UUID, note: str = "") -> bool:
        """Keep a checkpoint until it is unpinned; False where it was pinned already.

        Raises:
            NotFound: it is not there.
        """
        path = self._folder.parent / str(checkpoint_id)
        self._make()
        with self._disk.locked(self._folder):
            if not path.is_dir():
                raise NotFound("checkpoint", checkpoint_id, hint=f"There is no folder {path}")
            file = self._file(checkpoint_id)
            if file.exists():
                return False
            at = datetime.now(UTC).isoformat()
            said = {"id": str(checkpoint_id), "note": strict_json(note, "note"), "at": at}
            replace_file(self._disk, file, canonical_json(said) + b"\n")
        return True

    def unpin(self, checkpoint_id: UUID) -> bool:
        """Take the pin away; False where there was none."""
        try:
            with self._disk.locked(self._folder):
                self._disk.unlink(self._file(checkpoint_id))
                self._disk.fsync_folder(self._folder)
        except FileNotFoundError:
            return False
        return True

    def all(self) -> dict[UUID, dict[str, Any]]:
        """Each pinned id, and what was noted; a pin that cannot be read still pins.

        Raises:
            CheckpointCorrupt: a file stands there that is none of ours.
        """
        found = {}
        for name in self._names():
            try:
                found[parse_id(name.removesuffix(_SUFFIX))] = self._read(self._folder / name)
            except InvalidInput as error:
                where = self._folder / name
                raise CheckpointCorrupt(where, "pin", expected="<id>.json", found=error) from None
        return found

    @contextmanager
    def pruning(self) -> Iterator[bool]:
        """Hold the right to prune; False where another process has it, or nothing is there."""
        lock = None
        with suppress(FileNotFoundError):
            self._make()
            try:
                lock = self._disk.try_lock(self._folder)
            except OSError as error:
                if error.errno != errno.ENOLCK:
                    raise
                yield True  # no locks on this disk: each removal alone is still atomic
                return
        try:
            yield lock is not None
        finally:
            if lock is not None:
                self._disk.unlock(lock)

    def _make(self) -> None:
        if not self._folder.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such session folder", str(self._folder))
        with suppress(FileExistsError):
            self._disk.mkdir(self._folder)
            self._disk.fsync_folder(self._folder.parent)

    def _file(self, checkpoint_id: UUID) -> Path:
        return self._folder / f"{checkpoint_id}{_SUFFIX}"

    def _names(self) -> list[str]:
        try:
            names = self._disk.listdir(self._folder)
        except FileNotFoundError:
            return []
        return [name for name in names if not name.endswith(".tmp")]

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            with path.open("rb") as file:
                found = json.loads(file.read(_PIN_BYTES_MAX))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Keep a checkpoint's folder from being removed while it is read.

    Where it is not there, whoever reads it says so.

    Raises:
        NotFound: it is being removed now.
    """
    try:
        fd = open_folder(path)
    except OSError:
        yield
        return
    try:
        _share(fd, path)
        yield
    finally:
        os.close(fd)


def _share(fd: int, path: Path) -> None:
    """Lock the folder shared; whoever has it alone is committing it or removing it."""
    deadline = time.monotonic() + _SHARE_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not path.exists() or time.monotonic() >= deadline:
                hint = "Another process is removing it now"
                raise NotFound("checkpoint", path.name, hint=hint) from None
        except OSError:
            return  # no locks on this disk
        time.sleep(0.005)


@contextmanager
def removing(path: Path, disk: Disk | None = None) -> Iterator[bool]:
    """Hold a checkpoint's folder against readers; False where one reads it, or it is gone."""
    disk = disk or Disk()
    try:
        lock = disk.try_lock(path)
    except OSError as error:
        yield error.errno == errno.ENOLCK
        return
    if lock is None:
        yield False
        return
    try:
        yield True
    finally:
        disk.unlock(lock)
