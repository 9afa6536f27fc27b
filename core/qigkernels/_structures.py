"""The contract of `qigkernels.fisher` and its dense, diagonal and low-rank forms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from qigkernels._arrays import as_array
from qigkernels._errors import ValidationError

__all__ = [
    "Dense",
    "DiagPlusLowRank",
    "Diagonal",
    "FisherMatrix",
    "finite",
    "indefinite",
    "symmetric",
]


def finite(name: str, x: Any, ndim: int) -> Any:
    """A finite float64 copy with that many axes."""
    values = np.array(as_array(name, x), dtype=np.float64)
    if values.ndim != ndim or 0 in values.shape:
        raise ValidationError(
            f"{name} has shape {values.shape}; expected {ndim} axes, none empty",
            argument=name,
            shape=values.shape,
        )
    if not np.isfinite(values).all():
        from qigkernels.validation import check_finite

        check_finite(name, values)
    return values


def symmetric(name: str, matrix: Any) -> Any:
    """The matrix, refused unless symmetric to the last digits."""
    if matrix.shape[0] != matrix.shape[1]:
        raise ValidationError(
            f"{name} has shape {matrix.shape}; expected a square matrix",
            argument=name,
            shape=matrix.shape,
        )
    gap = np.abs(matrix - matrix.T)
    if gap.max() > 1e-14 * np.abs(matrix).max():
        place = divmod(int(gap.argmax()), len(matrix))
        raise ValidationError(
            f"{name} of shape {matrix.shape} is not symmetric: {float(matrix[place])!r} at "
            f"{place}, {float(matrix.T[place])!r} opposite",
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
        if v.ndim not in {1, 2} or v.shape[0] != self.n:
            raise ValidationError(
                f"{name} has shape {v.shape}; expected ({self.n},) or ({self.n}, k)",
                argument=name,
                shape=v.shape,
            )
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
        from scipy.linalg.lapack import dpotrf

        self._matrix = symmetric("matrix", finite("matrix", matrix, 2))
        self.n = len(self._matrix)
        self.stored = self.n * self.n
        self._factor, failed = dpotrf(self._matrix, lower=1)
        if failed:
            lowest = float(np.linalg.eigvalsh(self._matrix)[0])
            raise indefinite("matrix", f"smallest eigenvalue {lowest!r}", lowest)

    def _matvec(self, v: Any) -> Any:
        return self._matrix @ v

    def _solve(self, v: Any) -> Any:
        from scipy.linalg.lapack import dpotrs

        return dpotrs(self._factor, v, lower=1)[0]

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
        scaled = self._columns / np.sqrt(self._base.diagonal)[:, None]
        self._gram = scaled.T @ scaled
        self._log_ratio = self._capacity(rank)

    def _capacity(self, rank: int) -> float:
        """ln det(1 + S UᵀD⁻¹U), refused where the sum is not positive definite."""
        if rank == 1:
            lowest = 1.0 + float(self._scales[0] * self._gram[0, 0])
            if not lowest > 0.0:
                raise indefinite("diag(d) + s·uuᵀ", f"relative eigenvalue {lowest!r}", lowest)
            return math.log(lowest)
        # 1 + D^-½ U S Uᵀ D^-½ has the eigenvalues 1 and those of 1 + Q^½ S Q^½, Q = UᵀD⁻¹U.
        values, vectors = np.linalg.eigh(self._gram)
        root = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
        inside = np.eye(rank) + root * self._scales @ root
        lowest = float(np.linalg.eigvalsh(inside)[0])
        if not lowest > 0.0:
            raise indefinite("diag(d) + U diag(s) Uᵀ", f"relative eigenvalue {lowest!r}", lowest)
        return float(np.linalg.slogdet(inside)[1])

    def _matvec(self, v: Any) -> Any:
        scales = self._scales if v.ndim == 1 else self._scales[:, None]
        return self._base.matvec(v) + self._columns @ (scales * (self._columns.T @ v))

    def _solve(self, v: Any) -> Any:
        first = self._base.solve(v)
        capacity = np.eye(len(self._scales)) + self._scales[:, None] * self._gram
        scales = self._scales if v.ndim == 1 else self._scales[:, None]
        inner = np.linalg.solve(capacity, scales * (self._columns.T @ first))
        return first - self._base.solve(self._columns @ inner)

    def logdet(self) -> float:
        return self._base.logdet() + self._log_ratio

    def trace(self) -> float:
        return self._base.trace() + float((self._columns**2 @ self._scales).sum())

    def to_dense(self) -> Any:
        return self._base.to_dense() + (self._columns * self._scales) @ self._columns.T
