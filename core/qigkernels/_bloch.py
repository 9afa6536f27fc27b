"""Closed forms for 2 × 2 density matrices on the Bloch hemisphere (r, 2√det ρ) ∈ S³.

Half the angle between two such points is the Bures angle: F = ½(1 + r·s + 4√(det ρ det σ)).

Source: M. Hübner, Phys. Lett. A 163 (1992) 239, doi:10.1016/0375-9601(92)91004-B.
"""

from __future__ import annotations

from typing import Any

from qigkernels._arrays import epsilon, tiny
from qigkernels._density import check_spectrum
from qigkernels._extended import determinant2

__all__ = ["bloch_angle"]


def bloch_angle(xp: Any, rho: Any, sigma: Any, *, check: bool = True) -> Any:
    """Bures angle of 2 × 2 states, `(..., 2, 2)` → `(...)`, in [0, π/2].

    Raises:
        ValidationError: one has a negative determinant.
    """
    one, trace_one, height_one, square_one = _point(xp, "rho", rho, check)
    two, trace_two, height_two, square_two = _point(xp, "sigma", sigma, check)
    gap = [a * trace_two - b * trace_one for a, b in zip(one, two, strict=True)]
    total = [a * trace_two + b * trace_one for a, b in zip(one, two, strict=True)]
    # The difference of heights from the difference of their squares: no cancellation.
    scaled_one, scaled_two = height_one * trace_two, height_two * trace_one
    squares = square_one * trace_two**2 - square_two * trace_one**2
    gap.append(squares / (scaled_one + scaled_two + tiny(scaled_one)))
    total.append(scaled_one + scaled_two)
    return xp.atan2(
        xp.sqrt(sum(part * part for part in gap)), xp.sqrt(sum(part * part for part in total))
    )


def _point(xp: Any, name: str, rho: Any, check: bool) -> tuple[list[Any], Any, Any, Any]:
    """Bloch vector, trace, height 2√det ρ, and its square 4·det ρ."""
    diagonal_0, diagonal_1, off = rho[..., 0, 0], rho[..., 1, 1], rho[..., 1, 0]
    if xp.isdtype(rho.dtype, "complex floating"):
        a, d = xp.real(diagonal_0), xp.real(diagonal_1)
        vector = [a - d, 2.0 * xp.real(off), 2.0 * xp.imag(off)]
        re, im = xp.real(off), xp.imag(off)
    else:
        a, d, re, im = diagonal_0, diagonal_1, off, xp.zeros_like(off)
        vector = [a - d, 2.0 * re]
    trace = a + d
    eps = epsilon(a)
    exact = eps < 1e-10
    determinant = determinant2(xp, a, d, re, im) if exact else a * d - re * re - im * im
    if check and float(xp.min(determinant)) < -4.0 * eps:
        lowest = determinant / trace
        check_spectrum(name, rho, xp.stack((lowest, trace - lowest), axis=-1))
    # An eigenvalue at or below n·ε·λ_max is the rounding of a pure state.
    kept = xp.where(determinant > 2.0 * eps, determinant, xp.zeros_like(determinant))
    return vector, trace, 2.0 * xp.sqrt(kept), 4.0 * kept
