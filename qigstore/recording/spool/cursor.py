"""The cursor of a spool: where the next row goes, and the short way to put it there.

There are two, which write the same bytes: this one, and one in C (see `qigstore/compiled.py`).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qigstore.compiled import compiled_or
from qigstore.recording.values import PLAIN, STEP_BITS

if TYPE_CHECKING:
    from qigstore.recording.spool.frame import Layout

__all__ = ["Cursor", "PurePythonCursor"]


class PurePythonCursor:
    """Base of the spool: the fields that its hot path reads and writes.

    Attributes:
        at, limit: where in the mapping the next row goes, and where its block ends.
        seq: sequence of the last row, from 1.
        block: number of the block; a layout is announced anew in each.
        seed: where the CRC of every frame starts.
        busy: a row is being added: another one, of a signal handler, has to wait.
    """

    __slots__ = ("at", "block", "busy", "limit", "seed", "seq")

    def __init__(self) -> None:
        self.at = self.limit = self.seq = self.block = self.seed = 0
        self.busy = False

    def put(
        self, layout: Layout, step: int, regime: int, metrics: Mapping[str, Any], /
    ) -> Sequence[float] | None:
        """Add a usual row: plain numbers, by the names of the layout, in its order.

        Returns:
            Its values; None where it is not usual, and then nothing was written.
        """
        try:
            values = [*metrics.values()]
            # One sum tells that all are plain numbers: an array, tensor, Decimal, text or None
            # among them makes it something else, or an error.
            total = sum(values)
            if [*metrics] != layout.order or step >> STEP_BITS or not isinstance(total, PLAIN):
                return None
        except Exception:
            return None
        try:
            self.append(layout, step, regime, values)
        except (struct.error, TypeError, ValueError, ArithmeticError):
            return None
        return values

    def append(self, layout: Layout, step: int, regime: int, values: Sequence[float], /) -> bool:
        """Add one row, however it comes; the spool's."""
        raise NotImplementedError

    def use(self, layout: Layout, /) -> None:
        """Rows of this layout, whose names are in the block, are usual from now on."""

    def hold(self, mapping: mmap.mmap | None, /) -> None:
        """Write into this mapping from now on; None: let go of the last one."""


if TYPE_CHECKING:
    Cursor = PurePythonCursor
else:
    Cursor = compiled_or(PurePythonCursor, "qigstore.recording.spool._frames", "Cursor")
