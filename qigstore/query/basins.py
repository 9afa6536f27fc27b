"""Where the basin went, and what came near it: projected paths, and nearest recorded basins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qigstore.query.results import Neighbours, Trajectory

if TYPE_CHECKING:
    from qigstore.repository import Store

__all__ = ["DIMENSIONS", "NEIGHBOURS_MAX", "nearest", "trajectory"]

DIMENSIONS = (2, 3)
"""What a path may be projected to."""
NEIGHBOURS_MAX = 1000
"""Neighbours that may be asked for at once."""


def trajectory(
    store: Store,
    session: str,
    *,
    attempt: int | None = None,
    rank: int = 0,
    start: int = 0,
    stop: int | None = None,
    points: int = 1000,
    dimensions: int = 2,
) -> Trajectory:
    """Φ, κ, regime and basin at up to `points` steps spread evenly, the basin's path projected.

    The projection is a principal component analysis of √p in the plane tangent to the sphere of
    radius 2 at the path's centre, so that lengths near the centre are Fisher-Rao lengths.

    Raises:
        NotFound: there is no such session.
        InvalidInput: a span that is reversed or negative, `points` out of range, or `dimensions`
            other than 2 and 3.
    """
    raise NotImplementedError


def nearest(store: Store, basin: Any, *, k: int = 10, session: str | None = None) -> Neighbours:
    """The `k` recorded basins nearest to a distribution by Fisher-Rao distance.

    d(p, q) = 4·arcsin(‖√p − √q‖ / 2). Exact; or, where an index of pgvector is there
    (`qigstore db index-basins`) and all sessions are searched, from its candidates.

    Args:
        basin: (n,), a distribution; basins of another dimension are left out.
        session: search only this one.

    Raises:
        NotFound: there is no such session.
        InvalidInput: the basin is no distribution, or `k` is out of 1 to `NEIGHBOURS_MAX`.
    """
    raise NotImplementedError
