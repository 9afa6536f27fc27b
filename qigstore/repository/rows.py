"""Rows of telemetry as they are read: whose they are, their values under their names.

A row of the table says by whose number it was written, and has a metric by its place. Both are
looked up once a reading, so that each row is one entry of the index and nothing is joined to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, select

from qigstore.database.schema import attempt as attempts
from qigstore.database.schema import metric as metrics
from qigstore.database.schema import telemetry
from qigstore.database.schema import writer as writers
from qigstore.database.views import REGIMES
from qigstore.records import STANDARD_METRICS, TelemetryRow

__all__ = ["Source", "StoredRow", "by_name", "named", "stored_row", "stored_rows", "writers_of"]

_FIRST_METRIC = telemetry.c.keys().index(STANDARD_METRICS[0])
_FIRST_CUSTOM = _FIRST_METRIC + len(STANDARD_METRICS)


class Source(NamedTuple):
    """A writer: its number in the table, whose rows they are, `seq` where a row has none."""

    number: int
    attempt: int
    rank: int
    seq_less_step: int | None


class StoredRow(NamedTuple):
    """A row whose custom metrics are still by place; `None`: not recorded.

    Attributes:
        key: attempt, rank, step and sequence number.
    """

    key: tuple[int, int, int, int]
    recorded_at: datetime
    regime: str | None
    standard: Sequence[float | None]
    custom: Sequence[float | None]


def writers_of(session_id: int) -> Select[Any]:
    """A query for the writers of a session that stored any rows, each a `Source`."""
    columns = (writers.c.number, attempts.c.number, writers.c.rank, writers.c.seq_less_step)
    return (
        select(*columns)
        .join(attempts, attempts.c.id == writers.c.attempt_id)
        .where(attempts.c.session_id == session_id, writers.c.max_step.is_not(None))
    )


def stored_row(source: Source, row: Sequence[Any]) -> StoredRow:
    """A row of the table `telemetry`, all columns in their order."""
    _, regime, step, seq, recorded_at = row[:_FIRST_METRIC]
    *custom, more = row[_FIRST_CUSTOM:]
    if seq is None:
        assert source.seq_less_step is not None
        seq = step + source.seq_less_step
    known = None if regime is None else REGIMES[regime]
    standard = row[_FIRST_METRIC:_FIRST_CUSTOM]
    key = (source.attempt, source.rank, step, seq)
    return StoredRow(key, recorded_at, known, standard, [*custom, *(more or ())])


def stored_rows(
    connection: Connection, sources: Iterable[Source], query: Select[Any], limit: int | None
) -> Iterator[StoredRow]:
    """What a query of the table finds of each writer, one writer after the other."""
    left = limit
    for source in sources:
        mine = query.where(telemetry.c.writer == source.number).limit(left)
        rows = connection.execute(mine).all()
        left = None if left is None else left - len(rows)
        yield from (stored_row(source, row) for row in rows)


def named(connection: Connection, session_id: int, rows: Iterable[StoredRow]) -> list[TelemetryRow]:
    """The rows with the names of their metrics."""
    found = list(rows)
    # After the rows, so that a metric that a rank names in this moment has its name, too.
    query = select(metrics.c.position, metrics.c.name).where(metrics.c.session_id == session_id)
    names = {row.position: row.name for row in connection.execute(query)}
    return [
        TelemetryRow(*row.key, row.recorded_at, row.regime, by_name(row, names)) for row in found
    ]


def by_name(row: StoredRow, names: Mapping[int, str]) -> dict[str, float]:
    """What was recorded; `names`: of the custom metrics by position."""
    found = {
        name: value
        for name, value in zip(STANDARD_METRICS, row.standard, strict=True)
        if value is not None
    }
    for position, value in enumerate(row.custom, start=1):
        if value is not None:
            found[names[position]] = value
    return found
