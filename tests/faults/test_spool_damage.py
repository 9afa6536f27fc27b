"""A damaged spool loses only the damaged rows: cut at every byte, every bit flipped (R7)."""

from __future__ import annotations

import os
import random
import struct
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from figures import share_of

from qigstore.recording.spool import Spool, SpoolIdentity
from qigstore.recording.spool.frame import HEAD_BYTES
from qigstore.recording.spool.leftover import LeftOver
from qigstore.recording.spool.reader import SpoolReader

Row = tuple[int, tuple[str, ...], tuple[float, ...]]


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


def make(root: Path, rows: int) -> tuple[UUID, bytes, dict[int, Row], dict[int, tuple[int, int]]]:
    """A segment with three layouts: its bytes, its rows, and where each row lies."""
    writer = uuid4()
    told = SpoolIdentity(writer, uuid4(), "s", 0, {}, "here", os.getpid(), datetime.now(UTC))
    spool = Spool.create(root, told, segment_bytes=1 << 20)
    written: dict[int, Row] = {}
    places: dict[int, tuple[int, int]] = {}
    for seq in range(1, rows + 1):
        names = (("loss",), ("loss", "phi"), ("loss", "phi", "κ"))[seq % 3]
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


def read(writer: UUID, data: bytes, first_seq: int = 1) -> dict[int, Row]:
    reader = SpoolReader(Bytes((first_seq, data)), writer)
    found: dict[int, Row] = {}
    while (take := reader.take(300)) is not None:
        assert take.count + take.gap == take.last_seq - take.first_seq + 1
        for rows in take.groups:
            for i, seq in enumerate(rows.seq.tolist()):
                assert seq not in found
                found[seq] = (int(rows.step[i]), rows.names, tuple(rows.values[i].tolist()))
    return found


def cut(writer: UUID, data: bytes, rows: dict[int, Row], places: dict[int, tuple[int, int]],
        at: int) -> None:  # fmt: skip
    whole = {seq: row for seq, row in rows.items() if places[seq][1] <= at}
    assert read(writer, data[:at]) == whole, f"cut at byte {at}"


def flip(writer: UUID, data: bytes, rows: dict[int, Row], places: dict[int, tuple[int, int]],
         *, at: int, bit: int) -> None:  # fmt: skip
    damaged = bytearray(data)
    damaged[at] ^= 1 << bit
    whole = {seq: row for seq, row in rows.items()
             if not places[seq][0] <= at < places[seq][1]}  # fmt: skip
    assert read(writer, bytes(damaged)) == whole, f"bit {bit} of byte {at}"


def test_a_cut_at_every_byte_loses_only_what_is_cut_off(tmp_path: Path) -> None:
    writer, data, rows, places = make(tmp_path, 12)
    assert read(writer, data) == rows
    for at in range(len(data) + 1):
        cut(writer, data, rows, places, at)


def test_a_flip_of_every_bit_loses_at_most_the_row_it_hits(tmp_path: Path) -> None:
    writer, data, rows, places = make(tmp_path, 12)
    for at in range(HEAD_BYTES, len(data)):
        for bit in range(8):
            flip(writer, data, rows, places, at=at, bit=bit)


def test_sampled_damage_of_a_thousand_rows(tmp_path: Path, rng: random.Random) -> None:
    writer, data, rows, places = make(tmp_path, 1000)
    for _ in range(60):
        cut(writer, data, rows, places, rng.randrange(len(data)))
        at = rng.randrange(HEAD_BYTES, len(data))
        flip(writer, data, rows, places, at=at, bit=rng.randrange(8))


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


@pytest.mark.long
def test_every_byte_and_bit_of_a_thousand_rows(tmp_path: Path, rng: random.Random) -> None:
    writer, data, rows, places = make(tmp_path, 1000)
    tried = share_of(range(HEAD_BYTES, len(data)), rng)
    for at in tried:
        cut(writer, data, rows, places, at)
        for bit in range(8):
            flip(writer, data, rows, places, at=at, bit=bit)
    print(f"{len(tried)} cuts, {8 * len(tried)} flips: only the rows hit were lost")
