"""Rows as PostgreSQL's binary COPY stream, built column by column with NumPy; pure.

A row is a field count, then for each field its length and its bytes, all big-endian. Rows of one
layout have one size, so a block of them is a matrix of bytes: a template row repeated, with each
varying column written through a strided view. Blocks of different layouts follow one another in
one stream.

Source: PostgreSQL manual, COPY, "Binary Format".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BLOCK_BYTES",
    "HEADER",
    "TRAILER",
    "Array",
    "Constant",
    "Field",
    "Floats",
    "Integers",
    "Nulls",
    "encode_rows",
    "stream",
    "timestamps",
]

HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
TRAILER = struct.pack(">h", -1)
BLOCK_BYTES = 1 << 22
"""Size of one block, at most: memory stays bounded, and waits are few (`copy_stream`)."""

_NULL = struct.pack(">i", -1)
_LENGTH_8 = struct.pack(">i", 8)
_ELEMENTS = {"f": (701, ">f8"), "i": (20, ">i8")}
"""By the kind of a NumPy type: the element type's OID, `float8` or `int8`, and its bytes."""
_ELEMENT_BYTES = 12  # a length and eight bytes
_PER_ROW = {2: ">i2", 4: ">i4", 8: ">i8"}
_CODES = {2: ">ih", 4: ">ii", 8: ">iq"}
# From 1970 to 2000, PostgreSQL's own epoch.
_EPOCH_US = 946_684_800_000_000


@dataclass(frozen=True, slots=True)
class Nulls:
    """So many columns, NULL in each row."""

    count: int = 1


@dataclass(frozen=True, slots=True)
class Constant:
    """An integer column of `size` bytes with the same value in each row."""

    value: int
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Integers:
    """An integer column of `size` bytes; `values` is (n,)."""

    values: NDArray[Any]
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Floats:
    """As many `float8` columns as `values`, (n, k), has; bits are kept, NaN payloads too."""

    values: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Array:
    """One `float8[]` or `int8[]` column: `values[:, i]` goes to place `places[i]` (from 0).

    Places rise; the array is as long as the last place needs, and NULL at the others.
    """

    values: NDArray[np.float64] | NDArray[np.int64]
    places: NDArray[np.int64]


Field = Nulls | Constant | Integers | Floats | Array


@dataclass(frozen=True, slots=True, eq=False)
class _Slot:
    """Where a (n, k) block of values goes in the row: from `offset`, each `_ELEMENT_BYTES` on."""

    offset: int
    wire: str
    values: NDArray[Any]


def _runs(places: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """First and last + 1 index of each run of consecutive places."""
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    bounds = [0, *breaks.tolist(), len(places)]
    yield from pairwise(bounds)


def _array(field: Array, row: bytearray, slots: list[_Slot]) -> int:
    oid, element = _ELEMENTS[field.values.dtype.kind]
    length = int(field.places[-1]) + 1
    has_nulls = length != len(field.places)
    present = np.zeros(length, dtype=bool)
    present[field.places] = True
    body = struct.pack(">iiiii", 1, int(has_nulls), oid, length, 1)
    size = len(body) + 4 * length + 8 * len(field.places)
    row += struct.pack(">i", size) + body
    # Where each element's own length starts, counted from the first one's.
    starts = 4 * np.arange(length) + 8 * (np.cumsum(present) - present)
    first = len(row)
    for begin, end in _runs(field.places):
        offset = first + int(starts[field.places[begin]]) + 4
        slots.append(_Slot(offset, element, field.values[:, begin:end]))
    row += b"".join(_LENGTH_8 + bytes(8) if there else _NULL for there in present.tolist())
    return 1


def _layout(fields: Sequence[Field]) -> tuple[bytes, list[_Slot]]:
    """The template row, and where the values go in it."""
    row, slots, columns = bytearray(2), list[_Slot](), 0
    for field in fields:
        match field:
            case Nulls(count):
                row += _NULL * count
                columns += count
            case Constant(value, size):
                row += struct.pack(_CODES[size], size, value)
                columns += 1
            case Integers(values, size):
                slots.append(_Slot(len(row) + 4, _PER_ROW[size], values.reshape(-1, 1)))
                row += struct.pack(_CODES[size], size, 0)
                columns += 1
            case Floats(values):
                slots.append(_Slot(len(row) + 4, ">f8", values))
                row += (_LENGTH_8 + bytes(8)) * values.shape[1]
                columns += values.shape[1]
            case Array():
                columns += _array(field, row, slots)
    row[:2] = struct.pack(">h", columns)
    return bytes(row), slots


def encode_rows(fields: Sequence[Field], count: int) -> Iterator[memoryview]:
    """Encode `count` rows of one layout as blocks of at most about `BLOCK_BYTES`.

    A block is valid until the next one is asked for: all of them share one buffer.

    >>> [bytes(block) for block in encode_rows([Constant(7, 2)], 1)]
    [b'\\x00\\x01\\x00\\x00\\x00\\x02\\x00\\x07']
    """
    template, slots = _layout(fields)
    size = len(template)
    at_once = max(1, min(count, BLOCK_BYTES // size))
    block = np.empty((at_once, size), dtype=np.uint8)
    block[:] = np.frombuffer(template, dtype=np.uint8)
    views = [_view(block, slot) for slot in slots]
    for first in range(0, count, at_once):
        rows = min(at_once, count - first)
        for view, slot in zip(views, slots, strict=True):
            view[:rows] = slot.values[first : first + rows]
        yield block.reshape(-1).data[: rows * size]


def _view(block: NDArray[np.uint8], slot: _Slot) -> NDArray[Any]:
    rows, size = block.shape
    width = slot.values.shape[1]
    return np.ndarray(
        (rows, width),
        dtype=slot.wire,
        buffer=block.data,
        offset=slot.offset,
        strides=(size, _ELEMENT_BYTES),
    )


def timestamps(time_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """`timestamptz` on the wire (µs since 2000) from Unix ns, rounded down.

    >>> timestamps(np.array([946_684_800_000_001_999])).tolist()
    [1]
    """
    wire: NDArray[np.int64] = np.floor_divide(time_ns, 1000) - _EPOCH_US
    return wire


def stream(parts: Iterable[tuple[Sequence[Field], int]]) -> Iterator[bytes | memoryview]:
    """A whole COPY stream: header, the blocks of each part, trailer."""
    yield HEADER
    for fields, count in parts:
        yield from encode_rows(fields, count)
    yield TRAILER
