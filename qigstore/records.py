"""The frozen records that travel between the rooms; no behaviour beyond showing themselves.

Times are timezone-aware UTC. A metric that nobody measured is `None`, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

__all__ = [
    "STANDARD_METRICS",
    "AttemptInfo",
    "AttemptStatus",
    "Candidate",
    "Checkpoint",
    "CheckpointKind",
    "CheckpointStatus",
    "Decision",
    "Event",
    "Location",
    "Scope",
    "SessionInfo",
    "Severity",
    "TelemetryRow",
    "Url",
    "location",
]

AttemptStatus = Literal["running", "completed", "aborted", "failed", "lost"]
Severity = Literal["info", "warning", "critical"]
CheckpointKind = Literal["regular", "emergency"]
CheckpointStatus = Literal["committed", "quarantined", "deleted"]
Scope = Literal["read", "write", "checkpoint", "abort", "admin"]
"""What a token of the REST server may do: read what was recorded; record; read and verify the files
of checkpoints; stop runs; all of it, and the audit."""

STANDARD_METRICS: tuple[str, ...] = (
    "loss",
    "accuracy",
    "grad_norm",
    "learning_rate",
    "phi",
    "phi_nats",
    "kappa_eff",
    "basin_distance",
    "geodesic_distance",
    "curvature",
    "recursion_depth",
    "breakdown_pct",
    "coherence_drift",
    "meta_awareness",
    "generativity",
    "external_coupling",
    "grounding",
    "temporal_coherence",
    "fisher_metric_trace",
)
"""Metrics with a typed column of their own, in the order of the columns.

Any other name is a custom metric: a place in `float8[]` named by the session's metric dictionary.
"""


class Url(str):
    """A place that is no path of this machine, ``s3://bucket/checkpoints``; goes on like a path.

    >>> Url("s3://bucket/checkpoints/") / "ocean"
    's3://bucket/checkpoints/ocean'
    """

    __slots__ = ()

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> Url:
        """What it lies in."""
        return Url(self.rstrip("/").rpartition("/")[0])


Location = Path | Url


def location(text: str | Path) -> Location:
    """A path, or where a protocol is named a URL."""
    return Url(text) if isinstance(text, str) and "://" in text else Path(text)


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One named training effort, as the store sees it now."""

    id: int
    name: str
    config: Mapping[str, Any]
    created_at: datetime
    attempts: int = 0
    status: AttemptStatus | None = None
    """Status of the newest attempt; None before the first one."""
    last_step: int | None = None
    last_seen_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class AttemptInfo:
    """One process life of a session; a resume opens the next one."""

    id: UUID
    session_id: int
    number: int
    status: AttemptStatus
    host: str
    pid: int
    started_at: datetime
    heartbeat_at: datetime
    heartbeat_limit_s: float = 30.0
    """Running and not heard of for longer, it counts as lost."""
    ended_at: datetime | None = None
    resumed_from: UUID | None = None
    """The checkpoint it started from, if any."""
    resumed_step: int | None = None
    """Step of that checkpoint (−1: recovery started afresh; None: recovery was not asked)."""
    reason: str | None = None
    exit_status: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TelemetryRow:
    """One recorded step: standard metrics and custom ones, by name; only what was measured."""

    attempt: int
    rank: int
    step: int
    seq: int
    recorded_at: datetime
    regime: str | None
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Event:
    """Something a rule, a signal or a person raised (the log of emergencies)."""

    id: UUID
    session_id: int
    attempt: int
    rank: int
    step: int | None
    rule: str
    severity: Severity
    message: str
    raised_at: datetime
    metric: str | None = None
    value: float | None = None
    threshold: float | None = None
    action: str | None = None
    checkpoint_id: UUID | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    acknowledged_at: datetime | None = None
    resolved_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One committed state of a session. The folder is the truth; the row is an index to it.

    Where a session's checkpoints lie in an object store, its path is a URL.
    """

    id: UUID
    session_id: int
    attempt: int
    step: int
    kind: CheckpointKind
    status: CheckpointStatus
    path: Location
    bytes: int
    digest: str
    """BLAKE3 of the manifest, hex; the manifest holds the digest of every file and tensor."""
    weights_finite: bool
    created_at: datetime
    phi: float | None = None
    kappa_eff: float | None = None
    regime: str | None = None
    verified_at: datetime | None = None
    status_reason: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint as recovery saw it: fit to load or not, and why."""

    checkpoint: Checkpoint
    healthy: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What recovery chose, from what, and why; stored, so that it can be asked later."""

    id: UUID
    session_id: int
    policy: str
    chosen: Checkpoint | None
    candidates: tuple[Candidate, ...]
    reason: str
    decided_at: datetime
    attempt: int | None = None
    """The attempt that it opened; None for a dry run."""
    skip_steps: tuple[int, int] | None = None
    """First and last step (both included) that the resumed run should leave out."""
