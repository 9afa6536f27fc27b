"""What the answers look like, for the OpenAPI document: each shape with an example.

The answers themselves are made by the one encoder from the store's records; that they have these
shapes is what the tests of the document compare.
"""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from qigstore.encoding import NON_FINITE
from qigstore.query import By
from qigstore.records import AttemptStatus, CheckpointKind, CheckpointStatus, Severity

__all__ = [
    "AcceptedRows",
    "Attempt",
    "AuditEntry",
    "Beat",
    "CandidateShape",
    "CheckpointShape",
    "Claimed",
    "ComparisonShape",
    "CurveShape",
    "DecisionShape",
    "EventShape",
    "Health",
    "LatestShape",
    "NeighboursShape",
    "Number",
    "ProblemShape",
    "RegimeSharesShape",
    "Row",
    "RowPageShape",
    "SessionShape",
    "StatisticsShape",
    "TrajectoryShape",
    "Verified",
    "Writer",
    "shaped",
]

Number = Annotated[
    float | Literal["NaN", "Infinity", "-Infinity"],
    Field(description=f"A number; what JSON lacks is one of {', '.join(NON_FINITE)}."),
]
Maybe = Number | None
_ID = "5f0c2c4e-6c0a-4f0e-9a53-0c3d5b2f9b11"
_OTHER = "0b9d5a52-2c3f-4f0a-8b7e-4a5d1c7e2f60"
_AT = "2026-05-04T10:15:30+00:00"


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [fields]})


def shaped(shape: type[BaseModel], record: Any, **more: Any) -> dict[str, Any]:
    """The fields of a record that a shape names; `more` first."""
    known = {field.name for field in fields(record)}
    return {
        name: more[name] if name in more else getattr(record, name)
        for name in shape.model_fields
        if name in more or name in known
    }


_SESSION: dict[str, Any] = {
    "id": 7, "name": "ocean-7", "config": {"lr": 0.0003}, "created_at": _AT, "attempts": 2,
    "status": "running", "last_step": 1200, "last_seen_at": _AT,
}  # fmt: skip


class SessionShape(BaseModel):
    """A session, as it stands now."""

    model_config = _example(**_SESSION)
    id: int
    name: str
    config: dict[str, Any]
    created_at: datetime
    attempts: int
    status: AttemptStatus | None
    last_step: int | None
    last_seen_at: datetime | None


_ATTEMPT: dict[str, Any] = {
    "id": _ID, "session_id": 7, "number": 2, "status": "running", "host": "node-3", "pid": 4121,
    "started_at": _AT, "heartbeat_at": _AT,
    "heartbeat_limit_s": 30.0, "ended_at": None, "resumed_from": _OTHER,
    "resumed_step": 999, "reason": None, "exit_status": None, "config": {},
}  # fmt: skip


class Attempt(BaseModel):
    """One process life of a session."""

    model_config = _example(**_ATTEMPT)
    id: UUID
    session_id: int
    number: int
    status: AttemptStatus
    host: str
    pid: int
    started_at: datetime
    heartbeat_at: datetime
    heartbeat_limit_s: float
    ended_at: datetime | None
    resumed_from: UUID | None
    resumed_step: int | None
    reason: str | None
    exit_status: int | None
    config: dict[str, Any]


_COUNT: dict[str, Any] = {
    "attempt": 2, "rank": 0, "rows": 201, "first_step": 1000, "last_step": 1200
}  # fmt: skip


class RankCount(BaseModel):
    """How much one rank of one attempt stored."""

    model_config = _example(**_COUNT)
    attempt: int
    rank: int
    rows: int
    first_step: int
    last_step: int


class StatisticsShape(BaseModel):
    """A session in numbers, with its attempts."""

    model_config = _example(
        session=_SESSION, rows=1201, repeated_rows=0, first_step=0, checkpoints=3, best_phi=0.76,
        best_step=999, best_checkpoint=_OTHER, critical=1, warning=2, info=0, attempts=[_ATTEMPT],
        counts=[_COUNT], metrics=["loss", "phi"],
    )  # fmt: skip
    session: SessionShape
    rows: int
    repeated_rows: int
    first_step: int | None
    checkpoints: int
    best_phi: Maybe
    best_step: int | None
    best_checkpoint: UUID | None
    critical: int
    warning: int
    info: int
    attempts: list[Attempt]
    counts: list[RankCount]
    metrics: list[str]


_ROW: dict[str, Any] = {
    "attempt": 2, "rank": 0, "step": 1200, "seq": 201, "recorded_at": _AT, "regime": "geometric",
    "metrics": {"loss": 0.031, "phi": 0.74, "grad_norm": "NaN"},
}  # fmt: skip


class Row(BaseModel):
    """A telemetry row: what was measured at a step."""

    model_config = _example(**_ROW)
    attempt: int
    rank: int
    step: int
    seq: int
    recorded_at: datetime
    regime: str | None
    metrics: dict[str, Number]


class LatestShape(BaseModel):
    """The newest row of a session."""

    model_config = _example(session="ocean-7", row=_ROW)
    session: str
    row: Row


class RegimeSharesShape(BaseModel):
    """How many rows were in each regime, the most frequent first; null: in no known one."""

    model_config = _example(
        session="ocean-7", attempt=None, rank=0, regime=["geometric", None], rows=[900, 301],
        share=[0.749, 0.251],
    )  # fmt: skip
    session: str
    attempt: int | None
    rank: int
    regime: list[str | None]
    rows: list[int]
    share: list[Number]


class RowPageShape(BaseModel):
    """A page of rows; `next` goes into `after` of the page after it, null: this was the last."""

    model_config = _example(session="ocean-7", rows=[_ROW], next="MjowOjEyMDA")
    session: str
    rows: list[Row]
    next: str | None


_CURVE: dict[str, Any] = {
    "session": "ocean-7", "metric": "loss", "attempt": None, "rank": 0, "by": "step",
    "start": [0, 64], "stop": [64, 128], "x": [0.0, 64.0], "low": [0.31, 0.12],
    "high": [1.0, 0.35], "mean": [0.6, 0.2], "finite": [63, 64], "nans": [1, 0], "infs": [0, 0],
}  # fmt: skip


class CurveShape(BaseModel):
    """A metric over steps; element i of each list is a bucket, in which each value is once."""

    model_config = _example(**_CURVE)
    session: str
    metric: str
    attempt: int | None
    rank: int | None
    by: By
    start: list[int]
    stop: list[int]
    x: list[Number]
    low: list[Number]
    high: list[Number]
    mean: list[Number]
    finite: list[int]
    nans: list[int]
    infs: list[int]


class ComparisonShape(BaseModel):
    """One metric of several sessions."""

    model_config = _example(metric="loss", by="step", curves={"ocean-7": _CURVE})
    metric: str
    by: By
    curves: dict[str, CurveShape]


class TrajectoryShape(BaseModel):
    """Φ, κ, regime and the basin's projected path at steps spread evenly."""

    model_config = _example(
        session="ocean-7", attempt=None, rank=0, attempts=[1, 2], step=[0, 1200], time=[_AT, _AT],
        phi=[0.41, 0.74], kappa_eff=["NaN", 63.9], regime=["linear", "geometric"],
        path=[[-0.4, 0.0], [0.4, 0.0]], explained=[1.0, 0.0],
    )  # fmt: skip
    session: str
    attempt: int | None
    rank: int
    attempts: list[int]
    step: list[int]
    time: list[datetime]
    phi: list[Number]
    kappa_eff: list[Number]
    regime: list[str | None]
    path: list[list[Number]]
    explained: list[Number]


_NEIGHBOUR: dict[str, Any] = {
    "session": "ocean-7", "attempt": 2, "rank": 0, "step": 1200, "distance": 0.013
}  # fmt: skip


class NeighbourShape(BaseModel):
    """A recorded basin and its Fisher-Rao distance in radians."""

    model_config = _example(**_NEIGHBOUR)
    session: str
    attempt: int
    rank: int
    step: int
    distance: Number


class NeighboursShape(BaseModel):
    """The nearest recorded basins, the nearest first."""

    model_config = _example(how="exact", found=[_NEIGHBOUR])
    how: Literal["exact", "index"]
    found: list[NeighbourShape]


_EVENT: dict[str, Any] = {
    "id": _ID, "session_id": 7, "attempt": 2, "rank": 0, "step": 1201, "rule": "finite",
    "severity": "critical", "message": "loss is NaN", "raised_at": _AT, "metric": "loss",
    "value": "NaN", "threshold": None, "action": "abort", "checkpoint_id": None, "detail": {},
    "acknowledged_at": None, "resolved_at": None,
}  # fmt: skip


class EventShape(BaseModel):
    """What a rule, a signal or a person raised."""

    model_config = _example(**_EVENT)
    id: UUID
    session_id: int
    attempt: int
    rank: int
    step: int | None
    rule: str
    severity: Severity
    message: str
    raised_at: datetime
    metric: str | None
    value: Maybe
    threshold: Maybe
    action: str | None
    checkpoint_id: UUID | None
    detail: dict[str, Any]
    acknowledged_at: datetime | None
    resolved_at: datetime | None


_CHECKPOINT: dict[str, Any] = {
    "id": _OTHER, "session_id": 7, "attempt": 1, "step": 999, "kind": "regular",
    "status": "committed", "bytes": 501_243_904, "digest": "16614aa6b947" + 52 * "0",
    "weights_finite": True, "created_at": _AT, "phi": 0.76, "kappa_eff": 63.9,
    "regime": "geometric", "verified_at": None, "status_reason": None, "metadata": {},
}  # fmt: skip


class CheckpointShape(BaseModel):
    """A committed state of a session; where it lies on the server's disk is not told."""

    model_config = _example(**_CHECKPOINT)
    id: UUID
    session_id: int
    attempt: int
    step: int
    kind: CheckpointKind
    status: CheckpointStatus
    bytes: int
    digest: str
    weights_finite: bool
    created_at: datetime
    phi: Maybe
    kappa_eff: Maybe
    regime: str | None
    verified_at: datetime | None
    status_reason: str | None
    metadata: dict[str, Any]


_CANDIDATE: dict[str, Any] = {
    "checkpoint": _CHECKPOINT, "healthy": True, "reason": "highest Φ (Φ 0.7600)"
}  # fmt: skip


class CandidateShape(BaseModel):
    """A checkpoint as recovery sees it: fit to load or not, and why."""

    model_config = _example(**_CANDIDATE)
    checkpoint: CheckpointShape
    healthy: bool
    reason: str


class DecisionShape(BaseModel):
    """What recovery would choose, from what, and why."""

    model_config = _example(
        session="ocean-7", policy="best", chosen=_CHECKPOINT, candidates=[_CANDIDATE],
        reason="highest Φ (Φ 0.7600) and the only healthy one", skip_steps=[1190, 1250],
        decided_at=_AT,
    )  # fmt: skip
    session: str
    policy: str
    chosen: CheckpointShape | None
    candidates: list[CandidateShape]
    reason: str
    skip_steps: list[int] | None
    decided_at: datetime


class Verified(BaseModel):
    """Whether every byte of a checkpoint is what was saved; if not, what differs."""

    model_config = _example(id=_OTHER, sound=True, problem=None)
    id: UUID
    sound: bool
    problem: str | None


_WRITER: dict[str, Any] = {
    "id": _ID, "epoch": 1, "acked_seq": 200, "stored_rows": 200, "repeated_rows": 0,
    "max_step": 1199,
}  # fmt: skip


class Writer(BaseModel):
    """How far a writer came: everything up to `acked_seq` is stored or settled."""

    model_config = _example(**_WRITER)
    id: UUID
    epoch: int
    acked_seq: int
    stored_rows: int
    repeated_rows: int
    max_step: int | None


class Claimed(BaseModel):
    """The attempt that was opened, and its writer: what `ingest` asks for."""

    model_config = _example(session="ocean-7", attempt=_ATTEMPT, rank=0, writer=_WRITER)
    session: str
    attempt: Attempt
    rank: int
    writer: Writer


class AcceptedRows(BaseModel):
    """What one batch did: 0 rows where it was stored already."""

    model_config = _example(rows=100, repeated=0, acked_seq=300)
    rows: int
    repeated: int
    acked_seq: int


class Beat(BaseModel):
    """Whether the attempt is still open, and the request to stop, where there is one."""

    model_config = _example(alive=True, stop=None)
    alive: bool
    stop: EventShape | None


class Health(BaseModel):
    """The server answers, and so does its database."""

    model_config = _example(status="ok")
    status: Literal["ok"]


class AuditEntry(BaseModel):
    """Who asked for what."""

    model_config = _example(
        id=12, at=_AT, action="abort", actor="dashboard", token_id=_ID, session="ocean-7",
        address="10.0.0.7", detail={"reason": "too hot"},
    )  # fmt: skip
    id: int
    at: datetime
    action: str
    actor: str
    token_id: UUID | None
    session: str | None
    address: str | None
    detail: dict[str, Any]


class ProblemShape(BaseModel):
    """Why a request was refused (RFC 9457); some kinds have fields of their own."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:qigstore:problem:not-found",
                    "title": "There is no such thing",
                    "status": 404,
                    "detail": "no session named 'ocean-8'",
                    "near": ["ocean-7"],
                }
            ]
        },
    )
    type: str
    title: str
    status: int
    detail: str
