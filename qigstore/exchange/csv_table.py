"""The telemetry of a session as one table of text, for spreadsheets and everything else.

A file that holds rows only tells nothing of the attempts: imported, each of them is one that
completed, from its first row to its last, with ids derived from the session's name.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import BinaryIO
from uuid import NAMESPACE_OID, uuid5

from qigstore.errors import InvalidInput
from qigstore.exchange.formats import Exportable, moment, number, written
from qigstore.repository.exports import ExportedRow, ExportedSession

__all__ = ["CsvTable"]

_FIXED = ("session", "attempt", "rank", "step", "seq", "recorded_at", "regime")
_BASIN = "basin"
_ROWS_AT_ONCE = 2_000
_CELL_CHARACTERS_MAX = 1 << 24


class CsvTable:
    """Writes and reads `.csv`."""

    def write(
        self, file: BinaryIO, snapshot: Exportable, batches: Iterable[Sequence[ExportedRow]]
    ) -> None:
        """Write the rows of a session."""
        names = (*snapshot.standard, *snapshot.session.metrics)
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        table = csv.writer(text)
        table.writerow((*_FIXED, *names, _BASIN))
        for batch in batches:
            table.writerows(_cells(snapshot.session.name, names, row) for row in batch)
        text.detach()

    def read(self, path: Path) -> _CsvSource:
        """Open a file.

        Raises:
            InvalidInput: it is no export.
        """
        return _CsvSource(path)


def _cells(session: str, names: Sequence[str], row: ExportedRow) -> list[object]:
    values = (row.metrics.get(name) for name in names)
    return [
        session, row.attempt, row.rank, row.step, row.seq, row.recorded_at.isoformat(),
        row.regime or "", *("" if value is None else written(value) for value in values),
        "" if row.basin is None else json.dumps(row.basin),
    ]  # fmt: skip


class _CsvSource:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: int | None = 0
        spans: dict[tuple[int, int], tuple[datetime, datetime]] = {}
        names: set[str] = set()
        for session, row in self._read():
            names.add(session)
            key = (row.attempt, row.rank)
            first, _ = spans.get(key, (row.recorded_at, row.recorded_at))
            spans[key] = (first, row.recorded_at)
            self.rows += 1
        if len(names) != 1:
            raise InvalidInput(str(path), sorted(names), "rows of one session")
        self.session = _session(names.pop(), spans)

    def _read(self) -> Iterator[tuple[str, ExportedRow]]:
        with self._path.open(encoding="utf-8", newline="") as file:
            csv.field_size_limit(_CELL_CHARACTERS_MAX)  # a basin is one cell
            table = csv.reader(file, strict=True)
            try:
                head = next(table, [])
                if tuple(head[: len(_FIXED)]) != _FIXED or head[-1] != _BASIN:
                    expected = f"the columns {', '.join(_FIXED)}, metrics, {_BASIN}"
                    raise InvalidInput(str(self._path), ",".join(head), expected)
                names = head[len(_FIXED) : -1]
                for cells in table:
                    yield cells[0], _row(names, cells)
            except (ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
                if isinstance(error, InvalidInput):
                    raise
                place = f"{self._path}, line {table.line_num}"
                raise InvalidInput(place, str(error), "a row of an export") from None

    def batches(self) -> Iterator[Sequence[ExportedRow]]:
        """Rows, some at a time."""
        batch: list[ExportedRow] = []
        for _, row in self._read():
            batch.append(row)
            if len(batch) == _ROWS_AT_ONCE:
                yield batch
                batch = []
        if batch:
            yield batch


def _row(names: Sequence[str], cells: Sequence[str]) -> ExportedRow:
    fixed, values, point = cells[: len(_FIXED)], cells[len(_FIXED) : -1], cells[-1]
    _, attempt, rank, step, seq, recorded_at, regime = fixed
    return ExportedRow(
        attempt=int(attempt),
        rank=int(rank),
        step=int(step),
        seq=int(seq),
        recorded_at=moment(recorded_at),
        regime=regime or None,
        metrics={name: float(value) for name, value in zip(names, values, strict=True) if value},
        basin=[number(part) for part in json.loads(point)] if point else None,
    )


def _session(
    name: str, spans: Mapping[tuple[int, int], tuple[datetime, datetime]]
) -> ExportedSession:
    """What can be told of a session by its rows."""
    ids = {number: str(uuid5(NAMESPACE_OID, f"{name}\n{number}")) for number, _ in spans}
    attempts = []
    for number_, key in sorted(ids.items()):
        mine = [span for (attempt, _), span in spans.items() if attempt == number_]
        started, ended = min(first for first, _ in mine), max(last for _, last in mine)
        attempts.append({
            "id": key,
            "number": number_,
            "status": "completed",
            "host": "",
            "pid": 0,
            "config": {},
            "started_at": started.isoformat(),
            "heartbeat_at": ended.isoformat(),
            "ended_at": ended.isoformat(),
            "reason": "imported from a table of rows",
        })  # fmt: skip
    writers = [
        {"attempt": number_, "rank": rank, "repeated_rows": 0,
         "id": str(uuid5(NAMESPACE_OID, f"{ids[number_]}\n{rank}"))}
        for number_, rank in sorted(spans)
    ]  # fmt: skip
    created = min(first for first, _ in spans.values())
    return ExportedSession(name, {}, created.isoformat(), (), attempts, writers)
