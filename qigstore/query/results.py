"""What the questions answer with: frozen records, most of them frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from qigstore.query.frames import Column, Frame
from qigstore.records import STANDARD_METRICS, AttemptInfo, SessionInfo, TelemetryRow
from qigstore.repository import RowCount

__all__ = [
    "By",
    "Comparison",
    "Curve",
    "Latest",
    "LatestRow",
    "Neighbour",
    "Neighbours",
    "RegimeShares",
    "RowPage",
    "Statistics",
    "Trajectory",
]

By = Literal["step", "wall", "relative"]
"""The x axis: the step, seconds since 1970 (UTC), or seconds since the first one's record."""

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Curve(Frame):
    """A metric over steps: buckets by step, in which every stored value is counted once.

    Attributes:
        session, metric: what was asked for.
        attempt: its number; None: the canonical timeline.
        rank: from 0; None: all ranks together.
        by: what `x` is.
        start, stop: (n,), the steps [start, stop) of each bucket; stop = start + 1: one step.
        x: (n,), of the first row of each bucket: its step, or when it was recorded, in seconds.
        low, high, mean: (n,), of the finite values; NaN where there is none.
        finite, nans, infs: (n,), how many values were finite, NaN and ±inf.
    """

    session: str
    metric: str
    attempt: int | None
    rank: int | None
    by: By
    start: Integers
    stop: Integers
    x: Floats
    low: Floats
    high: Floats
    mean: Floats
    finite: Integers
    nans: Integers
    infs: Integers

    def about(self) -> dict[str, Any]:
        """Session, metric, attempt, rank and what x is."""
        names = ("session", "metric", "attempt", "rank", "by")
        return {name: getattr(self, name) for name in names}

    def columns(self) -> dict[str, Column]:
        """One row a bucket."""
        names = ("start", "stop", "x", "low", "high", "mean", "finite", "nans", "infs")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True, eq=False)
class Comparison(Frame):
    """One metric of several sessions, each with its own curve.

    Attributes:
        metric: its name. by: what the curves' `x` is.
        curves: by session, in the order asked for.
    """

    metric: str
    by: By
    curves: Mapping[str, Curve]

    def about(self) -> dict[str, Any]:
        """The metric and what x is."""
        return {"metric": self.metric, "by": self.by}

    def columns(self) -> dict[str, Column]:
        """All curves below each other, the session in the first column."""
        names = [name for name, curve in self.curves.items() for _ in range(len(curve))]
        parts = [curve.columns() for curve in self.curves.values()]
        joined = {
            column: np.concatenate([np.asarray(part[column]) for part in parts])
            for column in (parts[0] if parts else ())
        }
        return {"session": names, **joined}


@dataclass(frozen=True, slots=True)
class LatestRow:
    """The newest row of a session."""

    session: str
    row: TelemetryRow


@dataclass(frozen=True, slots=True, eq=False)
class Latest(Frame):
    """The newest row of each session that has one."""

    rows: tuple[LatestRow, ...]

    def about(self) -> dict[str, Any]:
        """Nothing: the sessions are a column."""
        return {}

    def columns(self) -> dict[str, Column]:
        """One row a session."""
        found = [each.row for each in self.rows]
        return {"session": [each.session for each in self.rows], **_columns_of(found)}


@dataclass(frozen=True, slots=True, eq=False)
class RowPage(Frame):
    """Telemetry rows by attempt, rank and step, one page of them.

    Attributes:
        next: the cursor of the page after this one; None: this was the last.
    """

    session: str
    rows: tuple[TelemetryRow, ...]
    next: str | None

    def about(self) -> dict[str, Any]:
        """The session and the next page's cursor."""
        return {"session": self.session, "next": self.next}

    def columns(self) -> dict[str, Column]:
        """One row a row; a metric that was not measured is None."""
        return _columns_of(self.rows)


@dataclass(frozen=True, slots=True)
class Statistics:
    """A session in numbers.

    Attributes:
        session: its name, status, last step and when it was last heard of.
        rows, repeated_rows: telemetry rows, and records replaced by a later one of their step.
        first_step: of any attempt.
        checkpoints: committed ones. best_*: of the one with the greatest finite Φ.
        critical, warning, info: events.
        attempts: by number. counts: rows of each attempt and rank, with first and last step.
        metrics: names of what it has, the standard metrics first.
    """

    session: SessionInfo
    rows: int
    repeated_rows: int
    first_step: int | None
    checkpoints: int
    best_phi: float | None
    best_step: int | None
    best_checkpoint: UUID | None
    critical: int
    warning: int
    info: int
    attempts: tuple[AttemptInfo, ...]
    counts: tuple[RowCount, ...]
    metrics: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory(Frame):
    """Φ, κ, regime and the path of the basin at steps evenly spread over a session.

    Attributes:
        attempts, step: (n,), which row. time: n, when it was recorded.
        phi, kappa_eff: (n,), NaN where not measured. regime: n, names or None.
        path: (n, d), the basin in the plane (or space) of the path's greatest extent, in radians
            of Fisher-Rao distance from its centre; NaN where no basin was recorded.
        explained: (d,), share of the path's variance along each axis.
    """

    session: str
    attempt: int | None
    rank: int
    attempts: Integers
    step: Integers
    time: tuple[datetime, ...]
    phi: Floats
    kappa_eff: Floats
    regime: tuple[str | None, ...]
    path: Floats
    explained: Floats

    def about(self) -> dict[str, Any]:
        """Session, attempt, rank and how much of the path the axes show."""
        told = {name: getattr(self, name) for name in ("session", "attempt", "rank")}
        return told | {"explained": self.explained.tolist()}

    def columns(self) -> dict[str, Column]:
        """One row a step; the axes of the path are x, y, z."""
        axes = {name: self.path[:, i] for i, name in enumerate("xyz"[: self.path.shape[1]])}
        return {
            "attempt": self.attempts,
            "step": self.step,
            "time": self.time,
            "phi": self.phi,
            "kappa_eff": self.kappa_eff,
            "regime": self.regime,
            **axes,
        }


@dataclass(frozen=True, slots=True, eq=False)
class RegimeShares(Frame):
    """How many rows of a session were in each regime; None: in no known one."""

    session: str
    attempt: int | None
    rank: int
    regime: tuple[str | None, ...]
    rows: Integers
    share: Floats

    def about(self) -> dict[str, Any]:
        """Session, attempt and rank."""
        return {name: getattr(self, name) for name in ("session", "attempt", "rank")}

    def columns(self) -> dict[str, Column]:
        """One row a regime, the most frequent first."""
        return {"regime": self.regime, "rows": self.rows, "share": self.share}


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A recorded basin, and its Fisher-Rao distance (radians, 0 to π) from the one asked for."""

    session: str
    attempt: int
    rank: int
    step: int
    distance: float


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours(Frame):
    """The nearest recorded basins, the nearest first.

    Attributes:
        how: "exact": every basin was compared; "index": candidates came from pgvector's index,
            which may miss one, and were ordered by their exact distance.
    """

    how: Literal["exact", "index"]
    found: tuple[Neighbour, ...]

    def about(self) -> dict[str, Any]:
        """How they were found."""
        return {"how": self.how}

    def columns(self) -> dict[str, Column]:
        """One row a basin."""
        names = ("session", "attempt", "rank", "step", "distance")
        return {name: [getattr(each, name) for each in self.found] for name in names}


def _columns_of(rows: tuple[TelemetryRow, ...] | list[TelemetryRow]) -> dict[str, Column]:
    fixed = ("attempt", "rank", "step", "seq", "recorded_at", "regime")
    used = {name for row in rows for name in row.metrics}
    names = [name for name in STANDARD_METRICS if name in used]
    names += sorted(used.difference(names))
    columns: dict[str, Column] = {name: [getattr(row, name) for row in rows] for name in fixed}
    # A custom metric may have the name of a column of ours; its own is then told apart.
    return columns | {
        f"metric {name}" if name in columns else name: [row.metrics.get(name) for row in rows]
        for name in names
    }
