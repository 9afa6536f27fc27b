"""An output file that is whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from qigstore.errors import ConfigurationError

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """A file to write, which takes its place, durably, at the end of the block; else it is gone.

    Raises:
        ConfigurationError: `path` is there already, and not `force`.
        OSError: the disk refuses.
    """
    _refuse(path, force)
    beside = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _refuse(path, force)  # somebody else may have been faster
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _refuse(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise ConfigurationError(f"{path} is there already. Pass --force to replace it.")
