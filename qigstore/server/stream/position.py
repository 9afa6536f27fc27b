"""A stream's place, and the token that a client keeps of it: `seq` of the last envelope it had.

The token holds for every server on the same store and outlives them all: it names nothing of a
server's own, only how far each writer was known and which transactions were seen.

    version, store (4 bytes), subscription (4 bytes)
    xmax, transactions running below it, the one that is known in part and up to which id
    for each writer: session, attempt, rank, sequence number, step
    CRC-32                                          (numbers as varints; the whole in base64url)
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import starmap
from uuid import UUID

from qigstore.errors import InvalidInput
from qigstore.repository.feed import FOLLOWED_MAX, Mark, Seen, WriterKey
from qigstore.repository.snapshots import Snapshot

__all__ = ["TOKEN_CHARACTERS_MAX", "Position", "read_token", "write_token"]

TOKEN_CHARACTERS_MAX = 48_000
_VERSION = 1
_NUMBER_BYTES_MAX = 10
_EXPECTED = "the `seq` of an envelope of this store, with the same sessions and kinds"


@dataclass(frozen=True, slots=True)
class Position:
    """Everything that a client had.

    Attributes:
        seen: events and checkpoints.
        marks: how far the rows of each writer are known. One that is not named is known from its
            first row on where `seen` does not know its making, and else not followed at all.
    """

    seen: Seen
    marks: Mapping[WriterKey, Mark]

    def reaches(self, other: Position) -> bool:
        """Whether everything in another one is in this, writers that are not in both left out."""
        mine, its = self.seen.snapshot, other.seen
        known = mine.includes(its.snapshot) and (not its.transaction or mine.sees(its.transaction))
        return known and all(
            mark.seq <= self.marks[key].seq
            for key, mark in other.marks.items()
            if key in self.marks
        )


def write_token(position: Position, store: UUID, scope: bytes) -> str:
    """The token of a position; `scope` tells which subscriptions it is for (4 bytes)."""
    seen, snapshot = position.seen, position.seen.snapshot
    out = bytearray([_VERSION])
    out += _short(store) + scope
    out += _number(snapshot.xmax) + _number(len(snapshot.running))
    for running in snapshot.running:
        out += _number(snapshot.xmax - running)
    out += _number(seen.transaction)
    if seen.transaction:
        out += seen.last_id.bytes
    out += _number(len(position.marks))
    out += b"".join(starmap(_entry, position.marks.items()))
    out += zlib.crc32(out).to_bytes(4, "big")
    return base64.urlsafe_b64encode(out).rstrip(b"=").decode()


def read_token(token: str, store: UUID, scope: bytes) -> Position:
    """The position of a token.

    Raises:
        InvalidInput: it is none, or of another store or other subscriptions.
    """
    if len(token) > TOKEN_CHARACTERS_MAX:
        raise InvalidInput("after", token, f"at most {TOKEN_CHARACTERS_MAX} characters")
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)
        if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "big") or len(data) < 9:
            raise ValueError
        if data[:9] != bytes([_VERSION]) + _short(store) + scope:
            raise ValueError
        position = _position(data[9:-4])
        position.seen.snapshot.check()
    except (ValueError, IndexError, binascii.Error):
        raise InvalidInput("after", token, _EXPECTED) from None
    return position


def _position(data: bytes) -> Position:
    numbers = _Numbers(data)
    xmax, count = next(numbers), next(numbers)
    # Each of them takes a byte at least: a count that is a lie ends in an IndexError.
    running = tuple(xmax - next(numbers) for _ in range(min(count, len(data) + 1)))
    transaction = next(numbers)
    if transaction > xmax:
        raise ValueError
    last_id = UUID(bytes=numbers.take(16)) if transaction else Seen(Snapshot(0)).last_id
    marks = {}
    writers = next(numbers)
    if writers > 2 * FOLLOWED_MAX:
        raise ValueError
    for _ in range(writers):
        key = WriterKey(next(numbers), next(numbers), next(numbers))
        seq, folded = next(numbers), next(numbers)
        marks[key] = Mark(seq, seq + (folded // 2 if folded % 2 == 0 else -(folded + 1) // 2))
    numbers.end()
    if any(max(*key, *map(abs, mark)) >= 2**63 for key, mark in marks.items()):
        raise ValueError
    return Position(Seen(Snapshot(xmax, running), transaction, last_id), marks)


class _Numbers(Iterator[int]):
    """Varints of a token, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __next__(self) -> int:
        value = shift = 0
        for _ in range(_NUMBER_BYTES_MAX):
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
        raise ValueError

    def take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        self._at += count
        return part

    def end(self) -> None:
        if self._at != len(self._data):
            raise ValueError


@lru_cache(maxsize=4 * FOLLOWED_MAX)  # from one envelope to the next most writers stand still
def _entry(key: WriterKey, mark: Mark) -> bytes:
    # Mostly the steps are counted as the records are, so that the difference is a byte.
    difference = mark.step - mark.seq
    folded = 2 * difference if difference >= 0 else -2 * difference - 1
    return b"".join(map(_number, (*key, mark.seq, folded)))


def _number(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _short(store: UUID) -> bytes:
    return zlib.crc32(store.bytes).to_bytes(4, "big")
