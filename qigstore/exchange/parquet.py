"""A session as Apache Parquet: telemetry in typed columns, the rest in the file's metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from qigstore.errors import InvalidInput
from qigstore.exchange.formats import Exportable
from qigstore.exchange.jsonl import head_of, session_of
from qigstore.repository.exports import ExportedRow

__all__ = ["Parquet"]

_KEY = b"qigstore"
_FIXED = (
    pa.field("attempt", pa.int32(), nullable=False),
    pa.field("rank", pa.int32(), nullable=False),
    pa.field("step", pa.int64(), nullable=False),
    pa.field("seq", pa.int64(), nullable=False),
    pa.field("recorded_at", pa.timestamp("us", tz="UTC"), nullable=False),
    pa.field("regime", pa.string()),
)
_BASIN = pa.field("basin", pa.list_(pa.float64()))
_PARTS = ("events", "checkpoints", "decisions")
_GROUP_ROWS, _ROWS_AT_ONCE = 50_000, 2_000


class Parquet:
    """Writes and reads `.parquet`."""

    def write(
        self, file: BinaryIO, snapshot: Exportable, batches: Iterable[Sequence[ExportedRow]]
    ) -> None:
        """Write a whole session."""
        session = snapshot.session
        names = (*snapshot.standard, *session.metrics)
        metrics = [pa.field(name, pa.float64()) for name in names]
        told = head_of(session) | {part: asdict(session)[part] for part in _PARTS}
        schema = pa.schema(
            [*_FIXED, *metrics, _BASIN],
            metadata={_KEY: json.dumps(told, ensure_ascii=False, allow_nan=False).encode()},
        )
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            waiting: list[ExportedRow] = []
            for batch in batches:
                waiting += batch
                if len(waiting) >= _GROUP_ROWS:
                    writer.write_batch(_columns(waiting, names, schema))
                    waiting = []
            if waiting:
                writer.write_batch(_columns(waiting, names, schema))

    def read(self, path: Path) -> _ParquetSource:
        """Open a file.

        Raises:
            InvalidInput: it is no export, or not a whole one.
        """
        try:
            return _ParquetSource(path)
        except (pa.ArrowInvalid, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InvalidInput(
                str(path), str(error), "a Parquet file that an export wrote"
            ) from None


def _columns(
    rows: Sequence[ExportedRow], names: Sequence[str], schema: pa.Schema
) -> pa.RecordBatch:
    fixed = [[getattr(row, field.name) for row in rows] for field in _FIXED]
    metrics = [[row.metrics.get(name) for row in rows] for name in names]
    columns = [*fixed, *metrics, [row.basin for row in rows]]
    # From Python's own values: None is NULL, and NaN stays NaN.
    arrays = [
        pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


class _ParquetSource:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = pq.ParquetFile(path)
        schema = self._file.schema_arrow
        told: Any = json.loads((schema.metadata or {}).get(_KEY, b"null"))
        parts = {part: told.pop(part, []) for part in _PARTS} if isinstance(told, dict) else {}
        self.session = session_of(path, told, parts)
        self.rows: int | None = self._file.metadata.num_rows
        ours = [field.name for field in (*_FIXED, _BASIN)]
        self._metrics = [name for name in schema.names if name not in ours]
        for field in (*_FIXED, _BASIN, *(pa.field(name, pa.float64()) for name in self._metrics)):
            place = schema.get_field_index(field.name)
            if place < 0 or schema.field(place).type != field.type:
                raise InvalidInput(str(path), field.name, f"a column of the type {field.type}")

    def batches(self) -> Iterator[Sequence[ExportedRow]]:
        """Rows, some at a time."""
        try:
            for batch in self._file.iter_batches(batch_size=_ROWS_AT_ONCE):
                columns = {name: batch.column(name).to_pylist() for name in batch.schema.names}
                yield [self._row(columns, place) for place in range(batch.num_rows)]
        except (pa.ArrowInvalid, OSError) as error:
            raise InvalidInput(str(self._path), str(error), "whole columns") from None

    def _row(self, columns: dict[str, list[Any]], place: int) -> ExportedRow:
        fixed = [columns[field.name][place] for field in _FIXED]
        values = ((name, columns[name][place]) for name in self._metrics)
        metrics = {name: value for name, value in values if value is not None}
        return ExportedRow._make([*fixed, metrics, columns[_BASIN.name][place]])
