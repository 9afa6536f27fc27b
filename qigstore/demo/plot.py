"""Small text plots of braille dots, for curves with gaps, spikes and NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["axis_marks", "braille", "text_plot"]

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BLANK = 0x2800


def _finite(values: Sequence[float | None]) -> list[tuple[int, float]]:
    return [(i, v) for i, v in enumerate(values) if v is not None and math.isfinite(v)]


def braille(
    values: Sequence[float | None], *, columns: int, rows: int, low: float, high: float
) -> list[str]:
    """Lines of braille: each column of dots shows the least to the greatest of its values.

    None, NaN and ±inf leave a gap; values beyond `low` and `high` are drawn on the edge.
    """
    cells = [[_BLANK] * columns for _ in range(rows)]
    dots = columns * 2
    spans: dict[int, tuple[float, float]] = {}
    for index, value in _finite(values):
        x = min(index * dots // max(len(values), 1), dots - 1)
        least, most = spans.get(x, (value, value))
        spans[x] = (min(least, value), max(most, value))
    scale = (rows * 4 - 1) / (high - low) if high > low else 0.0
    for x, (least, most) in spans.items():
        top = round(min(max((high - most) * scale, 0.0), rows * 4 - 1))
        bottom = round(min(max((high - least) * scale, 0.0), rows * 4 - 1))
        for y in range(top, bottom + 1):
            cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    return ["".join(map(chr, row)) for row in cells]


def axis_marks(marks: Sequence[tuple[int, str]], length: int, *, columns: int) -> str:
    """One line with a letter below each marked place; a later mark moves right of an earlier."""
    line = [" "] * columns
    for place, letter in sorted(marks):
        column = min(place * columns // max(length, 1), columns - 1)
        while column < columns - 1 and line[column] != " ":
            column += 1
        line[column] = letter
    return "".join(line).rstrip()


def text_plot(
    title: str,
    values: Sequence[float | None],
    marks: Sequence[tuple[int, str]] = (),
    *,
    columns: int = 68,
    rows: int = 4,
    logarithmic: bool = False,
) -> list[str]:
    """A titled plot with its least and greatest value, at most `columns` + 10 characters wide."""
    finite = [value for _, value in _finite(values) if value > 0 or not logarithmic]
    if not finite:
        return [f"{title}: nothing to show"]
    low, high = min(finite), max(finite)
    drawn = values
    ends = (low, high)
    if logarithmic:
        drawn = [
            math.log(v) if v is not None and math.isfinite(v) and v > 0 else None for v in values
        ]
        ends = (math.log(low), math.log(high))
    lines = braille(drawn, columns=columns, rows=rows, low=ends[0], high=ends[1])
    labels = [f"{high:8.3g}"] + [" " * 8] * (rows - 2) + [f"{low:8.3g}"]
    shown = [
        title,
        *(f"{label} {line}".rstrip() for label, line in zip(labels, lines, strict=True)),
    ]
    if marks:
        shown.append(" " * 9 + axis_marks(marks, len(values), columns=columns))
    return shown
