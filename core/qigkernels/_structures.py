"""The contract of `qigkernels.fisher` and its dense, diagonal and low-rank forms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any

import numpy as np

from qigkernels._arrays import as_array
from qigkernels._errors import ValidationError

__all__ = [
    "Dense",
    "DiagPlusLowRank",
    "Diagonal",
    "FisherMatrix",
    "Multinomial",
    "finite",
    "indefinite",
    "lapack",
    "sound",
    "symmetric",
]


@lru_cache(maxsize=1)
def lapack() -> Any:
    """SciPy's LAPACK, loaded at the first factor; an import statement costs as much as a solve."""
    from scipy.linalg import lapack as loaded

    return loaded


def sound(name: str, values: Any) -> None:
    """Raise where an entry is NaN or infinite; one BLAS call where none is."""
    flat = values.ravel("K")
    if not math.isfinite(flat.dot(flat)):
        from qigkernels.validation import check_finite

        # A sum of squares also overflows; this looks at every entry.
        check_finite(name, values)


def finite(name: str, x: Any, ndim: int) -> Any:
    """A finite float64 copy with that many axes."""
    values = np.array(as_array(name, x), dtype=np.float64)
    if values.ndim != ndim or not values.size:
        raise ValidationError(
            f"{name} has shape {values.shape}; expected {ndim} axes, none empty",
            argument=name,
            shape=values.shape,
        )
    sound(name, values)
    return values


def symmetric(name: str, matrix: Any) -> Any:
    """The matrix `(..., n, n)`, refused unless symmetric to the last digits."""
    if matrix.shape[-1] != matrix.shape[-2]:
        raise ValidationError(
            f"{name} has shape {matrix.shape}; expected a square matrix",
            argument=name,
            shape=matrix.shape,
        )
    # Antisymmetric, so that its largest entry is its largest modulus.
    gap = matrix - matrix.swapaxes(-1, -2)
    worst = np.maximum.reduce(gap, axis=None)
    if worst > 0.0 and worst > 1e-14 * np.abs(matrix).max():
        place = tuple(int(i) for i in np.unravel_index(gap.argmax(), gap.shape))
        opposite = (*place[:-2], place[-1], place[-2])
        raise ValidationError(
            f"{name} of shape {matrix.shape} is not symmetric: {float(matrix[place])!r} at "
            f"{place}, {float(matrix[opposite])!r} opposite",
            argument=name,
            shape=matrix.shape,
            value=float(matrix[place]),
            index=place,
        )
    return matrix


def indefinite(name: str, why: str, value: Any = None) -> ValidationError:
    """The refusal of a matrix that is not positive definite."""
    return ValidationError(
        f"{name} is not positive definite: {why}; a Fisher matrix must be",
        argument=name,
        value=value,
    )


class FisherMatrix(ABC):
    """A symmetric positive definite n × n matrix G known by its structure.

    Attributes:
        n: its size.
        stored: how many numbers it holds.
    """

    n: int
    stored: int

    def _vector(self, v: Any, name: str = "v") -> Any:
        v = np.asarray(as_array(name, v), dtype=np.float64)
        if v.ndim not in {1, 2} or v.shape[0] != self.n or not v.size:
            raise ValidationError(
                f"{name} has shape {v.shape}; expected ({self.n},) or ({self.n}, k)",
                argument=name,
                shape=v.shape,
            )
        sound(name, v)
        return v

    def matvec(self, v: Any) -> Any:
        """G v, `(n,)` or `(n, k)`."""
        return self._matvec(self._vector(v))

    def solve(self, v: Any) -> Any:
        """G⁻¹ v, `(n,)` or `(n, k)`: the natural gradient of v."""
        return self._solve(self._vector(v))

    def norm(self, v: Any) -> float:
        """√(vᵀ G v), the length of the tangent vector v `(n,)`."""
        v = self._vector(v)
        if v.ndim != 1:
            raise ValidationError(
                f"v has shape {v.shape}; expected one vector ({self.n},)",
                argument="v",
                shape=v.shape,
            )
        return math.sqrt(max(0.0, float(np.vdot(v, self._matvec(v)))))

    @abstractmethod
    def _matvec(self, v: Any) -> Any: ...

    @abstractmethod
    def _solve(self, v: Any) -> Any: ...

    @abstractmethod
    def logdet(self) -> float:
        """ln det G."""

    @abstractmethod
    def trace(self) -> float:
        """Tr G."""

    @abstractmethod
    def to_dense(self) -> Any:
        """G as an `(n, n)` array."""

    @property
    def natural_sparsity(self) -> float:
        """Share of entries of G that the structure makes exactly 0, in [0, 1)."""
        return 0.0

    def __matmul__(self, v: Any) -> Any:
        return self.matvec(v)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n={self.n}, stored={self.stored})"


class Dense(FisherMatrix):
    """No structure: Cholesky of the whole matrix.

    >>> round(Dense(np.array([[2.0, 0.0], [0.0, 2.0]])).logdet(), 6)   # 2 ln 2
    1.386294
    """

    def __init__(self, matrix: Any) -> None:
        self._matrix = symmetric("matrix", finite("matrix", matrix, 2))
        self.n = len(self._matrix)
        self.stored = self.n * self.n
        # Seen from LAPACK the rows are columns; the matrix is the same, and none is moved.
        self._factor, failed = lapack().dpotrf(self._matrix.T, lower=1, clean=0)
        if failed:
            lowest = float(np.linalg.eigvalsh(self._matrix)[0])
            raise indefinite("matrix", f"smallest eigenvalue {lowest!r}", lowest)

    def _matvec(self, v: Any) -> Any:
        return self._matrix @ v

    def _solve(self, v: Any) -> Any:
        return lapack().dpotrs(self._factor, v, lower=1)[0]

    def logdet(self) -> float:
        return 2.0 * float(np.log(self._factor.diagonal()).sum())

    def trace(self) -> float:
        return float(self._matrix.trace())

    def to_dense(self) -> Any:
        return self._matrix.copy()


class Diagonal(FisherMatrix):
    """G = diag(d), d > 0.

    >>> Diagonal([2.0, 4.0]).solve([2.0, 2.0]).tolist()
    [1.0, 0.5]
    """

    def __init__(self, diagonal: Any) -> None:
        self.diagonal = finite("diagonal", diagonal, 1)
        if not self.diagonal.min() > 0.0:
            lowest = float(self.diagonal.min())
            raise indefinite("diagonal", f"smallest entry {lowest!r}", lowest)
        self.n = self.stored = len(self.diagonal)

    @property
    def natural_sparsity(self) -> float:
        return 1.0 - 1.0 / self.n

    def _column(self, v: Any) -> Any:
        return self.diagonal if v.ndim == 1 else self.diagonal[:, None]

    def _matvec(self, v: Any) -> Any:
        return self._column(v) * v

    def _solve(self, v: Any) -> Any:
        return v / self._column(v)

    def logdet(self) -> float:
        return float(np.log(self.diagonal).sum())

    def trace(self) -> float:
        return float(self.diagonal.sum())

    def to_dense(self) -> Any:
        return np.diag(self.diagonal)


class DiagPlusLowRank(FisherMatrix):
    """G = diag(d) + U diag(s) Uᵀ with few columns: multinomial (+11ᵀ/p_n), Dirichlet (−c·11ᵀ).

    Solved by Woodbury; s may be negative as long as G stays positive definite, which the
    determinant of the capacitance matrix decides: det G = Π d · det(1 + S Uᵀ D⁻¹ U).

    Source: W. W. Hager, SIAM Rev. 31 (1989) 221, doi:10.1137/1031049.

    >>> DiagPlusLowRank([1.0, 1.0], [[1.0], [1.0]], [1.0]).solve([1.0, 1.0]).round(12).tolist()
    [0.333333333333, 0.333333333333]
    """

    def __init__(self, diagonal: Any, columns: Any, scales: Any) -> None:
        self._base = Diagonal(diagonal)
        self._columns = finite("columns", columns, 2)
        self._scales = finite("scales", scales, 1)
        self.n, rank = self._base.n, self._columns.shape[1]
        if self._columns.shape[0] != self.n or len(self._scales) != rank:
            raise ValidationError(
                f"columns of shape {self._columns.shape} and {len(self._scales)} scales do not go "
                f"with a diagonal of {self.n}",
                argument="columns",
                shape=self._columns.shape,
            )
        self.stored = self.n * (1 + rank) + rank
        # D⁻¹U, and what stands in the middle of Woodbury's formula.
        self._solved = self._columns / self._base.diagonal[:, None]
        self._middle = self._capacity(self._columns.T @ self._solved)

    def _capacity(self, gram: Any) -> Any:
        """(1 + SQ)⁻¹S, Q = UᵀD⁻¹U; sets its log-determinant where the sum is positive definite."""
        scales = self._scales
        if len(scales) == 1:
            scale = float(scales[0])
            lowest = 1.0 + scale * float(gram[0, 0])
            if not lowest > 0.0:
                raise indefinite("diag(d) + s·uuᵀ", f"relative eigenvalue {lowest!r}", lowest)
            self._log_ratio = math.log(lowest)
            return np.array([[scale / lowest]])
        # 1 + D^-½ U S Uᵀ D^-½ has the eigenvalues 1 and those of 1 + Q^½ S Q^½.
        values, vectors = np.linalg.eigh(gram)
        root = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
        one = np.eye(len(scales))
        inside = one + root * scales @ root
        lowest = float(np.linalg.eigvalsh(inside)[0])
        if not lowest > 0.0:
            raise indefinite("diag(d) + U diag(s) Uᵀ", f"relative eigenvalue {lowest!r}", lowest)
        self._log_ratio = float(np.linalg.slogdet(inside)[1])
        return np.linalg.solve(one + scales[:, None] * gram, np.diag(scales))

    def _matvec(self, v: Any) -> Any:
        scales = self._scales if v.ndim == 1 else self._scales[:, None]
        return self._base._matvec(v) + self._columns @ (scales * (self._columns.T @ v))

    def _solve(self, v: Any) -> Any:
        return self._base._solve(v) - self._solved @ (self._middle @ (self._solved.T @ v))

    def logdet(self) -> float:
        return self._base.logdet() + self._log_ratio

    def trace(self) -> float:
        return self._base.trace() + float((self._columns**2 @ self._scales).sum())

    def to_dense(self) -> Any:
        return self._base.to_dense() + (self._columns * self._scales) @ self._columns.T


class Multinomial(DiagPlusLowRank):
    """G = N(diag(1/p) + 11ᵀ/p_n) in the first n − 1 of n probabilities, all in closed form.

    G⁻¹v = p ⊙ (v − ⟨p, v⟩/Σp)/N over those n − 1, det G = Nⁿ⁻¹ Σp/Πp.

    Args:
        p: `(n,)`, a distribution of at least two positive entries, which the caller has checked;
            not copied. trials: N ≥ 1.

    Attributes:
        total: Σp.

    Source: Amari & Nagaoka 2000, doi:10.1090/mmono/191.
    """

    def __init__(self, p: Any, trials: int = 1) -> None:
        self._p, self._head, self.total = p, p[:-1], float(p.sum())
        self._trials = float(trials)
        self.n, self.stored = len(p) - 1, len(p)

    def _column(self, v: Any) -> Any:
        return self._head if v.ndim == 1 else self._head[:, None]

    def _matvec(self, v: Any) -> Any:
        return self._trials * (v / self._column(v) + v.sum(axis=0) / self._p[-1])

    def _solve(self, v: Any) -> Any:
        found = v - self._head.dot(v) / self.total
        found *= self._column(v)
        if self._trials != 1.0:
            found /= self._trials
        return found

    def logdet(self) -> float:
        logs = float(np.log(self._p).sum())
        return self.n * math.log(self._trials) + math.log(self.total) - logs

    def trace(self) -> float:
        return self._trials * float((1.0 / self._head).sum() + self.n / self._p[-1])

    def to_dense(self) -> Any:
        full = np.full((self.n, self.n), self._trials / self._p[-1])
        full[np.diag_indices(self.n)] += self._trials / self._head
        return full
