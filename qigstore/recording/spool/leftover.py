"""Spools whose process is dead: finding them, their segments, and removing them at the end."""

from __future__ import annotations

from pathlib import Path
from time import time
from uuid import UUID

from qigstore.errors import SpoolBusy
from qigstore.recording.spool.frame import HEAD_BYTES, read_head
from qigstore.recording.spool.identity import IDENTITY_FILE, LOCK_FILE, acquire_lock
from qigstore.recording.spool.segment import segment_number

__all__ = ["LeftOver", "remove_folder", "spool_folders"]

_UNBORN_AGE_S = 3600.0


class LeftOver:
    """The segments of a spool whose process is dead."""

    def __init__(self, folder: Path, writer: UUID) -> None:
        self._writer = writer
        numbered = ((segment_number(path), path) for path in folder.iterdir())
        self._paths = dict(sorted((n, path) for n, path in numbered if n is not None))

    def spans(self) -> list[tuple[int, int, int]]:
        """Number, first sequence (0: the head is damaged) and bytes of each segment."""
        spans = []
        for number, path in self._paths.items():
            first_seq = read_head(self.read(number, 0, HEAD_BYTES), self._writer) or 0
            spans.append((number, first_seq, path.stat().st_size))
        return spans

    def read(self, number: int, start: int, stop: int) -> bytes:
        """A copy of bytes of a segment."""
        with self._paths[number].open("rb") as file:
            file.seek(start)
            return file.read(max(stop - start, 0))

    def mine(self, number: int) -> bool:
        """No: another process wrote them, and died."""
        return False


def spool_folders(root: Path) -> list[Path]:
    """The spools below `root`, oldest first."""
    if not root.is_dir():
        return []
    for unborn in root.glob(".new-*"):
        _remove_unborn(unborn)
    folders = [path for path in root.iterdir() if (path / LOCK_FILE).exists()]
    return sorted(folders, key=lambda path: (path / LOCK_FILE).stat().st_mtime_ns)


def _remove_unborn(folder: Path) -> None:
    """A process died while it made this spool; nothing was recorded in it yet."""
    try:
        if time() - folder.stat().st_mtime > _UNBORN_AGE_S:
            acquire_lock(folder, create=True)
            remove_folder(folder)
    except (SpoolBusy, FileNotFoundError):
        return


def remove_folder(folder: Path, *, only_if_empty: bool = False) -> bool:
    """Delete a spool, the lock last; `only_if_empty`: unless it holds segments.

    The caller holds the lock. A death in the middle leaves a spool without rows, or without a
    name, which the next process removes.
    """
    segments = [path for path in folder.iterdir() if segment_number(path) is not None]
    if only_if_empty and segments:
        return False
    for path in sorted(segments):
        path.unlink()
    for path in folder.iterdir():
        if path.name not in {LOCK_FILE, IDENTITY_FILE}:
            path.unlink()
    (folder / IDENTITY_FILE).unlink(missing_ok=True)
    (folder / LOCK_FILE).unlink(missing_ok=True)
    folder.rmdir()
    return True
