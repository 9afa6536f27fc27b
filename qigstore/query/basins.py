"""Where the basin went, and what came near it: projected paths, and nearest recorded basins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qigstore.errors import InvalidInput
from qigstore.query.checks import check_bounded, check_span
from qigstore.query.projection import project_path
from qigstore.query.results import Neighbour, Neighbours, Trajectory
from qigstore.query.spans import find_timeline, spans_of
from qigstore.recording.geometry import check_basin

if TYPE_CHECKING:
    from qigstore.repository import Span, Store
    from qigstore.repository.basins import SampledRow

__all__ = ["DIMENSIONS", "NEIGHBOURS_MAX", "PATH_POINTS_MAX", "nearest", "trajectory"]

DIMENSIONS = (2, 3)
"""What a path may be projected to."""
PATH_POINTS_MAX = 10_000
"""Steps of one trajectory."""
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
    check_bounded("points", points, PATH_POINTS_MAX)
    check_span(start, stop)
    if dimensions not in DIMENSIONS:
        raise InvalidInput("dimensions", dimensions, " or ".join(map(str, DIMENSIONS)))
    timeline = find_timeline(store, session)
    spans = spans_of(timeline, attempt, rank=rank, start=start, stop=stop)
    found = store.basins.sample(timeline.session_id, _cells(spans, points))
    found.sort(key=lambda row: row.step)  # a shared span lies among others
    rows = [found[i] for i in _evenly(len(found), points)]
    path, explained = _path(rows, dimensions)
    return Trajectory(
        session=session,
        attempt=attempt,
        rank=rank,
        attempts=np.array([row.attempt for row in rows], np.int64),
        step=np.array([row.step for row in rows], np.int64),
        time=tuple(row.recorded_at for row in rows),
        phi=np.array([row.phi for row in rows], np.float64),
        kappa_eff=np.array([row.kappa_eff for row in rows], np.float64),
        regime=tuple(row.regime for row in rows),
        path=path,
        explained=explained,
    )


def _cells(spans: Sequence[Span], points: int) -> list[Span]:
    """The spans cut at equal distances, into about `points` cells."""
    if not spans:
        return []
    first = min(span.start for span in spans)
    width = -(-(max(span.stop for span in spans) - first) // points)
    cells = []
    for span in spans:
        cut = first + (span.start - first) // width * width
        while cut < span.stop:
            cell = (max(cut, span.start), min(cut + width, span.stop))
            cells.append(span._replace(start=cell[0], stop=cell[1]))
            cut += width
    return cells


def _evenly(count: int, most: int) -> list[int]:
    """Up to `most` places of `count`, the first and the last among them."""
    if count <= most:
        return list(range(count))
    places = np.unique(np.linspace(0, count - 1, most).round().astype(np.int64))
    return [int(place) for place in places]


def _path(rows: Sequence[SampledRow], dimensions: int) -> tuple[NDArray[np.float64], Any]:
    """The projected basins, NaN where there is none, or one of another size than the newest."""
    path = np.full((len(rows), dimensions), np.nan)
    size = next((len(row.root) for row in reversed(rows) if row.root is not None), 0)
    some = [i for i, row in enumerate(rows) if row.root is not None and len(row.root) == size]
    roots = np.array([rows[i].root for i in some], np.float64).reshape(len(some), size)
    path[some], explained = project_path(roots, dimensions)
    return path, explained


def nearest(
    store: Store, basin: Any, *, k: int = 10, session: str | None = None, exact: bool = False
) -> Neighbours:
    """The `k` recorded basins nearest to a distribution by Fisher-Rao distance.

    d(p, q) = 4·arcsin(‖√p − √q‖ / 2). Every basin is compared; or, where all sessions are searched,
    they hold more than 100,000 and pgvector's index is there (`qigstore db index-basins`), only
    that index's candidates.

    Args:
        basin: (n,), a distribution; basins of another dimension are left out.
        session: search only this one.
        exact: compare every basin also where the index is there.

    Raises:
        NotFound: there is no such session.
        InvalidInput: the basin is no distribution, or `k` is out of 1 to `NEIGHBOURS_MAX`.
    """
    check_bounded("k", k, NEIGHBOURS_MAX)
    root = np.sqrt(check_basin(basin))
    session_id = None if session is None else find_timeline(store, session).session_id
    compared, found = store.basins.nearest(root, k, session_id, exact=exact)
    return Neighbours(
        "exact" if compared else "index",
        tuple(
            Neighbour(each.session, each.attempt, each.rank, each.step, _distance(each.chord))
            for each in found
        ),
    )


def _distance(chord: float) -> float:
    """The Fisher-Rao distance of two distributions whose roots are so far apart."""
    return 4.0 * math.asin(min(chord / 2.0, 1.0))
