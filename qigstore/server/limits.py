"""How fast one may ask: a bucket of tokens for each asker, in memory that does not grow."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

__all__ = ["RateLimit"]

_ASKERS_MAX = 4096


class RateLimit:
    """So many requests a second for each asker in the long run, `burst` at once after a pause.

    The askers that were seen last are known; whoever is forgotten starts with a full bucket.
    """

    def __init__(
        self, per_s: float, burst: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.per_s, self.burst, self._clock = per_s, float(burst), clock
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        self._lock = Lock()

    def take(self, asker: Hashable) -> float:
        """Count a request; 0 where it is allowed, else the seconds until one would be."""
        with self._lock:
            now = self._clock()
            left, at = self._buckets.pop(asker, (self.burst, now))
            left = min(self.burst, left + (now - at) * self.per_s)
            allowed = left >= 1
            self._buckets[asker] = (left - allowed, now)
            while len(self._buckets) > _ASKERS_MAX:
                self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self.per_s
