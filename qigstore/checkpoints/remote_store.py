"""Checkpoints in an object store: `<url>/<session folder>/<id>/`, laid out as in a folder.

There is no rename and no lock. So a save first says whose it is (`upload.json`), then uploads the
payload and compares its size, and the manifest last: an id without a manifest is no checkpoint. A
removal takes the manifest away first. What is put aside gets a note (`quarantine.json`) beside its
manifest, and is then seen no more; nothing is moved.

What was begun and not ended is removed only where its `upload.json` says that it is this store's,
and that its process is dead: it ran on this host and does not live, or a week has gone by.
"""

from __future__ import annotations

import json
import os
import socket
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from qigstore.checkpoints.base import BaseStore
from qigstore.checkpoints.folders import MARKER, parse_id, session_folder
from qigstore.checkpoints.format import MANIFEST, PAYLOAD, Manifest, is_payload
from qigstore.checkpoints.info import SaveInfo, contents_of, manifest_of, record_of
from qigstore.checkpoints.json_text import canonical_json
from qigstore.checkpoints.opened import OpenCheckpoint
from qigstore.checkpoints.payload import SMALL_BYTES, Beside, Staged
from qigstore.checkpoints.ranged import RangedPayload
from qigstore.checkpoints.remote_files import RemoteFiles
from qigstore.checkpoints.remote_pins import RemotePins
from qigstore.checkpoints.shards import Shards
from qigstore.errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointFormatError,
    InvalidInput,
    NotFound,
)
from qigstore.records import Checkpoint, Url

__all__ = ["QUARANTINE", "RemoteStore"]

_UPLOAD, QUARANTINE = "upload.json", "quarantine.json"
_PIECE = 8 << 20
_STALE = timedelta(days=7)


class RemoteStore(BaseStore):
    """Checkpoints of any number of sessions below a URL; `options` go to its file system.

    Durable is what the object store says it is. Nobody is kept from removing what another reads:
    the reader then gets an error.

    Raises:
        CheckpointUnsupported: fsspec, or the package of that protocol, is not installed.
    """

    root: Url

    def __init__(self, url: str, *, small_bytes: int = SMALL_BYTES, **options: Any) -> None:
        self.files = RemoteFiles(url, **options)
        self.root, self._small_bytes = self.files.url, small_bytes
        self._id: UUID | None = None
        self._made: set[str] = set()
        self._saving: set[UUID] = set()

    def __repr__(self) -> str:
        return f"RemoteStore({str(self.root)!r})"

    @property
    def id(self) -> UUID | None:
        """The id in the root's marker; None where nothing was saved yet."""
        if self._id is None and (known := self._note(MARKER)):
            try:
                self._id = UUID(known["store"])
            except (KeyError, ValueError, TypeError, AttributeError):
                raise CheckpointCorrupt(
                    self.root / MARKER, "store id", expected="a UUID", found=known.get("store")
                ) from None
        return self._id

    # ------------------------------------------------------------ saving

    def commit(self, staged: Staged, info: SaveInfo) -> Checkpoint:
        """Upload a staged state, its manifest last; an id is never written twice.

        Raises:
            CheckpointError: it was not saved (`__cause__` says what failed).
        """
        try:
            place = f"{self._session(info.session_name)}/{info.id}"
            if self.files.names(place):
                raise CheckpointError(
                    f"{self.root / place} exists already; an id is never written twice"
                )
            self._saving.add(info.id)
            manifest, data = self._upload(place, staged, info)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {info.id} of session {info.session_name!r} (step {info.step}) was not "
                f"saved at {self.root}: {error}. Earlier ones are as they were."
            ) from error
        finally:
            self._saving.discard(info.id)
        return record_of(manifest, self.root / place, info.session_id, len(data))

    def _upload(self, place: str, staged: Staged, info: SaveInfo) -> tuple[Manifest, bytes]:
        store = self._needed_id()

        def work() -> tuple[Manifest, bytes]:
            return manifest_of(info, store, contents_of(staged))

        try:
            self.files.put(f"{place}/{_UPLOAD}", _claim(store, info.session_name))
            beside = Beside(work, here=staged.size < self._small_bytes)
            try:
                self.files.write(f"{place}/{PAYLOAD}", _pieces(staged))
            finally:
                beside.wait()  # the buffer may be used again when this returns
            manifest, data = beside.result()
        except BaseException:
            with suppress(OSError):  # what stays is found by clean() later
                self._remove(place, (PAYLOAD, _UPLOAD))
            raise
        self._put_manifest(place, data)
        return manifest, data

    def _put_manifest(self, place: str, data: bytes) -> None:
        """Commit. An error does not say whether it was done: what is there now does."""
        name = f"{place}/{MANIFEST}"
        try:
            self.files.put(name, data)
        except OSError as error:
            try:
                if self.files.read(name) == data:
                    return
            except FileNotFoundError:
                self._remove(place, (PAYLOAD, _UPLOAD))
                raise error from None
            except OSError as second:
                raise OSError(
                    f"{error}; and nobody can tell now whether {name} arrived ({second}): if it "
                    "did, the checkpoint is there"
                ) from error
            with suppress(OSError):  # half of it is there: the id was ours alone
                self._remove(place, (MANIFEST, PAYLOAD, _UPLOAD))
            raise

    def _session(self, session: str) -> str:
        """The session's folder, marked where it is not there yet."""
        folder = session_folder(session)
        if folder in self._made:
            return folder
        if self.id is None:
            self._mark(MARKER, {"store": str(uuid4())})
        name = f"{folder}/{MARKER}"
        mine = {"store": str(self._needed_id()), "session": session}
        if not self._note(name):
            self._mark(name, mine)
        known = self._note(name)
        if {key: known.get(key) for key in mine} != mine:
            raise CheckpointError(
                f"{self.root / folder} is not of session {session!r} of this store: its {MARKER} "
                f"says {known or 'nothing'}. Choose another place."
            )
        self._made.add(folder)
        return folder

    def _mark(self, name: str, fields: dict[str, str]) -> None:
        self.files.put(name, canonical_json({"qigstore": 1, **fields}) + b"\n")

    def _needed_id(self) -> UUID:
        found = self.id
        if found is None:
            raise CheckpointError(f"{self.root} has no {MARKER}: it is not a checkpoint store")
        return found

    # ------------------------------------------------------------ reading

    def folder_of(self, session: str) -> Url:
        """Where a session's checkpoints lie, whatever its name."""
        return self.root / session_folder(session)

    def locate(self, session: str, checkpoint_id: UUID | str) -> Url:
        """Where a checkpoint lies if this store has it.

        Raises:
            InvalidInput: not an id.
        """
        return self.folder_of(session) / str(parse_id(checkpoint_id))

    @contextmanager
    def open(self, path: Path | str) -> Iterator[OpenCheckpoint]:
        """Open a checkpoint; of its arrays, what is asked for is fetched and verified.

        Raises:
            NotFound, CheckpointCorrupt, CheckpointFormatError: as for `load`.
        """
        place = self._place(path)
        manifest, _ = self._manifest(place)
        payloads = {}
        for name in manifest.files:
            file = f"{place}/{name}"
            fetch, size = partial(self._fetch, file), self.files.size(file)
            payloads[name] = RangedPayload(fetch, size, self.root / file, manifest.of(name))
        whole = payloads.get(PAYLOAD) or Shards(payloads, self.root / place, manifest)
        yield OpenCheckpoint(manifest, whole, self.root / place)

    def _fetch(self, file: str, start: int, stop: int) -> bytes:
        try:
            return self.files.read(file, start, stop)
        except FileNotFoundError:
            raise CheckpointCorrupt(
                self.root / file, "file", expected="a payload", found="nothing"
            ) from None

    def has(self, path: Path | str) -> bool:
        """Whether anything has that name, whole or not."""
        return bool(self.files.names(self._place(path)))

    def manifest(self, path: Path | str) -> Manifest:
        """The manifest alone, its own digest verified."""
        return self._manifest(self._place(path))[0]

    def record(self, path: Path | str, *, session_id: int = 0) -> Checkpoint:
        """A checkpoint's record, made from its manifest alone."""
        place = self._place(path)
        manifest, data = self._manifest(place)
        return record_of(manifest, self.root / place, session_id, len(data))

    def ids(self, session: str) -> set[UUID]:
        """The ids of a session that have a manifest and were not put aside."""
        found = set()
        for key, names in self.listed(session).items():
            if MANIFEST in names and QUARANTINE not in names:
                found.add(key)
        return found

    def listed(self, session: str) -> dict[UUID, set[str]]:
        """What lies below each id of a session, whole or not."""
        found: dict[UUID, set[str]] = defaultdict(set)
        for name in self.files.names(session_folder(session)):
            first, _, rest = name.partition("/")
            with suppress(InvalidInput):  # ours are named by an id
                found[parse_id(first)].add(rest)
        return found

    def _manifest(self, place: str) -> tuple[Manifest, bytes]:
        folder, _, name = place.partition("/")
        key, file = UUID(name), self.root / place / MANIFEST
        if self.files.size(f"{place}/{QUARANTINE}") is not None:
            raise NotFound("checkpoint", name, hint=f"{self.root / place} was put aside")
        manifest, data = self.files.manifest(place, key)
        if session_folder(manifest.session) != folder:
            raise CheckpointCorrupt(file, "session", expected=folder, found=manifest.session)
        return manifest, data

    def _place(self, path: Path | str) -> str:
        """Session folder and id of a URL, which must lie exactly two levels below the root."""
        given = str(path)
        inside = given.removeprefix(f"{self.root}/") if "://" in given else given
        folder, _, name = inside.partition("/")
        if "://" in inside or not folder or folder.startswith(".") or "/" in name:
            raise CheckpointFormatError(
                given,
                f"this is not a checkpoint below {self.root}; nothing outside is opened. Name one "
                "by its id (`qigstore checkpoints list`).",
            )
        return f"{folder}/{parse_id(name)}"

    def _note(self, name: str) -> dict[str, Any]:
        """The fields of a small object; empty where there is none.

        Raises:
            CheckpointCorrupt: there is one, and it is not what was written.
            OSError: it cannot be read now. That is no proof that it is not there.
        """
        try:
            fields = json.loads(self.files.small(name))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise CheckpointCorrupt(
                self.root / name, "marker", expected="JSON", found=error
            ) from None
        if not isinstance(fields, dict):
            raise CheckpointCorrupt(self.root / name, "marker", expected="an object", found=fields)
        return fields

    # ------------------------------------------------------------ holding

    def pins(self, session: str) -> RemotePins:
        """What stays whatever retention says."""
        return RemotePins(self.files, session_folder(session))

    def in_use(self, path: Path | str) -> nullcontext[None]:
        """Nothing: there are no locks."""
        return nullcontext()

    def removing(self, path: Path | str) -> nullcontext[bool]:
        """Whether it is there: there are no locks."""
        return nullcontext(self.has(path))

    # ------------------------------------------------------------ putting away

    def quarantine(self, path: Path | str, reason: str) -> Url:
        """Note that a checkpoint is put aside; it is never loaded nor deleted from then on.

        Raises:
            NotFound: there is nothing.
            OSError: the store refused.
        """
        place = self._place(path)
        if not self.files.names(place):
            raise NotFound("checkpoint", place.rpartition("/")[2], hint=f"Nothing is at {path}")
        said = {"reason": reason, "at": datetime.now(UTC).isoformat()}
        self.files.put(f"{place}/{QUARANTINE}", canonical_json(said) + b"\n")
        return self.root / place

    def delete(self, path: Path | str) -> None:
        """Remove a checkpoint, its manifest first, so that it is never seen half there.

        Raises:
            NotFound: there is none.
            CheckpointError: it cannot be proved to be one of this store; quarantine it instead.
        """
        place = self._place(path)
        manifest, _ = self._manifest(place)
        names = self.files.names(place)
        if manifest.store != self.id or not all(map(_is_ours, names)):
            raise CheckpointError(
                f"{self.root / place} is not provably a checkpoint of this store, so it is not "
                "deleted. Quarantine it, or remove it yourself."
            )
        self._remove(place, (MANIFEST, *manifest.files, _UPLOAD))

    def clean(self, session: str) -> list[Url]:
        """Remove uploads and removals that did not end and whose process is provably dead."""
        folder, gone = session_folder(session), []
        if self.id is None:
            return []
        for key, names in self.listed(session).items():
            if MANIFEST in names or key in self._saving or not all(map(_is_ours, names)):
                continue
            if self._is_dead(f"{folder}/{key}", session):
                self._remove(f"{folder}/{key}", (*(names - {_UPLOAD}), _UPLOAD))
                gone.append(self.root / folder / str(key))
        return gone

    def _is_dead(self, place: str, session: str) -> bool:
        """Whether its claim is this store's, and of a process that cannot end it any more."""
        try:
            said = self._note(f"{place}/{_UPLOAD}")
            at = datetime.fromisoformat(said["at"])
            ours = (said["store"], said["session"]) == (str(self.id), session)
            stale = datetime.now(UTC) - at > _STALE
            here = said["host"] == socket.gethostname()
            return ours and (stale or (here and not _lives(int(said["pid"]))))
        except (CheckpointError, KeyError, TypeError, ValueError):
            return False  # what cannot be read proves nothing

    def _remove(self, place: str, names: tuple[str, ...]) -> None:
        for name in names:
            self.files.remove(f"{place}/{name}")
        self.files.forget(place)


def _claim(store: UUID, session: str) -> bytes:
    said = {
        "store": str(store),
        "session": session,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "at": datetime.now(UTC).isoformat(),
    }
    return canonical_json(said) + b"\n"


def _lives(pid: int) -> bool:
    """Whether a process of this host has that number; this one's own uploads are known."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _pieces(staged: Staged) -> Iterator[memoryview]:
    for at in range(0, staged.size, _PIECE):
        yield staged.pages[at : min(at + _PIECE, staged.size)]


def _is_ours(name: str) -> bool:
    return name in {MANIFEST, _UPLOAD} or is_payload(name)
