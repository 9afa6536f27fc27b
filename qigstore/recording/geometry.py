"""What the basins of successive rows tell: distance to a reference, step length, curvature."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qigstore.errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Basin = NDArray[np.float64]

__all__ = ["BASIN_DIMENSION_MAX", "BasinTrack", "check_basin"]

BASIN_DIMENSION_MAX = 16_384
_TINY = sys.float_info.min


def check_basin(basin: Any, name: str = "basin") -> Basin:
    """A distribution as a float64 vector of its own, `(n,)`.

    Raises:
        InvalidInput: it is none; nothing is clipped or renormalised.
    """
    import numpy as np

    from qigkernels import ValidationError, validate_distribution
    from qigkernels.validation import SUM_TOLERANCE

    if hasattr(basin, "detach"):
        basin = basin.detach().cpu()
    expected = "a 1-D probability vector (entries ≥ 0, sum 1 within 1e-8)"
    try:
        point = np.array(basin, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(name, basin, expected) from error
    if point.ndim != 1 or not 2 <= len(point) <= BASIN_DIMENSION_MAX:
        shape = f"shape {point.shape}"
        raise InvalidInput(name, shape, f"{expected} of 2 to {BASIN_DIMENSION_MAX} entries")
    if point.min() >= 0.0 and abs(point.sum() - 1.0) <= SUM_TOLERANCE:
        return point
    try:
        validate_distribution(point, name)  # the same question, with words for each answer
    except ValidationError as error:
        raise InvalidInput(name, basin, f"{expected}: {error}") from error
    return point


class BasinTrack:
    """The path of the basin. `measure` looks, `advance` moves: a refused row moves nothing.

    The reference is the one set, or else the first basin recorded.
    """

    def __init__(self) -> None:
        self.reference: Basin | None = None
        self._last: tuple[Basin, ...] = ()
        self._stride = 0.0  # between the two in `_last`

    def measure(self, point: Basin) -> dict[str, float]:
        """basin_distance, geodesic_distance (both radians) and curvature (1/radian).

        Curvature: turning angle of the path at the previous basin over the mean of the two steps
        that meet there. What cannot be measured yet is not in the answer.
        """

        from qigkernels.simplex import distance

        told: dict[str, float] = {}
        reference = point if self.reference is None else self.reference
        if reference.shape == point.shape:
            told["basin_distance"] = float(distance(reference, point, check=False))
        path = [p for p in self._last if p.shape == point.shape]
        if path:
            stride = float(distance(path[-1], point, check=False))
            told["geodesic_distance"] = stride
            if len(path) == 2:
                length = self._stride + stride
                told["curvature"] = _curvature(path[0], path[1], point, length=length)
        return told

    def advance(self, point: Basin, told: Mapping[str, float]) -> None:
        """The row of this basin, of which `measure` told this, is recorded."""
        if self.reference is None:
            self.reference = point
        self._last = (*self._last[-1:], point)
        self._stride = told.get("geodesic_distance", 0.0)


def _curvature(before: Basin, here: Basin, after: Basin, *, length: float) -> float:
    """`qigkernels.simplex.path_curvature` of three points and the length of the path.

    Made for one call a row: 18 times faster.
    """
    back, forth = _direction(here, before), _direction(here, after)
    if back is None or forth is None:
        return 0.0  # a repeated point has no direction, and makes no turn
    gap, total = forth + back, forth - back
    angle = 2.0 * math.atan2(math.sqrt(gap.dot(gap)), math.sqrt(total.dot(total)))
    return 2.0 * angle / length


def _direction(here: Basin, there: Basin) -> Basin | None:
    """Unit tangent at √here towards √there, on the sphere of roots; None where they are equal.

    In roots, not in p-coordinates, so that a basin on the boundary has its directions too.
    """
    import numpy as np

    u, v = np.sqrt(here), np.sqrt(there)
    total = u + v
    # Where both are 0, so is their difference, whatever it is divided by.
    chord = (there - here) / np.maximum(total, _TINY)
    tangent = chord - u * (u.dot(chord) / u.dot(u))
    length = math.sqrt(tangent.dot(tangent))
    return tangent / length if length else None
