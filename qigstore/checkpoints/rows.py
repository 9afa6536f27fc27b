"""What checkpoints ask of the database: an index to them, and who of them is healthy."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol
from uuid import UUID

from qigstore.errors import StoreError
from qigstore.records import Candidate, Checkpoint, CheckpointStatus

__all__ = ["CheckpointRows", "Untold"]

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


class Untold:
    """What the database was not told yet, in order: kept while it is away, and bounded.

    `away` hears, in words, that it is.
    """

    def __init__(self, rows: CheckpointRows | None, away: Callable[[str], object]) -> None:
        self._rows, self._away = rows, away
        self._later: deque[Callable[[CheckpointRows], object]] = deque(maxlen=_LATER_MAX)
        self._telling = threading.Lock()

    def __len__(self) -> int:
        return len(self._later)

    def add(self, say: Callable[[CheckpointRows], object]) -> None:
        """Keep it for the next `tell`; nothing where there is no database at all."""
        if self._rows is not None:
            self._later.append(say)

    def tell(self, say: Callable[[CheckpointRows], object] | None = None) -> None:
        """Tell the database all of it, and this last."""
        with self._telling:
            if say is not None:
                self.add(say)
            while self._later and self._rows is not None:
                try:
                    self._later[0](self._rows)
                except StoreError as error:
                    self._away(f"the database was not told: {error}")
                    return
                except Exception:
                    self._later.popleft()  # what it cannot take now it will not take later
                    raise
                self._later.popleft()
