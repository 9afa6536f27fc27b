"""Sparse precision matrices; part of `qigkernels.fisher`."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from qigkernels._arrays import as_array
from qigkernels._bands import BandFactor
from qigkernels._errors import ValidationError
from qigkernels._structures import FisherMatrix, finite, indefinite, sound

__all__ = ["SparsePrecision"]

_BAND_WASTE = 16
"""Numbers a band may hold for each entry it is made of and still be factored sooner than by a
sparse LU: grids of up to about 90 × 90 are."""

_Entries = tuple[Any, Any, Any]
"""Values, their columns, and where each row starts: rows in order, columns in order, no zero."""


class SparsePrecision(FisherMatrix):
    """A sparse symmetric positive definite G: Markov fields, chains, grids.

    A band, in the order given or in the reverse Cuthill-McKee order, is solved by banded Cholesky,
    which also proves it positive definite; what is too wide for that by a sparse LU with symmetric
    ordering and diagonal pivots, which are all positive exactly where G is positive definite.

    Args:
        matrix: a SciPy sparse or dense symmetric matrix. Where the band is known, `from_band`
            skips the analysis, which for small n costs more than the solution.
    """

    def __init__(self, matrix: Any) -> None:
        self._entries: _Entries = _entries(matrix)
        _, columns, starts = self._entries
        self.n = len(starts) - 1
        self._band: Any = None
        self._order: Any = None
        self._lu: Any = None
        rows = np.repeat(np.arange(self.n, dtype=columns.dtype), np.diff(starts))
        below = rows - columns
        if not self._narrow(below):
            from scipy.sparse.csgraph import reverse_cuthill_mckee

            order = reverse_cuthill_mckee(self._csr, symmetric_mode=True)
            place = np.empty_like(order)
            place[order] = np.arange(self.n)
            rows, columns = place[rows], place[columns]
            below = rows - columns
            if not self._narrow(below):
                self._factor_sparse()
                return
            self._order = order
        self._factor = BandFactor("matrix", self._as_band(rows, columns, below))

    def _narrow(self, below: Any) -> bool:
        width = int(np.abs(below).max())
        return (width + 1) * self.n <= _BAND_WASTE * (len(self._entries[0]) + self.n)

    @classmethod
    def from_band(cls, band: Any) -> SparsePrecision:
        """From the lower band `(w + 1, n)`: band[k, j] = G[j + k, j]; the tails are not read.

        >>> SparsePrecision.from_band(np.array([[2.0, 2.0], [1.0, 0.0]])).to_dense().tolist()
        [[2.0, 1.0], [1.0, 2.0]]
        """
        self = cls.__new__(cls)
        # Column-major, as LAPACK reads it.
        band = np.array(as_array("band", band), dtype=np.float64, order="F")
        if band.ndim != 2 or not band.size:
            finite("band", band, 2)
        self.n = band.shape[1]
        self._band = band = band[: self.n]
        for k in range(1, len(band)):
            band[k, -k:] = 0.0
        sound("band", band)
        self._order = self._lu = None
        self._factor = BandFactor("band", band)
        return self

    @cached_property
    def _csr(self) -> Any:
        from scipy.sparse import csr_array

        return csr_array(self._entries, shape=(self.n, self.n))

    def _as_band(self, rows: Any, columns: Any, below: Any) -> Any:
        """The lower band, column-major, if the upper one is the same."""
        data = self._entries[0]
        band, upper = np.zeros((2, self.n, int(np.abs(below).max()) + 1))
        lower, above = below >= 0, below <= 0
        band[columns[lower], below[lower]] = data[lower]
        upper[rows[above], -below[above]] = data[above]
        gap = np.abs(band - upper)
        if gap.max() > 1e-14 * np.abs(data).max():
            column, k = divmod(int(gap.argmax()), gap.shape[1])
            place = (column + k, column)
            if self._order is not None:
                place = (int(self._order[place[0]]), int(self._order[place[1]]))
            raise self._asymmetric(place, float(band[column, k]), float(upper[column, k]))
        return band.T

    def _asymmetric(self, place: tuple[int, int], value: float, opposite: float) -> ValidationError:
        shape = (self.n, self.n)
        return ValidationError(
            f"matrix of shape {shape} is not symmetric: {value!r} at {place}, {opposite!r} "
            "opposite",
            argument="matrix",
            shape=shape,
            value=value,
            index=place,
        )

    def _factor_sparse(self) -> None:
        from scipy.sparse import csc_array
        from scipy.sparse.linalg import splu

        gap = abs(self._csr - self._csr.T).tocoo()
        if gap.nnz and gap.data.max() > 1e-14 * np.abs(self._entries[0]).max():
            k = int(gap.data.argmax())
            i, j = int(gap.row[k]), int(gap.col[k])
            raise self._asymmetric((i, j), float(self._csr[i, j]), float(self._csr[j, i]))
        # Rows of a symmetric matrix are its columns.
        by_columns = csc_array(self._entries, shape=(self.n, self.n))
        try:
            self._lu = splu(
                by_columns,
                permc_spec="MMD_AT_PLUS_A",
                diag_pivot_thresh=0.0,
                options={"SymmetricMode": True},
            )
        except RuntimeError as error:
            raise indefinite("matrix", str(error)) from None
        pivots = self._lu.U.diagonal()
        if not np.array_equal(self._lu.perm_r, self._lu.perm_c) or not pivots.min() > 0.0:
            lowest = float(pivots.min())
            raise indefinite("matrix", f"smallest pivot {lowest!r}", lowest)

    @property
    def stored(self) -> int:  # type: ignore[override]
        """How many entries are not 0."""
        if self._band is None:
            return len(self._entries[0])
        return 2 * int(np.count_nonzero(self._band)) - int(np.count_nonzero(self._band[0]))

    @property
    def banded(self) -> bool:
        """Whether the band form is in use."""
        return self._lu is None

    @property
    def natural_sparsity(self) -> float:
        return 1.0 - self.stored / self.n**2

    def _matvec(self, v: Any) -> Any:
        if self._band is None:
            return self._csr @ v
        band = self._band if v.ndim == 1 else self._band[:, :, None]
        found = band[0] * v
        for k in range(1, len(band)):
            found[k:] += band[k, :-k] * v[:-k]
            found[:-k] += band[k, :-k] * v[k:]
        return found

    def _solve(self, v: Any) -> Any:
        if self._lu is not None:
            return self._lu.solve(v)
        if self._order is None:
            return self._factor.solve(v)
        found = np.empty_like(v)
        found[self._order] = self._factor.solve(v[self._order])
        return found

    def logdet(self) -> float:
        if self._lu is not None:
            return float(np.log(self._lu.U.diagonal()).sum())
        return self._factor.logdet()

    def trace(self) -> float:
        return float(self._csr.trace() if self._band is None else self._band[0].sum())

    def to_dense(self) -> Any:
        if self._band is None:
            return self._csr.toarray()
        full = np.diag(self._band[0])
        for k in range(1, len(self._band)):
            full += np.diag(self._band[k, :-k], -k) + np.diag(self._band[k, :-k], k)
        return full


def _entries(matrix: Any) -> _Entries:
    """The entries of a sparse or dense matrix, checked but for symmetry, in arrays of their own."""
    from scipy.sparse import csr_array, issparse

    if not issparse(matrix):
        matrix = as_array("matrix", matrix)
    shape = tuple(matrix.shape)
    if matrix.dtype not in {np.dtype(np.float32), np.dtype(np.float64)}:
        raise _refused(shape, f"dtype {matrix.dtype}; expected float32 or float64", matrix.dtype)
    if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise _refused(shape, "no square form; expected (n, n)")
    if not issparse(matrix) or matrix.format != "csr":
        matrix = csr_array(matrix)
    if not matrix.has_canonical_format or not matrix.data.all():
        matrix = matrix.copy()
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
    data = np.array(matrix.data, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(data))
    if bad.size or not data.size:
        if not data.size:
            raise _refused(shape, "no entry but 0")
        k = int(bad[0])
        row = int(np.searchsorted(matrix.indptr, k, side="right")) - 1
        what = "NaN" if np.isnan(data[k]) else "an infinite entry"
        place = (row, int(matrix.indices[k]))
        raise _refused(shape, f"{what} at {place}", float(data[k]), place)
    return data, matrix.indices.copy(), matrix.indptr.copy()


def _refused(
    shape: tuple[int, ...], what: str, value: Any = None, place: tuple[int, int] | None = None
) -> ValidationError:
    return ValidationError(
        f"matrix of shape {shape} has {what}",
        argument="matrix",
        shape=shape,
        value=value,
        index=place,
    )
