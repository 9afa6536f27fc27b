"""Rows of a writer on their way to a client: as they are, or in buckets where they are too many.

A bucket keeps of each metric the least and greatest finite value and their mean, and counts NaN and
±inf: no spike is lost by thinning. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from qigstore.records import TelemetryRow

__all__ = ["Bucket", "Pending", "thin"]


@dataclass(slots=True)
class _Summary:
    low: float = math.inf
    high: float = -math.inf
    total: float = 0.0
    finite: int = 0
    nans: int = 0
    infs: int = 0

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self.low, self.high = min(self.low, value), max(self.high, value)
            self.total += value
            self.finite += 1
        elif math.isnan(value):
            self.nans += 1
        else:
            self.infs += 1

    def join(self, other: _Summary) -> None:
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.total += other.total
        self.finite += other.finite
        self.nans += other.nans
        self.infs += other.infs

    def shown(self) -> dict[str, Any]:
        if not self.finite:
            shown: dict[str, Any] = {"min": None, "max": None, "mean": None}
        else:
            mean = self.total / self.finite
            if not math.isfinite(mean):  # the sum overflowed: no mean lies outside the extremes
                mean = self.low / 2 + self.high / 2
            shown = {"min": self.low, "max": self.high, "mean": mean}
        shown["count"] = self.finite
        if self.nans or self.infs:
            shown |= {"nans": self.nans, "infs": self.infs}
        return shown


@dataclass(slots=True)
class Bucket:
    """Neighbouring rows as one point."""

    rows: int = 0
    first_step: int = 0
    last_step: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None
    regime: str | None = None
    metrics: dict[str, _Summary] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[TelemetryRow], metrics: frozenset[str] | None) -> Bucket:
        """Rows by sequence number, at least one."""
        steps = [row.step for row in rows]
        made = cls(
            len(rows), min(steps), max(steps), rows[0].recorded_at, rows[-1].recorded_at,
            rows[-1].regime,
        )  # fmt: skip
        for row in rows:
            for name, value in _chosen(row.metrics, metrics):
                summary = made.metrics.get(name)
                if summary is None:
                    summary = made.metrics[name] = _Summary()
                summary.add(value)
        return made

    def join(self, later: Bucket) -> None:
        """Take in the rows of a later one."""
        self.rows += later.rows
        self.first_step = min(self.first_step, later.first_step)
        self.last_step = max(self.last_step, later.last_step)
        self.last_at, self.regime = later.last_at, later.regime
        for name, summary in later.metrics.items():
            self.metrics.setdefault(name, _Summary()).join(summary)

    def shown(self) -> dict[str, Any]:
        """As an envelope shows it."""
        return {
            "rows": self.rows,
            "first_step": self.first_step,
            "last_step": self.last_step,
            "first_at": _time(self.first_at),
            "last_at": _time(self.last_at),
            "regime": self.regime,
            "metrics": {name: summary.shown() for name, summary in self.metrics.items()},
        }


def thin(buckets: list[Bucket], most: int) -> list[Bucket]:
    """At most so many, neighbours joined; the buckets given are used up."""
    while len(buckets) > most:
        pairs = zip(buckets[::2], buckets[1::2], strict=False)
        for one, later in pairs:
            one.join(later)
        buckets = buckets[::2]
    return buckets


class Pending:
    """Rows of one writer that wait: in memory that does not grow with their number."""

    def __init__(self, metrics: frozenset[str] | None, most: int) -> None:
        self._metrics, self._most = metrics, most
        self._rows: list[TelemetryRow] = []
        self._buckets: list[Bucket] = []

    def add(self, rows: Sequence[TelemetryRow]) -> None:
        """Take in later rows."""
        if not self._buckets and len(self._rows) + len(rows) <= self._most:
            self._rows.extend(rows)
            return
        together = [*self._rows, *rows]
        self._rows = []
        if together:
            width = -(-len(together) // self._most)
            starts = range(0, len(together), width)
            new = [Bucket.of(together[at : at + width], self._metrics) for at in starts]
            self._buckets = thin(self._buckets + new, self._most)

    def __len__(self) -> int:
        return len(self._rows) + len(self._buckets)

    def shown(self) -> dict[str, Any]:
        """`rows`, or `buckets`."""
        if self._buckets:
            return {"buckets": [bucket.shown() for bucket in self._buckets]}
        return {"rows": [_row(row, self._metrics) for row in self._rows]}


def _chosen(
    given: Mapping[str, float], metrics: frozenset[str] | None
) -> Iterable[tuple[str, float]]:
    if metrics is None:
        return given.items()
    return ((name, value) for name, value in given.items() if name in metrics)


def _row(row: TelemetryRow, metrics: frozenset[str] | None) -> dict[str, Any]:
    return {
        "step": row.step,
        "seq": row.seq,
        "at": _time(row.recorded_at),
        "regime": row.regime,
        "metrics": dict(_chosen(row.metrics, metrics)),
    }


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat()
