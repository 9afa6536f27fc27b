"""The endpoints under `/v1`, one file a noun; what they share (`route`) and answer (`shapes`).

None of them owns logic: each asks the store, `query` or `recovery`, and encodes what comes back.
"""

from __future__ import annotations

from qigstore.server.api import (
    attempts,
    audit,
    basins,
    checkpoints,
    curves,
    events,
    health,
    ingest,
    recovery,
    rows,
    sessions,
    stops,
)

__all__ = ["ROUTES"]

ROUTES = (
    sessions.routes,
    curves.routes,
    basins.routes,
    rows.routes,
    events.routes,
    checkpoints.routes,
    recovery.routes,
    stops.routes,
    attempts.routes,
    ingest.routes,
    audit.routes,
    health.routes,
    health.metrics_routes,
)
"""Every router of the application but the stream's."""
