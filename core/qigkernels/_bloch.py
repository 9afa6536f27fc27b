"""Closed forms for 2 × 2 density matrices on the Bloch hemisphere (r, 2√det ρ) ∈ S³.

Half the angle between two such points is the Bures angle: F = ½(1 + r·s + 4√(det ρ det σ)).

Source: M. Hübner, Phys. Lett. A 163 (1992) 239, doi:10.1016/0375-9601(92)91004-B.
"""

from __future__ import annotations

import math
from typing import Any

from qigkernels._arrays import epsilon, tiny
from qigkernels._density import check_density, check_spectrum
from qigkernels._extended import determinant2
from qigkernels.validation import SUM_TOLERANCE, sum_tolerance

__all__ = ["bloch_angle", "bloch_pair"]

_SPLIT = 134217729.0


def bloch_angle(xp: Any, rho: Any, sigma: Any, *, check: bool = True) -> Any:
    """Bures angle of 2 × 2 states, `(..., 2, 2)` → `(...)`, in [0, π/2].

    Raises:
        ValidationError: one is not Hermitian, not of trace 1, or has a negative determinant.
    """
    one, height_one, square_one = _point(xp, "rho", rho, check)
    two, height_two, square_two = _point(xp, "sigma", sigma, check)
    heights = height_one + height_two
    # The difference of heights from the difference of their squares: no cancellation.
    rise = (square_one - square_two) / (heights + tiny(heights))
    gap, total = rise * rise, heights * heights
    for a, b in zip(one, two, strict=False):
        gap = gap + (a - b) ** 2
        total = total + (a + b) ** 2
    # A real state has no third component; the other's counts whole on both sides.
    for rest in (*one[len(two) :], *two[len(one) :]):
        gap, total = gap + rest * rest, total + rest * rest
    return xp.atan2(xp.sqrt(gap), xp.sqrt(total))


def _point(xp: Any, name: str, rho: Any, check: bool) -> tuple[list[Any], Any, Any]:
    """Bloch vector, height 2√det ρ and its square 4·det ρ, all for trace 1 exactly."""
    top, bottom, off = rho[..., 0, 0], rho[..., 1, 1], rho[..., 1, 0]
    if check and not _sound(xp, rho, top, bottom, off):
        check_density(name, rho, sum_tolerance(rho), spectrum=False)
    im = None
    if xp.isdtype(rho.dtype, "complex floating"):
        a, d, re, im = xp.real(top), xp.real(bottom), xp.real(off), xp.imag(off)
    else:
        a, d, re = top, bottom, off
    # Packed copies: every later pass over the strided entries would cost a cache line each.
    a, d, re, im = a + 0.0, d + 0.0, re + 0.0, None if im is None else im + 0.0
    eps = epsilon(a)
    if eps < 1e-10:
        determinant = determinant2(xp, a, d, re, im)
    else:
        determinant = a * d - re * re - (0.0 if im is None else im * im)
    trace = a + d
    if check and float(xp.min(determinant)) < -4.0 * eps:
        lowest = determinant / trace
        check_spectrum(name, rho, xp.stack((lowest, trace - lowest), axis=-1))
    # An eigenvalue at or below 8·ε is the rounding of a pure state.
    kept = determinant * xp.astype(determinant > 8.0 * eps, determinant.dtype)
    scale = 1.0 / trace
    twice = 2.0 * scale
    vector = [(a - d) * scale, re * twice] + ([] if im is None else [im * twice])
    height = xp.sqrt(kept) * twice
    return vector, height, height * height


def _sound(xp: Any, rho: Any, top: Any, bottom: Any, off: Any) -> bool:
    """Whether every matrix is finite, Hermitian and of trace 1; the usual case, cheaply."""
    tolerance = sum_tolerance(rho)
    if not bool(xp.all(xp.isfinite(rho))):
        return False
    other = rho[..., 0, 1]
    trace = top + bottom
    if not xp.isdtype(rho.dtype, "complex floating"):
        off_trace, skew = xp.abs(trace - 1.0), xp.abs(off - other)
        return bool(xp.max(off_trace) <= tolerance) and bool(xp.max(skew) <= tolerance)
    parts = (
        xp.real(trace) - 1.0,
        xp.real(off) - xp.real(other),
        xp.imag(off) + xp.imag(other),
        xp.imag(top),
        xp.imag(bottom),
    )
    # Half the tolerance for each part: the modulus is then within it, and the rest is looked at.
    return all(float(xp.max(xp.abs(part))) <= 0.5 * tolerance for part in parts)


def bloch_pair(rho: Any, sigma: Any) -> float | None:
    """`bloch_angle` of one pair of NumPy matrices, in Python numbers; None where one is no state.

    A ufunc on one number costs as much as the whole of this.
    """
    one, two = _numbers(rho.tolist()), _numbers(sigma.tolist())
    if one is None or two is None:
        return None
    heights = one[3] + two[3]
    rise = (one[3] ** 2 - two[3] ** 2) / heights if heights else 0.0
    gap = math.hypot(one[0] - two[0], one[1] - two[1], one[2] - two[2], rise)
    return math.atan2(gap, math.hypot(one[0] + two[0], one[1] + two[1], one[2] + two[2], heights))


def _numbers(rows: Any) -> tuple[float, float, float, float] | None:
    """Bloch vector and height of one state of trace 1; None where it is none."""
    (top, right), (left, bottom) = rows
    trace = (top + bottom).real
    skew = max(abs(left - complex(right).conjugate()), abs(top.imag), abs(bottom.imag))
    if not (abs(trace - 1.0) <= SUM_TOLERANCE and skew <= SUM_TOLERANCE):
        return None
    a, d, re, im = top.real, bottom.real, left.real, left.imag
    products = [_product(a, d), _product(-re, re), _product(-im, im)]
    determinant = math.fsum([part for pair in products for part in pair])
    if determinant < -8.0 * 2.0**-52:
        return None
    height = 2.0 * math.sqrt(determinant) if determinant > 8.0 * 2.0**-52 else 0.0
    return (a - d) / trace, 2.0 * re / trace, 2.0 * im / trace, height / trace


def _product(x: float, y: float) -> tuple[float, float]:
    """x·y = p + e exactly (Dekker 1971)."""
    p = x * y
    t = _SPLIT * x
    x1 = t - (t - x)
    t = _SPLIT * y
    y1 = t - (t - y)
    x2, y2 = x - x1, y - y1
    return p, ((x1 * y1 - p) + x1 * y2 + x2 * y1) + x2 * y2
