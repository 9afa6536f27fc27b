"""Blocks and Kronecker products; part of `qigkernels.fisher`."""

from __future__ import annotations

from typing import Any

import numpy as np

from qigkernels._errors import ValidationError
from qigkernels._structures import Dense, FisherMatrix, finite, indefinite

__all__ = ["BlockDiagonal", "Kronecker"]


class BlockDiagonal(FisherMatrix):
    """Independent blocks.

    Args:
        blocks: Fisher matrices of any structure (arrays become `Dense`), or an array `(k, b, b)`
            of k blocks of one size, which are factored and solved all at once.
    """

    def __init__(self, blocks: Any) -> None:
        self._inverse_roots: Any = None
        self._logdet = 0.0
        if isinstance(blocks, np.ndarray):
            self._stack(finite("blocks", blocks, 3))
            return
        self.blocks: Any = tuple(
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

    def _stack(self, blocks: Any) -> None:
        k, size = blocks.shape[:2]
        if blocks.shape[2] != size or np.abs(blocks - blocks.swapaxes(1, 2)).max() > 1e-14 * (
            np.abs(blocks).max()
        ):
            raise ValidationError(
                f"blocks of shape {blocks.shape} are not square and symmetric",
                argument="blocks",
                shape=blocks.shape,
            )
        try:
            roots = np.linalg.cholesky(blocks)
        except np.linalg.LinAlgError:
            lowest = float(np.linalg.eigvalsh(blocks).min())
            raise indefinite("a block", f"smallest eigenvalue {lowest!r}", lowest) from None
        self.blocks, self.n, self.stored = blocks, k * size, blocks.size
        self._inverse_roots = np.linalg.solve(roots, np.eye(size))
        self._logdet = 2.0 * float(np.log(np.diagonal(roots, axis1=1, axis2=2)).sum())

    @property
    def natural_sparsity(self) -> float:
        if self._inverse_roots is not None:
            return 1.0 - 1.0 / len(self.blocks)
        filled = sum(block.n**2 * (1.0 - block.natural_sparsity) for block in self.blocks)
        return 1.0 - float(filled) / self.n**2

    def _each(self, v: Any, name: str) -> Any:
        pairs = zip(self.blocks, self._ranges, strict=True)
        return np.concatenate([getattr(block, name)(v[rows]) for block, rows in pairs])

    def _stacked(self, v: Any) -> Any:
        return v.reshape(len(self.blocks), self.blocks.shape[1], -1)

    def _matvec(self, v: Any) -> Any:
        if self._inverse_roots is None:
            return self._each(v, "_matvec")
        return (self.blocks @ self._stacked(v)).reshape(v.shape)

    def _solve(self, v: Any) -> Any:
        if self._inverse_roots is None:
            return self._each(v, "_solve")
        back = self._inverse_roots
        return (back.swapaxes(1, 2) @ (back @ self._stacked(v))).reshape(v.shape)

    def logdet(self) -> float:
        if self._inverse_roots is not None:
            return self._logdet
        return float(sum(block.logdet() for block in self.blocks))

    def trace(self) -> float:
        if self._inverse_roots is not None:
            return float(np.trace(self.blocks, axis1=1, axis2=2).sum())
        return float(sum(block.trace() for block in self.blocks))

    def to_dense(self) -> Any:
        full = np.zeros((self.n, self.n))
        if self._inverse_roots is not None:
            size = self.blocks.shape[1]
            for k, block in enumerate(self.blocks):
                full[k * size : (k + 1) * size, k * size : (k + 1) * size] = block
            return full
        for block, rows in zip(self.blocks, self._ranges, strict=True):
            full[rows, rows] = block.to_dense()
        return full


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
