"""A state held for many comparisons: its factor and its eigenbasis computed once."""

from __future__ import annotations

from typing import Any

import numpy as np

from qigkernels._arrays import as_array, is_numpy, same_namespace, take_rows
from qigkernels._density import check_density
from qigkernels._errors import ValidationError
from qigkernels._factors import factor, put
from qigkernels._overlap import angle_from_factors, drift
from qigkernels.validation import check_last_axes, sum_tolerance

__all__ = ["ReferenceState"]


class ReferenceState:
    """A reference state ρ with its factor cached: halves the cost of every drift.

    Tiny drifts of a well-conditioned ρ keep full *relative* accuracy: σ = (1 + X)ρ(1 + X) is
    solved for X by X ← L_ρ⁻¹(σ − ρ − XρX) in ρ's eigenbasis, and d_B² = Tr XρX. Where the first
    X is not small the general form is used.

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
        self._side = factor(xp, "rho", self.rho[None], np.zeros(1, dtype=int), ())
        self._values, self._vectors = xp.linalg.eigh(self.rho)

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
        distance = xp.zeros_like(xp.abs(flat[:, 0, 0]))
        settled = np.zeros(len(flat), dtype=bool)
        if self._side.well[0]:
            distance, settled = drift(xp, self._values, self._vectors, flat - self.rho)
        rest = np.flatnonzero(~settled)
        if rest.size:
            two = factor(xp, "sigma", take_rows(xp, flat, rest), rest, tuple(sigma.shape[:-2]))
            one = self._side.rows(xp, np.zeros(rest.size, dtype=int))
            angle = angle_from_factors(xp, one, two)
            distance = put(xp, distance, rest, 2.0 * xp.sin(0.5 * angle))
        shaped = xp.reshape(distance, tuple(sigma.shape[:-2]))
        return float(shaped) if is_numpy(shaped) and not shaped.shape else shaped
