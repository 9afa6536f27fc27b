"""What the database is told of checkpoints: in order, and later where it is away."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from uuid import UUID

from qigstore.errors import NotFound, StoreError
from qigstore.records import Candidate, Checkpoint, CheckpointStatus

__all__ = ["CheckpointRows", "RowPost"]

_LATER_MAX = 10_000


class CheckpointRows(Protocol):
    """What the manager asks of the database; a repository, or nothing where there is none."""

    def add(self, checkpoint: Checkpoint, /) -> bool:
        """Insert a row; False where it was there already."""

    def set_status(
        self, checkpoint_id: UUID, status: CheckpointStatus, /, reason: str | None = None
    ) -> None:
        """Say that a checkpoint was deleted or quarantined."""

    def candidates(
        self,
        session_id: int,
        /,
        *,
        settle_steps: int,
        phi_floor: float | None = None,
        limit: int = ...,
        by_age: bool = ...,
    ) -> list[Candidate]:
        """Committed checkpoints, with whether each is fit to recover from, and why."""


class RowPost:
    """Tells the rows of a session what became of its folders; keeps it while they are away.

    Args:
        rows: the database's; None: there is none, and nothing is told.
        on_away: told why what is kept could not be told.
    """

    def __init__(
        self, rows: CheckpointRows | None, on_away: Callable[[StoreError], object]
    ) -> None:
        self._rows, self._on_away = rows, on_away
        self._later: deque[Callable[[CheckpointRows], object]] = deque(maxlen=_LATER_MAX)
        self._shipping = threading.Lock()

    def __len__(self) -> int:
        return len(self._later)

    def note_saved(self, checkpoint: Checkpoint) -> None:
        """Keep for `ship` that a checkpoint is there."""
        if self._rows is not None:
            self._later.append(lambda rows: _insert(rows, checkpoint))

    def tell_status(self, checkpoint_id: UUID, status: CheckpointStatus, reason: str) -> None:
        """Say what became of a checkpoint, after whatever was not told yet."""

        def say(rows: CheckpointRows) -> None:
            with suppress(NotFound):  # a folder that never had its row needs none now
                rows.set_status(checkpoint_id, status, reason=reason[:2000])

        if self._rows is not None:
            self._later.append(say)
            self.ship()

    def ship(self) -> None:
        """Tell what is kept, as long as the database listens."""
        with self._shipping:
            self._ship()

    def insert(self, found: Iterable[Checkpoint]) -> list[Checkpoint]:
        """Give committed folders their rows, after what is kept; return those that had none.

        Raises:
            StoreError: the database is away.
        """
        rows = self._rows
        if rows is None:
            return []
        with self._shipping:
            self._ship()
        return [item for item in found if _insert(rows, item)]

    def _ship(self) -> None:
        while self._later and self._rows is not None:
            try:
                self._later[0](self._rows)
            except StoreError as error:
                self._on_away(error)
                return
            except Exception:
                self._later.popleft()  # what it cannot take now it will not take later
                raise
            self._later.popleft()


def _insert(rows: CheckpointRows, checkpoint: Checkpoint) -> bool:
    """Give a committed folder its row; False where it has one.

    Another process may have removed the folder by now, and found no row to say so in.
    """
    new, path = rows.add(checkpoint), checkpoint.path
    if new and isinstance(path, Path) and not os.path.lexists(path):
        rows.set_status(checkpoint.id, "deleted", reason="removed before it had its row")
    return new
