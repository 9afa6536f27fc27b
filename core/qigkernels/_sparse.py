"""Sparse precision matrices; part of `qigkernels.fisher`."""

from __future__ import annotations

from typing import Any

import numpy as np

from qigkernels._errors import ValidationError
from qigkernels._structures import FisherMatrix, finite, indefinite

__all__ = ["SparsePrecision"]


class SparsePrecision(FisherMatrix):
    """A sparse symmetric positive definite G: Markov fields, chains, grids.

    A band is solved by banded Cholesky, which also proves it positive definite; anything wider by
    a sparse LU with symmetric ordering and diagonal pivots, whose pivots are all positive exactly
    where G is positive definite.

    Args:
        matrix: a SciPy sparse or dense symmetric matrix. Where the band is known, `from_band`
            skips the analysis.
    """

    def __init__(self, matrix: Any) -> None:
        from scipy.sparse import coo_array

        entries = coo_array(matrix)
        entries.sum_duplicates()
        self._shape = tuple(entries.shape)
        keep = entries.data != 0.0
        rows, columns = entries.row[keep], entries.col[keep]
        data = np.asarray(entries.data[keep], dtype=np.float64)
        self._csr: Any = coo_array((data, (rows, columns)), shape=self._shape).tocsr()
        self._check(data)
        self.n, self.stored = int(self._shape[0]), len(data)
        width = int(np.abs(rows - columns).max(initial=0))
        # A band is worth it while it is not much wider than what it holds.
        if (2 * width + 1) * self.n <= 4 * (self.stored + self.n):
            band = np.zeros((width + 1, self.n))
            lower = rows >= columns
            band[rows[lower] - columns[lower], columns[lower]] = data[lower]
            self._factor_band(band)
        else:
            self._factor_sparse()

    @classmethod
    def from_band(cls, band: Any) -> SparsePrecision:
        """From the lower band `(w + 1, n)`: band[k, j] = G[j + k, j]; the tails are not read.

        >>> SparsePrecision.from_band(np.array([[2.0, 2.0], [1.0, 0.0]])).to_dense().tolist()
        [[2.0, 1.0], [1.0, 2.0]]
        """
        self = cls.__new__(cls)
        band = finite("band", band, 2)
        for k in range(1, len(band)):
            band[k, band.shape[1] - k :] = 0.0
        self.n = band.shape[1]
        self._shape = (self.n, self.n)
        self.stored = 2 * int(np.count_nonzero(band)) - int(np.count_nonzero(band[0]))
        self._csr = None
        self._factor_band(band)
        return self

    def _check(self, data: Any) -> None:
        shape = self._shape
        if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
            raise ValidationError(
                f"matrix has shape {shape}; expected a square matrix",
                argument="matrix",
                shape=shape,
            )
        if not len(data) or not np.isfinite(data).all():
            raise ValidationError(
                f"matrix of shape {shape} is zero or has NaN or infinite entries",
                argument="matrix",
                shape=shape,
            )
        worst = float(abs(self._csr - self._csr.T).max())
        if worst > 1e-14 * float(np.abs(data).max()):
            raise ValidationError(
                f"matrix of shape {shape} is not symmetric: entries differ by {worst!r}",
                argument="matrix",
                shape=shape,
                value=worst,
            )

    def _factor_band(self, band: Any) -> None:
        from scipy.linalg import cholesky_banded

        self._band = band
        try:
            self._root = cholesky_banded(band, lower=True, check_finite=False)
        except np.linalg.LinAlgError as error:
            raise indefinite("matrix", str(error)) from None
        self._lu: Any = None
        self._logdet = 2.0 * float(np.log(self._root[0]).sum())

    def _factor_sparse(self) -> None:
        from scipy.sparse.linalg import splu

        self._band = None
        try:
            self._lu = splu(
                self._csr.tocsc(),
                permc_spec="MMD_AT_PLUS_A",
                diag_pivot_thresh=0.0,
                options={"SymmetricMode": True},
            )
        except RuntimeError as error:
            raise indefinite("matrix", str(error)) from None
        pivots = self._lu.U.diagonal()
        if not np.array_equal(self._lu.perm_r, self._lu.perm_c) or not pivots.min() > 0.0:
            raise indefinite("matrix", f"smallest pivot {float(pivots.min())!r}")
        self._logdet = float(np.log(pivots).sum())

    @property
    def banded(self) -> bool:
        """Whether the band form is in use."""
        return self._band is not None

    @property
    def natural_sparsity(self) -> float:
        return 1.0 - self.stored / self.n**2

    def _matvec(self, v: Any) -> Any:
        if self._csr is not None:
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
        from scipy.linalg import cho_solve_banded

        return cho_solve_banded((self._root, True), v, check_finite=False)

    def logdet(self) -> float:
        return self._logdet

    def trace(self) -> float:
        return float(self._band[0].sum() if self._band is not None else self._csr.trace())

    def to_dense(self) -> Any:
        if self._csr is not None:
            return self._csr.toarray()
        full = np.diag(self._band[0])
        for k in range(1, len(self._band)):
            full += np.diag(self._band[k, :-k], -k) + np.diag(self._band[k, :-k], k)
        return full
