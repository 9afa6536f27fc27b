"""A damaged spool loses only the damaged rows: cut at every byte, every bit flipped (R7)."""

from __future__ import annotations

import os
import random
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from figures import share_of

from qigstore.recording.spool import Spool, SpoolIdentity
from qigstore.recording.spool.frame import HEAD_BYTES
from qigstore.recording.spool.leftover import LeftOver
from qigstore.recording.spool.reader import Rows, SpoolReader

PARTS = 4
"""In which the bytes of a long segment are tried, side by side: every fourth one each."""
Row = tuple[int, tuple[str, ...], tuple[float, ...]]
Tables = dict[tuple[str, ...], np.ndarray[Any, Any]]
"""Of each layout, a line a row: its sequence, its step, its values."""


class Bytes:
    """Segments in memory, as a left-over spool would show them."""

    def __init__(self, *segments: tuple[int, bytes]) -> None:
        self.segments = segments

    def spans(self) -> list[tuple[int, int, int]]:
        return [(number, first, len(data)) for number, (first, data) in enumerate(self.segments, 1)]

    def read(self, number: int, start: int, stop: int) -> bytes:
        return self.segments[number - 1][1][start:stop]

    def mine(self, number: int) -> bool:
        return False


def make(
    root: Path, rows: int, run: int = 1
) -> tuple[UUID, bytes, dict[int, Row], dict[int, tuple[int, int]]]:
    """A segment with three layouts: its bytes, its rows, and where each row lies.

    The layout changes with every row, and after the first dozen with every `run` of them.
    """
    writer = uuid4()
    told = SpoolIdentity(writer, uuid4(), "s", 0, {}, "here", os.getpid(), datetime.now(UTC))
    spool = Spool.create(root, told, segment_bytes=1 << 20)
    written: dict[int, Row] = {}
    places: dict[int, tuple[int, int]] = {}
    for seq in range(1, rows + 1):
        turn = seq if seq <= 12 else seq // run
        names = (("loss",), ("loss", "phi"), ("loss", "phi", "κ"))[turn % 3]
        values = tuple(float(seq * 10 + k) for k in range(len(names)))
        layout = spool.layout(names)
        with spool.lock:
            spool.append(layout, seq, -1, values)
        written[seq] = (seq, names, values)
        places[seq] = (spool.at - layout.size, spool.at)
    (end,) = [used for _, _, used in spool.spans()]
    data = spool.read(1, 0, end) + bytes(64)
    spool.close()
    return writer, data, written, places


def groups(writer: UUID, data: bytes) -> Iterator[Rows]:
    """What a reader hands out, after checking that it accounts for every row."""
    reader = SpoolReader(Bytes((1, data)), writer)
    while (take := reader.take(300)) is not None:
        assert take.count + take.gap == take.last_seq - take.first_seq + 1
        yield from take.groups


def read(writer: UUID, data: bytes) -> dict[int, Row]:
    found: dict[int, Row] = {}
    for rows in groups(writer, data):
        for i, seq in enumerate(rows.seq.tolist()):
            assert seq not in found
            found[seq] = (int(rows.step[i]), rows.names, tuple(rows.values[i].tolist()))
    return found


class Damage:
    """Damages one segment again and again, and compares what can be read with what was recorded."""

    def __init__(self, root: Path, rows: int, run: int = 1) -> None:
        self.writer, self.data, written, places = make(root, rows, run)
        self.ends = [end for _, end in places.values()]
        self.starts = [start for start, _ in places.values()]
        self.tables: Tables = {}
        for names in {names for _, names, _ in written.values()}:
            lines = [(seq, step, *values)
                     for seq, (step, told, values) in written.items() if told == names]  # fmt: skip
            self.tables[names] = np.array(lines, dtype=float)
        self.judge(self.data, "undamaged", lambda seqs: seqs > 0)

    def judge(self, data: bytes, what: str, kept: Callable[[Any], Any]) -> None:
        """Read it, and find exactly the rows whose sequence is `kept`."""
        pieces: dict[tuple[str, ...], list[Any]] = {}
        for rows in groups(self.writer, data):
            table = np.column_stack((rows.seq, rows.step, rows.values))
            pieces.setdefault(rows.names, []).append(table)
        assert pieces.keys() <= self.tables.keys(), what
        for names, table in self.tables.items():
            whole = table[kept(table[:, 0])]
            found = np.concatenate(pieces.get(names) or [whole[:0]])
            assert np.array_equal(found, whole), what

    def cut(self, at: int) -> None:
        """End it at a byte: the rows that end before it are left."""
        last = bisect_right(self.ends, at)
        self.judge(self.data[:at], f"cut at byte {at}", lambda seqs: seqs <= last)

    def flip(self, at: int, bit: int) -> None:
        """Flip a bit: every row but the one that it lies in is left."""
        damaged = bytearray(self.data)
        damaged[at] ^= 1 << bit
        seq = bisect_right(self.starts, at)
        hit = seq if seq and at < self.ends[seq - 1] else 0
        self.judge(bytes(damaged), f"bit {bit} of byte {at}", lambda seqs: seqs != hit)


def test_a_cut_at_every_byte_loses_only_what_is_cut_off(tmp_path: Path) -> None:
    damage = Damage(tmp_path, 12)
    for at in range(len(damage.data) + 1):
        damage.cut(at)


def test_a_flip_of_every_bit_loses_at_most_the_row_it_hits(tmp_path: Path) -> None:
    damage = Damage(tmp_path, 12)
    for at in range(HEAD_BYTES, len(damage.data)):
        for bit in range(8):
            damage.flip(at, bit)


def test_sampled_damage_of_a_thousand_rows(tmp_path: Path, rng: random.Random) -> None:
    damage = Damage(tmp_path, 1000)
    for _ in range(60):
        damage.cut(rng.randrange(len(damage.data)))
        damage.flip(rng.randrange(HEAD_BYTES, len(damage.data)), rng.randrange(8))


def test_garbage_and_holes_anywhere_raise_nothing_and_invent_nothing(
    tmp_path: Path, rng: random.Random
) -> None:
    writer, data, rows, places = make(tmp_path, 1000)
    for _ in range(60):
        start = rng.randrange(len(data))
        length = min(rng.randrange(1, 9000), len(data) - start)
        damaged = bytearray(data)
        damaged[start : start + length] = (
            bytes(length) if rng.random() < 0.5 else rng.randbytes(length)
        )
        found = read(writer, bytes(damaged))
        assert found.items() <= rows.items()
        names_hit = start < places[3][0]
        # Not those it only lies over: a hole in zeros changes nothing.
        hit = {seq for seq, (a, b) in places.items() if damaged[a:b] != data[a:b]}
        if not names_hit:
            assert found.keys() == rows.keys() - hit


def test_names_lost_in_one_segment_are_found_in_another(tmp_path: Path) -> None:
    writer, data, rows, places = make(tmp_path, 12)
    holed = bytearray(data)
    for seq in range(1, 4):  # both copies of the names before each layout's first row
        start = HEAD_BYTES if seq == 1 else places[seq - 1][1]
        holed[start : places[seq][0]] = bytes(places[seq][0] - start)
    reader = SpoolReader(Bytes((1, bytes(holed)), (13, data)), writer)
    take = reader.take(100)
    assert take is not None
    assert sorted(seq for group in take.groups for seq in group.seq.tolist()) == sorted(rows)


def test_an_empty_segment_is_passed_over_while_names_are_looked_for(tmp_path: Path) -> None:
    writer, data, _, places = make(tmp_path / "made", 12)
    folder = tmp_path / "left"
    folder.mkdir()
    # Its names are lost, so that every segment is asked for them: power loss left an empty one.
    (folder / "00000001.seg").write_bytes(data[:HEAD_BYTES] + data[places[1][0] : places[1][1]])
    (folder / "00000002.seg").write_bytes(b"")
    assert SpoolReader(LeftOver(folder, writer), writer).take(100) is None


def test_another_writers_frames_are_nobodys(tmp_path: Path) -> None:
    _, data, _, _ = make(tmp_path, 12)
    assert read(uuid4(), data) == {}


def test_a_row_that_holds_a_frame_as_its_values_is_one_row(tmp_path: Path) -> None:
    writer, data, _, places = make(tmp_path, 3)
    start, end = places[3]
    inner = data[start:end]
    told = SpoolIdentity(writer, uuid4(), "s", 0, {}, "here", os.getpid(), datetime.now(UTC))
    spool = Spool.create(tmp_path / "other", told)
    values = struct.unpack(f"<{len(inner) // 8}d", inner)
    with spool.lock:
        spool.append(spool.layout(tuple(f"m{i}" for i in range(len(values)))), 1, -1, values)
    take = SpoolReader(spool, writer).take(10)
    assert take is not None
    assert take.count == 1
    spool.close()


@pytest.mark.long(seconds=170)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_byte_and_bit_of_a_thousand_rows(
    tmp_path: Path, rng: random.Random, part: int
) -> None:
    damage = Damage(tmp_path, 1000, run=90)
    tried = share_of(range(HEAD_BYTES + part, len(damage.data), PARTS), rng)
    for at in tried:
        damage.cut(at)
        for bit in range(8):
            damage.flip(at, bit)
    print(f"{len(tried)} cuts, {8 * len(tried)} flips: only the rows hit were lost")
