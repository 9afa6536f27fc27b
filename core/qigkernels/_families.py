"""Fisher matrices of named families, each in its own structure; part of `qigkernels.fisher`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qigkernels._arrays import as_array
from qigkernels._blocks import BlockDiagonal, Kronecker
from qigkernels._errors import ValidationError
from qigkernels._sparse import SparsePrecision
from qigkernels._structures import Dense, DiagPlusLowRank, Multinomial, finite
from qigkernels.validation import SUM_TOLERANCE, explain_distribution, validate_distribution

__all__ = [
    "dirichlet_fisher",
    "gaussian_fisher",
    "gaussian_markov_fisher",
    "kfac_fisher",
    "multinomial_fisher",
]


def multinomial_fisher(p: Any, trials: int = 1) -> Multinomial:
    """N(diag(1/p) + 11ᵀ/p_n) in the first n − 1 probabilities; its inverse is (diag p − ppᵀ)/N.

    Args:
        p: `(n,)`, every probability positive, n ≥ 2. trials: N ≥ 1.

    Source: Amari & Nagaoka 2000, doi:10.1090/mmono/191.

    >>> multinomial_fisher([0.5, 0.5]).to_dense().tolist()
    [[4.0]]
    """
    p = np.array(as_array("p", p), dtype=np.float64)
    if trials < 1:
        raise ValidationError(
            f"trials must be at least 1, got {trials!r}", argument="trials", value=trials
        )
    if p.ndim != 1 or len(p) < 2 or not p.min() > 0.0:
        raise _not_inside(p)
    found = Multinomial(p, trials)
    if not abs(found.total - 1.0) <= SUM_TOLERANCE:
        explain_distribution("p", p)
    return found


def _not_inside(p: Any) -> ValidationError:
    """Why p is no single distribution of at least two positive entries."""
    validate_distribution(p)
    index = (int(p.argmin()),) if p.ndim == 1 else None
    lowest = float(p.min())
    return ValidationError(
        f"p of shape {p.shape} must be one distribution of at least 2 positive entries; the "
        f"smallest is {lowest!r}",
        argument="p",
        shape=p.shape,
        value=lowest,
        index=index,
    )


def dirichlet_fisher(alpha: Any) -> DiagPlusLowRank:
    """diag ψ′(αᵢ) − ψ′(Σα)·11ᵀ in the concentrations α > 0, `(n,)`.

    Source: T. P. Minka, Estimating a Dirichlet distribution (2000).
    """
    from scipy.special import zeta

    alpha = finite("alpha", alpha, 1)
    if not alpha.min() > 0.0:
        index = int(alpha.argmin())
        raise ValidationError(
            f"alpha of shape {alpha.shape} must be positive, is {float(alpha[index])!r} at "
            f"({index},)",
            argument="alpha",
            shape=alpha.shape,
            value=float(alpha[index]),
            index=(index,),
        )
    # ψ′(x) = ζ(2, x), which `polygamma` computes too, beside ψ.
    total = float(zeta(2.0, alpha.sum()))
    return DiagPlusLowRank(zeta(2.0, alpha), np.ones((len(alpha), 1)), [-total])


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
    if len(inputs) != len(gradients):
        raise ValidationError(
            f"inputs {inputs.shape} and gradients {gradients.shape} must have the same number of "
            "rows",
            argument="gradients",
            shape=gradients.shape,
        )
    if not 0.0 <= damping < math.inf:
        raise ValidationError(
            f"damping must be ≥ 0 and finite, got {damping!r}", argument="damping", value=damping
        )
    factors = []
    for samples in (inputs, gradients):
        second = samples.T @ samples / len(samples)
        factors.append(Dense(0.5 * (second + second.T) + damping * np.eye(len(second))))
    return Kronecker(*factors)
