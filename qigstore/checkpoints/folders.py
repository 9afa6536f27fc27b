"""Where checkpoints lie: the root, a folder a session, a folder a checkpoint; and whose they are.

A marker file with the store's id lies in the root and in each session's folder. No link is
followed below the root, and nothing outside it is ever opened.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from qigstore.checkpoints.disk import Disk, open_folder, replace_file
from qigstore.checkpoints.format import (
    MANIFEST,
    MANIFEST_BYTES_MAX,
    Manifest,
    decode_manifest,
)
from qigstore.checkpoints.json_text import canonical_json
from qigstore.errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointFormatError,
    InvalidInput,
    NotFound,
)

__all__ = ["MARKER", "Folders", "Opened", "open_file", "parse_id", "session_folder"]

MARKER = "qigstore.json"
_MARKER_BYTES_MAX = 1 << 16


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint's folder, open, and its manifest, verified against its own digest."""

    path: Path
    fd: int
    manifest: Manifest
    manifest_bytes: int


class Folders:
    """The folders and markers below one root."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self.root = root
        self._disk = disk
        self._id: UUID | None = None
        self._made: set[Path] = set()

    def of(self, session: str) -> Path:
        """The folder of a session, whatever its name."""
        return self.root / session_folder(session)

    def session(self, session: str, *, store: UUID | None = None) -> Path:
        """The session's folder, made and marked where it is not there yet.

        `store`: the id that a root without a marker is given, so that copies of a store's
        checkpoints that come back to another machine are its own again.
        """
        folder = self.of(session)
        if folder in self._made and folder.is_dir():
            return folder
        self.root.mkdir(parents=True, exist_ok=True)
        with self._disk.locked(self.root):
            if self.find_id() is None:
                self._mark(self.root, {"store": str(store or uuid4())})
                self._disk.fsync_folder(self.root.parent)
            if not os.path.lexists(folder):
                self._disk.mkdir(folder)
                self._disk.fsync_folder(self.root)
            known = self.marker(folder)
            if not known and not set(self._disk.listdir(folder)) - {MARKER + ".tmp"}:
                known = {"store": str(self.store_id()), "session": session}
                self._mark(folder, known)
        if known.get("store") != str(self.store_id()) or known.get("session") != session:
            raise CheckpointError(
                f"{folder} is not the folder of session {session!r} of this store: its "
                f"{MARKER} says {known or 'nothing'}. Move it away, or choose another root."
            )
        self._made.add(folder)
        return folder

    def _mark(self, folder: Path, fields: dict[str, str]) -> None:
        replace_file(self._disk, folder / MARKER, canonical_json({"qigstore": 1, **fields}) + b"\n")

    def marker(self, folder: Path) -> dict[str, Any]:
        """The fields of a folder's marker; empty where there is none.

        Raises:
            CheckpointCorrupt: there is one, and it is not what was written.
            OSError: it cannot be read now. That is no proof that it is not there.
        """
        try:
            fd = open_folder(folder)
        except FileNotFoundError:
            return {}
        path = folder / MARKER
        try:
            os.stat(MARKER, dir_fd=fd, follow_symlinks=False)
            fields = json.loads(_read_small(fd, path, _MARKER_BYTES_MAX))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise CheckpointCorrupt(path, "marker", expected="JSON", found=error) from None
        finally:
            os.close(fd)
        if not isinstance(fields, dict):
            raise CheckpointCorrupt(path, "marker", expected="an object", found=fields)
        return fields

    def find_id(self) -> UUID | None:
        """The id of the store that lies here, None where there is none yet."""
        if self._id is None:
            known = self.marker(self.root).get("store")
            if known is None:
                return None
            try:
                self._id = UUID(known)
            except (ValueError, TypeError, AttributeError):
                raise CheckpointCorrupt(
                    self.root / MARKER, "store id", expected="a UUID", found=known
                ) from None
        return self._id

    def store_id(self) -> UUID:
        """The id of the store that lies here.

        Raises:
            CheckpointError: there is none.
        """
        found = self.find_id()
        if found is None:
            raise CheckpointError(f"{self.root} has no {MARKER}: it is not a checkpoint store")
        return found

    @contextmanager
    def open(self, path: Path | str) -> Iterator[Opened]:
        """Open a checkpoint's folder without following a link below the root.

        Raises:
            NotFound: no such folder.
            CheckpointCorrupt: its manifest is not what was written, or of another checkpoint.
            CheckpointFormatError: written by a newer version, or not below this root.
        """
        path = Path(path)
        session, name = self.inside(path)
        path = self.root / session / name
        outer = inner = None
        try:
            try:
                outer = open_folder(self.root / session)
                inner = open_folder(name, dir_fd=outer)
            except FileNotFoundError:
                raise NotFound("checkpoint", name, hint=f"There is no folder {path}") from None
            except OSError as error:
                if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
                    raise
                raise CheckpointFormatError(
                    path,
                    "a link or a file stands where a checkpoint's folder should be, and is not "
                    "followed. Move the folder itself here, or restore another one "
                    "(`qigstore checkpoints list`).",
                ) from None
            data = _read_small(inner, path / MANIFEST, MANIFEST_BYTES_MAX)
            manifest = decode_manifest(path / MANIFEST, data)
            owner = self.of(manifest.session).name
            for what, said, place in (("id", str(manifest.id), name), ("session", owner, session)):
                if said != place:
                    raise CheckpointCorrupt(path / MANIFEST, what, expected=place, found=said)
            yield Opened(path, inner, manifest, len(data))
        finally:
            for fd in (inner, outer):
                if fd is not None:
                    os.close(fd)

    def inside(self, path: Path) -> tuple[str, str]:
        """Session folder and id of a path, which must lie exactly two levels below the root."""
        if not path.is_absolute():
            path = self.root / path
        session, name = path.parent.name, path.name
        root = path.parent.parent
        if ".." in path.parts or (root != self.root and root.resolve() != self.root):
            raise CheckpointFormatError(
                path,
                f"this is not a checkpoint below {self.root}; nothing outside is opened. Name one "
                "by its id (`qigstore checkpoints list`).",
            )
        return session, str(parse_id(name))


def session_folder(session: str) -> str:
    """The name of a session's folder, for any name: a readable part and a hash of the whole."""
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", session).strip("-")[:40] or "session"
    name = session.encode("utf-8", "surrogatepass")
    return f"{slug}-{hashlib.sha256(name).hexdigest()[:16]}"


def parse_id(text: UUID | str) -> UUID:
    """The id that a folder is named after.

    Raises:
        InvalidInput: not a UUID in its canonical form.
    """
    try:
        found = UUID(str(text))
    except ValueError:
        raise InvalidInput("checkpoint id", text, "a UUID") from None
    if str(found) != str(text):
        raise InvalidInput("checkpoint id", text, f"the canonical form {found}")
    return found


def open_file(dir_fd: int, path: Path) -> int:
    """Open a file of a folder for reading; a link or anything but a file is refused."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path.name, flags, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ELOOP, errno.ENXIO}:
            raise
        found = "nothing" if error.errno == errno.ENOENT else "a link or a device"
        raise CheckpointCorrupt(path, "file", expected="a regular file", found=found) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CheckpointCorrupt(path, "file", expected="a regular file", found="something else")
    return fd


def _read_small(dir_fd: int, path: Path, limit: int) -> bytes:
    fd = open_file(dir_fd, path)
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(fd).st_size
        if size > limit:
            raise CheckpointCorrupt(path, "size", expected=f"up to {limit} bytes", found=size)
        return file.read(limit + 1)
