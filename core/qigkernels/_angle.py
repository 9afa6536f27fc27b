"""Bures angle of batches of pairs: the quick way for most of them, the factors for the rest.

Two levels have a closed form (`_bloch`); three and four go by symmetric functions (`_symmetric`),
more by eigenvalues (`_spectral`). Both say which pairs they are exact for; the others, and pairs so
near that arccos √F would lose digits, go by their factors (`_overlap`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qigkernels._arrays import is_numpy, take_rows, to_numpy
from qigkernels._bloch import bloch_angle
from qigkernels._factors import Side, factor, put
from qigkernels._overlap import NEAR, angle_from_factors
from qigkernels._spectral import spectral_overlap
from qigkernels._symmetric import symmetric_overlap

__all__ = ["pair_angle"]

_CHUNK_BYTES = 2**18, 2**20
"""Bytes of states done at once on NumPy, up to four levels and above: what is made of them then
stays in the cache, and memory is bounded."""
_CHUNK_BYTES_OTHER = 2**28


def pair_angle(xp: Any, rho: Any, sigma: Any, *, check: bool) -> Any:
    """Bures angle of pairs, `(..., n, n)` whose batch axes broadcast → `(...)`, in [0, π/2].

    `check` concerns two levels; the matrices of more are Hermitian and of trace 1 already.

    Raises:
        ValidationError: one is not positive semidefinite.
    """
    if rho.shape[-1] == 2:
        return bloch_angle(xp, rho, sigma, check=check)
    shape = np.broadcast_shapes(tuple(rho.shape[:-2]), tuple(sigma.shape[:-2]))
    overlap, sure = _quick(xp, rho, sigma, shape)
    angle = xp.acos(xp.clip(overlap, 0.0, 1.0))
    rest = np.flatnonzero(~sure | to_numpy(overlap > 1.0 - NEAR))
    if rest.size:
        angle = put(xp, angle, rest, _by_factors(xp, rho, sigma, shape, rest))
    return xp.reshape(angle, shape)


def _quick(xp: Any, rho: Any, sigma: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """√F of the flat batch, and a NumPy array of where it is exact."""
    one, two = _flat(xp, rho, shape), _flat(xp, sigma, shape)
    few = rho.shape[-1] <= 4
    quick = symmetric_overlap if few else spectral_overlap
    bytes_max = _CHUNK_BYTES[0 if few else 1] if is_numpy(rho) else _CHUNK_BYTES_OTHER
    rows = max(1, bytes_max // (16 * rho.shape[-1] ** 2))
    parts = []
    for start in range(0, max(one.shape[0], two.shape[0]), rows):
        sides = (s if s.shape[0] == 1 else s[start : start + rows] for s in (one, two))
        parts.append(quick(xp, *sides))
    if len(parts) == 1:
        return parts[0][0], to_numpy(parts[0][1])
    return xp.concat([part[0] for part in parts]), np.concatenate([to_numpy(p[1]) for p in parts])


def _flat(xp: Any, rho: Any, shape: tuple[int, ...]) -> Any:
    """The batch as `(b, n, n)`, or `(1, n, n)` where one state goes with all."""
    n = rho.shape[-1]
    own = tuple(rho.shape[:-2])
    if own != shape and np.prod(own, dtype=int) > 1:
        rho = xp.broadcast_to(rho, (*shape, n, n))
    return xp.reshape(rho, (-1, n, n))


def _by_factors(xp: Any, rho: Any, sigma: Any, shape: tuple[int, ...], rest: Any) -> Any:
    """Angles of the pairs that `rest` (flat indices) names."""
    one, two = _side(xp, "rho", rho, shape, rest), _side(xp, "sigma", sigma, shape, rest)
    return angle_from_factors(xp, one, two)


def _side(xp: Any, name: str, rho: Any, shape: tuple[int, ...], rest: Any) -> Side:
    """One side of those pairs; a state is factored once, however often broadcasting repeats it."""
    n = rho.shape[-1]
    own = tuple(rho.shape[:-2])
    flat = xp.reshape(rho, (-1, n, n))
    members = np.broadcast_to(np.arange(len(flat)).reshape(own), shape).ravel()[rest]
    chosen, back = np.unique(members, return_inverse=True)
    if chosen.size < len(flat):
        flat = take_rows(xp, flat, chosen)
    side = factor(xp, name, flat, chosen, own)
    return side if np.array_equal(chosen, members) else side.rows(xp, back)
