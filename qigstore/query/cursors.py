"""Cursors: the place of a row, as a short word that a page hands out and takes back."""

from __future__ import annotations

import base64
import binascii
import re
import struct
import zlib
from dataclasses import dataclass

from qigstore.errors import InvalidInput

__all__ = ["Cursor", "read_cursor"]

_PLACE = struct.Struct(">qiiq")
_CHECK = struct.Struct(">I")
_WORD = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last row of a page; as text it holds its own checksum."""

    session_id: int
    attempt: int
    rank: int
    step: int

    def __str__(self) -> str:
        place = _PLACE.pack(self.session_id, self.attempt, self.rank, self.step)
        whole = place + _CHECK.pack(zlib.crc32(place))
        return base64.urlsafe_b64encode(whole).decode().rstrip("=")


def read_cursor(text: str, session_id: int) -> Cursor:
    """The place that the text names.

    Raises:
        InvalidInput: it is no cursor, or one of another session.
    """
    expected = "the `next` of a page of this session"
    try:
        if not _WORD.fullmatch(text):
            raise ValueError(text)
        whole = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        place, check = whole[: _PLACE.size], whole[_PLACE.size :]
        if _CHECK.unpack(check)[0] != zlib.crc32(place):
            raise ValueError(text)
        found = Cursor(*_PLACE.unpack(place))
    except (ValueError, TypeError, binascii.Error, struct.error):
        raise InvalidInput("after", text, expected) from None
    if found.session_id != session_id:
        raise InvalidInput("after", text, expected)
    return found
