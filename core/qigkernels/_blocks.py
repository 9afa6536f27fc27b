"""Blocks and Kronecker products; part of `qigkernels.fisher`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from qigkernels._bands import BandFactor
from qigkernels._errors import ValidationError
from qigkernels._structures import Dense, FisherMatrix, finite, symmetric

__all__ = ["BlockDiagonal", "Kronecker"]

_BAND_SIZE_MAX = 16
"""Size up to which equal blocks are faster as one band than one by one."""


class BlockDiagonal(FisherMatrix):
    """Independent blocks.

    Args:
        blocks: Fisher matrices of any structure (arrays become `Dense`), or an array `(k, b, b)`
            of k blocks of one size. Many small ones are factored and solved at once, as a band.
    """

    def __init__(self, blocks: Any) -> None:
        self._stack: Any = None
        if isinstance(blocks, np.ndarray) and (
            blocks.ndim != 3 or blocks.shape[1] <= _BAND_SIZE_MAX
        ):
            self._stack = symmetric("blocks", finite("blocks", blocks, 3))
            self.n, self.stored = blocks.shape[0] * blocks.shape[1], blocks.size
            self._factor = BandFactor("blocks", _as_band(self._stack))
            return
        self.blocks = tuple(
            block if isinstance(block, FisherMatrix) else Dense(block) for block in blocks
        )
        if not self.blocks:
            raise ValidationError("blocks is empty; expected at least one", argument="blocks")
        ends = np.cumsum([block.n for block in self.blocks]).tolist()
        self._ranges = [
            slice(end - block.n, end) for end, block in zip(ends, self.blocks, strict=True)
        ]
        self.n = ends[-1]
        self.stored = sum(block.stored for block in self.blocks)

    @property
    def natural_sparsity(self) -> float:
        if self._stack is not None:
            return 1.0 - 1.0 / len(self._stack)
        filled = sum(block.n**2 * (1.0 - block.natural_sparsity) for block in self.blocks)
        return 1.0 - float(filled) / self.n**2

    def _each(self, v: Any, name: str) -> Any:
        pairs = zip(self.blocks, self._ranges, strict=True)
        return np.concatenate([getattr(block, name)(v[rows]) for block, rows in pairs])

    def _matvec(self, v: Any) -> Any:
        if self._stack is None:
            return self._each(v, "_matvec")
        return (self._stack @ v.reshape(*self._stack.shape[:2], -1)).reshape(v.shape)

    def _solve(self, v: Any) -> Any:
        return self._each(v, "_solve") if self._stack is None else self._factor.solve(v)

    def logdet(self) -> float:
        if self._stack is not None:
            return self._factor.logdet()
        return float(sum(block.logdet() for block in self.blocks))

    def trace(self) -> float:
        if self._stack is not None:
            return float(np.trace(self._stack, axis1=1, axis2=2).sum())
        return float(sum(block.trace() for block in self.blocks))

    def to_dense(self) -> Any:
        full = np.zeros((self.n, self.n))
        if self._stack is not None:
            size = self._stack.shape[1]
            for k, block in enumerate(self._stack):
                full[k * size : (k + 1) * size, k * size : (k + 1) * size] = block
            return full
        for block, rows in zip(self.blocks, self._ranges, strict=True):
            full[rows, rows] = block.to_dense()
        return full


def _as_band(blocks: Any) -> Any:
    """The lower band `(b, k·b)` of blocks `(k, b, b)`, column-major."""
    k, size = blocks.shape[:2]
    below, inside = _diagonals(size)
    band = blocks.reshape(k, size * size).take(below, axis=1)
    band *= inside
    return band.reshape(k * size, size).T


@lru_cache(maxsize=_BAND_SIZE_MAX)
def _diagonals(size: int) -> tuple[Any, Any]:
    """Where row j of a flat block has what stands below its diagonal, from the diagonal on; and 1
    where that is still in the block, 0 where it is not."""
    row, step = np.divmod(np.arange(size * size), size)
    inside = row + step < size
    return np.where(inside, row * (size + 1) + step, 0), inside.astype(np.float64)


class Kronecker(FisherMatrix):
    """G = A ⊗ B (KFAC: input covariance ⊗ gradient covariance): (A ⊗ B) vec = A V Bᵀ, row-major.

    Source: J. Martens, R. Grosse, ICML 2015, arXiv:1503.05671.
    """

    def __init__(self, left: Any, right: Any) -> None:
        self.left = left if isinstance(left, FisherMatrix) else Dense(left)
        self.right = right if isinstance(right, FisherMatrix) else Dense(right)
        self.n = self.left.n * self.right.n
        self.stored = self.left.stored + self.right.stored

    @property
    def natural_sparsity(self) -> float:
        return 1.0 - (1.0 - self.left.natural_sparsity) * (1.0 - self.right.natural_sparsity)

    def _apply(self, v: Any, name: str) -> Any:
        left, right = getattr(self.left, name), getattr(self.right, name)
        m, k = self.left.n, self.right.n
        if v.ndim == 1:
            return right(left(v.reshape(m, k)).T).T.ravel()
        count = v.shape[1]
        first = left(v.reshape(m, k * count)).reshape(m, k, count)
        second = right(first.transpose(1, 0, 2).reshape(k, m * count)).reshape(k, m, count)
        return second.transpose(1, 0, 2).reshape(self.n, count)

    def _matvec(self, v: Any) -> Any:
        return self._apply(v, "_matvec")

    def _solve(self, v: Any) -> Any:
        return self._apply(v, "_solve")

    def logdet(self) -> float:
        return self.right.n * self.left.logdet() + self.left.n * self.right.logdet()

    def trace(self) -> float:
        return self.left.trace() * self.right.trace()

    def to_dense(self) -> Any:
        return np.kron(self.left.to_dense(), self.right.to_dense())
