"""Checks of density matrices, shared by validation and states.

The checks run where the arrays live; only a refusal brings values to the host, for its message.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from qigkernels._arrays import epsilon, is_numpy, namespace, take_columns, to_numpy
from qigkernels._errors import ValidationError

__all__ = ["check_density", "check_hermitian", "check_spectrum"]

_CHUNK_BYTES = 2**18
"""Bytes of matrices looked at together on NumPy: they stay in the cache."""


def _refuse(name: str, rho: Any, what: str, value: Any, index: tuple[int, ...]) -> ValidationError:
    shape = tuple(rho.shape)
    where = f" in matrix {index}" if index else ""
    return ValidationError(
        f"{name} of shape {shape} {what}: {value!r}{where}",
        argument=name,
        shape=shape,
        value=value,
        index=index,
    )


def _first(bad: Any) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(bad)[0])


def check_density(name: str, rho: Any, tolerance: float, *, spectrum: bool) -> None:
    """Raise unless rho is finite, Hermitian and of trace 1 (and PSD, where `spectrum` is asked)."""
    check_hermitian(name, rho, tolerance, trace=1.0)
    if spectrum:
        check_spectrum(name, rho, namespace(rho).linalg.eigvalsh(rho))


def check_hermitian(name: str, rho: Any, tolerance: float, *, trace: float) -> None:
    """Raise unless every matrix is finite, Hermitian and of that trace.

    `tolerance` is absolute for states (trace 1), relative to the largest entry for derivatives.
    """
    xp = namespace(rho)
    off = xp.max(xp.abs(xp.sum(xp.linalg.diagonal(rho), axis=-1) - trace))
    scale = 1.0 if trace else float(xp.max(xp.abs(rho)))
    # Each part within 0.7 of the bound keeps the modulus within it; the rest is looked at below.
    # An entry that is not finite makes a NaN or ∞ of its difference, which is within no bound.
    with np.errstate(invalid="ignore"):
        gap = _skew(xp, rho)
    if gap <= 0.7 * tolerance * scale and float(off) <= tolerance * scale:
        return
    values = to_numpy(rho)
    if not np.isfinite(values).all():
        index = _first(~np.isfinite(values))
        value = values[index].item()
        what = "has NaN" if np.isnan(value) else "has an infinite entry"
        raise _refuse(name, values, f"{what} at {index}", value, index[:-2])
    gaps = np.abs(values - np.conj(np.swapaxes(values, -1, -2)))
    if gaps.max() > tolerance * scale:
        index = _first(gaps == gaps.max())
        raise _refuse(
            name, values, f"is not Hermitian at {index}", values[index].item(), index[:-2]
        )
    traces = np.trace(values, axis1=-2, axis2=-1).real
    offs = np.abs(traces - trace)
    if offs.max() <= tolerance * scale:
        return
    index = _first(offs == offs.max())
    what = "is not normalized, its trace is not 1" if trace else "is no derivative, its trace is"
    raise _refuse(name, values, what, float(traces[index]), index)


def _skew(xp: Any, rho: Any) -> float:
    """Largest real or imaginary part of ρ − ρ†; NaN where one is."""
    n = rho.shape[-1]
    flat = xp.reshape(rho, (-1, n * n))
    rows = max(1, _CHUNK_BYTES // (16 * n * n)) if is_numpy(rho) else flat.shape[0]
    gaps = [_skew_of(xp, flat[k : k + rows], n) for k in range(0, flat.shape[0], rows)]
    return math.nan if any(map(math.isnan, gaps)) else max(gaps)


def _skew_of(xp: Any, flat: Any, n: int) -> float:
    # Half of the entries are enough, and gathered ones are quicker than a transposed view.
    upper, lower = (take_columns(xp, flat, index) for index in _triangles(n))
    if not xp.isdtype(flat.dtype, "complex floating"):
        return float(xp.max(xp.abs(upper - lower)))
    if is_numpy(flat):
        np.conjugate(lower, out=lower)
        upper -= lower
        parts = upper.view(upper.real.dtype)
        return max(float(parts.max()), -float(parts.min()))
    gap = upper - xp.conj(lower)
    real, imaginary = float(xp.max(xp.abs(xp.real(gap)))), float(xp.max(xp.abs(xp.imag(gap))))
    return real if not real < imaginary else imaginary


@cache
def _triangles(n: int) -> tuple[Any, Any]:
    """Flat places of the upper triangle with its diagonal, and of those opposite."""
    rows, places = np.triu_indices(n)
    return rows * n + places, places * n + rows


def check_spectrum(
    name: str, rho: Any, eigenvalues: Any, *, rows: Any = None, shape: tuple[int, ...] = ()
) -> None:
    """Raise unless every eigenvalue is ≥ 0 up to the rounding of an eigensolver.

    Where the eigenvalues are those of some `rows` of a flattened batch, `shape` is the batch's own,
    for the place in the message.
    """
    xp = namespace(eigenvalues)
    n = eigenvalues.shape[-1]
    slack = max(8.0, float(n)) * epsilon(eigenvalues)
    lowest = xp.min(eigenvalues, axis=-1)
    bad = lowest < -slack * xp.max(xp.abs(eigenvalues), axis=-1)
    if not bool(xp.any(bad)):
        return
    index = _first(to_numpy(bad))
    value = float(to_numpy(lowest)[index])
    if rows is not None:
        index = tuple(int(i) for i in np.unravel_index(rows[index[0]], shape)) if shape else ()
        rho = np.empty((*shape, n, n), dtype=bool)
    raise _refuse(
        name, rho, "is not positive semidefinite, its smallest eigenvalue is negative", value, index
    )
