"""Telemetry: stored exactly once by a fenced binary COPY, read back row by row."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Select, select

from qigstore.database.schema import CUSTOM_COLUMNS, telemetry, writer
from qigstore.database.schema import attempt as attempts
from qigstore.database.schema import basin as basins
from qigstore.database.views import canonical_telemetry
from qigstore.errors import InvalidInput, NotFound, StaleWriter
from qigstore.records import STANDARD_METRICS, TelemetryRow
from qigstore.repository import copy_binary as wire
from qigstore.repository.batches import NO_REGIME, AppendResult, RowGroup, TelemetryBatch
from qigstore.repository.copy_stream import copy_in
from qigstore.repository.curve_buckets import Past, roll_up
from qigstore.repository.rows import Source, StoredRow, named, stored_rows, writers_of

if TYPE_CHECKING:
    import psycopg

    from qigstore.database.engine import Database

    Cursor = psycopg.Cursor[tuple[Any, ...]]

__all__ = ["CUSTOM_METRICS_MAX", "RowCount", "Telemetry"]

CUSTOM_METRICS_MAX = 10_000
"""Custom metrics of one session: each row's array is as long as the last one it uses."""

_SESSIONS_CACHED = 64
_STANDARD = frozenset(STANDARD_METRICS)
_VALUES = (*STANDARD_METRICS, *CUSTOM_COLUMNS, "custom_more")

_FENCE = """
SELECT w.epoch, w.acked_seq, a.session_id, a.number, w.rank,
       w.number, w.seq_less_step, w.stored_rows, w.min_step, w.max_step, w.bucket_steps
FROM qigstore.writer w JOIN qigstore.attempt a ON a.id = w.attempt_id
WHERE w.id = %s FOR NO KEY UPDATE OF w"""
_ADVANCE = """
UPDATE qigstore.writer
SET acked_seq = %(last)s, stored_rows = stored_rows + %(rows)s,
    repeated_rows = repeated_rows + %(repeated)s, min_step = least(min_step, %(least)s),
    max_step = greatest(max_step, %(most)s), bucket_steps = %(width)s,
    seq_less_step = %(seq_less_step)s, stored_at = now(),
    reordered_seq = CASE WHEN %(least)s < max_step OR NOT %(rising)s
                    THEN %(last)s ELSE reordered_seq END
WHERE id = %(writer)s AND epoch = %(epoch)s AND acked_seq = %(first)s - 1
RETURNING pg_notify('qigstore_feed', '')"""
_NAMED = "SELECT name, position FROM qigstore.metric WHERE session_id = %s AND name = ANY(%s)"
# Not FOR UPDATE: that would make every row that refers to the session wait.
_LOCK_SESSION = "SELECT id FROM qigstore.session WHERE id = %s FOR NO KEY UPDATE"
_LAST_POSITION = "SELECT coalesce(max(position), 0) FROM qigstore.metric WHERE session_id = %s"
_NAME = """
INSERT INTO qigstore.metric (session_id, position, name)
SELECT %s, n.position, n.name FROM unnest(%s::int[], %s::text[]) AS n (position, name)"""
_REMOVE = "DELETE FROM qigstore.{} WHERE writer = %s AND step = ANY(%s::bigint[])"
_REMOVE_ROWS, _REMOVE_BASINS = _REMOVE.format("telemetry"), _REMOVE.format("basin")


class RowCount(NamedTuple):
    """How much one rank of one attempt stored, and between which steps."""

    attempt: int
    rank: int
    rows: int
    first_step: int
    last_step: int


class Telemetry:
    """Stores batches and reads rows.

    Reading takes steps as `range` does: `start` included, `stop` not.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._positions: OrderedDict[int, dict[str, int]] = OrderedDict()
        self._lock = Lock()

    def append(
        self, batch: TelemetryBatch, *, meanwhile: Callable[[], None] | None = None
    ) -> AppendResult:
        """Store a batch, whole or not at all; once, however often it is sent.

        Args:
            meanwhile: called, if at all, while the database takes the rows in.

        Raises:
            StaleWriter: another process took the writer over, or the batch does not follow what is
                settled (a note tells which).
            NotFound: there is no such writer.
            InvalidInput: the batch is not of the writer's session, attempt and rank.
            StoreUnavailable: the database did not answer; whether the batch was stored is in
                `writers.state`.
        """
        with self._database.raw() as connection, connection.cursor() as cursor:
            past = _fence(cursor, batch)
            if past is None:
                return AppendResult(0, 0)
            groups = batch.latest()
            if past.seq_less_step is None and groups:
                past = past._replace(seq_less_step=_seq_less_step(groups))
            positions = self._positions_of(cursor, batch.session_id, groups)
            kept = sum(map(len, groups))
            replaced = _remove_repeated(cursor, past, groups)
            _copy(cursor, past, groups, positions, meanwhile)
            width = roll_up(cursor, batch, groups, positions, past)
            repeated = batch.rows - kept + replaced
            told = {"rows": kept - replaced, "repeated": repeated, "width": width}
            _advance(cursor, batch, groups, told | {"seq_less_step": past.seq_less_step})
        # Only now: before the commit, positions given out above may yet be undone.
        self._remember(batch.session_id, positions)
        return AppendResult(batch.rows, repeated)

    def _positions_of(
        self, cursor: Cursor, session_id: int, groups: Sequence[RowGroup]
    ) -> dict[str, int]:
        """Positions of the custom metrics in these groups; new ones get the next positions."""
        wanted = dict.fromkeys(n for group in groups for n in group.names if n not in _STANDARD)
        with self._lock:
            known = self._positions.get(session_id, {})
            found = {name: known[name] for name in wanted if name in known}
        missing = [name for name in wanted if name not in found]
        if missing:
            found |= dict(cursor.execute(_NAMED, (session_id, missing)).fetchall())
            missing = [name for name in missing if name not in found]
        if missing:
            found |= _name(cursor, session_id, missing)
        return found

    def _remember(self, session_id: int, positions: Mapping[str, int]) -> None:
        with self._lock:
            self._positions.setdefault(session_id, {}).update(positions)
            self._positions.move_to_end(session_id)
            while len(self._positions) > _SESSIONS_CACHED:
                self._positions.popitem(last=False)

    def latest(self, session_id: int) -> TelemetryRow | None:
        """The greatest step of the newest attempt that stored any (of its first rank)."""
        newest = writers_of(session_id).order_by(attempts.c.number.desc(), writer.c.rank).limit(1)
        query = select(telemetry).order_by(telemetry.c.step.desc())
        with self._database.begin() as connection:
            sources = [Source(*row) for row in connection.execute(newest)]
            rows = named(connection, session_id, stored_rows(connection, sources, query, 1))
        return rows[0] if rows else None

    def rows(
        self,
        session_id: int,
        *,
        attempt: int | None = None,
        rank: int = 0,
        start: int | None = None,
        stop: int | None = None,
        limit: int | None = None,
    ) -> list[TelemetryRow]:
        """Rows of one rank by attempt and step; `attempt=None`: of every attempt."""
        wanted = writers_of(session_id).where(writer.c.rank == rank)
        if attempt is not None:
            wanted = wanted.where(attempts.c.number == attempt)
        query = _between(select(telemetry), telemetry.c.step, start, stop)
        query = query.order_by(telemetry.c.step)
        with self._database.begin() as connection:
            found = connection.execute(wanted.order_by(attempts.c.number))
            sources = [Source(*row) for row in found]
            return named(connection, session_id, stored_rows(connection, sources, query, limit))

    def canonical(
        self,
        session_id: int,
        *,
        rank: int = 0,
        start: int | None = None,
        stop: int | None = None,
        limit: int | None = None,
    ) -> list[TelemetryRow]:
        """For each step the row of the newest attempt that reached it, by step."""
        view = canonical_telemetry.c
        key = (view.attempt, view.rank, view.step, view.seq, view.recorded_at, view.regime)
        standard = (view[name] for name in STANDARD_METRICS)
        query = select(*key, *standard, view.custom)
        query = query.where(view.session_id == session_id, view.rank == rank)
        query = _between(query, view.step, start, stop).order_by(view.step).limit(limit)
        with self._database.begin() as connection:
            rows = (
                StoredRow(
                    (row.attempt, row.rank, row.step, row.seq), row.recorded_at, row.regime,
                    row[len(key) : -1], row.custom or (),
                )
                for row in connection.execute(query).all()
            )  # fmt: skip
            return named(connection, session_id, rows)

    def counts(self, session_id: int) -> list[RowCount]:
        """Rows of each attempt and rank, with first and last step."""
        query = (
            select(
                attempts.c.number,
                writer.c.rank,
                writer.c.stored_rows,
                writer.c.min_step,
                writer.c.max_step,
            )
            .join(writer, writer.c.attempt_id == attempts.c.id)
            .where(attempts.c.session_id == session_id, writer.c.max_step.is_not(None))
            .order_by(attempts.c.number, writer.c.rank)
        )
        with self._database.begin() as connection:
            return [RowCount(*row) for row in connection.execute(query)]

    def progress(self, session_id: int) -> dict[int, int]:
        """The greatest step of each attempt that stored any."""
        last: dict[int, int] = {}
        for count in self.counts(session_id):
            last[count.attempt] = max(count.last_step, last.get(count.attempt, count.last_step))
        return last

    def basin(
        self, session_id: int, attempt: int, rank: int, step: int
    ) -> NDArray[np.float64] | None:
        """The distribution p recorded at a step, or None."""
        query = (
            select(basins.c.root)
            .join(writer, writer.c.number == basins.c.writer)
            .join(attempts, attempts.c.id == writer.c.attempt_id)
            .where(attempts.c.session_id == session_id, attempts.c.number == attempt)
            .where(writer.c.rank == rank, basins.c.step == step)
        )
        with self._database.begin() as connection:
            root = connection.execute(query).scalar()
        return None if root is None else np.square(np.array(root, dtype=np.float64))


def _fence(cursor: Cursor, batch: TelemetryBatch) -> Past | None:
    """Lock the writer's row and decide; None: the batch is stored already."""
    row = cursor.execute(_FENCE, (batch.writer,)).fetchone()
    if row is None:
        raise NotFound("writer", batch.writer)
    epoch, acked, *of = row[:5]
    if of != [batch.session_id, batch.attempt, batch.rank]:
        given = f"session {batch.session_id}, attempt {batch.attempt}, rank {batch.rank}"
        raise InvalidInput("batch", given, "session {}, attempt {}, rank {}".format(*of))
    if epoch == batch.epoch and acked >= batch.last_seq:
        return None
    if epoch != batch.epoch or acked != batch.first_seq - 1:
        gap = (
            f"the batch holds records {batch.first_seq} to {batch.last_seq}, settled are those up "
            f"to {acked}"
        )
        raise StaleWriter(batch.writer, batch.epoch, epoch, gap=gap)
    return Past(*row[5:])


def _seq_less_step(groups: Sequence[RowGroup]) -> int:
    """Of a writer's first row; the same for each that follows it step by step."""
    first = min(groups, key=lambda group: int(group.seq[0]))
    return int(first.seq[0]) - int(first.step[0])


def _advance(
    cursor: Cursor,
    batch: TelemetryBatch,
    groups: Sequence[RowGroup],
    told: Mapping[str, int | None],
) -> None:
    """Move the fence, in the rows' own transaction; the condition is the promise itself."""
    values = {
        "writer": batch.writer,
        "epoch": batch.epoch,
        "first": batch.first_seq,
        "last": batch.last_seq,
        **told,
        "least": min((int(group.step.min()) for group in groups), default=None),
        "most": max((int(group.step.max()) for group in groups), default=None),
        "rising": _rising(groups),
    }
    if cursor.execute(_ADVANCE, values).rowcount != 1:
        raise StaleWriter(batch.writer, batch.epoch, None)


def _rising(groups: Sequence[RowGroup]) -> bool:
    """Whether the steps follow the order of the records."""
    if len(groups) == 1:
        return bool((np.diff(groups[0].step) >= 0).all())
    none = np.empty(0, np.int64)
    seq, step = (
        np.concatenate([none, *parts])
        for parts in ([g.seq for g in groups], [g.step for g in groups])
    )
    return bool((np.diff(step[np.argsort(seq)]) >= 0).all())


def _name(cursor: Cursor, session_id: int, names: Sequence[str]) -> dict[str, int]:
    """Give new names the next positions, one process at a time in a session."""
    if cursor.execute(_LOCK_SESSION, (session_id,)).fetchone() is None:
        raise NotFound("session", session_id)
    # Another rank may have named them while this one waited for the lock.
    found: dict[str, int] = dict(cursor.execute(_NAMED, (session_id, list(names))).fetchall())
    new = [name for name in names if name not in found]
    row = cursor.execute(_LAST_POSITION, (session_id,)).fetchone()
    last: int = row[0] if row else 0
    if last + len(new) > CUSTOM_METRICS_MAX:
        expected = f"at most {CUSTOM_METRICS_MAX} custom metrics in a session"
        raise InvalidInput("metric name", new[0], expected)
    given = dict(zip(new, range(last + 1, last + 1 + len(new)), strict=True))
    if given:
        cursor.execute(_NAME, (session_id, list(given.values()), list(given)))
    return found | given


def _remove_repeated(cursor: Cursor, past: Past, groups: Sequence[RowGroup]) -> int:
    """Delete stored rows whose step comes again; most batches are past every stored step."""
    if past.most is None:
        return 0
    steps = [step for group in groups for step in group.step[group.step <= past.most].tolist()]
    if not steps:
        return 0
    cursor.execute(_REMOVE_BASINS, (past.writer, steps))
    return cursor.execute(_REMOVE_ROWS, (past.writer, steps)).rowcount


def _copy(
    cursor: Cursor,
    past: Past,
    groups: Sequence[RowGroup],
    positions: Mapping[str, int],
    meanwhile: Callable[[], None] | None,
) -> None:
    if not groups:
        return
    used = {_column(name, positions) for group in groups for name in group.names}
    values = [column for column in _VALUES if column in used]
    columns = ["writer", "regime", "step", "seq", "recorded_at", *values]
    parts = (
        (_row_fields(past, part, values, positions), len(part))
        for group in groups
        for part in _by_regime(group)
    )
    copy_in(cursor, "telemetry", columns, parts, meanwhile)
    with_basins = [group for group in groups if group.basins is not None]
    if with_basins:
        parts = ((_basin_fields(past, group), len(group)) for group in with_basins)
        copy_in(cursor, "basin", ["writer", "step", "root"], parts)


def _column(name: str, positions: Mapping[str, int]) -> str:
    """Where a metric is in the table."""
    if name in _STANDARD:
        return name
    place = positions[name]
    return CUSTOM_COLUMNS[place - 1] if place <= len(CUSTOM_COLUMNS) else "custom_more"


def _by_regime(group: RowGroup) -> Iterator[RowGroup]:
    """Rows with a regime and rows without one are two layouts: NULL has no bytes."""
    known = group.regime != NO_REGIME
    if known.all() or not known.any():
        yield group
    else:
        yield from (group.take(known), group.take(~known))


def _row_fields(
    past: Past, group: RowGroup, columns: Sequence[str], positions: Mapping[str, int]
) -> list[wire.Field]:
    has_regime = group.regime[0] != NO_REGIME
    derived = (group.seq - group.step == past.seq_less_step).all()
    fields: list[wire.Field] = [
        wire.Constant(past.writer, 4),
        wire.Integers(group.regime, 2) if has_regime else wire.Nulls(),
        wire.Integers(group.step, 8),
        wire.Nulls() if derived else wire.Integers(group.seq, 8),
        wire.Integers(wire.timestamps(group.time_ns), 8),
    ]
    at = {_column(name, positions): column for column, name in enumerate(group.names)}
    more = at.pop("custom_more", None)
    run: list[int] = []
    for name in (column for column in columns if column != "custom_more"):
        if name in at:
            run.append(at[name])
            continue
        fields += [*_floats(group, run), wire.Nulls()]
        run = []
    fields += _floats(group, run)
    if "custom_more" in columns:
        fields.append(wire.Nulls() if more is None else _more_field(group, positions))
    return fields


def _floats(group: RowGroup, run: Sequence[int]) -> list[wire.Field]:
    """Columns of the values, where there are any; without a copy where they lie together."""
    if not run:
        return []
    first, last = run[0], run[-1]
    together = list(run) == list(range(first, last + 1))
    return [wire.Floats(group.values[:, first : last + 1] if together else group.values[:, run])]


def _more_field(group: RowGroup, positions: Mapping[str, int]) -> wire.Field:
    """The custom metrics that have no column of their own, as one array."""
    placed = sorted(
        (positions[name] - 1 - len(CUSTOM_COLUMNS), column)
        for column, name in enumerate(group.names)
        if name not in _STANDARD and positions[name] > len(CUSTOM_COLUMNS)
    )
    places, columns = (np.array(part, dtype=np.int64) for part in zip(*placed, strict=True))
    return wire.Array(group.values[:, columns], places)


def _basin_fields(past: Past, group: RowGroup) -> list[wire.Field]:
    assert group.basins is not None
    places = np.arange(group.basins.shape[1], dtype=np.int64)
    roots = wire.Array(np.sqrt(group.basins), places)
    return [wire.Constant(past.writer, 4), wire.Integers(group.step, 8), roots]


def _between(query: Select[Any], step: Any, start: int | None, stop: int | None) -> Select[Any]:
    if start is not None:
        query = query.where(step >= start)
    return query if stop is None else query.where(step < stop)
