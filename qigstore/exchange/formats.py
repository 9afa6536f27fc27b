"""What a format can do: write a session into an open file, and read one back, row by row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from qigstore.errors import ConfigurationError
from qigstore.repository.exports import ExportedRow, ExportedSession

__all__ = ["Exportable", "Format", "Source", "format_of", "moment", "number", "written"]

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Exportable(Protocol):
    """What can be written: a `Snapshot` of a database, or what lies in spools.

    Attributes:
        session: everything but the telemetry.
        rows: how many rows there are. standard: the standard metrics that any of them has.
    """

    session: ExportedSession
    rows: int
    standard: tuple[str, ...]

    def batches(self) -> Iterator[list[ExportedRow]]:
        """Rows by attempt, rank and sequence, some at a time."""


class Source(Protocol):
    """A file that is being read.

    Attributes:
        session: everything but the telemetry. rows: how many rows, where the file tells.
    """

    session: ExportedSession
    rows: int | None

    def batches(self) -> Iterator[Sequence[ExportedRow]]:
        """Rows by attempt, rank and sequence, some at a time.

        Raises:
            InvalidInput: what is in the file is not what an export writes.
        """


class Format(Protocol):
    """One kind of file."""

    def write(
        self, file: BinaryIO, snapshot: Exportable, batches: Iterable[Sequence[ExportedRow]]
    ) -> None:
        """Write a whole session."""

    def read(self, path: Path) -> Source:
        """Open a file; the telemetry is read as it is asked for.

        Raises:
            InvalidInput: it is no export, or not a whole one.
        """


def format_of(path: Path) -> Format:
    """The format that a file's suffix names.

    Raises:
        ConfigurationError: it names none, or pyarrow is missing.
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        from qigstore.exchange.jsonl import JsonLines

        return JsonLines()
    if suffix == ".csv":
        from qigstore.exchange.csv_table import CsvTable

        return CsvTable()
    if suffix == ".parquet":
        try:
            from qigstore.exchange.parquet import Parquet
        except ImportError as error:
            raise ConfigurationError(
                f"Parquet needs pyarrow ({error}): pip install 'qigstore[parquet]'"
            ) from error
        return Parquet()
    raise ConfigurationError(f"{path.name}: expected a name that ends in .jsonl, .parquet or .csv")


def written(value: float) -> float | str:
    """A number for JSON, which has no word for NaN and ±inf."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def moment(text: str) -> datetime:
    """The time that its ISO form names.

    Raises:
        ValueError, TypeError: it is none, or says no time zone.
    """
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return found


def number(value: object) -> float:
    """The number that `written` gave.

    Raises:
        KeyError, TypeError: it is none.
    """
    if isinstance(value, str):
        return _NON_FINITE[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)
