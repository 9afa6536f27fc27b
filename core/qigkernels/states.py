"""Bures geometry of density matrices, batched, without jitter and without a silent fallback.

√F = Σ svdvals(A†B) from factors ρ = AA†, σ = BB†; the Bures angle A = arccos √F comes from the
Procrustes form 2·atan2(‖AU − B‖, ‖AU + B‖) wherever the arccos would lose digits.

Batches lead: `rho, sigma : (..., n, n)`, real or complex, of NumPy, torch, JAX or CuPy; the result
keeps the precision and the device. Fisher-Rao distance on states is twice the Bures angle, so that
commuting states agree with `qigkernels.simplex`.

Sources: A. Uhlmann, Rep. Math. Phys. 9 (1976) 273, doi:10.1016/0034-4877(76)90060-4; R. Jozsa,
J. Mod. Opt. 41 (1994) 2315, doi:10.1080/09500349414552171; R. Bhatia, T. Jain, Y. Lim, Expo. Math.
37 (2019) 165, doi:10.1016/j.exmath.2018.01.002.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qigkernels._angle import pair_angle
from qigkernels._arrays import as_array, is_numpy, rank_floor, same_namespace
from qigkernels._bloch import bloch_pair
from qigkernels._density import check_density, check_spectrum
from qigkernels._errors import ValidationError
from qigkernels._factors import real_diagonal
from qigkernels._information import qfi_matrix, qfi_pure, sld
from qigkernels._means import bures_mean
from qigkernels._reference import ReferenceState
from qigkernels.validation import check_last_axes, sum_tolerance

__all__ = [
    "ReferenceState",
    "bures_angle",
    "bures_distance",
    "bures_mean",
    "coherence_l1",
    "coherence_relative_entropy",
    "depolarise",
    "distance",
    "entropy",
    "fidelity",
    "purity",
    "qfi_matrix",
    "qfi_pure",
    "root_fidelity",
    "sld",
    "trace_distance",
]


def fidelity(rho: Any, sigma: Any, *, check: bool = True) -> Any:
    """Uhlmann fidelity, squared convention: F = (Tr √(√ρ σ √ρ))².

    Args:
        rho, sigma: `(..., n, n)`, batch axes broadcast.

    Returns:
        `(...)` in [0, 1].

    Raises:
        ValidationError: not states, or shapes that do not go together.

    Source: Jozsa 1994.

    >>> round(float(fidelity(np.eye(2) / 2, np.eye(2) / 2)), 12)
    1.0
    """
    return root_fidelity(rho, sigma, check=check) ** 2


def root_fidelity(rho: Any, sigma: Any, *, check: bool = True) -> Any:
    """√F = Tr √(√ρ σ √ρ) = Σ svdvals(A†B), `(..., n, n)` → `(...)` in [0, 1].

    Raises:
        ValidationError: not states, or shapes that do not go together.

    Source: Uhlmann 1976.
    """
    lean = _lean(rho, sigma)
    if lean is not None:
        return math.cos(lean)
    rho, sigma, xp = _two(rho, sigma, check)
    # By way of the angle: near 1 that is exact where a sum of n singular values is not.
    return _finish(xp.cos(pair_angle(xp, rho, sigma, check=check)))


def bures_angle(rho: Any, sigma: Any, *, check: bool = True) -> Any:
    """Bures angle A = arccos √F, `(..., n, n)` → `(...)`, radians in [0, π/2].

    Raises:
        ValidationError: not states, or shapes that do not go together.

    Source: Bhatia, Jain & Lim 2019 for the Procrustes form.

    >>> float(bures_angle(np.eye(2) / 2, np.eye(2) / 2))
    0.0
    """
    lean = _lean(rho, sigma)
    if lean is not None:
        return lean
    rho, sigma, xp = _two(rho, sigma, check)
    return _finish(pair_angle(xp, rho, sigma, check=check))


def bures_distance(rho: Any, sigma: Any, *, check: bool = True) -> Any:
    """Bures distance d_B = √(2 − 2√F) = 2·sin(A/2), `(..., n, n)` → `(...)` in [0, √2].

    Raises:
        ValidationError: not states, or shapes that do not go together.

    >>> float(bures_distance(np.diag([1.0, 0.0]), np.diag([0.0, 1.0])))
    1.414213562373095
    """
    angle = bures_angle(rho, sigma, check=check)
    if isinstance(angle, float):
        return 2.0 * math.sin(0.5 * angle)
    return 2.0 * same_namespace(angle=angle).sin(0.5 * angle)


def distance(rho: Any, sigma: Any, *, check: bool = True) -> Any:
    """Fisher-Rao distance of the SLD metric: d = 2A, `(..., n, n)` → `(...)` in [0, π].

    Equal to `simplex.distance` on diagonal states.

    >>> float(distance(np.diag([1.0, 0.0]), np.diag([0.0, 1.0])))
    3.141592653589793
    """
    return 2.0 * bures_angle(rho, sigma, check=check)


def trace_distance(rho: Any, sigma: Any, *, check: bool = True) -> Any:
    """Trace distance T = ½ Σ|eig(ρ − σ)|, `(..., n, n)` → `(...)` in [0, 1].

    Source: C. A. Fuchs, J. van de Graaf, IEEE Trans. Inf. Theory 45 (1999) 1216,
    doi:10.1109/18.761271.
    """
    rho, sigma, xp = _two(rho, sigma, check)
    if check and rho.shape[-1] == 2:
        check_density("rho", rho, sum_tolerance(rho), spectrum=False)
        check_density("sigma", sigma, sum_tolerance(sigma), spectrum=False)
    found = 0.5 * xp.sum(xp.abs(xp.linalg.eigvalsh(rho - sigma)), axis=-1)
    return _finish(found)


def entropy(rho: Any, *, check: bool = True) -> Any:
    """Von Neumann entropy S = −Tr ρ ln ρ (0·ln 0 = 0), nats, `(..., n, n)` → `(...)` in [0, ln n].

    Raises:
        ValidationError: not states.

    >>> round(float(entropy(np.eye(2) / 2)), 6)
    0.693147
    """
    rho, xp = _one(rho, check)
    values = xp.linalg.eigvalsh(rho)
    if check:
        check_spectrum("rho", rho, values)
    # Eigenvalues at rounding level are 0, and −λ ln λ would show them.
    return _finish(shannon(xp, values, rank_floor(values)))


def shannon(xp: Any, values: Any, floor: float = 0.0) -> Any:
    """−Σ λ ln λ over the last axis, entries at or below `floor` of the largest adding nothing."""
    lowest = floor * xp.max(values, axis=-1, keepdims=True)
    positive = xp.where(values > lowest, values, xp.ones_like(values))
    # −0.0 of a pure state is 0.
    return 0.0 - xp.sum(positive * xp.log(positive), axis=-1)


def purity(rho: Any, *, check: bool = True) -> Any:
    """Tr ρ² = Σ|ρ_ij|², `(..., n, n)` → `(...)` in [1/n, 1].

    >>> float(purity(np.eye(2) / 2))
    0.5
    """
    rho, xp = _one(rho, check)
    return _finish(xp.sum(xp.abs(rho) ** 2, axis=(-1, -2)))


def coherence_l1(rho: Any, *, check: bool = True) -> Any:
    """Coherence C_l1 = Σ_{i≠j} |ρ_ij| in the computational basis, `(...)` in [0, n − 1].

    Source: T. Baumgratz, M. Cramer, M. B. Plenio, Phys. Rev. Lett. 113 (2014) 140401,
    doi:10.1103/PhysRevLett.113.140401.
    """
    rho, xp = _one(rho, check)
    sizes = xp.abs(rho)
    n = rho.shape[-1]
    beside = xp.asarray(1.0 - np.eye(n), dtype=sizes.dtype)
    if not is_numpy(rho):
        beside = xp.asarray(beside, device=rho.device)
    return _finish(xp.sum(sizes * beside, axis=(-1, -2)))


def coherence_relative_entropy(rho: Any, *, check: bool = True) -> Any:
    """Coherence C_re = S(diag ρ) − S(ρ), nats, `(..., n, n)` → `(...)` in [0, ln n].

    Source: Baumgratz, Cramer & Plenio 2014, doi:10.1103/PhysRevLett.113.140401.
    """
    rho, xp = _one(rho, check)
    values = xp.linalg.eigvalsh(rho)
    if check:
        check_spectrum("rho", rho, values)
    gap = shannon(xp, real_diagonal(xp, rho)) - shannon(xp, values, rank_floor(values))
    # Majorisation makes the gap ≥ 0; below is the last digit's rounding.
    return _finish(xp.where(gap > 0.0, gap, xp.zeros_like(gap)))


def depolarise(rho: Any, a: Any, *, check: bool = True) -> Any:
    """Depolarising channel (1 − a)ρ + a·1/n.

    Args:
        rho: `(..., n, n)`. a: a number in [0, 1].

    Returns:
        `(..., n, n)`.

    Raises:
        ValidationError: not states, or a outside [0, 1].

    >>> depolarise(np.diag([1.0, 0.0]), 1.0).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    rho, xp = _one(rho, check)
    if not 0.0 <= a <= 1.0:
        raise ValidationError(f"a must be in [0, 1], got {a!r}", argument="a", value=a)
    n = rho.shape[-1]
    from array_api_compat import device

    one = xp.eye(n, dtype=rho.dtype, device=device(rho))
    return (1.0 - a) * rho + (a / n) * one


def _lean(rho: Any, sigma: Any) -> float | None:
    """Bures angle of one pair of sound two-level NumPy states; None for anything else."""
    if (
        type(rho) is np.ndarray
        and type(sigma) is np.ndarray
        and rho.shape == (2, 2) == sigma.shape
        and rho.dtype.char in "dD"
        and sigma.dtype.char in "dD"
    ):
        return bloch_pair(rho, sigma)
    return None


def _one(rho: Any, check: bool) -> tuple[Any, Any]:
    rho = as_array("rho", rho, complex_too=True)
    xp = same_namespace(rho=rho)
    check_last_axes("rho", rho, 2)
    if check:
        check_density("rho", rho, sum_tolerance(rho), spectrum=False)
    return rho, xp


def _two(rho: Any, sigma: Any, check: bool) -> tuple[Any, Any, Any]:
    rho = as_array("rho", rho, complex_too=True)
    sigma = as_array("sigma", sigma, complex_too=True)
    xp = same_namespace(rho=rho, sigma=sigma)
    check_last_axes("rho", rho, 2)
    check_last_axes("sigma", sigma, 2)
    try:
        np.broadcast_shapes(tuple(rho.shape), tuple(sigma.shape))
        same = rho.shape[-1] == sigma.shape[-1]
    except ValueError:
        same = False
    if not same:
        raise ValidationError(
            f"sigma of shape {tuple(sigma.shape)} does not go with rho of shape "
            f"{tuple(rho.shape)}: matrices of one size, batch axes that broadcast",
            argument="sigma",
            shape=tuple(sigma.shape),
        )
    # The closed form for n = 2 checks as it goes.
    if check and rho.shape[-1] > 2:
        check_density("rho", rho, sum_tolerance(rho), spectrum=False)
        check_density("sigma", sigma, sum_tolerance(sigma), spectrum=False)
    if rho.dtype != sigma.dtype:
        common = xp.result_type(rho, sigma)
        rho, sigma = xp.astype(rho, common), xp.astype(sigma, common)
    return rho, sigma, xp


def _finish(found: Any) -> Any:
    """One NumPy number as a `float`; everything else as it is."""
    return (
        float(found) if isinstance(found, (np.ndarray, np.generic)) and not found.shape else found
    )
