"""How commands speak: tables for people, plain columns for pipes, strict JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from qigstore.encoding import as_json, fields_of

__all__ = [
    "Json",
    "as_json",
    "cut",
    "fields_of",
    "print_json",
    "print_pairs",
    "print_table",
    "shown",
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def print_json(value: Any) -> None:
    """Print the value as one strict JSON document."""
    sys.stdout.write(json.dumps(as_json(value), indent=2, ensure_ascii=False, allow_nan=False))
    sys.stdout.write("\n")


def shown(value: Any) -> str:
    """The value in a table's cell: never measured is empty, times are to the second, UTC."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(as_json(value), ensure_ascii=False)
    # A control character from the database must not reach the terminal.
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))


def cut(value: Any, characters: int = 100) -> str:
    """The value as in a cell, cut where it is longer: documents have the whole of it."""
    text = shown(value)
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str = "", whole: str = "id"
) -> None:
    """Print rows below their columns' names: a table on a terminal, else plain columns.

    Args:
        empty: what to say where there are no rows; it goes to stderr, so a pipe stays empty.
        whole: name of the column that is never wrapped.
    """
    if not rows and empty:
        sys.stderr.write(f"{empty}\n")
        return
    cells = [tuple(map(shown, row)) for row in rows]
    right = [
        all(isinstance(row[k], int | float | None) for row in rows) for k in range(len(columns))
    ]
    draw = _print_framed if sys.stdout.isatty() else _print_plain
    draw(columns, cells, right, whole)


def _print_framed(
    columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool], whole: str
) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for k, name in enumerate(columns):
        longest = max((len(row[k]) for row in cells), default=0)
        table.add_column(
            escape(name),
            justify="right" if right[k] else "left",
            overflow="fold",
            # Identifiers and numbers stay in one piece; words give way.
            min_width=longest if name == whole or right[k] else None,
        )
    for row in cells:
        table.add_row(*map(escape, row))
    Console(highlight=False).print(table)


def _print_plain(
    columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool], _whole: str
) -> None:
    table = [tuple(columns), *cells]
    widths = [max(len(row[k]) for row in table) for k in range(len(columns))]
    for row in table:
        line = "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        )
        sys.stdout.write(line.rstrip() + "\n")


def print_pairs(pairs: Mapping[str, Any]) -> None:
    """Print names and values below each other, leaving out what was never measured."""
    kept = {name: shown(value) for name, value in pairs.items() if value is not None}
    width = max(map(len, kept), default=0)
    for name, value in kept.items():
        sys.stdout.write(f"{name.ljust(width)}  {value}\n")
