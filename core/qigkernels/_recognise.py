"""Recognising exact structure in a dense Fisher matrix; part of `qigkernels.fisher`.

Only entries whose value is exactly 0 count. What is recognised is validated against the dense
matrix, and where it does not pay the dense form is kept. Speed is measured, never estimated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from qigkernels._blocks import BlockDiagonal
from qigkernels._errors import ValidationError
from qigkernels._sparse import SparsePrecision
from qigkernels._structures import Dense, Diagonal, FisherMatrix, finite

__all__ = ["Recognition", "SparseFisherMetric", "from_dense"]

_SPARSE_SHARE = 0.5
"""Share of exact zeros from which a sparse form is worth trying."""


@dataclass(frozen=True, slots=True)
class Recognition:
    """What was found in a dense matrix.

    Attributes:
        metric: the matrix in the form chosen.
        representation: name of that form.
        natural_sparsity: share of entries that are exactly 0.
        speedup: measured time to factor and solve densely over the time in the structured form;
            None where nothing was measured. At or below 1 the dense form is kept.
        validated: whether the structured form is the same matrix, entry by entry and in its norm.
    """

    metric: FisherMatrix
    representation: str
    natural_sparsity: float
    speedup: float | None
    validated: bool


def from_dense(matrix: Any, *, measure: bool = False) -> Recognition:
    """The matrix in the cheapest form that its exact zeros allow, validated; else dense.

    Args:
        matrix: `(n, n)`, symmetric positive definite.
        measure: time the form found against the dense one, and keep it only if it is faster.

    Raises:
        ValidationError: not finite, not symmetric, or not positive definite.

    >>> from_dense(np.diag([1.0, 2.0])).representation
    'Diagonal'
    """
    dense = Dense(matrix)
    full = dense.to_dense()
    zeros = float(np.count_nonzero(full == 0.0)) / full.size
    build = _structure(full, zeros)
    metric: FisherMatrix = dense
    valid, speedup = True, None
    if build is not None:
        found = build()
        valid = _agrees(dense, found)
        speedup = _measured(full, build) if measure else None
        if valid and (speedup is None or speedup > 1.0):
            metric = found
    return Recognition(metric, type(metric).__name__, zeros, speedup, valid)


def _structure(full: Any, zeros: float) -> Callable[[], FisherMatrix] | None:
    """What builds the form that the exact zeros allow, or None for none."""
    n = len(full)
    if np.count_nonzero(full) == n:
        diagonal = full.diagonal().copy()
        return lambda: Diagonal(diagonal)
    if zeros < _SPARSE_SHARE:
        return None
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = np.nonzero(full)
    width = int(np.abs(rows - columns).max())
    if 4 * (width + 1) <= n:
        band = np.zeros((width + 1, n))
        lower = rows >= columns
        band[rows[lower] - columns[lower], columns[lower]] = full[rows[lower], columns[lower]]
        return lambda: SparsePrecision.from_band(band)
    count, owner = connected_components(csr_array(full != 0.0), directed=False)
    # Blocks keep their order only where each is a run of neighbours.
    if count > 1 and not np.any(np.diff(owner) < 0):
        ends = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), n]
        blocks: Any = [full[a:b, a:b].copy() for a, b in pairwise(ends)]
        if len({len(block) for block in blocks}) == 1:
            blocks = np.stack(blocks)
        return lambda: BlockDiagonal(blocks)
    entries = csr_array(full)
    return lambda: SparsePrecision(entries)


def _agrees(dense: Dense, found: FisherMatrix) -> bool:
    """Whether the form is the same matrix: every entry equal, so every norm is."""
    if not np.array_equal(found.to_dense(), dense.to_dense()):
        return False
    probe = np.cos(np.arange(1.0, dense.n + 1.0))
    return abs(found.norm(probe) - dense.norm(probe)) <= 1e-14 * dense.n * dense.norm(probe)


def _measured(full: Any, build: Callable[[], FisherMatrix]) -> float:
    """Time to factor and solve densely over the time to do it in the form, best of five."""
    probe = np.cos(np.arange(1.0, len(full) + 1.0))

    def best(make: Callable[[], FisherMatrix]) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            make().solve(probe)
            times.append(time.perf_counter() - start)
        return min(times)

    return best(lambda: Dense(full)) / best(build)


class SparseFisherMetric:
    """Fisher metrics of many states, each kept in the cheapest form that is exactly the same.

    Args:
        dim: number of parameters expected, or None for any.
        family: computes the dense Fisher matrix of one state. By default the state is a Fisher
            matrix `(n, n)` already, or a distribution `(n + 1,)`, whose Fisher matrix in n
            coordinates is diagonal plus rank one.
        measure: time the solves of sparse forms; `get_stats` reports the mean.

    >>> metric = SparseFisherMetric(dim=2)
    >>> G = metric.compute(np.diag([4.0, 9.0]))
    >>> metric.geodesic_distance(np.array([0.0, 1.0]), np.array([0.0, 0.0]), G)
    3.0
    """

    def __init__(
        self,
        dim: int | None = 64,
        *,
        family: Callable[[Any], Any] | None = None,
        measure: bool = False,
    ) -> None:
        self.dim, self._family, self._measure = dim, family, measure
        self.reset_stats()

    def compute(self, state: Any) -> FisherMatrix:
        """The Fisher matrix of a state, structured where its exact zeros allow.

        Raises:
            ValidationError: not a positive definite matrix of the dimension asked for.
        """
        found = self._recognised(state)
        metric = found.metric
        if self.dim is not None and metric.n != self.dim:
            raise ValidationError(
                f"state gives a Fisher matrix of {metric.n} parameters; expected {self.dim}",
                argument="state",
                value=metric.n,
            )
        self._computes += 1
        self._forms[found.representation] = self._forms.get(found.representation, 0) + 1
        self._sparsity += found.natural_sparsity
        self._fallbacks += not found.validated
        if found.speedup is not None:
            self._speedups.append(found.speedup)
        return metric

    def _recognised(self, state: Any) -> Recognition:
        if self._family is not None:
            state = self._family(state)
        elif np.ndim(state) == 1:
            from qigkernels._families import multinomial_fisher

            state = multinomial_fisher(state)
        if isinstance(state, FisherMatrix):
            return Recognition(
                state, type(state).__name__, state.natural_sparsity, None, validated=True
            )
        return from_dense(state, measure=self._measure)

    def geodesic_distance(self, a: Any, b: Any, metric: FisherMatrix | Any) -> float:
        """Length √((a−b)ᵀG(a−b)) of the step in the metric at one point.

        This is the local norm: the geodesic distance to first order in the step, and the geodesic
        distance itself only where G is constant. `simplex.distance` and `states.distance` are
        geodesic distances between any two points.
        """
        metric = metric if isinstance(metric, FisherMatrix) else from_dense(metric).metric
        a, b = finite("a", a, 1), finite("b", b, 1)
        if a.shape != b.shape:
            raise ValidationError(
                f"a and b have shapes {a.shape} and {b.shape}", argument="b", shape=b.shape
            )
        return metric.norm(a - b)

    def get_stats(self) -> dict[str, Any]:
        """Counts by form, mean natural sparsity, and measured speed-up (None: not measured)."""
        dense = self._forms.get("Dense", 0)
        return {
            "total_computes": self._computes,
            "representations": dict(self._forms),
            "natural_sparse": self._computes - dense,
            "dense": dense,
            "validation_failures": self._fallbacks,
            "avg_natural_sparsity": self._sparsity / self._computes if self._computes else None,
            "measured_speedup": (
                sum(self._speedups) / len(self._speedups) if self._speedups else None
            ),
        }

    def reset_stats(self) -> None:
        """Start counting anew."""
        self._computes = self._fallbacks = 0
        self._sparsity = 0.0
        self._forms: dict[str, int] = {}
        self._speedups: list[float] = []
