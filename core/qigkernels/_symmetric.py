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

from qigkernels._arrays import epsilon, is_numpy
from qigkernels._factors import take

__all__ = ["CHUNK_PAIRS", "symmetric_overlap"]

CHUNK_PAIRS = 1024
"""Pairs done at once: their minors, 2 KiB a pair, stay in the cache, and memory is bounded."""

_STEPS = 10
_ERROR_MAX = 3.0
"""Estimated error of √F, in units of ε, up to which it is taken."""


class _Minors(NamedTuple):
    """Where the minors of the upper triangle of ∧ᵏ come from, diagonal ones first.

    A minor is Σ ± (entry of the first row) · (minor of the rows below); `below` counts on into the
    conjugates of the minors, which are those of the lower triangle.
    """

    size: int
    """Minors on the diagonal."""
    entry: Any
    below: Any


@cache
def _minors(n: int, k: int) -> _Minors:
    subsets = list(combinations(range(n), k))
    lower = list(combinations(range(n), k - 1))
    place = {pair: at for at, pair in enumerate(_upper(len(lower)))}
    entry, below = [], []
    for row, column in _upper(len(subsets)):
        rows, columns = subsets[row], subsets[column]
        rest = lower.index(rows[1:])
        for j, name in enumerate(columns):
            # An entry is a minor of one row, so it is found in the same way.
            entry.append(_at(_places(n), rows[0], name))
            other = lower.index(columns[:j] + columns[j + 1 :])
            below.append(_at(place, rest, other))
    shape = (-1, k)
    return _Minors(len(subsets), np.array(entry).reshape(shape).T, np.array(below).reshape(shape).T)


@cache
def _places(n: int) -> dict[tuple[int, int], int]:
    return {pair: at for at, pair in enumerate(_upper(n))}


def _upper(size: int) -> list[tuple[int, int]]:
    """Places of the upper triangle, the diagonal first."""
    beside = list(combinations(range(size), 2))
    return [(i, i) for i in range(size)] + beside


def _at(place: dict[tuple[int, int], int], row: int, column: int) -> int:
    """Index of an entry among those of the upper triangle followed by their conjugates."""
    if row <= column:
        return place[row, column]
    return len(place) + place[column, row]


def symmetric_overlap(xp: Any, rho: Any, sigma: Any) -> tuple[Any, Any]:
    """√F of matched states of three or four levels, and whether it is exact to the last digits.

    Args:
        rho, sigma: `(b, n, n)`, n = 3 or 4, Hermitian, of trace 1 but for rounding; one of the two
            may be `(1, n, n)`.

    Returns:
        `(b,)`, and `(b,)` booleans: false where it is not to be used, as for any pair with a state
        that is not positive definite.
    """
    n = rho.shape[-1]
    one, two = _compounds(xp, rho), _compounds(xp, sigma)
    e = [_inner(xp, a, b, size) for (size, a), (_, b) in zip(one, two, strict=True)]
    traces_one, traces_two = ([_trace(xp, a, size) for size, a in side] for side in (one, two))
    eps = epsilon(e[0])
    # An eigenvalue at or below zero shows in one of the traces (Descartes); NaN fails as well.
    sound = (traces_one[-1] > eps * eps) & (traces_two[-1] > eps * eps)
    for a, b in zip(traces_one, traces_two, strict=True):
        sound = sound & (a > 0.0) & (b > 0.0)
    for found in e:
        sound = sound & (found > 0.0)
    # Rows that are not sound are computed on a stand-in, two flat states, so that nothing warns.
    flat = [comb(n, k) / n ** (2 * k) for k in range(1, n + 1)]
    e = [xp.where(sound, a, xp.full_like(a, b)) for a, b in zip(e, flat, strict=True)]
    last = xp.sqrt(e[-1])
    solve = _three if n == 3 else _four
    s1, s2, s3, settled = solve(xp, e, last)
    dets = sum(1.0 / xp.where(sound, side[-1], last) for side in (traces_one, traces_two))
    # What rounding leaves of a minor is ε times the product of its diagonal entries.
    error = 0.5 * e[0] / s1 + 0.1875 * (traces_one[1] + traces_two[1]) / (2.0 * s1 * s2)
    if n == 3:
        error = error + last * dets / (54.0 * s2)
    else:
        error = error + (traces_one[2] + traces_two[2]) / (64.0 * s2 * s3)
        error = error + last * dets / (512.0 * s3)
    overlap = s1 / xp.sqrt(traces_one[0] * traces_two[0])
    return overlap, sound & settled & (error <= _ERROR_MAX)


def _compounds(xp: Any, rho: Any) -> list[tuple[int, Any]]:
    """Upper triangles of ρ, ∧²ρ, … ∧ⁿρ, `(entries, b)` each, with the size of their diagonals."""
    n = rho.shape[-1]
    flat = xp.matrix_transpose(xp.reshape(rho, (-1, n * n)))
    index = np.array([row * n + column for row, column in _upper(n)])
    entries = _rows(xp, flat, index)
    both = _with_conjugates(xp, entries)
    found, lower = [(n, entries)], both
    for k in range(2, n + 1):
        minors = _minors(n, k)
        total = None
        for j, (entry, below) in enumerate(zip(minors.entry, minors.below, strict=True)):
            part = _rows(xp, both, entry) * _rows(xp, lower, below)
            total = part if total is None else total + part if j % 2 == 0 else total - part
        found.append((minors.size, total))
        if k < n:
            lower = _with_conjugates(xp, total)
    return found


def _rows(xp: Any, source: Any, index: Any) -> Any:
    return source.take(index, axis=0) if is_numpy(source) else take(xp, source, index)


def _with_conjugates(xp: Any, entries: Any) -> Any:
    complex_ = xp.isdtype(entries.dtype, "complex floating")
    return xp.concat((entries, xp.conj(entries) if complex_ else entries))


def _trace(xp: Any, entries: Any, size: int) -> Any:
    diagonal = entries[:size]
    if xp.isdtype(entries.dtype, "complex floating"):
        diagonal = xp.real(diagonal)
    return xp.sum(diagonal, axis=0)


def _inner(xp: Any, a: Any, b: Any, size: int) -> Any:
    """Tr AB of Hermitian matrices given by their upper triangles."""
    if not xp.isdtype(a.dtype, "complex floating"):
        return xp.sum(a[:size] * b[:size], axis=0) + 2.0 * xp.sum(a[size:] * b[size:], axis=0)
    a_re, b_re = xp.real(a), xp.real(b)
    total = xp.sum(a_re[:size] * b_re[:size], axis=0)
    if a.shape[0] == size:
        return total
    beside = a_re[size:] * b_re[size:] + xp.imag(a[size:]) * xp.imag(b[size:])
    return total + 2.0 * xp.sum(beside, axis=0)


def _three(xp: Any, e: list[Any], s3: Any) -> tuple[Any, Any, Any, Any]:
    """s₁, s₂, s₃ of three levels, and where Newton's method on s₂² = e₂ + 2 s₁s₃ has settled."""
    # √F ≤ 1 bounds s₂ from above twice.
    s2 = xp.minimum(xp.abs(0.5 * (1.0 - e[0])), xp.sqrt(e[1] + 2.0 * s3))
    settled = s2 < 0.0
    for _ in range(_STEPS):
        s1 = xp.sqrt(e[0] + 2.0 * s2)
        step = (s2 * s2 - e[1] - 2.0 * s1 * s3) / (2.0 * (s2 - s3 / s1))
        s2 = s2 - step
        settled = xp.abs(step) <= 8.0 * epsilon(s2) * s2
        if bool(xp.all(settled)):
            break
    return xp.sqrt(e[0] + 2.0 * s2), s2, s3, settled


def _four(xp: Any, e: list[Any], s4: Any) -> tuple[Any, Any, Any, Any]:
    """s₁, s₂, s₃ of four levels, and where s₂² = e₂ + 2 s₁s₃ − 2 s₄ has settled."""
    most = xp.abs(0.5 * (1.0 - e[0]))
    s2 = xp.minimum(most, xp.sqrt(e[1] + 2.0 * xp.sqrt(e[2] + 2.0 * most * s4)))
    settled = s2 < 0.0
    for _ in range(_STEPS):
        s1, s3 = xp.sqrt(e[0] + 2.0 * s2), xp.sqrt(e[2] + 2.0 * s2 * s4)
        slope = 2.0 * (s2 - s3 / s1 - s1 * s4 / s3)
        step = (s2 * s2 - e[1] - 2.0 * s1 * s3 + 2.0 * s4) / slope
        s2 = s2 - step
        settled = xp.abs(step) <= 8.0 * epsilon(s2) * s2
        if bool(xp.all(settled)):
            break
    return xp.sqrt(e[0] + 2.0 * s2), s2, xp.sqrt(e[2] + 2.0 * s2 * s4), settled
