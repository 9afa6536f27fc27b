"""Reads rows back, the same way from a living spool and from one whose process is dead.

Rows of one layout come out as arrays. After damage the reader goes on at the next whole frame;
what was lost shows as a gap in the sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

import numpy as np

from qigstore.recording.spool.frame import (
    FRAME_BYTES_MAX,
    HEAD_BYTES,
    KIND_LAYOUT,
    KIND_ROW,
    MARKER_BYTES,
    ROW_BYTES,
    WORD_BYTES,
    Layout,
    count_alike,
    read_announcement,
    seed_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]

__all__ = ["Rows", "Source", "SpoolReader", "Take"]

_READ_BYTES = 2 << 20
_TAKE_BYTES = 5 << 20
"""Of the spool, at once: with thousands of metrics a row, memory is bounded by this."""
_ROWS_A_PAUSE = 1024
"""About a millisecond: nobody who records meanwhile waits longer."""
_SEQ = 2
"""Which word of a frame is its sequence number."""
_REGIME_BYTE = 11


class Source(Protocol):
    """Where the bytes come from: `Spool`, or `LeftOver` (`leftover.py`)."""

    def spans(self) -> list[tuple[int, int, int]]:
        """Number, first sequence and bytes in use of each segment, in order."""

    def read(self, number: int, start: int, stop: int) -> bytes:
        """A copy of bytes of a segment."""

    def mine(self, number: int) -> bool:
        """Whether a segment is still the very memory that this process records into."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one layout, in the order of their sequence.

    Shapes: `(n,)`; `values` `(n, k)`; `basins` `(n, d)` or None. `regime` −1: none.
    """

    names: tuple[str, ...]
    seq: NDArray[np.int64]
    step: NDArray[np.int64]
    time_ns: NDArray[np.int64]
    values: NDArray[np.float64]
    regime: NDArray[np.int16]
    basins: NDArray[np.float64] | None

    def where(self, chosen: NDArray[np.bool_]) -> Rows:
        """Some of them."""
        basins = None if self.basins is None else self.basins[chosen]
        return Rows(
            self.names, self.seq[chosen], self.step[chosen], self.time_ns[chosen],
            self.values[chosen], self.regime[chosen], basins,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Take:
    """What was read at once; accounts for `first_seq` to `last_seq`, lost rows included."""

    first_seq: int
    last_seq: int
    groups: tuple[Rows, ...]

    @property
    def count(self) -> int:
        """Rows in it."""
        return sum(len(rows.seq) for rows in self.groups)

    @property
    def gap(self) -> int:
        """Rows that are in the range and were lost to damage."""
        return self.last_seq - self.first_seq + 1 - self.count

    def halves(self) -> Iterator[Take]:
        """The same in two pieces."""
        middle = (self.first_seq + self.last_seq) // 2
        for first, last in ((self.first_seq, middle), (middle + 1, self.last_seq)):
            kept = (rows.where((rows.seq >= first) & (rows.seq <= last)) for rows in self.groups)
            yield Take(first, last, tuple(rows for rows in kept if len(rows.seq)))


@dataclass(slots=True)
class _Scan:
    """Where the frames of a piece of a segment are."""

    layouts: list[Layout] = field(default_factory=list)
    # By layout: first word and number of rows of each run of them.
    rows: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    count: int = 0
    end: int = 0


def scan(
    data: bytes,
    seed: int | None,
    *,
    rows_max: int,
    whole: bool,
    pause: Callable[[], None] | None = None,
) -> _Scan:
    """Find the frames in `data`, which starts on a frame.

    `seed`: of each frame's CRC; None: they are known to be whole. `whole`: nothing follows, so a
    frame that does not fit is damage; otherwise it ends the scan. `pause` is called about every
    millisecond.
    """
    found = _Scan()
    checked, at, stop = 0, 0, len(data) // WORD_BYTES * WORD_BYTES
    while at + 2 * WORD_BYTES <= stop and found.count < rows_max:
        meta = int.from_bytes(data[at + WORD_BYTES : at + 2 * WORD_BYTES], "little")
        size, kind = WORD_BYTES * (meta & 0xFFFF), meta >> 16 & 0xFF
        # In one call, which keeps the interpreter's lock: each time it is given up here, a thread
        # that records without end keeps it for 5 ms.
        run = count_alike(data, at, min(rows_max - found.count, _ROWS_A_PAUSE), seed)
        if run:
            checked += 0 if seed is None else run
            if pause is not None and checked >= _ROWS_A_PAUSE:
                checked = 0
                pause()
            if kind == KIND_ROW:
                found.rows.setdefault(meta >> 32, []).append((at // WORD_BYTES, run))
                found.count += run
            elif kind == KIND_LAYOUT:
                places = range(at, at + run * size, size)
                found.layouts.extend(read_announcement(data, place) for place in places)
            at += run * size
        elif not whole and at + size > stop and data.startswith(MARKER_BYTES, at):
            break
        else:
            at = _next_marker(data, at + WORD_BYTES)
    ended = whole and found.count < rows_max
    found.end = len(data) if ended else min(at, len(data))
    return found


def _next_marker(data: bytes, at: int) -> int:
    while True:
        at = data.find(MARKER_BYTES, at)
        if at < 0:
            return len(data)
        if at % 8 == 0:
            return at
        at += 1


class SpoolReader:
    """Hands out the rows after `acked_seq`, in order, each once.

    Args:
        source: a living spool, or a left-over one.
        writer: whose rows.
        acked_seq: the last sequence that is stored already.
        pause: called every few hundred rows, to let other threads run.
    """

    def __init__(
        self,
        source: Source,
        writer: UUID,
        acked_seq: int = 0,
        *,
        pause: Callable[[], None] | None = None,
    ) -> None:
        self._pause = pause
        self._source = source
        self._seed = seed_of(writer)
        self._layouts: dict[int, Layout] = {}
        self._everywhere: dict[int, Layout] | None = None
        self.rewind(acked_seq)

    def rewind(self, acked_seq: int) -> None:
        """Go on right after `acked_seq`."""
        self._seq = acked_seq
        self._number = self._at = 0
        for number, first_seq, _ in self._source.spans():
            if first_seq and first_seq <= acked_seq + 1:
                self._number = number

    def take(self, rows_max: int) -> Take | None:
        """The next rows, at most about `rows_max` and a few MB; None where there are none (yet)."""
        found: dict[int, _Table] = {}
        count, size, first = 0, 0, self._seq + 1
        # Once: a thread that records without end hardly ever lets go of what this asks for.
        spans = self._source.spans()
        while count < rows_max and size < _TAKE_BYTES:
            piece = self._next_piece(spans, rows_max - count)
            if piece is None:
                break
            before = self._seq
            for layout, runs in piece:
                table = found.setdefault(layout.id, _Table(layout))
                known = table.count
                self._seq = max(self._seq, table.add(runs, before))
                count += table.count - known
                size += (table.count - known) * layout.size
        groups = tuple(table.rows() for table in found.values() if table.count)
        return Take(first, self._seq, groups) if count else None

    def _next_piece(
        self, known: Iterable[tuple[int, int, int]], rows_max: int
    ) -> list[tuple[Layout, list[Words]]] | None:
        """Frames of the next piece of a segment; empty where it had none, None at the end."""
        spans = [span for span in known if span[0] >= self._number]
        if not spans:
            return None
        number, _, end = spans[0]
        if number != self._number:
            self._begin(number)
        start = max(self._at, HEAD_BYTES)
        if start >= end:
            if len(spans) == 1:
                return None
            self._begin(spans[1][0])
            return []
        stop = min(end, start + max(_READ_BYTES, 2 * FRAME_BYTES_MAX))
        data = self._source.read(number, start, stop)
        if not data:  # closed, or cut since
            return None
        # Still mapped after that: the rows came from where they were recorded, and were whole when
        # `spans` told the end. Their CRCs would be half of what reading costs the training.
        seed = None if self._source.mine(number) else self._seed
        whole = stop == end
        found = scan(data, seed, rows_max=rows_max, whole=whole, pause=self._pause)
        self._at = start + found.end
        return list(self._decode(data, found))

    def _decode(self, data: bytes, found: _Scan) -> Iterator[tuple[Layout, list[Words]]]:
        self._learn(found.layouts)
        words = np.frombuffer(data, np.uint64, len(data) // 8)
        for number, runs in found.rows.items():
            layout = self._layouts.get(number) or self._ask_all(number)
            if layout is not None:
                width = layout.words
                yield layout, [words[at : at + n * width].reshape(n, width) for at, n in runs]

    def _begin(self, number: int) -> None:
        # Each segment names its layouts again, so that what is known stays bounded.
        self._number, self._at = number, 0
        self._layouts.clear()

    def _learn(self, layouts: Iterable[Layout]) -> None:
        for layout in layouts:
            self._layouts[layout.id] = layout

    def _ask_all(self, number: int) -> Layout | None:
        """The names were damaged in this segment: another one may hold them too."""
        if self._everywhere is None:
            self._everywhere = {}
            for segment, _, end in self._source.spans():
                data = self._source.read(segment, HEAD_BYTES, end)
                found = scan(data, self._seed, rows_max=1 << 62, whole=True)
                self._everywhere |= {layout.id: layout for layout in found.layouts}
        return self._everywhere.get(number)


class _Table:
    """Frames of one layout, however many pieces.

    Copied as bytes: NumPy gives up the interpreter's lock for each run that it copies.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._data = bytearray()

    @property
    def count(self) -> int:
        """Rows in it."""
        return len(self._data) // self.layout.size

    def add(self, runs: Iterable[Words], after: int) -> int:
        """Copy the rows with a sequence above `after` to its end; the last one's, or `after`."""
        for run in runs:
            fresh = run if run[0, _SEQ] > after else run[run[:, _SEQ] > after]
            if len(fresh):
                self._data += fresh.data.cast("B")
                after = int(fresh[-1, _SEQ])
        return after

    def rows(self) -> Rows:
        """As arrays."""
        layout, k = self.layout, len(self.layout.names)
        table = np.frombuffer(self._data, np.uint64).reshape(-1, layout.words)
        values = table[:, ROW_BYTES // WORD_BYTES :].view(np.float64)
        return Rows(
            names=layout.names,
            seq=table[:, _SEQ].view(np.int64),
            step=table[:, 3].view(np.int64),
            time_ns=table[:, 4].view(np.int64),
            values=values[:, :k],
            regime=table.view(np.int8)[:, _REGIME_BYTE].astype(np.int16),
            basins=values[:, k:] if layout.dimension else None,
        )
