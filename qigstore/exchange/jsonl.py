"""A session as JSON Lines: a head, what happened, the telemetry, and an end that says it is whole.

Each line is one JSON object with its `kind`. Numbers have the digits that give them back exactly;
NaN and ±inf are the strings "NaN", "Infinity", "-Infinity".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from qigstore.errors import InvalidInput
from qigstore.exchange.formats import Exportable, moment, number, written
from qigstore.repository.exports import ExportedRow, ExportedSession

__all__ = ["FORMAT", "JsonLines", "head_of", "session_of"]

FORMAT = "qigstore-session-1"
_PARTS = {"event": "events", "checkpoint": "checkpoints", "decision": "decisions"}
_ROWS_AT_ONCE = 2_000
_END_BYTES_MAX = 4096


def head_of(session: ExportedSession) -> dict[str, Any]:
    """The first line: what the session is, without what happened in it."""
    return {"format": FORMAT} | {
        name: value for name, value in asdict(session).items() if name not in _PARTS.values()
    }


def session_of(path: Path, head: Any, parts: dict[str, list[Any]]) -> ExportedSession:
    """The session again.

    Raises:
        InvalidInput: it is of another format, or something is missing.
    """
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        found = head.get("format") if isinstance(head, dict) else head
        raise InvalidInput(str(path), found, f"an export of the format {FORMAT}")
    try:
        told = {name: value for name, value in head.items() if name not in {"format", "kind"}}
        return ExportedSession(**(told | parts))
    except TypeError as error:
        raise InvalidInput(str(path), str(error), "every part of a session") from None


class JsonLines:
    """Writes and reads `.jsonl`."""

    def write(
        self, file: BinaryIO, snapshot: Exportable, batches: Iterable[Sequence[ExportedRow]]
    ) -> None:
        """Write a whole session."""
        session = snapshot.session
        file.write(_line({"kind": "session", **head_of(session)}))
        for kind, part in _PARTS.items():
            for record in getattr(session, part):
                file.write(_line({"kind": kind, "record": record}))
        rows = 0
        for batch in batches:
            rows += len(batch)
            file.writelines(_line(_record(row)) for row in batch)
        file.write(_line({"kind": "end", "rows": rows}))

    def read(self, path: Path) -> _JsonSource:
        """Open a file.

        Raises:
            InvalidInput: it is no export, or its end is missing.
        """
        return _JsonSource(path)


class _JsonSource:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: int | None = self._read_end()
        head: Any = None
        parts: dict[str, list[Any]] = {part: [] for part in _PARTS.values()}
        for place, record in self._records():
            if place == 1:
                head = record
                continue
            if record["kind"] not in _PARTS:
                break
            parts[_PARTS[record["kind"]]].append(record.get("record"))
        self.session = session_of(path, head, parts)

    def _read_end(self) -> int:
        # First of all: a file that was cut short is refused before anything of it is stored.
        with self._path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - _END_BYTES_MAX, 0))
            last = file.read().rstrip(b"\n").rpartition(b"\n")[2]
        try:
            end = json.loads(last)
            if end["kind"] != "end":
                raise ValueError(end["kind"])
            return int(end["rows"])
        except (ValueError, KeyError, TypeError):
            shown = last[-40:].decode(errors="replace")
            raise InvalidInput(
                str(self._path), shown, "a last line that says it is whole"
            ) from None

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with self._path.open("rb") as file:
            for place, line in enumerate(file, start=1):
                try:
                    record = json.loads(line)
                    record["kind"]
                except (ValueError, KeyError, TypeError):
                    raise self._bad(place, line) from None
                yield place, record

    def _bad(self, place: int, line: object) -> InvalidInput:
        shown = line.decode(errors="replace").strip() if isinstance(line, bytes) else line
        return InvalidInput(f"{self._path}, line {place}", shown, "a line of an export")

    def batches(self) -> Iterator[Sequence[ExportedRow]]:
        """Rows, some at a time."""
        batch: list[ExportedRow] = []
        for place, record in self._records():
            if record["kind"] != "row":
                continue
            try:
                batch.append(_row(record))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise self._bad(place, json.dumps(record)) from None
            if len(batch) == _ROWS_AT_ONCE:
                yield batch
                batch = []
        if batch:
            yield batch


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _record(row: ExportedRow) -> dict[str, Any]:
    told = row._asdict() | {
        "recorded_at": row.recorded_at.isoformat(),
        "metrics": {name: written(value) for name, value in row.metrics.items()},
    }
    if row.basin is None:
        del told["basin"]
    return {"kind": "row", **told}


def _row(record: dict[str, Any]) -> ExportedRow:
    point = record.get("basin")
    return ExportedRow(
        attempt=int(record["attempt"]),
        rank=int(record["rank"]),
        step=int(record["step"]),
        seq=int(record["seq"]),
        recorded_at=moment(record["recorded_at"]),
        regime=record["regime"],
        metrics={name: number(value) for name, value in record["metrics"].items()},
        basin=None if point is None else [number(part) for part in point],
    )
