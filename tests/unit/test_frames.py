"""Which frames are whole and alike: the compiled answer is the one in Python."""

from __future__ import annotations

import random
from typing import Any
from zlib import crc32

import pytest

from qigstore.compiled import all_compiled
from qigstore.recording.spool.frame import (
    MARKER,
    MARKER_BYTES,
    count_alike,
    pure_python_count_alike,
)

COUNTS = [count_alike, pure_python_count_alike]
ids = pytest.mark.parametrize("count", COUNTS, ids=["in use", "in Python"])
NO_REGIME = 0xFF


def frame(rng: random.Random, words: int, kind: int, layout: int, seed: int) -> bytes:
    meta = words | kind << 16 | rng.choice([0, 3, NO_REGIME]) << 24 | layout << 32
    body = meta.to_bytes(8, "little") + rng.randbytes(8 * words - 16)
    return (MARKER | crc32(body, seed) << 32).to_bytes(8, "little") + body


def told(data: bytes, at: int, most: int, seed: int | None) -> int:
    """What both say."""
    first, second = (count(data, at, most, seed) for count in COUNTS)
    assert first == second
    return first


def test_both_stop_at_the_first_frame_that_is_hit(rng: random.Random) -> None:
    for _ in range(300):
        count, words, seed = rng.randrange(1, 20), rng.randrange(2, 60), rng.randrange(1 << 32)
        start = 8 * rng.randrange(4)
        frames = [frame(rng, words, 1, 7, seed) for _ in range(count)]
        data = bytearray(rng.randbytes(start) + b"".join(frames))
        assert told(bytes(data), start, count, seed) == count
        assert told(bytes(data), start, 1000, seed) == count
        assert told(bytes(data), start, count - 1, seed) == count - 1
        assert told(bytes(data), start, count, None) == count
        assert told(bytes(data[:-8]), start, count, seed) == count - 1
        hit = rng.randrange(count)
        data[start + 8 * words * hit + rng.randrange(8 * words)] ^= 1 << rng.randrange(8)
        assert told(bytes(data), start, count, seed) <= hit
        assert told(bytes(data), start, hit, seed) == hit


def test_another_size_kind_or_layout_ends_a_run(rng: random.Random) -> None:
    for words, kind, layout in ((6, 1, 7), (5, 2, 7), (5, 1, 8)):
        data = b"".join(
            [frame(rng, 5, 1, 7, 3), frame(rng, 5, 1, 7, 3), frame(rng, words, kind, layout, 3)]
        )
        assert told(data, 0, 9, 3) == 2
        assert told(data, 80, 9, 3) == 1


def test_any_bytes_are_counted_alike(rng: random.Random) -> None:
    """Sizes of nothing, frames that reach beyond the end, markers without a frame."""
    for _ in range(2_000):
        data = bytearray(rng.randbytes(rng.randrange(200)))
        for at in range(0, len(data) - 16, 8):
            if rng.random() < 0.4:
                data[at : at + 4] = MARKER_BYTES
                data[at + 8 : at + 10] = rng.choice([0, 1, 2, 3, 0xFFFF]).to_bytes(2, "little")
        at = rng.randrange(len(data) + 1)
        told(bytes(data), at, rng.randrange(30), rng.choice([None, 0, 1 << 31]))


@ids
@pytest.mark.parametrize(("at", "most"), [(-1, 1), (65, 1), (0, -1)])
def test_a_place_outside_the_data_is_an_error(count: Any, at: int, most: int) -> None:
    with pytest.raises(ValueError, match=f"from byte {at} of 64, at most {most} frames"):
        count(bytes(64), at, most, 0)


@ids
def test_of_nothing_there_are_none(count: Any) -> None:
    assert count(b"", 0, 5, 0) == count(bytes(64), 64, 5, 0) == count(bytes(64), 0, 5, 0) == 0


@pytest.mark.skipif(not all_compiled(), reason="Python's own CRC is zlib's")
def test_each_way_to_the_crc_is_zlibs(rng: random.Random) -> None:
    from qigstore.recording.spool import _frames  # type: ignore[attr-defined]

    sizes = [*range(0, 1024, 8), 4096, 8192 + 8, 8 * 0xFFFF]
    for size in sizes:
        for data in (rng.randbytes(size), bytes(size), b"\xff" * size):
            for start in (0, 0xFFFFFFFF, rng.randrange(1 << 32)):
                at = rng.randrange(9)  # on no boundary
                placed = memoryview(bytes(at) + data)[at:]
                assert set(_frames.crc32_each_way(placed, start)) == {crc32(data, start)}
    with pytest.raises(ValueError, match="whole words"):
        _frames.crc32_each_way(b"seven..", 0)
