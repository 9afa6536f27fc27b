"""The feed: what was stored since a place in the order of commits, nothing left out, nothing twice.

A place has two parts. Rows of a writer commit in the order of their sequence numbers, so that
`acked_seq` is exact for them. Events and checkpoints have no such order: which transaction changed
each of them last (table `change`) is held against two snapshots, what was visible then and what is
visible now, so that one whose transaction committed late is not passed over.

A place is given out only once everything that was logged before its snapshot is on the server's
disk. Else a crash could give a transaction's number out again, to one that the place calls known.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, Connection, bindparam, select, text

from qigstore.database.schema import checkpoint as checkpoints
from qigstore.database.schema import event as events
from qigstore.records import Checkpoint, Event, TelemetryRow
from qigstore.repository.checkpoints import checkpoint_of
from qigstore.repository.snapshots import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from qigstore.database.engine import Database
    from qigstore.repository.telemetry import Telemetry

__all__ = [
    "CHANNEL",
    "FOLLOWED_MAX",
    "Change",
    "Feed",
    "Look",
    "Mark",
    "Page",
    "Progress",
    "Seen",
    "WriterKey",
]

CHANNEL = "qigstore_feed"
"""What every batch, event and checkpoint notifies in its own transaction, without a payload."""

FOLLOWED_MAX = 1_000
"""Writers that are looked at: those heard of last."""

_NOBODY = UUID(int=0)


class WriterKey(NamedTuple):
    """A writer, in the numbers that rows are kept under."""

    session_id: int
    attempt: int
    rank: int


class Mark(NamedTuple):
    """How far a writer's rows are known: up to `seq`, of which `step` is the greatest step."""

    seq: int = 0
    step: int = -1


class Progress(NamedTuple):
    """How far a writer came.

    Attributes:
        mark: everything that is stored.
        reordered_seq: up to this record, steps may have come in another order than their own.
        created_in: the transaction that made it.
    """

    session: str
    mark: Mark
    reordered_seq: int
    created_in: int


@dataclass(frozen=True, slots=True)
class Look:
    """Writers at one moment.

    Attributes:
        snapshot: what was visible.
        durable: whether all that the server had logged by then is on its disk.
    """

    snapshot: Snapshot
    durable: bool
    writers: dict[WriterKey, Progress]


class Seen(NamedTuple):
    """What is known of events and checkpoints: all in the snapshot, and of one transaction beyond
    it those up to an id."""

    snapshot: Snapshot
    transaction: int = 0
    last_id: UUID = _NOBODY


class Change(NamedTuple):
    """An event or a checkpoint as it is now.

    Attributes:
        transaction: which changed it last.
        seen: what is known once it is.
    """

    kind: str
    session_id: int
    session: str
    transaction: int
    record: Event | Checkpoint
    seen: Seen


class Page(NamedTuple):
    """Some rows of a writer by sequence number, and the mark that they lead to."""

    rows: list[TelemetryRow]
    mark: Mark


_FLUSH = text("SELECT pg_logical_emit_message(true, 'qigstore', '')")
_MOMENT = text("""
SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn() <= pg_current_wal_flush_lsn()""")
_WRITERS = """
SELECT a.session_id, a.number, w.rank, s.name, w.acked_seq, w.max_step, w.reordered_seq,
       w.created_in
FROM qigstore.writer w
JOIN qigstore.attempt a ON a.id = w.attempt_id
JOIN qigstore.session s ON s.id = a.session_id
{where}
ORDER BY coalesce(w.stored_at, w.created_at) DESC, w.id LIMIT :most"""
_IDS = ARRAY(BigInteger)
_ALL_WRITERS = text(_WRITERS.format(where=""))
_OF_SESSIONS = text(_WRITERS.format(where="WHERE a.session_id = ANY(:sessions)")).bindparams(
    bindparam("sessions", type_=_IDS)
)
_NAMED = text(
    _WRITERS.format(
        where="JOIN unnest(:of, :attempts, :ranks) AS k (session_id, number, rank)"
        " ON k.session_id = a.session_id AND k.number = a.number AND k.rank = w.rank"
    )
).bindparams(*(bindparam(name, type_=_IDS) for name in ("of", "attempts", "ranks")))
_CHANGES = text("""
SELECT c.kind, c.id, c.changed_in, c.session_id, s.name
FROM qigstore.change c JOIN qigstore.session s ON s.id = c.session_id
WHERE c.changed_in >= :from AND c.changed_in < :to
  AND NOT pg_visible_in_snapshot(c.changed_in::text::xid8, CAST(:seen AS pg_snapshot))
  AND pg_visible_in_snapshot(c.changed_in::text::xid8, CAST(:until AS pg_snapshot))
  AND NOT (c.changed_in = :transaction AND c.id <= :last_id)
ORDER BY c.changed_in <> :transaction, c.changed_in, c.id LIMIT :most""")


class Feed:
    """Reads on from a place; keeps nothing itself."""

    def __init__(self, database: Database, telemetry: Telemetry) -> None:
        self._database, self._telemetry = database, telemetry

    def listening(self) -> AbstractContextManager[Callable[[float], bool]]:
        """Wait for something to be stored, as `Database.listening`."""
        return self._database.listening(CHANNEL)

    def look(
        self, sessions: Collection[int] | None = None, keys: Collection[WriterKey] = ()
    ) -> Look:
        """How far the writers came that were heard of last (of these sessions), and these ones."""
        with self._database.snapshot() as connection:
            snapshot, durable = connection.execute(_MOMENT).one()
            if sessions is None:
                found = connection.execute(_ALL_WRITERS, {"most": FOLLOWED_MAX})
            else:
                asked = {"sessions": list(sessions), "most": FOLLOWED_MAX}
                found = connection.execute(_OF_SESSIONS, asked)
            writers = dict(map(_progress, found))
            missing = [key for key in keys if key not in writers]
            if missing:
                of, attempts, ranks = map(list, zip(*missing, strict=True))
                asked = {"of": of, "attempts": attempts, "ranks": ranks, "most": len(missing)}
                writers |= dict(map(_progress, connection.execute(_NAMED, asked)))
        return Look(Snapshot.parse(snapshot), durable, writers)

    def make_durable(self) -> None:
        """See that everything logged so far is on the server's disk, by a commit of our own."""
        with self._database.begin() as connection:
            connection.execute(_FLUSH)

    def page(self, key: WriterKey, after: Mark, to: Progress, rows_max: int) -> Page:
        """At most `rows_max` of the rows after a mark, up to where the writer is known to be.

        Steps that come in order are found by the key. Behind a step that did not, the writer's
        rows are read through.
        """
        if after.seq >= to.reordered_seq:
            rows = self._following(key, after, to.mark, rows_max)
            reached = to.mark
        else:
            reached = min(to.mark, Mark(to.reordered_seq, after.step))
            fresh = (r for r in self._all(key) if after.seq < r.seq <= reached.seq)
            rows = heapq.nsmallest(rows_max, fresh, key=lambda row: row.seq)
        if len(rows) >= rows_max:
            reached = Mark(rows[-1].seq, after.step)
        highest = max((row.step for row in rows), default=after.step)
        return Page(rows, Mark(reached.seq, max(reached.step, highest)))

    def _following(self, key: WriterKey, after: Mark, to: Mark, most: int) -> list[TelemetryRow]:
        # One more: the row at the mark's own step may be known already.
        found = self._telemetry.rows(
            key.session_id, attempt=key.attempt, rank=key.rank, start=after.step, limit=most + 1
        )
        return [row for row in found if after.seq < row.seq <= to.seq][:most]

    def _all(self, key: WriterKey, at_once: int = 5_000) -> Iterator[TelemetryRow]:
        start: int | None = None
        while True:
            rows = self._telemetry.rows(
                key.session_id, attempt=key.attempt, rank=key.rank, start=start, limit=at_once
            )
            yield from rows
            if len(rows) < at_once:
                return
            start = rows[-1].step + 1

    def changes(self, after: Seen, until: Snapshot, most: int) -> tuple[list[Change], Seen]:
        """At most so many events and checkpoints that `until` sees and `after` does not.

        Returns them by transaction and id, and what is known once all of them are.
        """
        asked = {
            "from": after.snapshot.xmin, "to": until.xmax,
            "seen": str(after.snapshot), "until": str(until),
            "transaction": after.transaction, "last_id": after.last_id, "most": most,
        }  # fmt: skip
        with self._database.snapshot() as connection:
            found = connection.execute(_CHANGES, asked).all()
            records = _records(connection, {row.id for row in found})
        last = len(found) < most
        known = list(_seen_after_each(after, until, found, complete=last))
        changes = [
            Change(row.kind, row.session_id, row.name, row.changed_in, records[row.id], seen)
            for row, seen in zip(found, known, strict=True)
            if row.id in records
        ]
        return changes, Seen(until) if last else known[-1]


def _progress(row: Sequence[Any]) -> tuple[WriterKey, Progress]:
    session_id, attempt, rank, session, acked, max_step, reordered, created_in = row
    mark = Mark(acked, -1 if max_step is None else max_step)
    return WriterKey(session_id, attempt, rank), Progress(session, mark, reordered, created_in)


def _seen_after_each(
    after: Seen, until: Snapshot, found: Sequence[Any], *, complete: bool
) -> Iterator[Seen]:
    """What is known after each change: those of the transaction known in part come first."""
    base = after.snapshot
    numbers = [row.changed_in for row in found]
    if after.transaction and after.transaction not in numbers:
        base = base.including(after.transaction)
    for row, following in zip(found, [*numbers[1:], None], strict=False):
        number = row.changed_in
        ends = complete if following is None else following != number
        if number == after.transaction:
            base = base.including(number) if ends else base
            yield Seen(base) if ends else Seen(base, number, row.id)
        elif ends:
            yield Seen(base.advanced(until, number))
        else:
            yield Seen(base.advanced(until, number - 1), number, row.id)


def _records(connection: Connection, ids: Iterable[UUID]) -> dict[UUID, Event | Checkpoint]:
    wanted = list(ids)
    if not wanted:
        return {}
    found: dict[UUID, Event | Checkpoint] = {}
    for row in connection.execute(select(events).where(events.c.id.in_(wanted))):
        found[row.id] = Event(**row._mapping)
    for row in connection.execute(select(checkpoints).where(checkpoints.c.id.in_(wanted))):
        found[row.id] = checkpoint_of(row)
    return found
