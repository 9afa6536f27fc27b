"""What the server counts of itself, for `/metrics`."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

__all__ = ["Meters"]

# What a client may call its method has no bound; what is kept here does.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEBSOCKET"})


class Meters:
    """Counts of requests; any number of threads may add to them.

    Attributes:
        open: requests that are open now. streams: the same of streams, which count apart.
        started_at: Unix seconds.
    """

    def __init__(self) -> None:
        self.open = self.streams = 0
        self.started_at = time.time()
        self._lock = Lock()
        self._answers: Counter[tuple[str, str, int]] = Counter()
        self._seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._refusals: Counter[str] = Counter()

    @contextmanager
    def stream(self) -> Iterator[None]:
        """While the block lasts, its request is a stream."""
        self.open, self.streams = self.open - 1, self.streams + 1
        try:
            yield
        finally:
            self.open, self.streams = self.open + 1, self.streams - 1

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """An answer; `route` is the path with its parameters as names, so that kinds are few."""
        method = method if method in _METHODS else "OTHER"
        with self._lock:
            self._answers[method, route, status] += 1
            self._seconds[method, route] += seconds

    def count_refusal(self, why: str) -> None:
        """A request that was refused at the gate, or for its token."""
        with self._lock:
            self._refusals[why] += 1

    def answers(self) -> dict[tuple[str, str, int], int]:
        """Answers by method, route and status."""
        with self._lock:
            return dict(self._answers)

    def seconds(self) -> dict[tuple[str, str], float]:
        """Time that answers took, by method and route."""
        with self._lock:
            return dict(self._seconds)

    def refusals(self) -> dict[str, int]:
        """Refusals by why."""
        with self._lock:
            return dict(self._refusals)
