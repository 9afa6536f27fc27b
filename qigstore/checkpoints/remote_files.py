"""The few calls through which checkpoints reach an object store: what `fsspec` knows by a URL."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from qigstore.checkpoints.format import MANIFEST, MANIFEST_BYTES_MAX, Manifest, decode_manifest
from qigstore.errors import CheckpointCorrupt, CheckpointUnsupported, ConfigurationError, NotFound
from qigstore.records import Url

__all__ = ["NOTE_BYTES_MAX", "RemoteFiles"]

NOTE_BYTES_MAX = 1 << 16
"""Of a marker, a pin and the like."""


class RemoteFiles:
    """Objects below a URL, by names relative to it; `options` go to its protocol's file system.

    Attributes:
        url: the root.
        fs: the file system of fsspec.
        root: the root as that knows it.

    Raises:
        CheckpointUnsupported: fsspec, or the package of that protocol, is not installed.
        ConfigurationError: the URL holds a password.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self.url = Url(url.rstrip("/"))
        if urlsplit(url).password is not None:
            raise ConfigurationError(
                "a URL of checkpoints is shown in rows and messages, so it must hold no password. "
                "Give it as the protocol's package expects it, in the environment or as an option."
            )
        try:
            fsspec = importlib.import_module("fsspec")
            self.fs, root = fsspec.core.url_to_fs(url, **options)
        except ImportError as error:
            raise CheckpointUnsupported(
                f"checkpoints at {url} need a package that is not installed: {error}. Install it "
                "(`pip install 'qigstore[remote]'`, for S3 also s3fs)."
            ) from error
        self.root: str = root.rstrip("/")

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """An object, or a part of it.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read now.
        """
        with self._said(name):
            data: bytes = self.fs.cat_file(self._at(name), start=start, end=stop)
            return data

    def small(self, name: str, limit: int = NOTE_BYTES_MAX) -> bytes:
        """A whole object, whose size is looked at before memory is taken for it.

        Raises:
            FileNotFoundError: there is none.
            CheckpointCorrupt: it is larger than any that we write.
            OSError: it cannot be read now.
        """
        size = self.size(name)
        if size is None:
            raise FileNotFoundError(self.url / name)
        if size > limit:
            what = f"up to {limit} bytes"
            raise CheckpointCorrupt(self.url / name, "size", expected=what, found=size)
        return self.read(name) if size else b""

    def size(self, name: str) -> int | None:
        """Bytes of an object; None where there is none.

        Raises:
            OSError: nobody can tell now.
        """
        with self._said(name):
            self.fs.invalidate_cache()
            try:
                return int(self.fs.info(self._at(name))["size"])
            except FileNotFoundError:
                return None

    def put(self, name: str, data: bytes) -> None:
        """Write a small object whole.

        Raises:
            OSError: it was not written, or nobody can tell.
        """
        self._folder(name)
        with self._said(name):
            self.fs.pipe_file(self._at(name), data)

    def write(self, name: str, pieces: Iterable[memoryview]) -> None:
        """Write an object piece by piece; on an object store it is there when all of it is.

        Raises:
            OSError: it was not written whole.
        """
        self._folder(name)
        size = 0
        with self._said(name), self.fs.open(self._at(name), "wb") as file:
            for piece in pieces:
                file.write(piece)
                size += piece.nbytes
        found = self.size(name)
        if found != size:
            raise OSError(f"{self.url / name}: expected {size} bytes, found {found}")

    def remove(self, name: str) -> None:
        """Remove an object; one that is gone is fine.

        Raises:
            OSError: it may be there still.
        """
        with self._said(name), suppress(FileNotFoundError):
            self.fs.rm_file(self._at(name))

    def forget(self, folder: str) -> None:
        """Remove an empty folder where there are folders at all."""
        with suppress(OSError, NotImplementedError):
            self.fs.rmdir(self._at(folder))

    def names(self, folder: str) -> list[str]:
        """Everything below a folder, by names relative to it, sorted.

        Raises:
            OSError: nobody can tell now.
        """
        with self._said(folder):
            self.fs.invalidate_cache()
            try:
                found = self.fs.find(self._at(folder))
            except FileNotFoundError:
                return []
        before = len(self._at(folder).lstrip("/")) + 1
        return sorted(name.lstrip("/")[before:] for name in found)

    def manifest(self, place: str, key: UUID) -> tuple[Manifest, bytes]:
        """A checkpoint's manifest, verified, and as it was read.

        Raises:
            NotFound: there is none.
            CheckpointCorrupt: not what was written, or of another checkpoint.
        """
        name = f"{place}/{MANIFEST}"
        try:
            data = self.small(name, MANIFEST_BYTES_MAX)
        except FileNotFoundError:
            hint = f"There is no {self.url / name}"
            raise NotFound("checkpoint", str(key), hint=hint) from None
        manifest = decode_manifest(self.url / name, data)
        if manifest.id != key:
            raise CheckpointCorrupt(self.url / name, "id", expected=key, found=manifest.id)
        return manifest, data

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def _folder(self, name: str) -> None:
        with self._said(name):
            self.fs.makedirs(self._at(name).rpartition("/")[0], exist_ok=True)

    @contextmanager
    def _said(self, name: str) -> Iterator[None]:
        """A back end's own error as the operating system's, so that one kind is handled."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{self.url / name}: {type(error).__name__}: {error}") from error
