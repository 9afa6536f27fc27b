"""The one JSON encoding of every record: of `--json`, of the REST server and of its stream.

Numbers that JSON has no word for are the strings "NaN", "Infinity" and "-Infinity"; times are
ISO 8601 in UTC; what was never measured is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

__all__ = ["NON_FINITE", "as_json", "fields_of", "json_bytes"]

NON_FINITE = ("NaN", "Infinity", "-Infinity")
"""Names of the numbers that JSON lacks."""

_JSON_TYPES = (str, int, bool, type(None))


def as_json(value: Any) -> Any:
    """The value in JSON's own types; NaN and ±inf become strings, records become objects."""
    if isinstance(value, float | Decimal):
        number = float(value)
        if math.isnan(number):
            return "NaN"
        return number if math.isfinite(number) else ("Infinity" if number > 0 else "-Infinity")
    if isinstance(value, _JSON_TYPES):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return as_json(fields_of(value))
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return as_json(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    if hasattr(value, "tolist"):  # an array, or a scalar of its kind
        plain = value.tolist()
        return plain if _finite(value) else as_json(plain)
    if isinstance(value, Iterable):
        return [as_json(item) for item in value]
    return str(value)


def _finite(array: Any) -> bool:
    """Whether an array's elements are numbers that JSON knows, so that none needs a look."""
    import numpy as np

    return array.dtype.kind in "iu" or (array.dtype.kind == "f" and bool(np.isfinite(array).all()))


def fields_of(record: Any) -> dict[str, Any]:
    """The fields of one of our records, by name."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def json_bytes(value: Any) -> bytes:
    """The value as one compact JSON document in UTF-8."""
    text = json.dumps(as_json(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Half of a surrogate pair, as a client may send one, stays an escape of JSON.
    return text.encode(errors="backslashreplace")
