"""A curve in one line of characters."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["GAP", "sparkline"]

_BARS = "▁▂▃▄▅▆▇█"
GAP = "×"
"""Where a bucket holds no finite value."""


def sparkline(values: Sequence[float]) -> str:
    """One bar a value, from the least to the greatest; `GAP` for NaN.

    >>> sparkline([0.0, 0.5, float("nan"), 1.0])
    '▁▅×█'
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    # Halved before the difference, which of the greatest numbers would overflow.
    span = high / 2 - low / 2
    return "".join(
        GAP if not math.isfinite(value) else _BARS[_height(value, low, span)] for value in values
    )


def _height(value: float, low: float, half_span: float) -> int:
    if not half_span > 0.0:
        return 0
    share = (value / 2 - low / 2) / half_span
    return min(round(share * (len(_BARS) - 1)), len(_BARS) - 1)
