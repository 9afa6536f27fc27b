"""Geometric integrated information Φ_G; part of `qigkernels.integration`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qigkernels._arrays import as_array, to_numpy
from qigkernels._errors import ValidationError

__all__ = ["PhiGeometric", "phi_geometric"]


@dataclass(frozen=True, slots=True)
class PhiGeometric:
    """Φ_G and the disconnected model it was found at.

    Attributes:
        value: Φ_G in nats, ≥ 0.
        A: the disconnected `(n, n)`: zero between the parts.
        cov_e: its residual covariance `(n, n)`.
        steps: iterations taken.
        converged: whether the last step was at rounding level.
    """

    value: float
    A: Any
    cov_e: Any
    steps: int
    converged: bool


def phi_geometric(
    A: Any, cov_x: Any, cov_e: Any, parts: Sequence[Sequence[int]], *, steps_max: int = 2000
) -> PhiGeometric:
    """Φ_G of x′ = A·x + e: divergence from the nearest model without links between the parts.

    Φ_G = min ½ ln(|Σ_E′|/|Σ_E|), Σ_E′ = Σ_E + (A − A′)Σ_X(A − A′)ᵀ, over A′ block-diagonal on the
    parts: a seemingly-unrelated-regression problem, solved by iterated generalised least squares.

    Args:
        A: `(n, n)` past → present. cov_x: `(n, n)` of the past. cov_e: `(n, n)` of the residual.
        parts: disjoint index lists that cover 0..n−1.

    Returns:
        Φ_G in nats, the disconnected model, and how the iteration ended.

    Raises:
        ValidationError: shapes that do not go together, or a covariance that is not positive
            definite.

    Source: M. Oizumi, N. Tsuchiya, S. Amari, PNAS 113 (2016) 14817, doi:10.1073/pnas.1603583113.

    >>> one = np.eye(2)
    >>> phi_geometric(0.5 * one, one, one, [[0], [1]]).value   # nothing between the parts
    0.0
    """
    A, cov_x, cov_e = _model(A, cov_x, cov_e)
    n = len(A)
    owner = _owners(parts, n)
    inside = owner[:, None] == owner[None, :]
    rows, columns = np.nonzero(inside)
    link = np.where(inside, A, 0.0)
    base = _log_det("cov_e", cov_e)
    last, value, steps = np.inf, np.inf, 0
    while steps < steps_max:
        gap = A - link
        residual = cov_e + gap @ cov_x @ gap.T
        value = 0.5 * (_log_det("cov_e", residual) - base)
        if last - value <= 1e-15 * max(1.0, abs(base)) and steps:
            break
        last = value
        steps += 1
        weight = np.linalg.inv(residual)
        weight = 0.5 * (weight + weight.T)
        # Normal equations of min Tr W(A − A′)Σ_X(A − A′)ᵀ in the free entries of A′.
        system = weight[np.ix_(rows, rows)] * cov_x[np.ix_(columns, columns)]
        target = (weight @ A @ cov_x)[rows, columns]
        link = np.zeros_like(A)
        link[rows, columns] = np.linalg.solve(system, target)
    gap = A - link
    return PhiGeometric(
        max(0.0, value), link, cov_e + gap @ cov_x @ gap.T, steps, steps < steps_max
    )


def _model(A: Any, cov_x: Any, cov_e: Any) -> tuple[Any, Any, Any]:
    found: list[Any] = []
    for name, matrix in (("A", A), ("cov_x", cov_x), ("cov_e", cov_e)):
        values = to_numpy(as_array(name, matrix)).astype(np.float64)
        shape = values.shape
        if values.ndim != 2 or shape[0] != shape[1] or not shape[0]:
            raise ValidationError(
                f"{name} has shape {shape}; expected a square matrix", argument=name, shape=shape
            )
        if found and shape != found[0].shape:
            raise ValidationError(
                f"{name} has shape {shape}, A has {found[0].shape}", argument=name, shape=shape
            )
        if not np.isfinite(values).all():
            from qigkernels.validation import check_finite

            check_finite(name, values)
        if name != "A":
            gap = np.abs(values - values.T)
            if gap.max() > 1e-10 * np.abs(values).max():
                place = divmod(int(gap.argmax()), shape[0])
                raise ValidationError(
                    f"{name} of shape {shape} is not symmetric: {float(values[place])!r} at "
                    f"{place}, {float(values.T[place])!r} opposite",
                    argument=name,
                    shape=shape,
                    value=float(values[place]),
                    index=place,
                )
            _log_det(name, values)
        found.append(values)
    return found[0], found[1], found[2]


def _owners(parts: Sequence[Sequence[int]], n: int) -> Any:
    flat = [int(i) for part in parts for i in part]
    if sorted(flat) != list(range(n)) or not all(len(part) for part in parts):
        raise ValidationError(
            f"parts must be non-empty and cover 0..{n - 1} once each, got "
            f"{[list(part) for part in parts]}",
            argument="parts",
            value=[list(part) for part in parts],
        )
    owner = np.empty(n, dtype=int)
    for k, part in enumerate(parts):
        owner[list(part)] = k
    return owner


def _log_det(name: str, matrix: Any) -> float:
    try:
        return 2.0 * float(np.log(np.linalg.cholesky(matrix).diagonal()).sum())
    except np.linalg.LinAlgError:
        lowest = float(np.linalg.eigvalsh(matrix)[0])
        raise ValidationError(
            f"{name} of shape {matrix.shape} is not positive definite: smallest eigenvalue "
            f"{lowest!r}",
            argument=name,
            shape=matrix.shape,
            value=lowest,
        ) from None
