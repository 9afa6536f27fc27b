"""What a metric may be called and what it may be: every check of the recording boundary."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from qigstore.errors import InvalidInput

__all__ = [
    "METRICS_MAX",
    "NAME_LENGTH_MAX",
    "PLAIN",
    "RESERVED",
    "STEP_BITS",
    "check_names",
    "regime_code",
    "to_number",
    "to_numbers",
    "to_step",
]

METRICS_MAX = 1_000
NAME_LENGTH_MAX = 200
STEP_BITS = 62
"""A step is below 2^62: far from the end of PostgreSQL's bigint."""

PLAIN = (float, int)
"""Types of numbers that are recorded as they are; NumPy's float64 is a float too."""

RESERVED = frozenset(
    {
        "attempt",
        "basin",
        "custom",
        "rank",
        "recorded_at",
        "regime",
        "seq",
        "session",
        "session_id",
        "step",
    }
)
"""Columns of the table and the views; as metrics they would hide them."""

_NO_NUMBERS = (str, bytes, bytearray, memoryview, complex)
# NumPy's kinds: complex, time span, time, bytes, text, object.
_known_scalars: set[type] = set()
_NO_NUMBER_KINDS = frozenset("cmMSUO")


def check_names(names: tuple[str, ...]) -> None:
    """Refuse what cannot name a metric.

    Raises:
        InvalidInput: the first such name, or too many of them.
    """
    if len(names) > METRICS_MAX:
        raise InvalidInput("metrics", f"{len(names)} of them", f"at most {METRICS_MAX} in a row")
    for name in names:
        if not isinstance(name, str):
            raise InvalidInput("metric name", name, "a string")
        if name in RESERVED:
            raise InvalidInput("metric name", name, "another name; this one is a column's")
        if not 1 <= len(name) <= NAME_LENGTH_MAX or not _speakable(name):
            raise InvalidInput(
                "metric name",
                name,
                f"1 to {NAME_LENGTH_MAX} characters, no control characters, valid Unicode",
            )


def _speakable(name: str) -> bool:
    # C0, DEL and C1 controls; halves of a surrogate pair cannot be written as UTF-8.
    return not any(c < " " or "\x7f" <= c < "\xa0" or "\ud800" <= c <= "\udfff" for c in name)


def to_step(step: Any) -> int:
    """A step as an integer.

    Raises:
        InvalidInput: it is none, negative, or too large.
    """
    try:
        number = operator.index(step)
    except TypeError:
        raise InvalidInput("step", step, "an integer") from None
    if number >> STEP_BITS:
        raise InvalidInput("step", step, f"0 to 2^{STEP_BITS} - 1")
    return number


def to_number(name: str, value: Any) -> float:
    """A real scalar of any library as a float; NaN and ±inf stay what they are.

    Raises:
        InvalidInput: it is no real scalar, or too large for one; says which metric.
    """
    expected = "a real number (Python, NumPy, a 0-d array or tensor), or None: not measured"
    if isinstance(value, float) or type(value) in _known_scalars:
        return float(value)
    if isinstance(value, _NO_NUMBERS) or getattr(value, "ndim", 0) != 0:
        raise InvalidInput(name, value, expected)
    kind = getattr(value, "dtype", None)
    if getattr(kind, "kind", "") in _NO_NUMBER_KINDS or getattr(kind, "is_complex", False):
        raise InvalidInput(name, value, expected)
    if not hasattr(type(value), "__float__") and not hasattr(type(value), "__index__"):
        raise InvalidInput(name, value, expected)
    if hasattr(value, "detach"):
        value = value.detach()
    try:
        number = float(value)
    except OverflowError as error:
        raise InvalidInput(name, "an integer", "one within ±1.8e308") from error
    except Exception as error:
        # Whatever a foreign type raises here, the caller learns which metric it was.
        raise InvalidInput(name, value, expected) from error
    if type(value).__module__ == "numpy" and not hasattr(value, "__setitem__"):
        # A scalar type of NumPy (an array can be assigned to): all of its values are fit.
        _known_scalars.add(type(value))
    return number


def to_numbers(names: Iterable[str], values: Iterable[Any]) -> list[float]:
    """Real scalars as floats; most of them are floats already.

    Raises:
        InvalidInput: what is no real scalar, by its name.
    """
    return [
        value if type(value) is float else to_number(name, value)
        for name, value in zip(names, values, strict=True)
    ]


def regime_code(value: Any) -> int:
    """The stored code of a regime given by name, member or code.

    Raises:
        InvalidInput: there is no such regime.
    """
    from qigkernels.regimes import Regime

    try:
        if isinstance(value, str):
            return Regime(value.lower()).code
        return Regime.from_code(operator.index(value)).code
    except (ValueError, TypeError):
        names = ", ".join(repr(regime.value) for regime in Regime)
        raise InvalidInput("regime", value, f"one of {names}") from None
