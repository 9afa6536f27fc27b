"""A whole session read out as it is at one moment, and written back so that it is the same.

What a session is besides its telemetry (attempts, writers, events, checkpoints, decisions) travels
as rows of the tables in JSON's own types. Telemetry goes back through `Telemetry.append`, behind
the same fence that a recording process uses: so a batch is stored once, however often it is sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, DateTime, Double, Table, Uuid, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DataError, IntegrityError

from qigstore.database.schema import (
    attempt,
    basin,
    checkpoint,
    event,
    metric,
    recovery_event,
    session,
    telemetry,
    writer,
)
from qigstore.errors import ConfigurationError, InvalidInput, NotFound, QigstoreError
from qigstore.records import STANDARD_METRICS
from qigstore.repository.rows import Source, StoredRow, by_name, stored_row, writers_of
from qigstore.repository.texts import document, line
from qigstore.repository.writers import WriterState

if TYPE_CHECKING:
    from qigstore.database.engine import Database

__all__ = [
    "ExportedRow",
    "ExportedSession",
    "Exports",
    "OpenedExport",
    "Snapshot",
    "plain_record",
]

_ROWS_AT_ONCE = 2_000
_OF_SESSION: dict[str, Table] = {
    "attempts": attempt,
    "events": event,
    "checkpoints": checkpoint,
    "decisions": recovery_event,
}
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Record = dict[str, Any]
"""A row of a table by column, in JSON's own types, without its session."""


class ExportedRow(NamedTuple):
    """One row of telemetry with everything that is stored of it; `basin`: a distribution."""

    attempt: int
    rank: int
    step: int
    seq: int
    recorded_at: datetime
    regime: str | None
    metrics: Mapping[str, float]
    basin: Sequence[float] | None


@dataclass(frozen=True, slots=True)
class ExportedSession:
    """A session without its telemetry, in JSON's own types.

    Attributes:
        metrics: names of the custom metrics, in the order of their places.
        writers: of each attempt and rank: `attempt`, `rank`, `id`, `repeated_rows`.
    """

    name: str
    config: Mapping[str, Any]
    created_at: str
    metrics: Sequence[str]
    attempts: Sequence[Record]
    writers: Sequence[Record]
    events: Sequence[Record] = ()
    checkpoints: Sequence[Record] = ()
    decisions: Sequence[Record] = ()


class Snapshot:
    """A session as it is at one moment.

    Attributes:
        session: everything but the telemetry.
        rows: how many rows there are. standard: the standard metrics that any of them has.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        row = connection.execute(select(session).where(session.c.name == name)).first()
        if row is None:
            raise NotFound("session", name, hint="See `qigstore sessions list`")
        self._id: int = row.id
        named = select(metric.c.position, metric.c.name).where(metric.c.session_id == row.id)
        self._names = {place.position: place.name for place in connection.execute(named)}
        self.session = ExportedSession(
            name=row.name,
            config=row.config,
            created_at=_plain(row.created_at),
            metrics=[self._names[place] for place in sorted(self._names)],
            writers=self._writers(),
            **{part: self._records(table) for part, table in _OF_SESSION.items()},
        )
        mine = writers_of(row.id).order_by(attempt.c.number, writer.c.rank)
        self._sources = [Source(*found) for found in connection.execute(mine)]
        used = [func.bool_or(telemetry.c[name].is_not(None)) for name in STANDARD_METRICS]
        of_them = telemetry.c.writer.in_([source.number for source in self._sources])
        self.rows, *found = connection.execute(select(func.count(), *used).where(of_them)).one()
        self.standard = tuple(
            name for name, any_row in zip(STANDARD_METRICS, found, strict=True) if any_row
        )

    def _records(self, table: Table) -> list[Record]:
        columns = [column for column in table.c if column.name != "session_id"]
        query = select(*columns).where(table.c.session_id == self._id).order_by(table.c.id)
        return [plain_record(dict(row._mapping)) for row in self._connection.execute(query)]

    def _writers(self) -> list[Record]:
        query = (
            select(attempt.c.number, writer.c.rank, writer.c.id, writer.c.repeated_rows)
            .join(attempt, writer.c.attempt_id == attempt.c.id)
            .where(attempt.c.session_id == self._id)
            .order_by(attempt.c.number, writer.c.rank)
        )
        return [
            {"attempt": number, "rank": rank, "id": str(key), "repeated_rows": repeated}
            for number, rank, key, repeated in self._connection.execute(query)
        ]

    def batches(self) -> Iterator[list[ExportedRow]]:
        """Rows by attempt, rank and sequence, some at a time, so that memory stays bounded."""
        at = telemetry.c
        same = (basin.c.writer == at.writer) & (basin.c.step == at.step)
        query = select(telemetry, basin.c.root).select_from(telemetry.outerjoin(basin, same))
        streaming = self._connection.execution_options(yield_per=_ROWS_AT_ONCE)
        for source in self._sources:
            order = func.coalesce(at.seq, at.step + source.seq_less_step)
            mine = query.where(at.writer == source.number).order_by(order)
            for part in streaming.execute(mine).partitions():
                yield [self._row(stored_row(source, row[:-1]), row[-1]) for row in part]

    def _row(self, row: StoredRow, root: Sequence[float] | None) -> ExportedRow:
        # √(x²) is x in binary floating point, so that what is stored again is bit for bit the same.
        point = None if root is None else [part * part for part in root]
        moment = row.recorded_at.astimezone(UTC)
        return ExportedRow(*row.key, moment, row.regime, by_name(row, self._names), point)


class OpenedExport(NamedTuple):
    """A session that an import may store into: its id, and each writer with its fence."""

    session_id: int
    writers: Mapping[tuple[int, int], tuple[UUID, WriterState]]


class Exports:
    """Reads whole sessions, and writes them back."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def snapshot(self, name: str) -> Iterator[Snapshot]:
        """The session of that name as it is now, while the block lasts.

        Raises:
            NotFound: there is none.
        """
        with self._database.snapshot() as connection:
            yield Snapshot(connection, name)

    def open(self, exported: ExportedSession) -> OpenedExport:
        """Make the session, its attempts and writers, as far as they are not there.

        Raises:
            ConfigurationError: a session of that name exists and is another one.
            InvalidInput: a record that no table of this version takes.
        """
        with _refusals(), self._database.begin() as connection:
            # All of them, so that a file is refused before anything of it is stored.
            checked = {
                part: [_values(part, record) for record in getattr(exported, part)]
                for part in _OF_SESSION
            }
            attempts = checked["attempts"]
            session_id = _make_session(connection, exported, {row["id"] for row in attempts})
            for values in attempts:
                _add(connection, attempt, {**values, "session_id": session_id})
            places = enumerate(exported.metrics, start=1)
            for place, name in places:
                values = {"session_id": session_id, "position": place, "name": name}
                _add(connection, metric, values)
            by_number = {values["number"]: values["id"] for values in attempts}
            return OpenedExport(session_id, dict(_writers(connection, exported, by_number)))

    def finish(self, session_id: int, exported: ExportedSession) -> int:
        """Add events, checkpoints and decisions; how many were new.

        Raises:
            InvalidInput: a record that no table of this version takes.
        """
        new = 0
        with _refusals(), self._database.begin() as connection:
            for part, table in _OF_SESSION.items():
                if part == "attempts":
                    continue
                for record in getattr(exported, part):
                    values = {**_values(part, record), "session_id": session_id}
                    new += _add(connection, table, values)
            for record in exported.writers:
                # Of rows that were replaced before the export nothing is left but their number.
                counted = func.greatest(writer.c.repeated_rows, record["repeated_rows"])
                mine = writer.c.id == UUID(record["id"])
                connection.execute(update(writer).where(mine).values(repeated_rows=counted))
        return new


@contextmanager
def _refusals() -> Iterator[None]:
    """What a file holds and no table takes, as one clear error."""
    try:
        yield
    except (IntegrityError, DataError) as error:
        reason = " ".join(str(error.orig).split())
        raise InvalidInput("the file", reason, "records that the tables take") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, QigstoreError):
            raise
        raise InvalidInput("the file", repr(error), "records that an export wrote") from error


def _make_session(connection: Connection, exported: ExportedSession, ids: set[UUID]) -> int:
    values = {
        "name": line("session name", exported.name),
        "config": document("config", exported.config),
        "created_at": datetime.fromisoformat(exported.created_at),
    }
    _add(connection, session, values)
    mine = select(session.c.id).where(session.c.name == exported.name)
    session_id: int = connection.execute(mine.with_for_update()).scalar_one()
    known = select(attempt.c.id, attempt.c.session_id).where(
        (attempt.c.session_id == session_id) | attempt.c.id.in_(ids)
    )
    for row in connection.execute(known):
        if row.id not in ids or row.session_id != session_id:
            raise ConfigurationError(
                f"the session {exported.name!r} exists already and is not the one in the file. "
                "Give it another name with --session."
            )
    return session_id


def _writers(
    connection: Connection, exported: ExportedSession, attempts: Mapping[int, UUID]
) -> Iterator[tuple[tuple[int, int], tuple[UUID, WriterState]]]:
    for record in exported.writers:
        key, number, rank = UUID(record["id"]), record["attempt"], record["rank"]
        values = {"id": key, "attempt_id": attempts[number], "rank": rank}
        _add(connection, writer, values)
        fence = select(writer.c.epoch, writer.c.acked_seq).where(writer.c.id == key)
        row = connection.execute(fence).first()
        if row is None:
            raise InvalidInput("writer", str(key), f"the writer of attempt {number}, rank {rank}")
        yield (number, rank), (key, WriterState(*row))


def _add(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    done = connection.execute(insert(table).values(**values).on_conflict_do_nothing())
    return done.rowcount == 1


def plain_record(values: Mapping[str, Any]) -> Record:
    """A row of a table in JSON's own types, without its session."""
    return {name: _plain(value) for name, value in values.items() if name != "session_id"}


def _plain(value: Any) -> Any:
    """A value of a table in JSON's own types."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return str(value) if isinstance(value, UUID) else value


def _values(part: str, record: Record) -> dict[str, Any]:
    """The values of a record again, by the types of its table."""
    table, values = _OF_SESSION[part], {}
    for name, given in record.items():
        if name not in table.c:
            raise InvalidInput(part, name, "a column of this version of qigstore")
        kind, value = table.c[name].type, given
        try:
            if value is not None and isinstance(kind, DateTime):
                value = datetime.fromisoformat(value)
            elif value is not None and isinstance(kind, Uuid):
                value = UUID(value)
            elif value is not None and isinstance(kind, Double):
                value = _NON_FINITE[value] if isinstance(value, str) else float(value)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InvalidInput(f"{part}: {name}", given, f"a value of type {kind}") from None
        values[name] = value
    return values
