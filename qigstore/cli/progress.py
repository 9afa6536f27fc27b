"""How long work says on stderr that it goes on: one line that moves, or now and then a line."""

from __future__ import annotations

import sys
from time import monotonic
from types import TracebackType
from typing import Self

__all__ = ["Progress"]

_TERMINAL_S, _FILE_S = 0.2, 10.0


class Progress:
    """Counts rows (or what `unit` says) on stderr; silent for work that is done at once.

    >>> with Progress("export") as progress:
    ...     progress(1, 2)
    """

    def __init__(self, what: str, unit: str = "rows") -> None:
        self._what, self._unit = what, unit
        self._moves = sys.stderr.isatty()
        self._due = monotonic() + (_TERMINAL_S if self._moves else _FILE_S)
        self._shown = False

    def __call__(self, done: int, total: int | None = None) -> None:
        """Say how many are done (of how many), if it is time to."""
        if monotonic() < self._due:
            return
        self._due = monotonic() + (_TERMINAL_S if self._moves else _FILE_S)
        self._shown = True
        of = ""
        if total:
            of = f" of {total:,} ({min(done / total, 1.0):.0%})"
        start, end = ("\r\x1b[K", "") if self._moves else ("", "\n")
        sys.stderr.write(f"{start}{self._what}: {done:,}{of} {self._unit}{end}")
        sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown and self._moves:
            sys.stderr.write("\r\x1b[K")
