"""Whether the server lives, and its figures for Prometheus."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import Depends, Request
from starlette.responses import Response

from qigstore import query
from qigstore.records import STANDARD_METRICS, SessionInfo, TelemetryRow
from qigstore.server.api import route
from qigstore.server.api.route import ReadsAll, answers, encoded
from qigstore.server.api.shapes import Health
from qigstore.server.auth import unlisted, wiring_of
from qigstore.server.meters import Meters

__all__ = ["metrics_routes", "routes"]

routes = route.router("health")
metrics_routes = route.router("health", prefix="")

SESSIONS_MAX = 100
"""Sessions whose figures `/metrics` shows: the newest."""
_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


@routes.get(
    "/health",
    responses=answers(cached=False),
    response_model=Health,
    dependencies=[Depends(unlisted)],
)
def health(request: Request) -> Response:
    """Whether the server and its database answer; needs no token and says nothing else."""
    wiring_of(request.app).store.database.ping()
    return encoded({"status": "ok"})


@metrics_routes.get(
    "/metrics",
    responses={
        **answers(),
        200: {
            "description": "Figures in Prometheus' text format",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": "qigstore_up 1\n"}},
        },
    },
    response_class=Response,
)
def metrics(at: ReadsAll) -> Response:
    """Figures of the server and of the newest sessions that the token is for, for Prometheus."""
    found = at.store.sessions.list(SESSIONS_MAX, like=at.who.sessions)
    latest = {row.session: row.row for row in _latest(at, [one.name for one in found])}
    lines = [*_of_server(at.wiring.meters), *_of_sessions(found, latest)]
    return Response("\n".join([*lines, ""]), media_type=_FORMAT)


def _latest(at: ReadsAll, names: list[str]) -> Iterable[Any]:
    return query.latest(at.store, names, limit=SESSIONS_MAX).rows if names else ()


def _of_server(meters: Meters) -> Iterator[str]:
    yield from _family("qigstore_up", "gauge", "1: the server and its database answer.", [({}, 1)])
    counts = [
        ({"method": method, "route": path, "status": status}, number)
        for (method, path, status), number in meters.answers().items()
    ]
    yield from _family("qigstore_http_requests_total", "counter", "Answers.", counts)
    seconds = [
        ({"method": m, "route": path}, spent) for (m, path), spent in meters.seconds().items()
    ]
    words = "Seconds that answers took."
    yield from _family("qigstore_http_request_seconds_total", "counter", words, seconds)
    refusals = [({"why": why}, number) for why, number in meters.refusals().items()]
    words = "Requests refused at the gate, or for their token."
    yield from _family("qigstore_http_refusals_total", "counter", words, refusals)
    words = "Requests and streams that are open."
    yield from _family("qigstore_http_open_requests", "gauge", words, [({}, meters.open)])


def _of_sessions(found: list[SessionInfo], latest: Mapping[str, TelemetryRow]) -> Iterator[str]:
    now = datetime.now(UTC)
    figures: dict[str, tuple[str, list[tuple[dict[str, Any], float]]]] = {
        name: (words, [])
        for name, words in (
            ("running", "1: its newest attempt runs and is heard of."),
            ("attempts", "Process lives so far."),
            ("last_step", "The greatest step of the newest attempt that stored any."),
            ("silent_seconds", "Time since the last heartbeat or stored batch."),
            ("metric", "Standard metrics of the newest row."),
        )
    }
    for one in found:
        label = {"session": one.name}
        figures["running"][1].append((label, one.status == "running"))
        figures["attempts"][1].append((label, one.attempts))
        if one.last_step is not None:
            figures["last_step"][1].append((label, one.last_step))
        if one.last_seen_at is not None:
            silent = (now - one.last_seen_at).total_seconds()
            figures["silent_seconds"][1].append((label, silent))
        row = latest.get(one.name)
        measured = {} if row is None else row.metrics
        figures["metric"][1].extend(
            ({**label, "metric": name}, measured[name])
            for name in STANDARD_METRICS
            if name in measured
        )
    for name, (words, samples) in figures.items():
        yield from _family(f"qigstore_session_{name}", "gauge", words, samples)


def _family(
    name: str, kind: str, words: str, samples: Iterable[tuple[Mapping[str, Any], float]]
) -> Iterator[str]:
    """One figure in Prometheus' text format, with each of its labels' values."""
    yield f"# HELP {name} {words}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        pairs = ",".join(f'{key}="{_label(text)}"' for key, text in labels.items())
        yield f"{name}{{{pairs}}} {_figure(value)}" if pairs else f"{name} {_figure(value)}"


def _label(text: Any) -> str:
    return str(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _figure(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
