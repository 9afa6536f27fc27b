"""Fisher matrices of named families, each in its own structure; part of `qigkernels.fisher`."""

from __future__ import annotations

from typing import Any

import numpy as np

from qigkernels._arrays import as_array
from qigkernels._blocks import BlockDiagonal, Kronecker
from qigkernels._errors import ValidationError
from qigkernels._sparse import SparsePrecision
from qigkernels._structures import Dense, DiagPlusLowRank, finite
from qigkernels.validation import validate_distribution

__all__ = [
    "dirichlet_fisher",
    "gaussian_fisher",
    "gaussian_markov_fisher",
    "kfac_fisher",
    "multinomial_fisher",
]


def multinomial_fisher(p: Any, trials: int = 1) -> DiagPlusLowRank:
    """N(diag(1/p) + 11ᵀ/p_n) in the first n − 1 probabilities; its inverse is (diag p − ppᵀ)/N.

    Args:
        p: `(n,)`, every probability positive, n ≥ 2. trials: N ≥ 1.

    Source: Amari & Nagaoka 2000, doi:10.1090/mmono/191.

    >>> multinomial_fisher([0.5, 0.5]).to_dense().tolist()
    [[4.0]]
    """
    p = np.asarray(as_array("p", p), dtype=np.float64)
    validate_distribution(p)
    if p.ndim != 1 or len(p) < 2 or not p.min() > 0.0 or trials < 1:
        raise ValidationError(
            f"p must be one distribution of at least 2 positive entries and trials ≥ 1, got shape "
            f"{p.shape}, smallest {float(p.min())!r}, trials {trials!r}",
            argument="p",
            shape=p.shape,
            value=float(p.min()),
        )
    return DiagPlusLowRank(trials / p[:-1], np.ones((len(p) - 1, 1)), [float(trials / p[-1])])


def dirichlet_fisher(alpha: Any) -> DiagPlusLowRank:
    """diag ψ′(αᵢ) − ψ′(Σα)·11ᵀ in the concentrations α > 0, `(n,)`.

    Source: T. P. Minka, Estimating a Dirichlet distribution (2000).
    """
    from scipy.special import polygamma

    alpha = finite("alpha", alpha, 1)
    if not alpha.min() > 0.0:
        raise ValidationError(
            f"alpha must be positive, smallest {float(alpha.min())!r}",
            argument="alpha",
            shape=alpha.shape,
            value=float(alpha.min()),
        )
    total = float(polygamma(1, alpha.sum()))
    return DiagPlusLowRank(polygamma(1, alpha), np.ones((len(alpha), 1)), [-total])


def gaussian_fisher(cov: Any) -> BlockDiagonal:
    """Normal family N(μ, Σ) in (μ, vech Σ): Σ⁻¹ for the mean, ½ Dᵀ(Σ⁻¹ ⊗ Σ⁻¹)D for vech Σ.

    vech stacks the lower triangle row by row; D duplicates it into the full matrix.

    Args:
        cov: `(d, d)`, positive definite.

    Returns:
        two independent blocks, d and d(d+1)/2 parameters.

    Source: L. T. Skovgaard, Scand. J. Stat. 11 (1984) 211.
    """
    precision = Dense(cov).solve(np.eye(len(np.asarray(cov))))
    precision = 0.5 * (precision + precision.T)
    rows, columns = np.tril_indices(len(precision))
    # Off-diagonal parameters enter Σ twice.
    twice = np.where(rows == columns, 1.0, 2.0)
    block = precision[np.ix_(rows, rows)] * precision[np.ix_(columns, columns)]
    block = block + precision[np.ix_(rows, columns)] * precision[np.ix_(columns, rows)]
    block = 0.25 * np.outer(twice, twice) * block
    return BlockDiagonal([Dense(precision), Dense(0.5 * (block + block.T))])


def gaussian_markov_fisher(precision: Any) -> SparsePrecision:
    """Mean of a Gaussian Markov field with sparse precision Q: the Fisher matrix is Q itself.

    Args:
        precision: a SciPy sparse or dense symmetric positive definite matrix.

    Source: H. Rue, L. Held, Gaussian Markov Random Fields (2005), doi:10.1201/9780203492024.
    """
    return SparsePrecision(precision)


def kfac_fisher(inputs: Any, gradients: Any, damping: float = 0.0) -> Kronecker:
    """Kronecker factors of one layer from samples: E[aaᵀ] ⊗ E[ggᵀ] (+ damping on each factor).

    Args:
        inputs: `(N, a)` layer inputs. gradients: `(N, g)` of the pre-activations. damping ≥ 0,
            added to both diagonals; needed where N is below the number of columns.

    Returns:
        the Fisher matrix of the a × g weights, row-major.

    Raises:
        ValidationError: a factor is not positive definite.

    Source: Martens & Grosse 2015, arXiv:1503.05671.
    """
    inputs, gradients = finite("inputs", inputs, 2), finite("gradients", gradients, 2)
    if len(inputs) != len(gradients) or damping < 0.0:
        raise ValidationError(
            f"inputs {inputs.shape} and gradients {gradients.shape} must have the same number of "
            f"rows, and damping must be ≥ 0, got {damping!r}",
            argument="gradients",
            shape=gradients.shape,
        )
    factors = []
    for samples in (inputs, gradients):
        second = samples.T @ samples / len(samples)
        factors.append(Dense(0.5 * (second + second.T) + damping * np.eye(len(second))))
    return Kronecker(*factors)
