"""Factors ρ = AA† of density matrices, as exact as the entries of ρ allow.

Full rank: Cholesky, corrected once or twice by a residual in extended precision where ρ is
ill-conditioned (plain Cholesky leaves an eigenvalue of 1e-12 wrong in its fifth digit, which shows
in √F at 1e-11). Rank loss: eigenvectors·√λ with λ ≤ max(n, 8)·ε·λ_max set to 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qigkernels._arrays import epsilon, is_numpy, rank_floor, take_rows, to_numpy
from qigkernels._density import check_spectrum
from qigkernels._extended import residual_product

__all__ = [
    "Side",
    "adjoint",
    "cholesky",
    "factor",
    "frobenius",
    "pivot_floor",
    "put",
    "real_diagonal",
    "singular_values",
    "singular_vectors",
    "smallest_pivots",
    "traces",
]

_POLISHED = 0.05
"""Smallest pivot·n from which a plain Cholesky factor serves the Procrustes form, where its error
is the error of the angle."""

_SMALL = 1e-9
"""Relative correction of a factor whose square is below its rounding."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a flat batch of pairs.

    state, root: `(b, n, n)`, state = root·root†. The rest are NumPy arrays `(b,)`: full: of full
    rank, root is a Cholesky factor; well: and well-conditioned; pivot: its smallest pivot; rank:
    how many of the last columns of its root are not zero.
    """

    state: Any
    root: Any
    full: Any
    well: Any
    pivot: Any
    rank: Any

    def rows(self, xp: Any, index: Any) -> Side:
        """The members that `index` names, repeats allowed."""
        return Side(
            take_rows(xp, self.state, index),
            take_rows(xp, self.root, index),
            self.full[index],
            self.well[index],
            self.pivot[index],
            self.rank[index],
        )

    def polished(self, xp: Any) -> Any:
        """The factors with those refined that `factor` left as Cholesky gave them."""
        rough = np.flatnonzero(self.well & (self.pivot * self.state.shape[-1] < _POLISHED))
        if not rough.size or epsilon(self.state) > 1e-10:
            return self.root
        better = _refined(xp, take_rows(xp, self.state, rough), take_rows(xp, self.root, rough))
        return put(xp, xp.asarray(self.root, copy=True), rough, better)


def adjoint(xp: Any, matrices: Any) -> Any:
    """A† of the last two axes."""
    return xp.conj(xp.matrix_transpose(matrices))


def real_diagonal(xp: Any, matrices: Any) -> Any:
    """The real part of the diagonals, `(..., n)`."""
    diagonal = xp.linalg.diagonal(matrices)
    return xp.real(diagonal) if xp.isdtype(diagonal.dtype, "complex floating") else diagonal


def put(xp: Any, target: Any, index: Any, values: Any) -> Any:
    """`target` with `values` in the rows of `index`; written in place where the library can."""
    if hasattr(target, "at"):
        return target.at[xp.asarray(index)].set(values)
    if is_numpy(target):
        target[index] = values
    else:
        target[xp.asarray(index, device=target.device)] = values
    return target


def factor(xp: Any, name: str, rho: Any, members: Any, shape: tuple[int, ...]) -> Side:
    """Factors of `(b, n, n)` Hermitian matrices of trace 1.

    They are the `members` (flat indices, a NumPy array) of a batch of that shape, for the message.

    Raises:
        ValidationError: one is not positive semidefinite.
    """
    n = rho.shape[-1]
    eps = epsilon(rho)
    count = rho.shape[0]
    root = cholesky(xp, rho)
    full, well = np.ones(count, dtype=bool), np.zeros(count, dtype=bool)
    rank = np.full(count, n)
    if root is None:
        # One without a factor takes the batch with it.
        root = xp.full_like(rho, float("nan"))
    else:
        # NaN (no factor) is not well either. A pivot is no eigenvalue: several small ones in a
        # row hide a far smaller eigenvalue, so all that are not well are looked at in full.
        well = smallest_pivots(xp, root) > pivot_floor(n)
    index = np.flatnonzero(~well)
    if index.size:
        part = take_rows(xp, rho, index)
        values, vectors = xp.linalg.eigh(part)
        check_spectrum(name, rho, values, rows=members[index], shape=shape)
        root = _retried(xp, rho, root, index, values)
        root, kept, ranks = _by_eigenvectors(xp, root, index, values, vectors)
        full[index[~kept]] = False
        rank[index] = np.where(kept, n, ranks)
    pivot = smallest_pivots(xp, root)
    well = full & (pivot > pivot_floor(n))
    weak = np.flatnonzero(full & ~well)
    if weak.size and eps < 1e-10:
        better = _refined(xp, take_rows(xp, rho, weak), take_rows(xp, root, weak))
        root = put(xp, root, weak, better)
    return Side(rho, root, full, well, pivot, rank)


def smallest_pivots(xp: Any, root: Any) -> Any:
    """Smallest pivot (a squared diagonal entry) of Cholesky factors, a NumPy array."""
    pivots = to_numpy(real_diagonal(xp, root)).astype(np.float64) ** 2
    return pivots.min(axis=-1)


def pivot_floor(n: int) -> float:
    """Smallest pivot from which a plain Cholesky factor is exact enough for √F.

    1e-2/n up to n = 4, then falling as 1/n³: a single direction weighs ever less in √F.
    """
    return 1e-2 / n * min(1.0, 16.0 / n**2)


def frobenius(xp: Any, matrices: Any) -> Any:
    """Frobenius norm of the last two axes."""
    return xp.sqrt(xp.sum(xp.abs(matrices) ** 2, axis=(-1, -2)))


def traces(xp: Any, matrices: Any) -> Any:
    """Traces of Hermitian matrices."""
    return xp.sum(real_diagonal(xp, matrices), axis=-1)


def cholesky(xp: Any, rho: Any) -> Any:
    """Cholesky factors, a fresh array; None where the library refuses the batch."""
    try:
        if type(rho).__module__.startswith("cupy"):
            # CuPy's own default is to go on with what is no factor.
            from cupyx import errstate

            with errstate(linalg="raise"):
                return xp.linalg.cholesky(rho)
        return xp.linalg.cholesky(rho)
    # NumPy and CuPy raise LinAlgError, torch a RuntimeError, for the whole batch at once.
    except (np.linalg.LinAlgError, RuntimeError):
        return None


def singular_values(xp: Any, matrices: Any) -> Any:
    """Singular values, as exact as the library can."""
    if _on_torch_cuda(matrices):
        import torch

        # CUDA's default is one of Jacobi's method, which stops some digits early.
        return torch.linalg.svdvals(matrices, driver="gesvd")
    return xp.linalg.svdvals(matrices)


def singular_vectors(xp: Any, matrices: Any) -> tuple[Any, Any, Any]:
    """Left vectors, singular values, right vectors, as exact as the library can."""
    if _on_torch_cuda(matrices):
        import torch

        return tuple(torch.linalg.svd(matrices, driver="gesvd"))
    return tuple(xp.linalg.svd(matrices))


def _on_torch_cuda(array: Any) -> bool:
    return type(array).__module__ == "torch" and array.is_cuda


def _retried(xp: Any, rho: Any, root: Any, index: Any, values: Any) -> Any:
    """Cholesky factors of those that lack one for another's sake and are not of lower rank.

    Those far from singular have one for certain and are done together; the few that are as near as
    rounding allows are tried one by one.
    """
    levels = to_numpy(values)
    share = levels[:, 0] / levels[:, -1]
    lacking = ~np.isfinite(to_numpy(real_diagonal(xp, take_rows(xp, root, index)))).all(axis=-1)
    sure = share > 8.0 * levels.shape[1] * epsilon(values)
    near = lacking & ~sure & (share > rank_floor(values))
    for some in (index[lacking & sure], *np.split(index[near], np.count_nonzero(near) or 1)):
        found = cholesky(xp, take_rows(xp, rho, some)) if some.size else None
        root = root if found is None else put(xp, root, some, found)
    return root


def _by_eigenvectors(
    xp: Any, root: Any, index: Any, values: Any, vectors: Any
) -> tuple[Any, Any, Any]:
    """The roots with those of `index` redone; which of them keep their Cholesky factor; ranks."""
    floor = rank_floor(values) * xp.max(values, axis=-1, keepdims=True)
    kept_values = xp.where(values > floor, values, xp.zeros_like(values))
    by_vectors = vectors * xp.astype(xp.sqrt(kept_values), vectors.dtype)[..., None, :]
    whole = to_numpy(xp.all(values > floor, axis=-1))
    exists = np.isfinite(to_numpy(real_diagonal(xp, take_rows(xp, root, index)))).all(axis=-1)
    kept = whole & exists
    lost = ~kept
    if lost.any():
        root = put(xp, root, index[lost], take_rows(xp, by_vectors, np.flatnonzero(lost)))
    return root, kept, to_numpy(xp.sum(values > floor, axis=-1))


def _refined(xp: Any, rho: Any, root: Any) -> Any:
    """Cholesky factors after one or two corrections by the residual ρ − LL† in extended precision.

    With Y = L⁻¹(ρ − LL†)L⁻†, (L + L·Φ(Y))(…)† = ρ up to Y², Φ the lower half of a matrix.
    """
    n = rho.shape[-1]
    half = xp.asarray(np.tril(np.ones((n, n)), -1) + 0.5 * np.eye(n), dtype=xp.float64)
    if not is_numpy(rho):
        half = xp.asarray(half, device=rho.device)
    for _ in range(2):
        gap = residual_product(xp, rho, root, root)
        inner = adjoint(xp, xp.linalg.solve(root, gap))
        inner = xp.linalg.solve(root, inner)
        root = root + root @ (inner * half)
        if float(xp.max(xp.abs(inner))) < _SMALL:
            break
    return root
