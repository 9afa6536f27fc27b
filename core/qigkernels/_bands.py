"""Cholesky factors of symmetric bands; part of `qigkernels.fisher`."""

from __future__ import annotations

from typing import Any

import numpy as np

from qigkernels._structures import indefinite, lapack

__all__ = ["BandFactor"]


class BandFactor:
    """Factor of a symmetric positive definite band: LDLᵀ where tridiagonal, else banded Cholesky.

    Args:
        name: argument to name where it is not positive definite.
        band: `(w + 1, n)`, band[k, j] = G[j + k, j]; the tails are not read. Column-major arrays
            are not copied over again by LAPACK.

    """

    def __init__(self, name: str, band: Any) -> None:
        self._pivots: Any = None
        if len(band) == 2:
            self._pivots, self._below, failed = lapack().dpttrf(band[0], band[1, :-1])
        else:
            self._root, failed = lapack().dpbtrf(band, lower=1)
        if failed:
            raise indefinite(name, f"its leading minor of order {failed} is not", failed)

    def logdet(self) -> float:
        """ln det G."""
        if self._pivots is not None:
            return float(np.log(self._pivots).sum())
        return 2.0 * float(np.log(self._root[0]).sum())

    def solve(self, v: Any) -> Any:
        """G⁻¹ v, `(n,)` or `(n, k)`."""
        if self._pivots is not None:
            return lapack().dpttrs(self._pivots, self._below, v)[0]
        return lapack().dpbtrs(self._root, v, lower=1)[0]
