"""A checkpoint as one tar, of a length that is known before its first byte is sent."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from qigstore.checkpoints.disk import Disk
from qigstore.checkpoints.folders import Folders, open_file
from qigstore.checkpoints.format import MANIFEST
from qigstore.checkpoints.holds import in_use
from qigstore.checkpoints.store import CheckpointStore
from qigstore.errors import CheckpointCorrupt

__all__ = ["Archive", "archive"]

_PIECE = 1 << 20
_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)


@dataclass(frozen=True, slots=True, eq=False)
class Archive:
    """A checkpoint's folder as a tar.

    Attributes:
        size: of the whole, in bytes. digest: BLAKE3 of the manifest, which covers every byte.
        pieces: the tar, once; the checkpoint stays until it is read to its end or let go.
    """

    size: int
    digest: str
    pieces: Iterator[bytes]


def archive(store: CheckpointStore, path: Path) -> Archive:
    """A checkpoint of a store as a tar of its folder, `<id>/…`, the files as they are.

    What is sent is not compared with the digests; whoever restores it does that.

    Raises:
        NotFound: no such folder.
        CheckpointCorrupt: its manifest is not what was written, or a file has another size.
        CheckpointFormatError: written by a newer version, or not below the store's root.
    """
    digest = store.manifest(path).digest
    pieces = _pieces(store, path)
    # The first piece is there once every file is open and held: what fails, fails here.
    first = next(pieces)
    return Archive(int.from_bytes(first), digest, pieces)


def _pieces(store: CheckpointStore, path: Path) -> Iterator[bytes]:
    """The length of the tar, as a number in bytes, then the tar itself."""
    with ExitStack() as stack:
        stack.enter_context(in_use(path))
        found = stack.enter_context(Folders(store.root, Disk()).open(path))
        names = [*sorted(found.manifest.files), MANIFEST]
        files: list[tuple[str, int, int]] = []
        for name in names:
            fd = open_file(found.fd, found.path / name)
            stack.callback(os.close, fd)
            size, said = os.fstat(fd).st_size, found.manifest.files.get(name)
            if said is not None and said.bytes != size:
                where = found.path / name
                raise CheckpointCorrupt(where, "size", expected=said.bytes, found=size)
            files.append((f"{found.path.name}/{name}", size, fd))
        total = _BLOCK + sum(_BLOCK + size + _padding(size) for _, size, _ in files) + len(_END)
        yield total.to_bytes(16)
        yield _head(found.path.name, 0, tarfile.DIRTYPE)
        yield from chain.from_iterable(_member(*file) for file in files)
        yield _END


def _member(name: str, size: int, fd: int) -> Iterator[bytes]:
    yield _head(name, size, tarfile.REGTYPE)
    at = 0
    while at < size:
        piece = os.pread(fd, min(_PIECE, size - at), at)
        if not piece:
            raise CheckpointCorrupt(Path(name), "size", expected=size, found=at)
        at += len(piece)
        yield piece
    yield bytes(_padding(size))


def _head(name: str, size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> int:
    return -size % _BLOCK
