"""Small batches, and a writer that sends them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

import numpy as np

from qigstore.records import AttemptInfo, SessionInfo
from qigstore.repository import AppendResult, RowGroup, Store, TelemetryBatch


def rows(
    steps: Sequence[int],
    values: Mapping[str, Sequence[float]] | None = None,
    *,
    first_seq: int = 1,
    regime: Sequence[int] | None = None,
    basins: Sequence[Sequence[float]] | None = None,
    time_ns: Sequence[int] | None = None,
) -> RowGroup:
    """A group of rows; its sequence numbers count up from `first_seq`."""
    count, given = len(steps), values or {}
    columns = [np.asarray(column, dtype=np.float64) for column in given.values()]
    default_time = [1_700_000_000_000_000_000 + i * 1_000_000 for i in range(count)]
    return RowGroup(
        names=tuple(given),
        seq=np.arange(first_seq, first_seq + count, dtype=np.int64),
        step=np.asarray(steps, dtype=np.int64),
        time_ns=np.asarray(default_time if time_ns is None else time_ns, dtype=np.int64),
        values=np.stack(columns, axis=1) if columns else np.empty((count, 0)),
        regime=np.asarray([-1] * count if regime is None else regime, dtype=np.int16),
        basins=None if basins is None else np.asarray(basins, dtype=np.float64),
    )


class Sender:
    """One writer: its session, attempt and rank, and how far it came."""

    def __init__(
        self, store: Store, name: str = "ocean", rank: int = 0, *, of: AttemptInfo | None = None
    ) -> None:
        self.store, self.rank = store, rank
        self.session: SessionInfo = store.sessions.open(name, {})
        self.attempt = of or store.sessions.open_attempt(
            self.session.id, uuid4(), host="here", pid=1, config={}
        )
        self.writer: UUID = uuid4()
        self.epoch = store.writers.register(self.writer, self.attempt.id, rank).epoch
        self.acked = 0

    @property
    def id(self) -> int:
        """The session's."""
        return self.session.id

    def batch(self, *groups: RowGroup, first: int | None = None, last: int | None = None,
              epoch: int | None = None) -> TelemetryBatch:  # fmt: skip
        """These groups as the next batch, numbered where they are in the writer's order."""
        first = self.acked + 1 if first is None else first
        last = max([int(g.seq.max()) for g in groups if len(g)], default=first) \
            if last is None else last  # fmt: skip
        return TelemetryBatch(
            writer=self.writer,
            epoch=self.epoch if epoch is None else epoch,
            session_id=self.id,
            attempt=self.attempt.number,
            rank=self.rank,
            first_seq=first,
            last_seq=last,
            groups=groups,
        )

    def send(
        self, steps: Sequence[int], values: Mapping[str, Sequence[float]] | None = None, **more: Any
    ) -> AppendResult:
        """Store one group of rows."""
        return self.ship(rows(steps, values, first_seq=self.acked + 1, **more))

    def ship(self, *groups: RowGroup) -> AppendResult:
        """Store these groups."""
        batch = self.batch(*groups)
        result = self.store.telemetry.append(batch)
        self.acked = batch.last_seq
        return result

    def read(self, **where: Any) -> list[Any]:
        """Its rows, by step."""
        where = {"attempt": self.attempt.number, "rank": self.rank} | where
        return self.store.telemetry.rows(self.id, **where)


def column(sender: Sender, name: str) -> list[float | None]:
    """One metric of a sender's rows, None where it is NULL."""
    return [row.metrics.get(name) for row in sender.read()]
