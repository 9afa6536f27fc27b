"""Checks at the boundary: what is wrong is named with its argument, shape, value and index.

Nothing is clipped or renormalised here; `qigkernels.simplex.to_simplex` is the explicit way to
make a distribution of something that is none.
"""

from __future__ import annotations

import math
from typing import Any

from qigkernels._arrays import as_array, epsilon, namespace, to_numpy
from qigkernels._errors import GeometryError, ValidationError

__all__ = [
    "GeometryError",
    "ValidationError",
    "validate_basin",
    "validate_density_matrix",
    "validate_distribution",
    "validate_kappa",
    "validate_phi",
]

SUM_TOLERANCE = 1e-8
"""How far Σp or Tr ρ may be from 1 in float64; float32 gets 16 of its own rounding units."""


def sum_tolerance(array: Any) -> float:
    """Tolerance on Σp = 1 for this array's dtype: max(1e-8, 16·ε)."""
    return max(SUM_TOLERANCE, 16.0 * epsilon(array))


def _refuse(name: str, array: Any, what: str, index: tuple[int, ...]) -> None:
    values = to_numpy(array)
    place = tuple(int(i) for i in index)
    value = values[place].item()
    raise ValidationError(
        f"{name} of shape {values.shape} {what}: {value!r} at index {place}",
        argument=name,
        shape=tuple(values.shape),
        value=value,
        index=place,
    )


def check_finite(name: str, array: Any) -> None:
    """Raise unless every entry is finite."""
    import numpy as np

    values = to_numpy(array)
    bad = ~np.isfinite(values)
    if bad.any():
        index = tuple(np.argwhere(bad)[0])
        what = "has NaN" if np.isnan(values[index]) else "has an infinite entry"
        _refuse(name, values, what, index)


def check_last_axes(name: str, array: Any, axes: int, *, square: bool | None = None) -> None:
    """Raise unless the array has at least `axes` axes, none empty, the last two square if asked."""
    shape = tuple(array.shape)
    if len(shape) < axes:
        raise ValidationError(
            f"{name} has shape {shape}; expected at least {axes} axes",
            argument=name,
            shape=shape,
        )
    if (axes == 2 if square is None else square) and shape[-1] != shape[-2]:
        raise ValidationError(
            f"{name} has shape {shape}; expected square matrices in the last two axes",
            argument=name,
            shape=shape,
        )
    if 0 in shape:
        raise ValidationError(
            f"{name} is empty (shape {shape}); expected at least one entry on every axis",
            argument=name,
            shape=shape,
        )


def validate_distribution(p: Any, name: str = "p") -> None:
    """Raise unless p is a batch `(..., n)` of probability vectors: p ≥ 0, |Σp − 1| ≤ 1e-8.

    Raises:
        ValidationError: names the argument, its shape, and the offending value and index.

    >>> validate_distribution([0.25, 0.75])
    """
    p = as_array(name, p)
    check_last_axes(name, p, 1)
    if float(p.min()) >= 0.0:
        xp = namespace(p)
        off = xp.abs(xp.sum(p, axis=-1) - 1.0)
        if float(xp.max(off)) <= sum_tolerance(p):
            return
    explain_distribution(name, p)


def explain_distribution(name: str, p: Any) -> None:
    """Raise with the reason why p is no batch of probability vectors; return if it is one."""
    import numpy as np

    check_finite(name, p)
    values = to_numpy(p)
    if (values < 0).any():
        _refuse(name, values, "has a negative entry", tuple(np.argwhere(values < 0)[0]))
    sums = values.sum(axis=-1)
    bad = np.abs(sums - 1.0) > sum_tolerance(p)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0]) if sums.ndim else ()
        value = float(sums[index])
        where = f" in row {index}" if index else ""
        raise ValidationError(
            f"{name} of shape {values.shape} is not normalized: it sums to {value!r}{where}, "
            f"not to 1 within {sum_tolerance(p):.1e}; qigkernels.simplex.to_simplex makes a "
            "distribution of it",
            argument=name,
            shape=tuple(values.shape),
            value=value,
            index=index,
        )


def validate_basin(basin: Any, expected_dim: int = 64, name: str = "basin") -> None:
    """Raise unless the basin has that dimension (last axis) and finite real entries.

    It need not be a distribution: only the simplex functions ask for that.

    Raises:
        ValidationError: "must be 64D", "NaN", "infinite", or not a real floating array.

    >>> validate_basin([0.0] * 64)
    """
    values = as_array(name, basin)
    shape = tuple(values.shape)
    if not shape or shape[-1] != expected_dim:
        found = f"{shape[-1]}D" if shape else "a single number"
        raise ValidationError(
            f"{name} must be {expected_dim}D, got {found} (shape {shape})",
            argument=name,
            shape=shape,
        )
    check_last_axes(name, values, 1)
    check_finite(name, values)


def validate_density_matrix(rho: Any, name: str = "rho", tolerance: float = SUM_TOLERANCE) -> None:
    """Raise unless rho is a batch `(..., n, n)`, Hermitian, of trace 1, positive semidefinite.

    The smallest eigenvalue may be negative by rounding only: λ_min ≥ −n·ε·λ_max − tolerance·ε.
    `tolerance` bounds |Tr ρ − 1| and max|ρ − ρ†|.

    Raises:
        ValidationError: names the argument, its shape, and the offending value and index.

    >>> validate_density_matrix([[0.5, 0.0], [0.0, 0.5]])
    """
    from qigkernels._density import check_density

    rho = as_array(name, rho, complex_too=True)
    check_last_axes(name, rho, 2)
    check_density(name, rho, max(tolerance, 16.0 * epsilon(rho)), spectrum=True)


def validate_phi(phi: float, name: str = "phi") -> None:
    """Raise unless Φ is a finite number in [0, 1].

    >>> validate_phi(0.7)
    """
    if not _number(name, phi) or not 0.0 <= phi <= 1.0:
        raise ValidationError(f"{name} must be in [0, 1], got {phi!r}", argument=name, value=phi)


def validate_kappa(kappa: float, name: str = "kappa") -> None:
    """Raise unless κ is a finite number.

    κ may be negative (a repulsive coupling); whether it is too weak is a rule's business.

    >>> validate_kappa(64.21)
    """
    _number(name, kappa)


def _number(name: str, value: Any) -> bool:
    try:
        finite = math.isfinite(value)
    except TypeError:
        raise ValidationError(
            f"{name} must be a real number, got {value!r} ({type(value).__name__})",
            argument=name,
            value=value,
        ) from None
    if not finite:
        what = "NaN" if math.isnan(value) else "infinite"
        raise ValidationError(f"{name} is {what}", argument=name, value=value)
    return True
