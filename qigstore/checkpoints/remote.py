"""Copies of a store's checkpoints elsewhere: S3, GCS, Azure, SFTP, whatever `fsspec` knows.

An object store has no rename. So the payload is copied first and its size compared, and the
manifest last: an id without a manifest is no checkpoint. What comes back is verified, byte for
byte, before it gets its name in the local store.

::

    copies = RemoteCopies(store, "s3://bucket/checkpoints")
    copies.push(store.locate("ocean", checkpoint_id))
    # on another machine, in an empty folder
    copies.pull("ocean", max(copies.manifests("ocean"), key=lambda m: m.step).id)
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from qigstore.checkpoints.folders import parse_id
from qigstore.checkpoints.format import (
    MANIFEST,
    Manifest,
)
from qigstore.checkpoints.remote_files import RemoteFiles
from qigstore.checkpoints.store import CheckpointStore
from qigstore.errors import (
    CheckpointCorrupt,
    CheckpointError,
    InvalidInput,
)
from qigstore.records import Checkpoint

__all__ = ["RemoteCopies"]


class RemoteCopies:
    """Copies below a URL; `options` go to the file system of its protocol.

    Raises:
        CheckpointUnsupported: fsspec, or the package of that protocol, is not installed.
    """

    def __init__(self, store: CheckpointStore, url: str, **options: Any) -> None:
        self.store, self.url = store, url
        self._remote = RemoteFiles(url, **options)
        self._files, self._root = self._remote.fs, self._remote.root

    def push(self, path: Path | str) -> str:
        """Verify a checkpoint and copy it; returns where to. A copy that is there stays.

        Raises:
            NotFound, CheckpointCorrupt, CheckpointFormatError: see `CheckpointStore.verify`.
            CheckpointError: it did not arrive whole.
        """
        manifest = self.store.verify(path)
        source = self.store.locate(manifest.session, manifest.id)
        target = self._place(manifest.session, manifest.id)
        if self._files.exists(f"{target}/{MANIFEST}"):
            return target
        self._files.makedirs(target, exist_ok=True)
        for name in (*manifest.files, MANIFEST):
            size = (source / name).stat().st_size
            self._files.put_file(str(source / name), f"{target}/{name}")
            self._files.invalidate_cache()
            found = self._files.info(f"{target}/{name}")["size"]
            if found != size:
                raise CheckpointError(
                    f"{target}/{name} at {self.url}: expected {size} bytes, found {found}. The "
                    "copy is no checkpoint; push it again."
                )
        return target

    def ids(self, session: str) -> set[UUID]:
        """The ids of a session that have a manifest there."""
        self._files.invalidate_cache()
        found = set()
        with suppress(FileNotFoundError):
            for name in self._files.ls(self._folder(session), detail=False):
                with suppress(InvalidInput):  # ours are named by an id
                    found.add(parse_id(name.rstrip("/").rsplit("/", 1)[-1]))
        return {
            key for key in found if self._files.exists(f"{self._place(session, key)}/{MANIFEST}")
        }

    def manifests(self, session: str) -> list[Manifest]:
        """The manifests of a session's copies, by attempt, step and id, each verified."""
        found = [self._manifest(session, key)[0] for key in self.ids(session)]
        return sorted(found, key=lambda item: (item.attempt, item.step, item.id))

    def pull(self, session: str, checkpoint_id: UUID | str) -> Checkpoint:
        """Copy a checkpoint back into the local store, as a save would be committed.

        Raises:
            NotFound: there is no such copy.
            CheckpointCorrupt: the copy is not what was saved; nothing was committed.
            CheckpointError: it is of another store, or here already.
        """
        key = parse_id(checkpoint_id)
        manifest, data = self._manifest(session, key)
        place = self._place(session, key)

        def fetch(name: str, start: int, stop: int) -> bytes:
            found: bytes = self._files.cat_file(f"{place}/{name}", start=start, end=stop)
            return found

        return self.store.adopt(manifest, data, fetch)

    def delete(self, session: str, checkpoint_id: UUID | str) -> None:
        """Remove a copy, its manifest first.

        Raises:
            NotFound: there is no such copy.
            CheckpointError: its manifest does not prove that it is this store's.
        """
        key = parse_id(checkpoint_id)
        manifest = self._manifest(session, key)[0]
        owner = manifest.store
        if owner != self.store.id:
            raise CheckpointError(
                f"the copy of {key} at {self.url} is of store {owner}, this one is "
                f"{self.store.id} ({self.store.root}); it is not deleted. Remove it yourself."
            )
        for name in (MANIFEST, *manifest.files):
            self._files.rm_file(f"{self._place(session, key)}/{name}")
        with suppress(OSError, NotImplementedError):  # object stores have no folders
            self._files.rmdir(self._place(session, key))

    def _manifest(self, session: str, key: UUID) -> tuple[Manifest, bytes]:
        place = f"{self.store.folder_of(session).name}/{key}"
        manifest, data = self._remote.manifest(place, key)
        if manifest.session != session:
            path = self._remote.url / place / MANIFEST
            raise CheckpointCorrupt(path, "session", expected=session, found=manifest.session)
        return manifest, data

    def _folder(self, session: str) -> str:
        return f"{self._root}/{self.store.folder_of(session).name}"

    def _place(self, session: str, key: UUID) -> str:
        return f"{self._folder(session)}/{key}"
