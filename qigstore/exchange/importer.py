"""A file into a database: a session of its own, each row once, however often it is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

import numpy as np

from qigkernels.regimes import Regime
from qigstore.errors import InvalidInput
from qigstore.exchange.formats import format_of
from qigstore.repository.batches import NO_REGIME, RowGroup, TelemetryBatch

if TYPE_CHECKING:
    from qigstore.repository import Store
    from qigstore.repository.exports import ExportedRow, ExportedSession, OpenedExport

__all__ = ["ImportReport", "import_session", "row_groups"]

_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did.

    Attributes:
        rows: stored now. known_rows: stored before. records: events, checkpoints and decisions
            stored now. left_out: rows of checkpoints, which do not follow a session to a new name.
    """

    path: Path
    session: str
    rows: int
    known_rows: int
    records: int
    left_out: int


def import_session(
    store: Store,
    path: Path,
    *,
    session: str | None = None,
    progress: Callable[[int, int | None], object] = lambda _done, _total: None,
) -> ImportReport:
    """Store what an export wrote, under its own name or another one.

    `progress` is told the rows done and, where the file tells, how many there are.

    Raises:
        InvalidInput: the file is no export, or damaged; a damaged row leaves the rows before it.
        ConfigurationError: a session of that name is there and is another one; or no such format.
        StoreUnavailable: the database went away; import again, and it goes on from there.
    """
    source = format_of(path).read(path)
    given = source.session
    exported = given if session in (None, given.name) else _renamed(given, str(session))
    opened = store.exports.open(exported)
    loading = _Loading(store, path, opened)
    for batch in source.batches():
        for (attempt, rank), rows in groupby(batch, key=lambda row: (row.attempt, row.rank)):
            loading.add(attempt, rank, list(rows))
        progress(loading.rows + loading.known, source.rows)
    records = store.exports.finish(opened.session_id, exported)
    left_out = len(given.checkpoints) - len(exported.checkpoints)
    return ImportReport(path, exported.name, loading.rows, loading.known, records, left_out)


def _renamed(session: ExportedSession, name: str) -> ExportedSession:
    """The session under another name, with ids of its own, the same each time."""

    def derived(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{**record, "id": str(uuid5(UUID(record["id"]), name))} for record in records]

    return replace(
        session,
        name=name,
        attempts=derived(session.attempts),
        writers=derived(session.writers),
        events=derived(session.events),
        decisions=derived(session.decisions),
        checkpoints=(),
    )


class _Loading:
    """Sends rows behind each writer's fence.

    Attributes:
        rows: stored now. known: stored before.
    """

    def __init__(self, store: Store, path: Path, opened: OpenedExport) -> None:
        self._store, self._path, self._opened = store, path, opened
        self._acked = {key: state.acked_seq for key, (_, state) in opened.writers.items()}
        self._seen = dict.fromkeys(self._acked, 0)
        self.rows = self.known = 0

    def add(self, attempt: int, rank: int, rows: list[ExportedRow]) -> None:
        """Store rows of one writer, which follow those given before."""
        key = (attempt, rank)
        if key not in self._acked:
            found = f"attempt {attempt}, rank {rank}"
            raise InvalidInput(str(self._path), found, "rows of the attempts that the file names")
        for row in rows:
            if row.seq <= self._seen[key]:
                place = f"row {row.seq} after row {self._seen[key]} of attempt {attempt}"
                raise InvalidInput(str(self._path), place, "rows by attempt, rank and sequence")
            self._seen[key] = row.seq
        fresh = [row for row in rows if row.seq > self._acked[key]]
        self.known += len(rows) - len(fresh)
        if not fresh:
            return
        writer, state = self._opened.writers[key]
        self._store.telemetry.append(
            TelemetryBatch(
                writer=writer,
                epoch=state.epoch,
                session_id=self._opened.session_id,
                attempt=attempt,
                rank=rank,
                first_seq=self._acked[key] + 1,
                last_seq=fresh[-1].seq,
                groups=tuple(row_groups(fresh)),
            )
        )
        self._acked[key] = fresh[-1].seq
        self.rows += len(fresh)


def row_groups(rows: Sequence[ExportedRow]) -> Iterator[RowGroup]:
    """Rows by their layout: which metrics, and how many numbers their basin has."""
    layouts: dict[tuple[tuple[str, ...], int], list[ExportedRow]] = {}
    for row in rows:
        layout = (tuple(row.metrics), 0 if row.basin is None else len(row.basin))
        layouts.setdefault(layout, []).append(row)
    for (names, dimension), same in layouts.items():
        values = np.array([list(row.metrics.values()) for row in same], np.float64)
        yield RowGroup(
            names=names,
            seq=np.array([row.seq for row in same], np.int64),
            step=np.array([row.step for row in same], np.int64),
            time_ns=np.array([_time_ns(row.recorded_at) for row in same], np.int64),
            values=values.reshape(len(same), len(names)),
            regime=np.array([_code(row.regime) for row in same], np.int16),
            basins=np.array([row.basin for row in same], np.float64) if dimension else None,
        )


def _time_ns(moment: datetime) -> int:
    time_ns = (moment - _EPOCH) // _MICROSECOND * 1000
    if not -(2**63) <= time_ns < 2**63:
        raise InvalidInput("recorded_at", moment.isoformat(), "a time of the years 1678 to 2261")
    return time_ns


def _code(regime: str | None) -> int:
    if regime is None:
        return NO_REGIME
    try:
        return Regime(regime).code
    except ValueError:
        names = ", ".join(item.value for item in Regime)
        raise InvalidInput("regime", regime, f"one of {names}") from None
