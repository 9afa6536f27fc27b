"""Moves rows from a spool to the repository, each exactly once, whatever happens on the way."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from qigstore.errors import InvalidInput, StaleWriter

if TYPE_CHECKING:
    from qigstore.recording.spool.quarantine import Quarantine
    from qigstore.recording.spool.reader import Rows, SpoolReader, Take
    from qigstore.repository import RowGroup, Store, TelemetryBatch

__all__ = ["Shipper", "Target"]

_log = logging.getLogger("qigstore")
_LARGE = 4_096
"""Rows of a batch that keeps the database busy for long enough to read the next one meanwhile."""
_DATA_REFUSED = ("22", "23")
"""SQLSTATE classes: data exception, integrity constraint violation."""


@dataclass(frozen=True, slots=True)
class Target:
    """Whose rows they are, and by which epoch they are sent."""

    writer: UUID
    epoch: int
    session_id: int
    attempt: int
    rank: int


class Shipper:
    """Sends what a reader hands out, batch by batch.

    After any error the fence is asked before anything is sent again: an error during COMMIT says
    nothing about what was committed. While the database takes a large batch in, the next is read.

    Attributes:
        acked: last sequence that the database has settled.
        rows, repeated, gap, refused: stored by this object; replaced by a later record of their
            step; lost to damage; put into quarantine.
    """

    def __init__(
        self,
        store: Store,
        reader: SpoolReader,
        target: Target,
        *,
        quarantine: Quarantine,
        rows_max: int,
        acked: int = 0,
    ) -> None:
        self._store, self._reader, self._target = store, reader, target
        self._quarantine = quarantine
        self._rows_max, self._large = rows_max, min(rows_max, _LARGE)
        self._sure = self._lost = False
        self._next: Take | None = None
        self.acked = acked
        self.rows = self.repeated = self.gap = self.refused = 0

    def step(self) -> bool:
        """Ship one batch; False where there is nothing to ship.

        Raises:
            StaleWriter: another process took over.
            StoreUnavailable: and whatever else the store says; call again later.
        """
        if not self._sure:
            self._ask()
        self._sure = False
        take, self._next = self._next or self._reader.take(self._rows_max), None
        if take is not None:
            try:
                self._send(take)
            except StaleWriter:
                self._ask()  # raises it again, unless only the place in the sequence was wrong
        self._sure = not self._lost
        return take is not None

    def _read_on(self) -> None:
        """Have the next batch ready; where it cannot be read, this one is stored all the same."""
        try:
            self._next = self._reader.take(self._rows_max)
        except Exception:
            self._lost = True  # the next step finds its place again, and meets the error itself

    def _ask(self) -> None:
        state = self._store.writers.settle(self._target.writer, self._target.epoch)
        if state.epoch != self._target.epoch:
            raise StaleWriter(self._target.writer, self._target.epoch, state.epoch)
        self.acked = state.acked_seq
        self._next, self._lost = None, False
        self._reader.rewind(self.acked)

    def _send(self, take: Take) -> None:
        try:
            meanwhile = self._read_on if take.count >= self._large else None
            result = self._store.telemetry.append(self._batch(take), meanwhile=meanwhile)
        except Exception as error:
            if not _refused(error):
                raise
            self._divide(take, error)
            return
        self.acked = take.last_seq
        self.rows += result.rows
        self.repeated += result.repeated
        self.gap += take.gap

    def _divide(self, take: Take, error: Exception) -> None:
        """One row that the database refuses must not hold up the others: find it, set it aside."""
        if take.first_seq < take.last_seq:
            for half in take.halves():
                self._send(half)
            return
        for rows in take.groups:
            self._quarantine.add(rows, str(error))
            _log.warning("row %d is in quarantine: %s", take.first_seq, error)
            self.refused += 1
        settled = type(take)(take.first_seq, take.last_seq, ())
        self._store.telemetry.append(self._batch(settled))
        self.acked = take.last_seq

    def _batch(self, take: Take) -> TelemetryBatch:
        from qigstore.repository.batches import TelemetryBatch

        to = self._target
        return TelemetryBatch(
            writer=to.writer,
            epoch=to.epoch,
            session_id=to.session_id,
            attempt=to.attempt,
            rank=to.rank,
            first_seq=take.first_seq,
            last_seq=take.last_seq,
            groups=tuple(_group(rows) for rows in take.groups),
        )


def _group(rows: Rows) -> RowGroup:
    from qigstore.repository.batches import RowGroup

    return RowGroup(
        rows.names, rows.seq, rows.step, rows.time_ns, rows.values, rows.regime, rows.basins
    )


def _refused(error: Exception) -> bool:
    """Whether these very rows are the trouble (and not the connection, a right or a disk)."""
    if isinstance(error, InvalidInput):
        return error.name != "batch"
    driver = getattr(error, "orig", None) or error
    return (getattr(driver, "sqlstate", None) or "").startswith(_DATA_REFUSED)
