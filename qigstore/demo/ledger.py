"""The training script's own count of what it recorded, kept apart from everything of qigstore.

One line before each `record()` and one after it, each a single append: a `kill -9` between them
leaves the first without the second.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Ledger", "Noted", "count_recorded", "read_ledger"]


class Ledger:
    """Writes one file; every line is with the kernel when the call returns."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    @contextmanager
    def around(self, attempt: int, step: int, loss: float) -> Iterator[None]:
        """Note that a row is about to be recorded, and then that `record()` returned."""
        os.write(self._file, f"? {attempt} {step} {loss.hex()}\n".encode())
        yield
        os.write(self._file, f"= {attempt} {step} {loss.hex()}\n".encode())


@dataclass
class Noted:
    """What a ledger says of one attempt."""

    recorded: dict[int, float] = field(default_factory=dict)
    """Loss by step, for every row whose `record()` returned."""
    begun: dict[int, float] = field(default_factory=dict)
    """The same for rows about to be recorded: at most one more."""


def read_ledger(path: Path) -> dict[int, Noted]:
    """Attempts by number; a line that a kill cut short is left out."""
    noted: dict[int, Noted] = {}
    if not path.exists():
        return noted
    text = path.read_bytes()
    for line in text[: text.rfind(b"\n") + 1].decode().splitlines():
        mark, attempt, step, loss = line.split()
        entry = noted.setdefault(int(attempt), Noted())
        (entry.recorded if mark == "=" else entry.begun)[int(step)] = float.fromhex(loss)
    return noted


def count_recorded(path: Path) -> tuple[int, int]:
    """Rows whose `record()` returned, and the last one's step (−1: none yet); reads no values."""
    if not path.exists():
        return 0, -1
    text = path.read_bytes()
    last = text.rfind(b"\n= ")
    count = text.count(b"\n= ")
    words = text[last + 1 :].split(maxsplit=3)
    return count, int(words[2]) if count and len(words) > 2 else -1
