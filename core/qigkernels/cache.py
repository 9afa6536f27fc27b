"""Caches that never return another state's value.

Keys are the exact bytes of the arguments: a rounded key returns the value of a neighbouring state,
and rounding costs more than it saves. What repeats in practice is the *reference*: its factor is
cached too, which halves the cost of every drift from it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from qigkernels._arrays import as_array, to_numpy
from qigkernels._errors import ValidationError
from qigkernels.states import ReferenceState, qfi_matrix

__all__ = ["CachedQFI"]

_Key = tuple[Any, ...]


class CachedQFI:
    """Bounded, thread-safe LRU of quantum Fisher information and of reference factors.

    Args:
        cache_size: entries kept.
        bytes_max: bytes of keys and values kept; the oldest go first.
        references_max: reference states whose factors are kept.

    Raises:
        ValidationError: a bound below 1.

    >>> cache = CachedQFI(cache_size=8)
    >>> rho, sigma = np.diag([0.5, 0.5]), np.diag([0.6, 0.4])
    >>> cache.compute_qfi(rho, sigma) == cache.compute_qfi(rho, sigma)
    True
    >>> cache.get_stats()["hits"]
    1
    """

    def __init__(
        self, cache_size: int = 1000, *, bytes_max: int = 64 * 2**20, references_max: int = 32
    ) -> None:
        for name, bound in (
            ("cache_size", cache_size),
            ("bytes_max", bytes_max),
            ("references_max", references_max),
        ):
            if bound < 1:
                raise ValidationError(
                    f"{name} must be at least 1, got {bound!r}", argument=name, value=bound
                )
        self.cache_size, self.bytes_max, self.references_max = cache_size, bytes_max, references_max
        self._lock = threading.Lock()
        self._values: OrderedDict[_Key, tuple[Any, int]] = OrderedDict()
        self._references: OrderedDict[_Key, ReferenceState] = OrderedDict()
        self._bytes = 0
        self._hits = self._misses = self._evictions = 0

    def compute_qfi(self, rho: Any, sigma: Any) -> float:
        """Fisher information of the unit step from ρ to σ: 4·d_B(ρ, σ)².

        4·d_B²/dt² tends to the SLD quantum Fisher information as the step dt goes to 0.

        Args:
            rho, sigma: `(n, n)`, states.

        Returns:
            a number in [0, 8].

        Raises:
            ValidationError: not one pair of states.
        """
        first, second = _one("rho", rho), _one("sigma", sigma)
        key = ("step", *_exact(first), *_exact(second))
        return float(
            self._value(key, lambda: 4.0 * self._reference(first).bures_distance(second) ** 2)
        )

    def compute_matrix(self, rho: Any, drho: Any) -> Any:
        """`states.qfi_matrix(rho, drho)`, cached; the array returned is read-only.

        Args:
            rho: `(n, n)`. drho: `(p, n, n)`.
        """
        first = _one("rho", rho)
        second = to_numpy(as_array("drho", drho, complex_too=True))
        key = ("matrix", *_exact(first), *_exact(second))

        def compute() -> Any:
            found = np.array(qfi_matrix(first, second))
            found.flags.writeable = False
            return found

        return self._value(key, compute)

    def drift(self, reference: Any, sigma: Any) -> Any:
        """Bures distance of `(..., n, n)` states from a reference whose factor is cached."""
        return self._reference(_one("reference", reference)).bures_distance(sigma)

    def invalidate(self, rho: Any) -> int:
        """Forget every value and factor that has this state as its first argument; how many."""
        wanted = _exact(_one("rho", rho))
        with self._lock:
            stale = [key for key in self._values if key[1:4] == wanted]
            for key in stale:
                self._bytes -= self._values.pop(key)[1]
            forgotten = self._references.pop(wanted, None)
        return len(stale) + (forgotten is not None)

    def get_stats(self) -> dict[str, Any]:
        """Hits, misses, evictions, hit rate (None before the first query), size and bounds."""
        with self._lock:
            queries = self._hits + self._misses
            return {
                "total_queries": queries,
                "hits": self._hits,
                "misses": self._misses,
                "evictions": self._evictions,
                "hit_rate": self._hits / queries if queries else None,
                "cache_size": len(self._values),
                "cache_capacity": self.cache_size,
                "bytes": self._bytes,
                "bytes_max": self.bytes_max,
                "references": len(self._references),
            }

    def clear_cache(self) -> None:
        """Forget everything, the counts too."""
        with self._lock:
            self._values.clear()
            self._references.clear()
            self._bytes = self._hits = self._misses = self._evictions = 0

    def _value(self, key: _Key, compute: Callable[[], Any]) -> Any:
        with self._lock:
            if key in self._values:
                self._hits += 1
                self._values.move_to_end(key)
                return self._values[key][0]
            self._misses += 1
        # Outside the lock: two threads may compute one value, and both find the same.
        found = compute()
        size = sum(len(part) for part in key if isinstance(part, bytes)) + np.asarray(found).nbytes
        with self._lock:
            if key not in self._values and size <= self.bytes_max:
                self._values[key] = (found, size)
                self._bytes += size
            while len(self._values) > self.cache_size or self._bytes > self.bytes_max:
                self._bytes -= self._values.popitem(last=False)[1][1]
                self._evictions += 1
        return found

    def _reference(self, rho: Any) -> ReferenceState:
        key = _exact(rho)
        with self._lock:
            if key in self._references:
                self._references.move_to_end(key)
                return self._references[key]
        state = ReferenceState(rho)
        with self._lock:
            self._references[key] = state
            while len(self._references) > self.references_max:
                self._references.popitem(last=False)
        return state


def _one(name: str, rho: Any) -> Any:
    rho = to_numpy(as_array(name, rho, complex_too=True))
    if rho.ndim != 2:
        raise ValidationError(
            f"{name} has shape {rho.shape}; expected one matrix (n, n)",
            argument=name,
            shape=rho.shape,
        )
    return rho


def _exact(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    return (array.dtype.str, array.shape, array.tobytes())
