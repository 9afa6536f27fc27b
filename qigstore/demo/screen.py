"""What the demo shows: calm lines in 80 columns, and on a terminal a moving line while it waits."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["Check", "Progress", "Screen", "aligned"]

WIDTH = 80
_PLAIN_LINES = 4


@dataclass(frozen=True)
class Check:
    """One claim of the demo, and whether it holds."""

    act: str
    name: str
    ok: bool
    claim: str
    """What is printed, with the figures found."""


def aligned(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, right: str = "") -> list[str]:
    """Rows in columns two spaces apart; `right` holds R for each column set flush right."""
    table = [tuple(map(str, row)) for row in [columns, *rows]]
    widths = [max(len(row[k]) for row in table) for k in range(len(columns))]
    lines = []
    for row in table:
        cells = (
            cell.rjust(width) if right[k : k + 1] == "R" else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return lines


class Progress:
    """How far a training is: a bar on a terminal, else a few lines."""

    def __init__(self, steps: int, bar: RichProgress | None, *, plain: bool) -> None:
        self._steps, self._bar, self._plain = steps, bar, plain
        self._task: TaskID | None = bar.add_task("", total=steps, words="") if bar else None
        self._last_quarter: int | None = None

    def show(self, step: int, words: str) -> None:
        """The step it has reached, and what is known of it."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, words=words)
        if not self._plain:
            return
        quarter = step * _PLAIN_LINES // self._steps
        if self._last_quarter is not None and quarter > self._last_quarter:
            sys.stdout.write(f"    step {step:,} of {self._steps:,}: {words}\n")
            sys.stdout.flush()
        self._last_quarter = quarter


class Screen:
    """Where the demo writes: a terminal, a pipe, or nowhere (`quiet`)."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.interactive = not quiet and sys.stdout.isatty()
        self._console: Console | None = None
        if self.interactive:
            from rich.console import Console

            self._console = Console(highlight=False)

    def write(self, text: str = "", style: str = "") -> None:
        """One line, as it is."""
        if self._console is not None:
            self._console.print(text, style=style, markup=False, soft_wrap=True)
        elif not self.quiet:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    def act(self, letter: str, title: str) -> None:
        """The heading of an act."""
        self.write()
        self.write(f"{letter}  {title}", "bold")

    def note(self, text: str, style: str = "") -> None:
        """A remark below an act's heading."""
        for line in textwrap.wrap(text, WIDTH - 4):
            self.write(f"    {line}", style)

    def check(self, check: Check) -> None:
        """A claim with its tick or cross."""
        lines = textwrap.wrap(check.claim, WIDTH - 4)
        self.write(f"  {'✓' if check.ok else '✗'} {lines[0]}", "" if check.ok else "bold red")
        for line in lines[1:]:
            self.write(f"    {line}", "" if check.ok else "bold red")

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, right: str = ""
    ) -> None:
        """A titled table in plain columns."""
        self.write()
        self.write(f"  {title}", "bold")
        if not rows:
            self.write("    none")
            return
        head, *lines = aligned(columns, rows, right=right)
        self.write(f"    {head}", "dim")
        for line in lines:
            self.write(f"    {line}")

    @contextmanager
    def progress(self, steps: int) -> Iterator[Progress]:
        """Show a training's progress while the block runs."""
        if self._console is None:
            yield Progress(steps, None, plain=not self.quiet)
            return
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        bars = Bars(
            TextColumn("   "),
            BarColumn(bar_width=22, style="dim", complete_style="cyan", finished_style="cyan"),
            TextColumn("{task.completed:>5,.0f}"),
            TextColumn("{task.fields[words]}", style="dim"),
            console=self._console,
            transient=True,
            refresh_per_second=10,
        )
        with bars:
            yield Progress(steps, bars, plain=False)
