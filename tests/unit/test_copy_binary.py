"""The COPY stream is, byte for byte, what psycopg's own encoder writes for the same rows."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg._copy_base import format_row_binary
from psycopg.adapt import Transformer

from qigstore.repository import copy_binary as wire

Row = list[Any]


def by_psycopg(rows: Sequence[Row], types: Sequence[str]) -> bytes:
    """The stream that psycopg's `write_row` would send."""
    transformer = Transformer()
    transformer.set_dumper_types([psycopg.adapters.types[name].oid for name in types],
                                 psycopg.pq.Format.BINARY)  # fmt: skip
    out = bytearray(wire.HEADER)
    for row in rows:
        format_row_binary(row, transformer, out)
    return bytes(out + wire.TRAILER)


def ours(parts: Sequence[tuple[Sequence[wire.Field], int]]) -> bytes:
    return b"".join(map(bytes, wire.stream(parts)))


def integers(values: Sequence[int], size: int) -> wire.Integers:
    return wire.Integers(np.asarray(values, dtype=np.int64), size)


def test_the_frame_of_the_stream_is_the_manual_s() -> None:
    assert ours([]) == b"PGCOPY\n\xff\r\n\0" + bytes(8) + b"\xff\xff"


def test_every_kind_of_column_is_encoded_as_psycopg_does() -> None:
    values = np.array([[1.5, -0.0], [float("inf"), 5e-324], [-1.0, 2.0]])
    fields = [
        wire.Constant(-7, 8),
        wire.Constant(3, 4),
        integers([1, -(2**63), 2**63 - 1], 8),
        integers([-1, 2**31 - 1, -(2**31)], 4),
        integers([0, 3, -1], 2),
        wire.Nulls(2),
        wire.Floats(values),
    ]
    rows = [
        [-7, 3, a, b, c, None, None, *pair]
        for a, b, c, pair in zip(
            [1, -(2**63), 2**63 - 1], [-1, 2**31 - 1, -(2**31)], [0, 3, -1], values.tolist(),
            strict=True,
        )
    ]  # fmt: skip
    types = ["int8", "int4", "int8", "int4", "int2", "float8", "float8", "float8", "float8"]
    assert ours([(fields, 3)]) == by_psycopg(rows, types)


@settings(max_examples=200)
@given(
    places=st.sets(st.integers(0, 40), min_size=1, max_size=41),
    count=st.integers(1, 5),
    fill=st.randoms(use_true_random=False),
)
def test_an_array_with_gaps_is_encoded_as_an_array_of_nulls_and_numbers(
    places: set[int], count: int, fill: random.Random
) -> None:
    at = sorted(places)
    values = np.array([[fill.gauss(0, 1e9) for _ in at] for _ in range(count)])
    rows: list[Row] = []
    for line in values.tolist():
        array: list[float | None] = [None] * (at[-1] + 1)
        for place, value in zip(at, line, strict=True):
            array[place] = value
        rows.append([array])
    field = wire.Array(values, np.asarray(at, dtype=np.int64))
    assert ours([([field], count)]) == parsed_array(rows)


def test_an_array_of_integers_is_an_array_of_int8() -> None:
    values = np.array([[1, -(2**63)], [2**63 - 1, 0]])
    lines = (
        struct.pack(">hi5iiqiq", 1, 44, 1, 0, 20, 2, 1, 8, a, 8, b) for a, b in values.tolist()
    )
    expected = wire.HEADER + b"".join(lines) + wire.TRAILER
    assert ours([([wire.Array(values, np.array([0, 1]))], 2)]) == expected


def parsed_array(rows: Sequence[Row]) -> bytes:
    """The manual's layout of float8[], written out by hand: psycopg dumps gaps as text arrays."""
    out = bytearray(wire.HEADER)
    for (array,) in rows:
        body = struct.pack(">iiiii", 1, int(None in array), 701, len(array), 1)
        for value in array:
            body += struct.pack(">i", -1) if value is None else struct.pack(">id", 8, value)
        out += struct.pack(">hi", 1, len(body)) + body
    return bytes(out + wire.TRAILER)


@given(
    payloads=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50),
)
def test_every_bit_pattern_of_a_float_is_kept(payloads: list[int]) -> None:
    values = np.array(payloads, dtype=np.uint64).view(np.float64)
    encoded = ours([([wire.Floats(values.reshape(-1, 1))], len(values))])
    body = encoded[len(wire.HEADER) : -len(wire.TRAILER)]
    found = [struct.unpack(">hiQ", body[i : i + 14])[2] for i in range(0, len(body), 14)]
    assert found == payloads


def test_blocks_cut_anywhere_make_the_same_stream(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "BLOCK_BYTES", rng.randrange(1 << 14, 1 << 18))
    count = rng.randrange(20_000, 40_000)
    steps = np.arange(count)
    values = np.array([rng.random() for _ in range(2 * count)]).reshape(count, 2)
    blocks = list(map(bytes, wire.encode_rows([integers(steps, 8), wire.Floats(values)], count)))
    assert len(blocks) > 1
    assert max(map(len, blocks)) <= wire.BLOCK_BYTES
    size = 2 + 3 * 12
    body = b"".join(blocks)
    assert len(body) == size * count
    for row in [0, count - 1, *(rng.randrange(count) for _ in range(200))]:
        step, *pair = struct.unpack(">h iq id id", body[row * size : (row + 1) * size])[2::2]
        assert (step, pair) == (row, values[row].tolist())


def test_layouts_follow_one_another_in_one_stream() -> None:
    one = ([integers([1, 2], 8), wire.Nulls()], 2)
    two = ([wire.Nulls(), wire.Floats(np.array([[3.0]]))], 1)
    rows: list[Row] = [[1, None], [2, None], [None, 3.0]]
    assert ours([one, two]) == by_psycopg(rows, ["int8", "float8"])


def test_a_row_larger_than_a_block_is_sent_whole() -> None:
    width = wire.BLOCK_BYTES // 8
    values = np.arange(2 * width, dtype=np.float64).reshape(2, width)
    field = wire.Array(values, np.arange(width))
    blocks = [len(block) for block in wire.encode_rows([field], 2)]
    assert blocks == [2 + 4 + 20 + 12 * width] * 2


def test_strided_and_fortran_ordered_values_are_read_as_they_stand() -> None:
    values = np.asfortranarray(np.arange(12.0).reshape(4, 3))[::2]
    expected = [[0.0, 1.0, 2.0], [6.0, 7.0, 8.0]]
    assert ours([([wire.Floats(values)], 2)]) == by_psycopg(expected, ["float8"] * 3)


def test_times_are_microseconds_since_2000_rounded_down() -> None:
    epoch = 946_684_800_000_000_000
    given_ns = np.array([epoch, epoch + 999, epoch - 1, 0, 2**63 - 1, -(2**63)])
    expected = [(ns - epoch) // 1000 for ns in given_ns.tolist()]
    assert wire.timestamps(given_ns).tolist() == expected
