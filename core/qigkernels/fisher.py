"""Fisher information matrices with declared structure.

Structure is declared by type, never made by truncation: setting small entries of a Fisher matrix
to 0 makes many indefinite (`docs/geometric-validity.md` shows how many). Every class solves in the
cost of its structure and is positive definite by construction, which its own factorisation proves.

    Dense · Diagonal · DiagPlusLowRank · Multinomial · BlockDiagonal · Kronecker · SparsePrecision

These are NumPy and SciPy classes: the structured solvers are SciPy's. Distances and gradients that
run on other array libraries are in `simplex`, `states` and `batch`.
"""

from __future__ import annotations

from qigkernels._blocks import BlockDiagonal, Kronecker
from qigkernels._families import (
    dirichlet_fisher,
    gaussian_fisher,
    gaussian_markov_fisher,
    kfac_fisher,
    multinomial_fisher,
)
from qigkernels._recognise import Recognition, SparseFisherMetric, from_dense
from qigkernels._sparse import SparsePrecision
from qigkernels._structures import Dense, Diagonal, DiagPlusLowRank, FisherMatrix, Multinomial

__all__ = [
    "BlockDiagonal",
    "Dense",
    "DiagPlusLowRank",
    "Diagonal",
    "FisherMatrix",
    "Kronecker",
    "Multinomial",
    "Recognition",
    "SparseFisherMetric",
    "SparsePrecision",
    "dirichlet_fisher",
    "from_dense",
    "gaussian_fisher",
    "gaussian_markov_fisher",
    "kfac_fisher",
    "multinomial_fisher",
]
