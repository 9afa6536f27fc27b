"""What a spool says of its attempt besides the rows: whose database, how it began, how it ended.

A run with no database in reach has nobody else to tell. Whoever ships the spool later tells it.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import get_args
from uuid import UUID

from qigstore.recording.spool.segment import Disk
from qigstore.records import AttemptStatus

__all__ = ["AttemptNotes", "read_notes", "write_notes"]

_log = logging.getLogger("qigstore")
_FILE = "attempt.json"


@dataclass(frozen=True, slots=True)
class AttemptNotes:
    """Everything may be unknown.

    Attributes:
        store: the store that has heard of this attempt; its rows go to no other.
        resumed_from, resumed_step: what recovery chose; step −1: it started afresh.
        status, reason, exit_status, ended_at: how the attempt ended; None: nobody closed it.
    """

    store: UUID | None = None
    resumed_from: UUID | None = None
    resumed_step: int | None = None
    status: AttemptStatus | None = None
    reason: str | None = None
    exit_status: int | None = None
    ended_at: datetime | None = None

    def to_json(self) -> bytes:
        """As the file `attempt.json`."""
        return json.dumps(asdict(self), indent=1, default=str).encode()

    @classmethod
    def from_json(cls, data: bytes) -> AttemptNotes:
        """Read `attempt.json`.

        Raises:
            ValueError, KeyError, TypeError: it is not one.
        """
        told = json.loads(data)
        if told["status"] not in (None, *get_args(AttemptStatus)):
            raise ValueError(f"status {told['status']!r}")
        ids = {name: told[name] and UUID(told[name]) for name in ("store", "resumed_from")}
        ended_at = told["ended_at"] and datetime.fromisoformat(told["ended_at"])
        return cls(**{**told, **ids, "ended_at": ended_at})


def read_notes(folder: Path) -> AttemptNotes:
    """The notes of the spool in `folder`; empty ones where there are none, or damaged ones.

    The rows are worth more than what is said about them: damage is logged, and they are shipped.
    """
    path = folder / _FILE
    try:
        return AttemptNotes.from_json(path.read_bytes())
    except FileNotFoundError:
        return AttemptNotes()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("%s cannot be read (%r): how its attempt ended is not known", path, error)
        return AttemptNotes()


def write_notes(folder: Path, notes: AttemptNotes) -> None:
    """Replace the notes, durably; the caller holds the spool's lock.

    Raises:
        OSError: the disk refuses; the notes are as they were.
    """
    Disk().write(folder / _FILE, notes.to_json())
