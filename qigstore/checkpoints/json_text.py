"""JSON as checkpoints write it: canonical bytes, and values that every reader of JSON takes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from qigstore.errors import CheckpointError

__all__ = ["FLOAT_NAMES", "canonical_json", "float_out", "strict_json"]


def canonical_json(value: Any) -> bytes:
    """Canonical JSON: keys sorted, no blanks, ASCII; NaN and ±inf are refused."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return text.encode("ascii")


def strict_json(value: Any, where: str = "metadata", *, depth: int = 50) -> Any:
    """A value as strict JSON that PostgreSQL takes too: NumPy values as numbers and lists.

    NaN and ±inf become the strings "NaN", "Infinity" and "-Infinity".

    Raises:
        CheckpointError: something that is no JSON, or a text with NUL or half a surrogate pair.
    """
    if depth == 0:
        raise CheckpointError(f"{where}: nested too deep")
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise CheckpointError(f"{where}: an integer of more than 64 bits; give it as text")
        return int(value)
    if isinstance(value, float):
        return float_out(float(value))
    if isinstance(value, str):
        if "\x00" in value or any("\ud800" <= char <= "\udfff" for char in value):
            raise CheckpointError(f"{where}: a text with NUL or a lone surrogate cannot be stored")
        return str(value)
    if isinstance(value, list | tuple):
        return [strict_json(v, f"{where}[{i}]", depth=depth - 1) for i, v in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {
            strict_json(key, where): strict_json(v, f"{where}[{key!r:.60}]", depth=depth - 1)
            for key, v in value.items()
        }
    raise CheckpointError(
        f"{where}: {type(value).__module__}.{type(value).__qualname__} is no JSON value; metadata "
        "holds text, numbers, booleans, None, lists and dicts with text keys"
    )


FLOAT_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def float_out(value: float) -> float | str:
    """A float as JSON knows it; NaN and ±inf by their names."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
