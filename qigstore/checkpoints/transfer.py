"""Copies of a checkpoint that leave this store, and their way into another one; verified.

Every byte of a copy is compared with the manifest's digests when it is read back from where it
went. A copy appears whole or not at all, and replaces nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from qigstore.checkpoints.disk import Disk, write_all
from qigstore.checkpoints.folders import Folders, open_file
from qigstore.checkpoints.format import (
    MANIFEST,
    MANIFEST_BYTES_MAX,
    PAYLOAD,
    Manifest,
    decode_manifest,
    encode_manifest,
)
from qigstore.checkpoints.reading import Payload
from qigstore.checkpoints.store import CheckpointStore
from qigstore.errors import CheckpointCorrupt, CheckpointError, NotFound

__all__ = ["export", "read_manifest", "restore_into"]

_CHUNK = 4 << 20
Progress = Callable[[int, int], object]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint's folder, wherever it lies; its own digest verified.

    Raises:
        NotFound: there is no folder.
        CheckpointCorrupt, CheckpointFormatError: as for `CheckpointStore.load`.
    """
    if not folder.is_dir():
        raise NotFound("checkpoint", folder, hint="There is no folder of that name")
    path = folder / MANIFEST
    with os.fdopen(_open_in(folder, path), "rb") as file:
        return decode_manifest(path, file.read(MANIFEST_BYTES_MAX + 1))


def export(folder: Path, target: Path, *, progress: Progress, disk: Disk | None = None) -> Manifest:
    """Copy a checkpoint to a folder, or its arrays to one file where `target` ends so.

    A folder gets all files, as they are: `restore_into` takes it. A `.safetensors` file is the
    payload alone, which any reader of that format opens.

    Raises:
        CheckpointError: the target is there already, or one file cannot hold several.
        CheckpointCorrupt: the checkpoint, or the copy when read back, is not what was saved.
        OSError: the disk refused; nothing of the copy is left.
    """
    disk, manifest = disk or Disk(), read_manifest(folder)
    if os.path.lexists(target):
        raise CheckpointError(f"{target} is there already; name another place")
    if target.suffix == ".safetensors" and manifest.sharding is not None:
        raise CheckpointError(
            f"{folder} is a checkpoint of {len(manifest.files)} files; export it to a folder"
        )
    fresh = target.with_name(f".{target.name}.part")
    try:
        if target.suffix == ".safetensors":
            _copy_payload(folder / PAYLOAD, fresh, manifest, progress, disk)
        else:
            disk.mkdir(fresh)
            _copy_payloads(folder, fresh, manifest, progress, disk)
            write_all(disk, fresh / MANIFEST, encode_manifest(manifest)[0])
            disk.fsync_folder(fresh)
        if os.path.lexists(target):
            raise CheckpointError(f"{target} is there already; name another place")
        disk.rename(fresh, target)
    except BaseException:
        _remove(fresh, disk)
        raise
    disk.fsync_folder(target.parent)
    return manifest


def restore_into(
    folder: Path, store: CheckpointStore, *, progress: Progress, disk: Disk | None = None
) -> Path:
    """Bring a checkpoint's folder into a store, made where there is none; return its place there.

    It keeps id, session, attempt, step and arrays; its manifest says that it belongs to that store,
    and in its metadata from which manifest it came.

    Raises:
        CheckpointError: that store has it already.
        CheckpointCorrupt: it, or the copy when read back, is not what was saved.
        OSError: the disk refused; nothing of the copy is left.
    """
    disk, found = disk or Disk(), read_manifest(folder)
    folders = Folders(store.root, disk)
    home = folders.session(found.session)
    origin = {"store": str(found.store), "digest": found.digest}
    manifest = replace(
        found,
        store=folders.store_id(),
        metadata={**found.metadata, "restored_from": origin},
    )
    target, fresh = home / str(found.id), home / f".tmp-{found.id}"
    if os.path.lexists(target) or os.path.lexists(fresh):
        raise CheckpointError(f"{target} is there already; an id is never written twice")
    disk.mkdir(fresh)
    lock = disk.try_lock(fresh)
    try:
        _copy_payloads(folder, fresh, manifest, progress, disk)
        write_all(disk, fresh / MANIFEST, encode_manifest(manifest)[0])
        disk.fsync_folder(fresh)
        disk.rename(fresh, target)
    except BaseException:
        _remove(fresh, disk)
        raise
    finally:
        if lock is not None:
            disk.unlock(lock)
    disk.fsync_folder(home)
    return target


def _copy_payloads(
    folder: Path, target: Path, manifest: Manifest, progress: Progress, disk: Disk
) -> None:
    before, total = 0, manifest.bytes
    for name, file in manifest.files.items():

        def told(done: int, _of: int, before: int = before) -> object:
            return progress(before + done, total)

        _copy_payload(folder / name, target / name, manifest.of(name), told, disk)
        before += file.bytes


def _copy_payload(
    path: Path, target: Path, manifest: Manifest, progress: Progress, disk: Disk
) -> None:
    """Copy a payload, fsync it, and read it back; a copy that differs says whose fault it is."""
    size, done = manifest.payload.bytes, 0
    source = _open_in(path.parent, path)
    try:
        payload = Payload(source, path, manifest)
        os.lseek(source, 0, os.SEEK_SET)
        fd = disk.create(target)
        try:
            while chunk := os.read(source, _CHUNK):
                view = memoryview(chunk)
                while view.nbytes:
                    view = view[disk.write(fd, view) :]
                done += len(chunk)
                progress(done, size)
            disk.fsync(fd)
        finally:
            disk.close(fd)
        try:
            _check(target, manifest)
        except CheckpointCorrupt:
            payload.check()
            raise
    finally:
        os.close(source)


def _check(path: Path, manifest: Manifest) -> None:
    with path.open("rb") as file:
        Payload(file.fileno(), path, manifest).check()


def _open_in(folder: Path, path: Path) -> int:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_file(fd, path)
    finally:
        os.close(fd)


def _remove(fresh: Path, disk: Disk) -> None:
    """Take back what this process has just made; a disk that fails keeps it for `doctor`."""
    with suppress(OSError):
        for path in [*fresh.iterdir()] if fresh.is_dir() else [fresh]:
            with suppress(FileNotFoundError):
                disk.unlink(path)
        if fresh.is_dir():
            disk.rmdir(fresh)
