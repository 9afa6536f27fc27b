"""Which frames are whole: the compiled answer is the one in Python."""

from __future__ import annotations

import random
from zlib import crc32

import pytest

from qigstore.compiled import all_compiled
from qigstore.recording.spool.frame import MARKER, count_whole, pure_python_count_whole

COUNTS = [count_whole, pure_python_count_whole]


def frames(rng: random.Random, count: int, words: int, seed: int) -> bytearray:
    data = bytearray()
    for _ in range(count):
        body = rng.randbytes(8 * words - 8)
        data += (MARKER | crc32(body, seed) << 32).to_bytes(8, "little") + body
    return data


def test_both_stop_at_the_first_frame_that_is_hit(rng: random.Random) -> None:
    for _ in range(300):
        count, words, seed = rng.randrange(1, 20), rng.randrange(2, 60), rng.randrange(1 << 32)
        before = rng.randrange(4)
        data = rng.randbytes(8 * before) + frames(rng, count, words, seed)
        hit = rng.randrange(count)
        given = (8 * before, 8 * words, count, seed)
        for whole in COUNTS:
            assert whole(bytes(data), *given) == count
        # The marker, the first four bytes, is looked at elsewhere.
        at = 8 * before + 8 * words * hit + rng.randrange(4, 8 * words)
        data = bytearray(data)
        data[at] ^= 1 << rng.randrange(8)
        for whole in COUNTS:
            assert whole(bytes(data), *given) == hit
            assert whole(bytes(data), *given[:2], hit, seed) == hit


@pytest.mark.parametrize("whole", COUNTS, ids=["in use", "in Python"])
@pytest.mark.parametrize(
    ("at", "size", "most"),
    [(-8, 16, 1), (0, 12, 1), (0, 8, 1), (0, 16, -1), (0, 16, 5), (8, 16, 4), (100, 16, 0)],
)
def test_frames_outside_the_data_are_an_error(whole: object, at: int, size: int, most: int) -> None:
    assert callable(whole)
    with pytest.raises(ValueError, match="within the data"):
        whole(bytes(64), at, size, most, 0)


@pytest.mark.parametrize("whole", COUNTS, ids=["in use", "in Python"])
def test_of_nothing_nothing_is_whole(whole: object) -> None:
    assert callable(whole)
    assert whole(b"", 0, 16, 0, 0) == 0


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
