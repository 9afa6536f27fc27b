"""The bytes of the spool: the head of a segment, the frame of a row, the frame of a layout.

Everything is little-endian and 8-byte aligned, so that the next frame after damage is found by its
marker. The first word of a row, marker and CRC-32, is written last; the CRC starts from a value
drawn from the writer's identity, so that bytes of another spool, or a frame inside a payload, never
pass for a frame of this one.

::

    head    magic 8s | version u32 | crc u32 | writer 16s | first sequence u64 | zero … 64 bytes
    row     marker u32 | crc u32 | size/8 u16 | kind u8 | regime i8 | layout u32
            | sequence u64 | step i64 | time_ns i64 | metrics f64 × n | basin f64 × d
    layout  marker u32 | crc u32 | size/8 u16 | kind u8 | 0 i8 | layout u32
            | length u32 | 0 u32 | JSON {"names": […], "basin": d} | zero …

A marker of zero is the end of the data.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any
from uuid import UUID
from zlib import crc32

from qigstore.compiled import compiled_or

__all__ = [
    "FRAME_BYTES_MAX",
    "HEAD_BYTES",
    "KIND_LAYOUT",
    "KIND_ROW",
    "MARKER",
    "MARKER_BYTES",
    "ROW_BYTES",
    "WORD_BYTES",
    "Layout",
    "count_alike",
    "pack_head",
    "read_announcement",
    "read_head",
    "seed_of",
]

MARKER_BYTES = b"qfr\xd7"
MARKER = int.from_bytes(MARKER_BYTES, "little")
KIND_ROW = 1
KIND_LAYOUT = 2
WORD_BYTES = 8
"""Everything is counted and aligned in these; a frame's first one is its marker and CRC."""
HEAD_BYTES = 64
ROW_BYTES = 40
"""Bytes of a row before its values."""
FRAME_BYTES_MAX = 8 * 0xFFFF

_MAGIC = b"qigspool"
_VERSION = 1
_HEAD = struct.Struct("<8sII16sQ")
_LAYOUT = struct.Struct("<IIHBbIII")
_START = struct.Struct("<IIQ")
# Of a frame's second word: size, kind and layout, and not the regime.
_ALIKE = 0xFFFFFFFF_00FFFFFF


def seed_of(writer: UUID) -> int:
    """Where the CRC of this writer's frames starts."""
    return crc32(writer.bytes)


def pack_head(writer: UUID, first_seq: int) -> bytes:
    """The head of a segment whose first row is `first_seq`."""
    body = _HEAD.pack(_MAGIC, _VERSION, 0, writer.bytes, first_seq)
    crc = crc32(body, seed_of(writer))
    return _HEAD.pack(_MAGIC, _VERSION, crc, writer.bytes, first_seq).ljust(HEAD_BYTES, b"\0")


def read_head(data: bytes, writer: UUID) -> int | None:
    """First sequence of a segment; None where the head is empty, damaged or another writer's."""
    if len(data) < _HEAD.size:
        return None
    magic, version, crc, owner, first_seq = _HEAD.unpack_from(data)
    body = _HEAD.pack(magic, version, 0, owner, first_seq)
    if magic != _MAGIC or version != _VERSION or owner != writer.bytes:
        return None
    return int(first_seq) if crc32(body, seed_of(writer)) == crc else None


class Layout:
    """The names of a row's values, in order, and how such a row is packed.

    Attributes:
        id: number of the layout in its spool.
        names, order: the metrics; the same as a list (`[*row]` is the cheapest way to a row's).
        dimension: length of the basin that follows them; 0: none.
        size: bytes of a row. words: the same in units of 8.
        pack: the bytes of a row after its first word (marker and CRC).
        block, segment: where the names were last written down; the spool keeps these.
    """

    __slots__ = ("block", "dimension", "id", "names", "order", "pack", "segment", "size", "words")

    def __init__(self, number: int, names: tuple[str, ...], dimension: int = 0) -> None:
        self.id, self.names, self.dimension = number, names, dimension
        self.order = [*names]
        # "@", not "<": the same bytes on a little-endian machine, a sixth faster (doubles are
        # copied instead of taken apart).
        packer = struct.Struct(f"@HBbIQqq{len(names) + dimension}d")
        self.size = WORD_BYTES + packer.size
        self.words = self.size // WORD_BYTES
        self.pack: Callable[..., bytes] = packer.pack
        self.block = self.segment = -1

    def announcement(self, seed: int) -> bytes:
        """The frame that says what the names of this layout are."""
        text = json.dumps(
            {"names": self.names, "basin": self.dimension}, ensure_ascii=False
        ).encode()
        size = -(-(_LAYOUT.size + len(text)) // 8) * 8
        frame = bytearray(size)
        head = (size // 8, KIND_LAYOUT, 0, self.id, len(text), 0)
        _LAYOUT.pack_into(frame, 0, MARKER, 0, *head)
        frame[_LAYOUT.size : _LAYOUT.size + len(text)] = text
        _LAYOUT.pack_into(frame, 0, MARKER, crc32(memoryview(frame)[8:], seed), *head)
        return bytes(frame)


def read_announcement(data: bytes, at: int) -> Layout:
    """The layout in a frame that is known to be whole."""
    *_, number, length, _ = _LAYOUT.unpack_from(data, at)
    start = at + _LAYOUT.size
    told: dict[str, Any] = json.loads(data[start : start + length])
    return Layout(number, tuple(told["names"]), int(told["basin"]))


def pure_python_count_alike(data: bytes, at: int, most: int, seed: int | None, /) -> int:
    """How many whole frames of one size, kind and layout begin at byte `at`; at most `most`.

    Rows that differ in their regime are alike. `seed`: of each frame's CRC; None: it is not asked.

    Raises:
        ValueError: `at` is not within the data.
    """
    if at < 0 or at > len(data) or most < 0:
        raise ValueError(f"from byte {at} of {len(data)}, at most {most} frames")
    view, first, size, found = memoryview(data), None, 0, 0
    while found < most and at + 2 * WORD_BYTES <= len(data):
        marker, crc, meta = _START.unpack_from(data, at)
        if first is None:
            first, size = meta & _ALIKE, WORD_BYTES * (meta & 0xFFFF)
        if marker != MARKER or meta & _ALIKE != first or size < 2 * WORD_BYTES:
            break
        body = view[at + WORD_BYTES : at + size]
        if len(body) < size - WORD_BYTES or (seed is not None and crc32(body, seed) != crc):
            break
        at, found = at + size, found + 1
    return found


count_alike = compiled_or(
    pure_python_count_alike, "qigstore.recording.spool._frames", "count_alike"
)
