"""Writers: who may store rows for which attempt and rank, and how far they came (the fence)."""

from __future__ import annotations

from dataclasses import dataclass
from time import sleep
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import Connection, Integer, bindparam, select, text, update
from sqlalchemy.dialects.postgresql import insert

from qigstore.database.schema import attempt as attempts
from qigstore.database.schema import writer as writers
from qigstore.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from qigstore.database.engine import Database

__all__ = ["WriterState", "Writers"]

_INT4_MAX = 2**31 - 1
_TRIES, _PAUSE_S = 26, 0.02
_FENCE = """
SELECT id FROM qigstore.writer WHERE id = :writer AND (epoch = :epoch OR :epoch IS NULL)
"""
_THERE = text(_FENCE).bindparams(bindparam("epoch", type_=Integer))
# Never waits, so that no savepoint has to catch the end of a wait: who holds a row from within one
# is not to be found once it is released.
_LOCK = text(f"{_FENCE} FOR NO KEY UPDATE SKIP LOCKED").bindparams(
    bindparam("epoch", type_=Integer)
)
# Only one that has said nothing for a while: not another that has just got the same row.
_END_HOLDER = text("""
SELECT pg_terminate_backend(held.pid) FROM qigstore.writer w
JOIN pg_locks held ON held.locktype = 'transactionid' AND held.granted
    AND held.transactionid = w.xmax
JOIN pg_stat_activity holder ON holder.pid = held.pid AND holder.usename = current_user
WHERE w.id = :writer AND (w.epoch = :epoch OR :epoch IS NULL)
    AND holder.state_change < clock_timestamp() - interval '400 ms'
""").bindparams(bindparam("epoch", type_=Integer))


@dataclass(frozen=True, slots=True)
class WriterState:
    """A writer's fence row.

    Attributes:
        epoch: raised by each take-over; only its holder stores.
        acked_seq: everything up to this sequence number is stored or settled.
        stored_rows, repeated_rows: rows in the table, and records replaced by a later one.
        max_step: the greatest step stored, or None.
    """

    epoch: int
    acked_seq: int
    stored_rows: int = 0
    repeated_rows: int = 0
    max_step: int | None = None


class Writers:
    """Registers writers and moves them from a dead process to a living one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(self, writer_id: UUID, attempt_id: UUID, rank: int) -> WriterState:
        """Enter a writer, at epoch 1 with nothing stored; again: its state as it is.

        Raises:
            NotFound: there is no such attempt.
            InvalidInput: the attempt and rank have another writer, or the writer another attempt.
        """
        if not 0 <= rank <= _INT4_MAX:
            raise InvalidInput("rank", rank, f"0 to {_INT4_MAX}")
        found = select(attempts.c.id).where(attempts.c.id == attempt_id)
        with self._database.begin() as connection:
            if connection.execute(found).first() is None:
                raise NotFound("attempt", attempt_id)
            connection.execute(
                insert(writers)
                .values(id=writer_id, attempt_id=attempt_id, rank=rank)
                .on_conflict_do_nothing()
            )
            owner = connection.execute(
                select(writers.c.attempt_id, writers.c.rank).where(writers.c.id == writer_id)
            ).first()
            if owner is None or (owner.attempt_id, owner.rank) != (attempt_id, rank):
                holds = owner or "another writer's"
                raise InvalidInput(
                    "writer", str(writer_id), f"one writer for attempt and rank (found {holds})"
                )
            return _state(connection, writer_id)

    def take_over(self, writer_id: UUID) -> WriterState:
        """Raise the epoch: whoever held the writer can store nothing from now on.

        A transaction of theirs that is open is ended: its process may stand still for ever.

        Raises:
            NotFound: there is no such writer.
        """
        with self._database.begin() as connection:
            _end_holder(connection, writer_id, None)
            connection.execute(
                update(writers).where(writers.c.id == writer_id).values(epoch=writers.c.epoch + 1)
            )
            return _state(connection, writer_id)

    def settle(self, writer_id: UUID, epoch: int) -> WriterState:
        """State after an error: ends this epoch's own transaction where it still hangs.

        Raises:
            NotFound: there is no such writer.
        """
        with self._database.begin() as connection:
            _end_holder(connection, writer_id, epoch)
            return _state(connection, writer_id)

    def state(self, writer_id: UUID) -> WriterState:
        """Epoch and last settled sequence number.

        Raises:
            NotFound: there is no such writer.
        """
        with self._database.begin() as connection:
            return _state(connection, writer_id)

    def of_attempt(self, attempt_id: UUID) -> list[UUID]:
        """The writers of an attempt, by rank."""
        query = select(writers.c.id).where(writers.c.attempt_id == attempt_id)
        with self._database.begin() as connection:
            return list(connection.execute(query.order_by(writers.c.rank)).scalars())


def _end_holder(connection: Connection, writer_id: UUID, epoch: int | None) -> None:
    """See that no silent transaction keeps the fence's row; `epoch`: only while that one holds.

    One whose process stands still, or whose connection is gone and the server does not know it
    yet, would keep it until some TCP limit ends it: hours.
    """
    fence = {"writer": writer_id, "epoch": epoch}
    if connection.execute(_THERE, fence).first() is None:
        return
    for _ in range(_TRIES):
        if connection.execute(_LOCK, fence).first() is not None:
            return
        sleep(_PAUSE_S)
    connection.execute(_END_HOLDER, fence)


def _state(connection: Connection, writer_id: UUID) -> WriterState:
    columns = writers.c
    query = select(
        columns.epoch,
        columns.acked_seq,
        columns.stored_rows,
        columns.repeated_rows,
        columns.max_step,
    ).where(columns.id == writer_id)
    row = connection.execute(query).first()
    if row is None:
        raise NotFound("writer", writer_id)
    return WriterState(*row)
