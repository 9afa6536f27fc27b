"""Twice the working precision where a result needs it, from plain float64 operations.

Everything here is elementwise operations and matrix products whose products and sums are exact by
construction, so it runs on every array library and any order of summation gives the same bits.

Sources: T. J. Dekker, Numer. Math. 18 (1971) 224, doi:10.1007/BF01397083; K. Ozaki, T. Ogita,
S. Oishi, S. M. Rump, Numer. Algorithms 59 (2012) 95, doi:10.1007/s11075-011-9478-1.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["determinant2", "exact_sum", "halves", "overlap", "residual_product", "slices"]

# 1.5·2^12 has a rounding unit of 2^-40: adding and subtracting it keeps the multiples of 2^-40.
_GRID = 6144.0


def halves(xp: Any, x: Any) -> tuple[Any, Any]:
    """x = high + low exactly, high of 24 bits, so that products of highs are exact."""
    high = xp.astype(xp.astype(x, xp.float32), xp.float64)
    return high, x - high


def exact_sum(xp: Any, x: Any) -> tuple[Any, Any]:
    """Σx over the last axis as (sum on a grid of 2^-40, rest); entries in [−1, 1]."""
    grid = (x + _GRID) - _GRID
    return xp.sum(grid, axis=-1), xp.sum(x - grid, axis=-1)


def overlap(xp: Any, p: Any, q: Any) -> tuple[Any, Any]:
    """Σ√(pq)/√(Σp·Σq) as (head, tail), the tail below one rounding unit of the head.

    √p = h + (p − h²)/(h + √p) with h the root rounded to 24 bits: h² is exact, so is p − h².
    """
    root_p, root_q = xp.sqrt(p), xp.sqrt(q)
    # 2^-1022 turns 0/0 into 0 and changes nothing else.
    high_p, _ = halves(xp, root_p)
    high_q, _ = halves(xp, root_q)
    low_p = (p - high_p * high_p) / (high_p + root_p + 2.0**-1022)
    low_q = (q - high_q * high_q) / (high_q + root_q + 2.0**-1022)
    grid, rest = exact_sum(xp, high_p * high_q)
    rest = rest + xp.sum(high_p * low_q + low_p * root_q, axis=-1)
    scale = -0.5 * (_log_total(xp, p) + _log_total(xp, q))
    rest = rest + (grid + rest) * xp.expm1(scale)
    head = grid + rest
    return head, rest - (head - grid)


def _log_total(xp: Any, p: Any) -> Any:
    grid, rest = exact_sum(xp, p)
    return xp.log1p((grid - 1.0) + rest)


def _two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def determinant2(xp: Any, a: Any, d: Any, re: Any, im: Any) -> Any:
    """a·d − re² − im² to full relative accuracy, for entries of a 2 × 2 density matrix.

    im may be None. Products of high halves are exact and their sum carries its error along; the
    mixed products are 2^-24 smaller, so their own rounding is far below the result's.
    """
    a_high, a_low = halves(xp, a)
    d_high, d_low = halves(xp, d)
    re_high, re_low = halves(xp, re)
    found, lost = _two_sum(a_high * d_high, -(re_high * re_high))
    mixed = a_high * d_low + a_low * d_high - 2.0 * (re_high * re_low)
    least = a_low * d_low - re_low * re_low
    if im is not None:
        im_high, im_low = halves(xp, im)
        found, more = _two_sum(found, -(im_high * im_high))
        lost = lost + more
        mixed = mixed - 2.0 * (im_high * im_low)
        least = least - im_low * im_low
    return found + (mixed + (lost + least))


def slices(xp: Any, matrix: Any) -> tuple[Any, Any, Any]:
    """matrix = first + second + rest, first and second short enough for exact products.

    The rows (last axis) of one matrix share a grid, real and imaginary parts alike: else the sums
    inside a complex product would not fit.
    """
    bits = (53 - math.ceil(math.log2(2 * matrix.shape[-1] + 2))) // 2
    if not xp.isdtype(matrix.dtype, "complex floating"):
        return _cut(matrix, _shift(xp, xp.abs(matrix), bits), bits)
    re, im = xp.real(matrix), xp.imag(matrix)
    shift = _shift(xp, xp.maximum(xp.abs(re), xp.abs(im)), bits)
    first, second = _cut(re, shift, bits), _cut(im, shift, bits)
    return (
        first[0] + 1j * second[0],
        first[1] + 1j * second[1],
        first[2] + 1j * second[2],
    )


def _shift(xp: Any, sizes: Any, bits: int) -> Any:
    """The number whose rounding unit is 2^-bits of the power of two above each row's largest."""
    top = xp.max(sizes, axis=-1, keepdims=True)
    return 1.5 * xp.exp2(xp.ceil(xp.log2(top + 2.0**-900)) + (52.0 - bits))


def _cut(x: Any, shift: Any, bits: int) -> tuple[Any, Any, Any]:
    first = (x + shift) - shift
    rest = x - first
    finer = shift * 2.0**-bits
    second = (rest + finer) - finer
    return first, second, rest - second


def residual_product(xp: Any, target: Any, left: Any, right: Any) -> Any:
    """target − left·right†, accurate to about 2^-95 of the sizes of the factors.

    `left` and `right` are `(..., n, k)`; the difference may be far below their product.
    """
    a1, a2, a3 = slices(xp, left)
    b1, b2, b3 = (xp.conj(xp.matrix_transpose(part)) for part in slices(xp, right))
    # Sums of numbers on different grids round: what they lose is carried along.
    found, lost = _two_sum(target, -(a1 @ b1))
    found, more = _two_sum(found, -(a1 @ b2 + a2 @ b1))
    return found + (lost + more - (a1 @ b3 + a3 @ b1 + (a2 + a3) @ (b2 + b3)))
