"""Questions to what was recorded: curves of any length, newest rows, pages, paths, neighbours.

Each function takes an open `Store` first and answers with a frozen record; those that are tables
have `to_numpy`, `to_pandas`, `to_polars`, `to_arrow` (see `frames`). Every answer is bounded: by
`points`, `limit` or `k`, each with a named maximum.

curves     curve, compare
sessions   latest, statistics, regime_shares, rows
basins     trajectory, nearest
"""

from __future__ import annotations

from qigstore.query.basins import DIMENSIONS, NEIGHBOURS_MAX, PATH_POINTS_MAX, nearest, trajectory
from qigstore.query.curves import COMPARED_MAX, POINTS_MAX, compare, curve
from qigstore.query.frames import Frame
from qigstore.query.results import (
    By,
    Comparison,
    Curve,
    Latest,
    LatestRow,
    Neighbour,
    Neighbours,
    RegimeShares,
    RowPage,
    Statistics,
    Trajectory,
)
from qigstore.query.sessions import ROWS_MAX, latest, regime_shares, rows, statistics

__all__ = [
    "COMPARED_MAX",
    "DIMENSIONS",
    "NEIGHBOURS_MAX",
    "PATH_POINTS_MAX",
    "POINTS_MAX",
    "ROWS_MAX",
    "By",
    "Comparison",
    "Curve",
    "Frame",
    "Latest",
    "LatestRow",
    "Neighbour",
    "Neighbours",
    "RegimeShares",
    "RowPage",
    "Statistics",
    "Trajectory",
    "compare",
    "curve",
    "latest",
    "nearest",
    "regime_shares",
    "rows",
    "statistics",
    "trajectory",
]
