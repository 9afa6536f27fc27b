"""A disk that forgets at power loss any subset of what was not fsynced, directory entries included.

Files live in a real folder; beside it we keep what is on the platter: of each file the sectors that
a sync or the kernel's own write-back put there, of each folder the names it had when it was synced.
A power loss keeps all of that, and of everything newer whatever chance decides, sector by sector
and name by name.
"""

from __future__ import annotations

import os
import random
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

__all__ = ["ForgetfulDisk", "PowerLoss", "restore"]

_SECTOR = 512
Image: TypeAlias = "dict[str, bytes | Image]"


class PowerLoss(BaseException):
    """The machine is off; nothing after this matters."""


class ForgetfulDisk:
    """Everything below `base`, whichever code of this thread writes it: its syncs are ours.

    Args:
        base: an empty folder that is durable itself.
        around_sync: called with "file" or "folder" before each sync takes effect and with "done"
            after it; may pass time, raise `OSError` (the sync fails), or call `power_off`.

    Attributes:
        left: what the power loss left; None before it.
        syncs: how many there were.
    """

    def __init__(
        self, base: Path, rng: random.Random, around_sync: Callable[[str], None] = lambda _: None
    ) -> None:
        self.left: Image | None = None
        self.syncs = 0
        self._rng, self._around = rng, around_sync
        self._held: dict[int, int] = {}  # open, so that no inode is used a second time
        self._platter: dict[int, bytearray] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._root = self._hold(base)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Take the place of the system calls, where this thread makes them."""
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, self._instead_of(getattr(os, name)))

    def close(self) -> None:
        """Let go of every file."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    def sync(self, descriptor: int) -> None:
        """What `fsync` does: all of this file, or the names in this folder; nothing else."""
        self.syncs += 1
        at = os.fstat(descriptor)
        folder = stat.S_ISDIR(at.st_mode)
        self._around("folder" if folder else "file")
        if folder:
            self._names[at.st_ino] = self._listed(descriptor)
        else:
            self._platter[at.st_ino] = bytearray(_content(descriptor))
        self._around("done")

    def write_back(self) -> None:
        """The kernel writes some sectors early, as it may at any time."""
        for inode, descriptor in self._held.items():
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                self._platter[inode] = self._after_loss(inode, descriptor)

    def power_off(self) -> None:
        """Raises `PowerLoss`; `left` is what the next boot finds."""
        self.left = self._folder_after_loss(self._root)
        raise PowerLoss

    def _instead_of(self, real: Callable[[int], None]) -> Callable[[int], None]:
        mine = threading.get_ident()

        def sync(descriptor: int) -> None:
            (self.sync if threading.get_ident() == mine else real)(descriptor)

        return sync

    def _hold(self, path: Path | str, folder: int | None = None) -> int:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
        inode = os.fstat(descriptor).st_ino
        if self._held.setdefault(inode, descriptor) != descriptor:
            os.close(descriptor)
        return inode

    def _listed(self, descriptor: int) -> dict[str, int]:
        with os.scandir(descriptor) as found:
            return {entry.name: self._hold(entry.name, descriptor) for entry in found}

    def _folder_after_loss(self, inode: int) -> Image:
        durable, now = self._names.get(inode, {}), self._listed(self._held[inode])
        image: Image = {}
        for name in sorted(durable.keys() | now.keys()):
            chosen = self._rng.choice([durable, now]).get(name)
            if chosen is None:
                continue
            descriptor = self._held[chosen]
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                image[name] = self._folder_after_loss(chosen)
            else:
                image[name] = bytes(self._after_loss(chosen, descriptor))
        return image

    def _after_loss(self, inode: int, descriptor: int) -> bytearray:
        rng, now = self._rng, _content(descriptor)
        content = self._platter.get(inode, bytearray())
        size = rng.choice([len(content), len(now)])
        content = content[:size].ljust(size, b"\0")
        kept = rng.choice([0.0, 0.5, 1.0])
        for at in range(0, size, _SECTOR):
            if rng.random() < kept:
                content[at : at + _SECTOR] = now[at : min(at + _SECTOR, size)]
        return content


def _content(descriptor: int) -> bytes:
    # Our own descriptor of the file: the caller's may be open for writing only.
    reader = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(reader, os.fstat(reader).st_size, 0)
    finally:
        os.close(reader)


def restore(image: Image, folder: Path) -> None:
    """Make the files that were left, in an empty folder."""
    folder.mkdir()
    for name, content in image.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            restore(content, folder / name)
