"""Integrated information Φ: the mutual information across the minimum information bipartition.

    Φ = min over A|B of I(A; B)    (nats)

of m subsystems, from a joint Gaussian or its samples. I(A; rest) is symmetric and submodular, so
the search is exact: all 2^(m−1) − 1 cuts as one batched Cholesky up to m = 12, Queyranne's
algorithm above.

Sources: G. Tononi, O. Sporns, BMC Neurosci. 4 (2003) 31, doi:10.1186/1471-2202-4-31; S. Hidaka,
M. Oizumi, PLoS ONE 13 (2018) e0201126, doi:10.1371/journal.pone.0201126; J. Kitazono, R. Kanai,
M. Oizumi, Entropy 20 (2018) 173, doi:10.3390/e20030173; E. H. Linfoot, Inf. Control 1 (1957) 85,
doi:10.1016/S0019-9958(57)90116-X.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from qigkernels._arrays import as_array, to_numpy
from qigkernels._errors import ValidationError
from qigkernels._phi import Phi, ordered
from qigkernels._phi_geometric import PhiGeometric, phi_geometric
from qigkernels._phi_quantum import phi_quantum
from qigkernels._queyranne import minimum_cut

__all__ = [
    "EXHAUSTIVE_MAX",
    "Phi",
    "PhiGeometric",
    "phi_geometric",
    "phi_mib",
    "phi_mib_samples",
    "phi_quantum",
    "total_correlation",
]

EXHAUSTIVE_MAX = 12
"""Subsystems up to which every cut is evaluated."""

SAMPLES_PER_DIMENSION = 5
"""Fewer samples a dimension than this give no estimate."""

_CHUNK_BYTES = 16 * 2**20
_SYMMETRY = 1e-10
_ELIMINATION_MIN = 7
"""Single variables from which eliminating all subsets together beats one Cholesky a cut."""

Groups = Sequence[Sequence[int]] | None
_Layout = tuple[tuple[int, ...], ...]


def phi_mib(cov: Any, groups: Groups = None) -> Phi:
    """Φ of a Gaussian with this covariance: min over cuts of ½ ln(|Σ_A||Σ_B|/|Σ|).

    Args:
        cov: `(D, D)`, symmetric positive definite.
        groups: the subsystems as index lists, disjoint; each variable alone when left out.
            Variables in no group are marginalised out.

    Returns:
        Φ in nats, φ = 1 − exp(−2Φ/d), and the cut.

    Raises:
        ValidationError: not a covariance, singular, or fewer than two subsystems.

    Source: Tononi & Sporns 2003; Kitazono, Kanai & Oizumi 2018.

    >>> round(phi_mib(np.array([[1.0, 0.6], [0.6, 1.0]])).value, 6)   # −½ ln(1 − 0.36)
    0.223144
    """
    matrix = _covariance(cov)
    layout = _layout(groups, matrix.shape[0])
    correlation, sizes = _arranged(matrix, layout)
    value, cut = _search(correlation, sizes, None)
    return Phi(value, _normalised(value, cut, sizes), cut, value)


def total_correlation(cov: Any, groups: Groups = None) -> float:
    """Total correlation ΣH(Xᵢ) − H(X) of a Gaussian: ½ ln(Π|Σᵢ|/|Σ|), nats, ≥ 0.

    Args:
        cov: `(D, D)`. groups: as for `phi_mib`.

    Source: S. Watanabe, IBM J. Res. Dev. 4 (1960) 66, doi:10.1147/rd.41.0066.

    >>> round(total_correlation(np.array([[1.0, 0.6], [0.6, 1.0]])), 6)
    0.223144
    """
    matrix = _covariance(cov)
    correlation, sizes = _arranged(matrix, _layout(groups, matrix.shape[0]))
    owner = np.repeat(np.arange(len(sizes)), sizes)
    apart = np.where(owner[:, None] == owner, correlation, 0.0)
    return max(0.0, 0.5 * (_log_det(apart) - _log_det(correlation)))


def phi_mib_samples(X: Any, groups: Groups = None) -> Phi | None:
    """Φ of a Gaussian from N samples, with the bias of the plug-in estimate taken off.

    The plug-in exceeds Φ by ½[g(n_A) + g(n_B) − g(n)], g(k) = Σ_{i<k} ψ((N−1−i)/2) − k ln((N−1)/2)
    (mean of the log-determinant of a Wishart matrix); each cut is corrected before the minimum is
    taken, up to 12 subsystems. sd² = Σρᵢ²/(N−1) + n_A·n_B/(2(N−1)²), ρ the canonical correlations
    of the cut. A column that never changes is independent of everything and drops out.

    Args:
        X: `(N, D)` samples in rows. groups: as for `phi_mib`.

    Returns:
        Φ, or None where N < 5·D: too few to say anything.

    Raises:
        ValidationError: NaN, inf, or a singular sample covariance (columns that repeat others).

    Source: for the bias, N. R. Goodman, Ann. Math. Stat. 34 (1963) 152,
    doi:10.1214/aoms/1177704250.
    """
    data = to_numpy(as_array("X", X)).astype(np.float64, copy=False)
    if data.ndim != 2 or 0 in data.shape:
        raise ValidationError(
            f"X has shape {data.shape}; expected samples in rows, (N, D)",
            argument="X",
            shape=data.shape,
        )
    layout = _layout(groups, data.shape[1])
    if len(data) < SAMPLES_PER_DIMENSION * sum(map(len, layout)):
        return None
    if not np.isfinite(data).all():
        from qigkernels.validation import check_finite

        check_finite("X", data)
    centred = data - data.mean(axis=0)
    moving = np.ptp(data, axis=0) > 0.0
    kept = tuple(tuple(i for i in group if moving[i]) for group in layout)
    still = [k for k, group in enumerate(kept) if not group]
    if still:
        rest = tuple(k for k in range(len(layout)) if k != still[0])
        return Phi(0.0, 0.0, ordered((still[0],), rest), 0.0, 0.0, 0.0, len(data))
    cov = centred.T @ centred / (len(data) - 1)
    correlation, sizes = _arranged(cov, kept)
    return _estimate(correlation, sizes, len(data))


def _estimate(correlation: Any, sizes: tuple[int, ...], samples: int) -> Phi:
    excess = _excess(samples, sum(sizes))
    found, cut = _search(correlation, sizes, excess)
    ends = np.cumsum(sizes).tolist()
    a, b = (np.concatenate([np.arange(ends[k] - sizes[k], ends[k]) for k in side]) for side in cut)
    bias = excess[len(a)]
    coherence = _squared_canonical(correlation, a, b)
    freedom = samples - 1
    sd = math.sqrt(coherence / freedom + len(a) * len(b) / (2.0 * freedom**2))
    value = max(0.0, found - bias)
    return Phi(value, _normalised(value, cut, sizes), cut, found, bias, sd, samples)


def _squared_canonical(correlation: Any, a: Any, b: Any) -> float:
    """Σρᵢ², the squared canonical correlations between two sets of variables."""
    cross = correlation[np.ix_(a, b)]
    left = np.linalg.solve(correlation[np.ix_(a, a)], cross)
    right = np.linalg.solve(correlation[np.ix_(b, b)], cross.T)
    return max(0.0, float(np.sum(left * right.T)))


@lru_cache(maxsize=64)
def _excess(samples: int, n: int) -> tuple[float, ...]:
    """Expected excess of the plug-in information of a cut into k and n − k variables, by k."""
    from scipy.special import digamma

    i = np.arange(n)
    steps = digamma((samples - 1 - i) / 2.0) - math.log((samples - 1) / 2.0)
    g = np.concatenate(([0.0], np.cumsum(steps)))
    return tuple(float(0.5 * (g[k] + g[n - k] - g[n])) for k in range(n + 1))


def _covariance(cov: Any) -> Any:
    """A finite, symmetric matrix with a positive diagonal, as float64."""
    matrix = to_numpy(as_array("cov", cov)).astype(np.float64, copy=False)
    shape = matrix.shape
    if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise ValidationError(
            f"cov has shape {shape}; expected a square matrix (D, D)", argument="cov", shape=shape
        )
    diagonal = matrix.diagonal()
    scale = float(np.abs(matrix).max())
    if not math.isfinite(scale):
        from qigkernels.validation import check_finite

        check_finite("cov", matrix)
    if not diagonal.min() > 0.0:
        index = int(diagonal.argmin())
        raise ValidationError(
            f"cov of shape {shape} is not positive definite: variance {float(diagonal[index])!r} "
            f"at index {index}",
            argument="cov",
            shape=shape,
            value=float(diagonal[index]),
            index=(index, index),
        )
    gap = np.abs(matrix - matrix.T)
    if float(gap.max()) > _SYMMETRY * scale:
        place = divmod(int(gap.argmax()), shape[0])
        raise ValidationError(
            f"cov of shape {shape} is not symmetric: {float(matrix[place])!r} at {place}, "
            f"{float(matrix.T[place])!r} opposite",
            argument="cov",
            shape=shape,
            value=float(matrix[place]),
            index=place,
        )
    return matrix


def _layout(groups: Groups, n: int) -> _Layout:
    """The subsystems as tuples of indices: disjoint, inside range(n), at least two."""
    if groups is None:
        layout: _Layout = tuple((i,) for i in range(n))
    else:
        layout = tuple(tuple(int(i) for i in group) for group in groups)
        flat = [i for group in layout for i in group]
        bad = [i for i in flat if not 0 <= i < n]
        if bad or len(set(flat)) != len(flat) or not all(layout):
            raise ValidationError(
                f"groups must be non-empty, disjoint lists of indices in 0..{n - 1}; got "
                f"{[list(group) for group in layout]}",
                argument="groups",
                value=layout,
            )
    if len(layout) < 2:
        raise ValidationError(
            f"Φ needs at least two subsystems, got {len(layout)}", argument="groups", value=layout
        )
    return layout


def _arranged(matrix: Any, layout: _Layout) -> tuple[Any, tuple[int, ...]]:
    """The correlation matrix with its variables in the order of the groups, and their sizes."""
    order = [i for group in layout for i in group]
    if order != list(range(matrix.shape[0])):
        matrix = matrix[np.ix_(order, order)]
    scale = 1.0 / np.sqrt(matrix.diagonal())
    return matrix * scale[:, None] * scale, tuple(map(len, layout))


def _normalised(value: float, cut: tuple[Any, Any], sizes: tuple[int, ...]) -> float:
    d = min(sum(sizes[k] for k in side) for side in cut)
    return -math.expm1(-2.0 * value / d)


def _search(
    correlation: Any, sizes: tuple[int, ...], excess: tuple[float, ...] | None
) -> tuple[float, tuple[tuple[int, ...], tuple[int, ...]]]:
    """The plug-in information of the minimising cut and the cut."""
    m = len(sizes)
    if m <= EXHAUSTIVE_MAX:
        value, side = _every_cut(correlation, sizes, excess)
    else:
        whole = _log_det(correlation)
        side = minimum_cut(correlation, sizes)
        chosen = set(side)
        inside = np.repeat([k in chosen for k in range(m)], sizes)
        masked = np.where(inside[:, None] == inside, correlation, 0.0)
        value = 0.5 * (_log_det(masked) - whole)
    rest = [k for k in range(m) if k not in set(side)]
    return max(0.0, value), ordered(side, rest)


def _log_det(matrix: Any) -> float:
    try:
        factor = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        raise _singular(matrix) from None
    return 2.0 * float(np.log(factor.diagonal()).sum())


def _singular(matrix: Any) -> ValidationError:
    lowest = float(np.linalg.eigvalsh(matrix)[0])
    return ValidationError(
        f"the covariance of {len(matrix)} variables is not positive definite: its correlation "
        f"matrix has the eigenvalue {lowest!r}; some variables determine others, and Φ is not "
        "finite",
        argument="cov",
        shape=tuple(matrix.shape),
        value=lowest,
    )


@lru_cache(maxsize=32)
def _sides(m: int) -> Any:
    """Every cut as a row of ±1 by subsystem, subsystem 0 at +1; the first row cuts nothing."""
    codes = np.arange(2 ** (m - 1))
    bits = (codes[:, None] >> np.arange(m - 1)) & 1
    return np.concatenate((np.ones((len(codes), 1)), 1.0 - 2.0 * bits), axis=1)


@lru_cache(maxsize=32)
def _masks(sizes: tuple[int, ...]) -> Any:
    """`(cuts, D, D)` masks, 1 where both variables lie on one side; small cases only."""
    return _mask(_sides(len(sizes)), sizes)


def _mask(sides: Any, sizes: tuple[int, ...]) -> Any:
    signs = np.repeat(sides, sizes, axis=1)
    return (signs[:, :, None] * signs[:, None, :] > 0).astype(np.float64)


@lru_cache(maxsize=32)
def _counts(sizes: tuple[int, ...]) -> Any:
    """Number of variables on the far side of every cut."""
    return ((_sides(len(sizes)) < 0) * np.asarray(sizes)).sum(axis=1)


def _every_cut(
    correlation: Any, sizes: tuple[int, ...], excess: tuple[float, ...] | None
) -> tuple[float, list[int]]:
    """The information of the minimising cut and its side without subsystem 0."""
    m, n = len(sizes), sum(sizes)
    sides = _sides(m)
    if n == m >= _ELIMINATION_MIN:
        information = _by_elimination(correlation)
    else:
        information = _by_cholesky(correlation, sizes)
    judged = information if excess is None else information - np.take(excess, _counts(sizes)[1:])
    best = int(judged.argmin())
    side = sides[best + 1].tolist()
    return float(information[best]), [k for k in range(m) if side[k] < 0]


def _by_cholesky(correlation: Any, sizes: tuple[int, ...], bytes_max: int = _CHUNK_BYTES) -> Any:
    """½ ln(|Σ_A||Σ_B|/|Σ|) of every cut: one batched Cholesky of the block-diagonal masks."""
    sides, n = _sides(len(sizes)), sum(sizes)
    per_chunk = max(1, bytes_max // (8 * n * n))
    try:
        if len(sides) <= per_chunk:
            scores = _half_log_dets(correlation * _masks(sizes))
        else:
            scores = np.concatenate(
                [
                    _half_log_dets(correlation * _mask(sides[start : start + per_chunk], sizes))
                    for start in range(0, len(sides), per_chunk)
                ]
            )
    except np.linalg.LinAlgError:
        raise _singular(correlation) from None
    return scores[1:] - scores[0]


def _by_elimination(correlation: Any) -> Any:
    """The same for single variables: all 2^m principal minors, one elimination a variable.

    Row s of `rest` is the Schur complement of the variables not yet seen given the subset s of
    those seen; the minor of a cut's other side is the one of the complemented index.
    """
    rest, minors = correlation[None], np.zeros(1)
    while rest.shape[-1]:
        pivot = rest[:, 0, 0]
        if not pivot.min() > 0.0:
            raise _singular(correlation)
        minors = np.concatenate((minors, minors + np.log(pivot)))
        column, rest = rest[:, 1:, 0], rest[:, 1:, 1:]
        given = rest - column[:, :, None] * (column / pivot[:, None])[:, None, :]
        rest = np.concatenate((rest, given))
    # Cut c of `_sides` puts bit k of c + 1 for subsystem k + 1 on the far side.
    both = minors + minors[::-1]
    return 0.5 * (both[2::2] - minors[-1])


def _half_log_dets(matrices: Any) -> Any:
    factors = np.linalg.cholesky(matrices)
    return np.log(factors.diagonal(axis1=1, axis2=2)).sum(axis=1)
