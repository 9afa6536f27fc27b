"""What PostgreSQL would refuse in text and JSON, refused before any SQL, with the reason."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import PurePath
from typing import Any
from uuid import UUID

from qigstore.errors import InvalidInput, NotFound

__all__ = [
    "DOCUMENT_BYTES_MAX",
    "METRIC_CHARACTERS_MAX",
    "NAME_CHARACTERS_MAX",
    "TEXT_CHARACTERS_MAX",
    "document",
    "like_pattern",
    "line",
    "near",
    "optional_text",
    "prefix_range",
    "text_value",
]

NAME_CHARACTERS_MAX = 200
METRIC_CHARACTERS_MAX = 500
TEXT_CHARACTERS_MAX = 100_000
DOCUMENT_BYTES_MAX = 16 << 20
_DEPTH_MAX = 64
_PREFIX_MIN = 4
_HEX_DIGITS = 32


def text_value(name: str, value: str, characters_max: int = TEXT_CHARACTERS_MAX) -> str:
    """Any text PostgreSQL can hold: no NUL, no lone surrogate, and not endless.

    Raises:
        InvalidInput: it is something else.
    """
    if not isinstance(value, str):
        raise InvalidInput(name, value, "text")
    if "\0" in value:
        raise InvalidInput(name, value, "text without the NUL character, which SQL cannot hold")
    if len(value) > characters_max:
        raise InvalidInput(name, value, f"at most {characters_max} characters, not {len(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInput(name, value, "text that can be written as UTF-8") from None
    return value


def optional_text(name: str, value: str | None) -> str | None:
    """The same, or None."""
    return None if value is None else text_value(name, value)


def line(name: str, value: str, characters_max: int = NAME_CHARACTERS_MAX) -> str:
    """A name: 1 to `characters_max` printable characters.

    Raises:
        InvalidInput: it is something else.
    """
    text_value(name, value, characters_max)
    if not value or not value.isprintable():
        raise InvalidInput(name, value, f"1 to {characters_max} printable characters")
    return value


def document(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object PostgreSQL can hold; NaN and ±inf, which JSON lacks, become text.

    Paths, UUIDs and times become text too, NumPy scalars become numbers.

    Raises:
        InvalidInput: a value that JSON cannot hold, with its place.
    """
    if not isinstance(value, Mapping):
        raise InvalidInput(name, value, "a mapping")
    plain: dict[str, Any] = _plain(name, value, 0)
    size = len(json.dumps(plain))
    if size > DOCUMENT_BYTES_MAX:
        raise InvalidInput(name, f"{size} bytes", f"at most {DOCUMENT_BYTES_MAX} bytes of JSON")
    return plain


def _plain(place: str, value: Any, depth: int) -> Any:
    if depth > _DEPTH_MAX:
        raise InvalidInput(place[:60], "...", f"at most {_DEPTH_MAX} levels")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(text_value(place, value, DOCUMENT_BYTES_MAX))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _non_finite(value)
    if isinstance(value, Mapping):
        return {
            text_value(f"{place}: key", key): _plain(f"{place}.{key}", item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(f"{place}[{i}]", item, depth + 1) for i, item in enumerate(value)]
    if isinstance(value, UUID | PurePath | datetime):
        return text_value(place, str(value))
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return _plain(place, value.item(), depth + 1)
    raise InvalidInput(place, value, "what JSON can hold: numbers, text, lists, mappings, None")


def _non_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def near(wanted: object, known: Sequence[str]) -> tuple[str, ...]:
    """Up to three of the known names that look like the wanted one."""
    return tuple(difflib.get_close_matches(str(wanted)[:NAME_CHARACTERS_MAX], known, n=3))


def like_pattern(pattern: str) -> str:
    r"""For LIKE, what `*` for any characters says.

    >>> like_pattern("ocean_*")
    'ocean\\_%'
    """
    return re.sub(r"([\\%_])", r"\\\1", pattern).replace("*", "%")


def prefix_range(kind: str, prefix: str) -> tuple[UUID, UUID]:
    """The least and the greatest id that start so (hex digits, hyphens ignored).

    Raises:
        NotFound: that is no beginning of an id, or one of fewer than four digits.
    """
    digits = prefix.replace("-", "").lower()
    if not _PREFIX_MIN <= len(digits) <= _HEX_DIGITS or set(digits) - set("0123456789abcdef"):
        hint = f"An id is given by its first hex digits, at least {_PREFIX_MIN}"
        raise NotFound(kind, prefix, hint=hint)
    return UUID(digits.ljust(_HEX_DIGITS, "0")), UUID(digits.ljust(_HEX_DIGITS, "f"))
