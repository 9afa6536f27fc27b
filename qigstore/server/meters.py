"""What the server counts of itself, for `/metrics`."""

from __future__ import annotations

import time
from collections import Counter
from threading import Lock

__all__ = ["Meters"]


class Meters:
    """Counts of requests; any number of threads may add to them.

    Attributes:
        open: requests and streams that are open now.
        started_at: Unix seconds.
    """

    def __init__(self) -> None:
        self.open = 0
        self.started_at = time.time()
        self._lock = Lock()
        self._answers: Counter[tuple[str, str, int]] = Counter()
        self._seconds: Counter[tuple[str, str]] = Counter()
        self._refusals: Counter[str] = Counter()

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """An answer; `route` is the path with its parameters as names, so that kinds are few."""
        with self._lock:
            self._answers[method, route, status] += 1
            self._seconds[method, route] += seconds  # type: ignore[assignment]

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
