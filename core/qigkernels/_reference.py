"""A state held for many comparisons: its factor and its eigenbasis computed once."""

from __future__ import annotations

from typing import Any

import numpy as np

from qigkernels._arrays import as_array, epsilon, is_numpy, same_namespace, to_numpy
from qigkernels._density import check_density
from qigkernels._errors import ValidationError
from qigkernels._factors import adjoint, factor, put, take
from qigkernels._overlap import angle_from_factors
from qigkernels.validation import check_last_axes, sum_tolerance

__all__ = ["ReferenceState"]

_STEPS_MAX = 12


class ReferenceState:
    """A reference state ρ with its factor cached: halves the cost of every drift.

    Tiny drifts of a full-rank ρ keep full *relative* accuracy: σ = (1 + X)ρ(1 + X) is solved for
    X by X ← L_ρ⁻¹(σ − ρ − XρX) in ρ's eigenbasis, and d_B² = Tr XρX. Where the first X is not
    small the general form is used.

    Args:
        rho: `(n, n)`, a state; copied.

    Raises:
        ValidationError: not one state.

    >>> reference = ReferenceState(np.eye(2) / 2)
    >>> float(reference.bures_distance(np.eye(2) / 2))
    0.0
    """

    def __init__(self, rho: Any) -> None:
        rho = as_array("rho", rho, complex_too=True)
        check_last_axes("rho", rho, 2)
        if rho.ndim != 2:
            raise ValidationError(
                f"rho has shape {tuple(rho.shape)}; a reference is one matrix (n, n)",
                argument="rho",
                shape=tuple(rho.shape),
            )
        check_density("rho", rho, sum_tolerance(rho), spectrum=False)
        xp = same_namespace(rho=rho)
        self.rho = xp.asarray(rho, copy=True)
        self._factors = factor(xp, "rho", self.rho[None, ...])
        self._values, self._vectors = xp.linalg.eigh(self.rho)
        self._full = bool(self._factors.full[0])

    def bures_angle(self, sigma: Any, *, check: bool = True) -> Any:
        """Bures angle from ρ to σ, `(..., n, n)` → `(...)`, in [0, π/2]."""
        xp = same_namespace(rho=self.rho)
        return 2.0 * xp.asin(xp.clip(0.5 * self.bures_distance(sigma, check=check), 0.0, 1.0))

    def bures_distance(self, sigma: Any, *, check: bool = True) -> Any:
        """Bures distance √(2 − 2√F) from ρ to σ, `(..., n, n)` → `(...)`, in [0, √2].

        Raises:
            ValidationError: sigma is no state, of another size or another array library.
        """
        sigma = as_array("sigma", sigma, complex_too=True)
        xp = same_namespace(rho=self.rho, sigma=sigma)
        check_last_axes("sigma", sigma, 2)
        if sigma.shape[-1] != self.rho.shape[-1]:
            raise ValidationError(
                f"sigma of shape {tuple(sigma.shape)} does not go with a reference of shape "
                f"{tuple(self.rho.shape)}",
                argument="sigma",
                shape=tuple(sigma.shape),
            )
        if check:
            check_density("sigma", sigma, sum_tolerance(sigma), spectrum=False)
        n = sigma.shape[-1]
        flat = xp.reshape(sigma, (-1, n, n))
        distance, settled = self._drift(xp, flat)
        rest = np.flatnonzero(~settled)
        if rest.size:
            part = take(xp, flat, rest)
            roots = factor(xp, "sigma", part)
            mine = xp.broadcast_to(self._factors.root, tuple(roots.root.shape))
            well = roots.well & self._factors.well[0]
            angle = angle_from_factors(xp, mine, roots.root, part, well)
            distance = put(xp, distance, rest, 2.0 * xp.sin(0.5 * angle))
        shaped = xp.reshape(distance, tuple(sigma.shape[:-2]))
        return float(shaped) if is_numpy(shaped) and not shaped.shape else shaped

    def _drift(self, xp: Any, sigma: Any) -> tuple[Any, Any]:
        """Distances by the Lyapunov iteration, and where it holds."""
        count = sigma.shape[0]
        values = self._values
        if not self._full:
            return xp.zeros_like(xp.sum(xp.abs(sigma), axis=(-1, -2))), np.zeros(count, bool)
        gap = adjoint(xp, self._vectors) @ (sigma - self.rho) @ self._vectors
        sums = xp.astype(values[:, None] + values[None, :], gap.dtype)
        weight = xp.astype(values, gap.dtype)
        first = gap / sums
        X = first
        for _ in range(_STEPS_MAX):
            X = (gap - (X * weight) @ X) / sums
        size = to_numpy(xp.max(xp.abs(first), axis=(-1, -2))) * sigma.shape[-1]
        square = xp.sum(xp.abs(X) ** 2 * values, axis=(-1, -2))
        # The iteration contracts by about 2·‖X‖ a step.
        settled = size < 0.5 * epsilon(values) ** (1.0 / _STEPS_MAX)
        return xp.sqrt(square), settled
