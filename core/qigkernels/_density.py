"""Checks and factors of density matrices, shared by validation and states."""

from __future__ import annotations

from typing import Any

import numpy as np

from qigkernels._arrays import epsilon, to_numpy
from qigkernels._errors import ValidationError

__all__ = ["check_density"]


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
    values = to_numpy(rho)
    if not np.isfinite(values).all():
        index = _first(~np.isfinite(values))
        value = values[index].item()
        what = "has NaN" if np.isnan(value) else "has an infinite entry"
        raise _refuse(name, values, f"{what} at {index}", value, index[:-2])
    gap = np.abs(values - np.conj(np.swapaxes(values, -1, -2)))
    if gap.max() > tolerance:
        index = _first(gap == gap.max())
        raise _refuse(
            name, values, f"is not Hermitian at {index}", values[index].item(), index[:-2]
        )
    trace = np.trace(values, axis1=-2, axis2=-1).real
    off = np.abs(trace - 1.0)
    if off.max() > tolerance:
        index = _first(off == off.max())
        raise _refuse(
            name, values, "is not normalized, its trace is not 1", float(trace[index]), index
        )
    if spectrum:
        check_spectrum(name, values, np.linalg.eigvalsh(values))


def check_spectrum(name: str, rho: Any, eigenvalues: Any) -> None:
    """Raise unless every eigenvalue is ≥ 0 up to the rounding of an eigensolver."""
    values = to_numpy(eigenvalues)
    n = values.shape[-1]
    floor = -max(8.0, float(n)) * epsilon(eigenvalues) * np.abs(values).max(axis=-1)
    lowest = values.min(axis=-1)
    bad = lowest < floor
    if bad.any():
        index = _first(bad)
        raise _refuse(
            name,
            rho,
            "is not positive semidefinite, its smallest eigenvalue is negative",
            float(lowest[index]),
            index,
        )
