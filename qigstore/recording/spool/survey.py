"""What lies in the spools of a data folder, read without a database and without touching it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

from qigstore.errors import SpoolBusy, SpoolError
from qigstore.recording.spool.identity import SpoolIdentity, acquire_lock, read_identity
from qigstore.recording.spool.leftover import LeftOver, spool_folders
from qigstore.recording.spool.notes import read_notes
from qigstore.recording.spool.reader import SpoolReader
from qigstore.recording.spool.segment import segment_number

__all__ = ["Quarantined", "SpoolState", "quarantined", "survey"]

_ROWS_AT_ONCE = 20_000


@dataclass(frozen=True, slots=True)
class SpoolState:
    """One spool as it is now.

    Attributes:
        place: the id of the store it belongs to, or "offline".
        held: a living process records into it, or ships it.
        rows: in its files; some may be stored already. None while it is held: they change.
        gap_rows: lost to damage among them.
        bytes: of the disk.
        waits_for: the database that its rows go to; None: that of `place`, or any.
        ended: how its attempt ended, where somebody said so.
        error: why nobody can ship it.
    """

    spool: Path
    place: str
    bytes: int
    held: bool
    session: str | None = None
    attempt_id: UUID | None = None
    rank: int | None = None
    owner: str | None = None
    created_at: datetime | None = None
    rows: int | None = None
    gap_rows: int | None = None
    waits_for: str | None = None
    ended: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A file of rows that a database refused."""

    path: Path
    rows: int


def survey(root: Path) -> list[SpoolState]:
    """Every spool below `root`, place by place, the oldest first."""
    found = []
    for place in sorted(root.iterdir()) if root.is_dir() else ():
        for folder in spool_folders(place):
            try:
                found.append(_state(folder))
            except FileNotFoundError:
                continue  # shipped while we looked
    return found


def quarantined(root: Path) -> list[Quarantined]:
    """Every file of refused rows below `root`."""
    found = []
    for path in sorted(root.glob("*/quarantine-*.jsonl")):
        seqs = set()
        for line in path.read_bytes().splitlines():
            try:
                seqs.add(json.loads(line)["seq"])
            except (ValueError, KeyError, TypeError):
                continue  # an empty or torn line is no row
        found.append(Quarantined(path, len(seqs)))
    return found


def _state(folder: Path) -> SpoolState:
    size = sum(p.stat().st_size for p in folder.iterdir() if segment_number(p) is not None)
    held = _held(folder)
    try:
        told = read_identity(folder)
    except SpoolError as error:
        return SpoolState(folder, folder.parent.name, size, held, error=str(error))
    rows, gap = (None, None) if held else _count(folder, told)
    notes = read_notes(folder)
    return SpoolState(
        spool=folder,
        place=folder.parent.name,
        bytes=size,
        held=held,
        session=told.session,
        attempt_id=told.attempt,
        rank=told.rank,
        owner=f"process {told.pid} on {told.host}",
        created_at=told.created_at,
        rows=rows,
        gap_rows=gap,
        waits_for=told.address if notes.store is None else f"the store {notes.store}",
        ended=notes.status,
    )


def _held(folder: Path) -> bool:
    try:
        os.close(acquire_lock(folder))
    except SpoolBusy:
        return True
    return False


def _count(folder: Path, told: SpoolIdentity) -> tuple[int, int]:
    """Rows that can be read, and rows lost between them."""
    source = LeftOver(folder, told.writer)
    first = min((seq for _, seq, _ in source.spans() if seq), default=1)
    reader = SpoolReader(source, told.writer, first - 1)
    rows = gap = 0
    while (take := reader.take(_ROWS_AT_ONCE)) is not None:
        rows += take.count
        gap += take.gap
    return rows, gap
