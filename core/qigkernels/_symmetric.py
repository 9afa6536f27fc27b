"""√F of three- and four-level states without an eigensolver; part of `qigkernels.states`.

The eigenvalues λ of ρσ have the elementary symmetric functions e_k(λ) = Tr ∧ᵏρ ∧ᵏσ (Cauchy-Binet:
∧ᵏρ is the matrix of the k × k minors). The functions s_k of their roots √λ follow from
s_k² = e_k + 2 s_{k−1}s_{k+1} − 2 s_{k−2}s_{k+2}, and √F = s₁. With s₂ as the only unknown that is
one convex equation, which Newton's method solves from above. Only sums, products and roots of whole
batches are needed, and small eigenvalues lose fewer digits than in any eigensolver.

Where the rounding of the minors might reach the last digits (two small eigenvalues, rank loss) or
Newton's method has not settled, the pair is left to the factors.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations
from math import comb
from typing import Any, NamedTuple

import numpy as np

from qigkernels._arrays import epsilon, is_numpy, take_rows

__all__ = ["symmetric_overlap"]

_STEPS = 10
_ERROR_MAX = 4.0
"""Estimated error of √F, in units of ε, up to which it is taken."""


class _Minors(NamedTuple):
    """How the minors of the upper triangle of ∧ᵏ follow from ρ and ∧ᵏ⁻¹, diagonal ones first.

    A minor is Σ ± (entry of its last row) · (minor of the rows above). Those minors are all of the
    upper triangle, the subsets being in lexicographic order.
    """

    size: int
    """Minors on the diagonal."""
    entry: Any
    """`(k, minors)`: flat places in ρ."""
    above: Any
    """`(k, minors)`: places in the upper triangle of ∧ᵏ⁻¹."""


@cache
def _minors(n: int, k: int) -> _Minors:
    subsets = list(combinations(range(n), k))
    smaller = list(combinations(range(n), k - 1))
    place = {pair: at for at, pair in enumerate(_upper(len(smaller)))}
    entry, above = [], []
    for row, column in _upper(len(subsets)):
        rows, columns = subsets[row], subsets[column]
        first = smaller.index(rows[:-1])
        entry.append([rows[-1] * n + name for name in columns])
        above.append(
            [place[first, smaller.index(columns[:j] + columns[j + 1 :])] for j in range(k)]
        )
    return _Minors(len(subsets), np.array(entry).T, np.array(above).T)


def _upper(size: int) -> list[tuple[int, int]]:
    """Places of the upper triangle, the diagonal first."""
    return [(i, i) for i in range(size)] + list(combinations(range(size), 2))


def symmetric_overlap(xp: Any, rho: Any, sigma: Any) -> tuple[Any, Any]:
    """√F of matched states of three or four levels, and whether it is exact to the last digits.

    Args:
        rho, sigma: `(b, n, n)`, n = 3 or 4, Hermitian, of trace 1 but for rounding; one of the two
            may be `(1, n, n)`.

    Returns:
        `(b,)`, and `(b,)` booleans: false where it is not to be used, as for any pair with a state
        that is not positive definite.
    """
    one = _compounds(xp, rho)
    sound = _positive(one)
    if not bool(xp.any(sound)):
        count = max(rho.shape[0], sigma.shape[0])
        return xp.broadcast_to(one[0].trace, (count,)), xp.broadcast_to(sound, (count,))
    two = _compounds(xp, sigma)
    sound = sound & _positive(two)
    e = [_inner(xp, a, b) for a, b in zip(one, two, strict=True)]
    for found in e:
        sound = sound & (found > 0.0)
    # Rows that are not sound are computed on a stand-in, two flat states, so that nothing warns.
    n = rho.shape[-1]
    flat = [comb(n, k) / n ** (2 * k) for k in range(1, n + 1)]
    e = [xp.where(sound, a, xp.full_like(a, b)) for a, b in zip(e, flat, strict=True)]
    *s, settled = _three(xp, e) if n == 3 else _four(xp, e)
    inverse = sum(1.0 / xp.where(sound, side[-1].trace, s[-1]) for side in (one, two))
    error = _rounding(s, e[0], [a.trace + b.trace for a, b in zip(one, two, strict=True)], inverse)
    overlap = s[0] / xp.sqrt(one[0].trace * two[0].trace)
    return overlap, sound & settled & (error <= _ERROR_MAX)


class _Compound(NamedTuple):
    """∧ᵏρ of a batch: its upper triangle `(entries, b)`, how many are diagonal, its trace."""

    entries: Any
    size: int
    trace: Any


def _positive(side: list[_Compound]) -> Any:
    """Where all eigenvalues are positive, as their symmetric functions then are (Descartes).

    1/Tr ρ⁻¹ is below each of them: it keeps clear of those that count as the rounding of 0.
    """
    sound = side[-1].trace > 16.0 * epsilon(side[0].trace) * side[-2].trace
    for compound in side[:-1]:
        sound = sound & (compound.trace > 0.0)
    return sound


def _rounding(s: list[Any], e1: Any, traces: list[Any], inverse: Any) -> Any:
    """Estimated rounding of √F in units of ε.

    What rounding leaves of a minor is ε times the product of its diagonal entries. `traces` are
    those of both sides' compounds, added; `inverse` is 1/det ρ + 1/det σ.
    """
    s1, s2, last = s[0], s[1], s[-1]
    error = 0.5 * e1 / s1 + 0.09375 * traces[1] / (s1 * s2)
    if len(s) == 3:
        return error + last * inverse / (54.0 * s2)
    return error + traces[2] / (64.0 * s2 * s[2]) + last * inverse / (512.0 * s[2])


def _compounds(xp: Any, rho: Any) -> list[_Compound]:
    """ρ, ∧²ρ, … ∧ⁿρ."""
    n = rho.shape[-1]
    flat = xp.matrix_transpose(xp.reshape(rho, (-1, n * n)))
    if is_numpy(flat):
        flat = np.ascontiguousarray(flat)
    index = np.array([row * n + column for row, column in _upper(n)])
    found = [_compound(xp, take_rows(xp, flat, index), n)]
    for k in range(2, n + 1):
        minors = _minors(n, k)
        smaller = found[-1].entries
        total: Any = None
        for j in reversed(range(k)):
            part = take_rows(xp, flat, minors.entry[j]) * take_rows(xp, smaller, minors.above[j])
            if total is None:
                total = part
            else:
                total = total + part if (k - 1 - j) % 2 == 0 else total - part
        found.append(_compound(xp, total, minors.size))
    return found


def _compound(xp: Any, entries: Any, size: int) -> _Compound:
    diagonal = entries[:size]
    if xp.isdtype(entries.dtype, "complex floating"):
        diagonal = xp.real(diagonal)
    return _Compound(entries, size, xp.sum(diagonal, axis=0))


def _inner(xp: Any, one: _Compound, two: _Compound) -> Any:
    """Tr AB of two Hermitian matrices."""
    size = one.size
    a, b = one.entries, two.entries
    if not xp.isdtype(a.dtype, "complex floating"):
        return xp.sum(a[:size] * b[:size], axis=0) + 2.0 * xp.sum(a[size:] * b[size:], axis=0)
    a_re, b_re = xp.real(a), xp.real(b)
    total = xp.sum(a_re[:size] * b_re[:size], axis=0)
    if a.shape[0] == size:
        return total
    beside = a_re[size:] * b_re[size:] + xp.imag(a[size:]) * xp.imag(b[size:])
    return total + 2.0 * xp.sum(beside, axis=0)


def _three(xp: Any, e: list[Any]) -> tuple[Any, Any, Any, Any]:
    """s₁, s₂, s₃ of three levels, and where Newton's method on s₂² = e₂ + 2 s₁s₃ has settled."""
    s3 = xp.sqrt(e[2])
    # √F ≤ 1 bounds s₂ from above twice.
    s2 = _start(xp, xp.abs(0.5 * (1.0 - e[0])), xp.sqrt(e[1] + 2.0 * s3))
    for _ in range(_STEPS):
        s1 = xp.sqrt(e[0] + 2.0 * s2)
        s2, settled = _step(xp, s2, s2 * s2 - e[1] - 2.0 * s1 * s3, s2 - s3 / s1)
        if bool(xp.all(settled)):
            break
    return xp.sqrt(e[0] + 2.0 * s2), s2, s3, settled


def _four(xp: Any, e: list[Any]) -> tuple[Any, Any, Any, Any, Any]:
    """s₁ … s₄ of four levels, and where s₂² = e₂ + 2 s₁s₃ − 2 s₄ has settled."""
    s4 = xp.sqrt(e[3])
    most = xp.abs(0.5 * (1.0 - e[0]))
    s2 = _start(xp, most, xp.sqrt(e[1] + 2.0 * xp.sqrt(e[2] + 2.0 * most * s4)))
    for _ in range(_STEPS):
        s1, s3 = xp.sqrt(e[0] + 2.0 * s2), xp.sqrt(e[2] + 2.0 * s2 * s4)
        gap = s2 * s2 - e[1] - 2.0 * s1 * s3 + 2.0 * s4
        s2, settled = _step(xp, s2, gap, s2 - s3 / s1 - s1 * s4 / s3)
        if bool(xp.all(settled)):
            break
    return xp.sqrt(e[0] + 2.0 * s2), s2, xp.sqrt(e[2] + 2.0 * s2 * s4), s4, settled


def _start(xp: Any, one: Any, two: Any) -> Any:
    """The lesser of two bounds on s₂, and no less than any s₂ that is more than rounding."""
    return xp.clip(xp.minimum(one, two), epsilon(one) ** 2, 1.0)


def _step(xp: Any, s2: Any, gap: Any, half_slope: Any) -> tuple[Any, Any]:
    """s₂ after a step of Newton's method, and where it has settled.

    Beyond the root the slope is positive; elsewhere rounding has the better of the equation, and
    the pair is given up.
    """
    rises = half_slope > 0.0
    step = 0.5 * gap / xp.where(rises, half_slope, xp.ones_like(half_slope))
    after = s2 - step
    after = xp.where(rises & (after > 0.0), after, s2)
    return after, rises & (xp.abs(step) <= 8.0 * epsilon(s2) * s2)
