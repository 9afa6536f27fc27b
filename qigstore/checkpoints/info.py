"""What is known of a checkpoint besides its arrays: told by who saves, and kept by the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from qigstore.checkpoints.format import (
    PAYLOAD,
    FileInfo,
    Manifest,
    Sharding,
    TensorInfo,
    encode_manifest,
)
from qigstore.checkpoints.json_text import strict_json
from qigstore.checkpoints.payload import Staged
from qigstore.checkpoints.ranking import finite
from qigstore.errors import InvalidInput
from qigstore.records import Checkpoint, CheckpointKind, Location

__all__ = ["Contents", "SaveInfo", "contents_of", "manifest_of", "record_of"]

_NAMED_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveInfo:
    """What is known of a state besides its arrays. Φ and κ may be anything; only finite Φ ranks.

    Raises:
        InvalidInput: a name, step, attempt or kind that cannot be.
        CheckpointError: metadata that is no JSON.
    """

    session_name: str
    session_id: int
    attempt: int
    step: int
    kind: CheckpointKind = "regular"
    phi: float | None = None
    kappa_eff: float | None = None
    regime: str | None = None
    parent: UUID | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    id: UUID = field(default_factory=uuid4)

    def __post_init__(self) -> None:
        if not isinstance(self.session_name, str) or not self.session_name:
            raise InvalidInput("session_name", self.session_name, "a name")
        for name in ("step", "attempt"):
            value = getattr(self, name)
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise InvalidInput(name, value, "an integer")
            if not 0 <= value.__index__() < 2**63:
                raise InvalidInput(name, value, "an integer from 0 to 2⁶³ − 1")
            object.__setattr__(self, name, value.__index__())
        if self.kind not in {"regular", "emergency"}:
            raise InvalidInput("kind", self.kind, "'regular' or 'emergency'")
        for name in ("phi", "kappa_eff"):
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, None if value is None else float(value))
            except (TypeError, ValueError):
                raise InvalidInput(name, value, "a number or None") from None
        if self.regime is not None:
            object.__setattr__(self, "regime", strict_json(str(self.regime), "regime"))
        object.__setattr__(self, "metadata", strict_json(self.metadata))


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a checkpoint's files hold, as its manifest says it."""

    files: Mapping[str, FileInfo]
    tensors: Mapping[str, TensorInfo]
    skeleton: Any
    not_finite: Sequence[str] = ()
    sharding: Sharding | None = None


def contents_of(staged: Staged) -> Contents:
    """What one file holds of a staged state; every byte is hashed for it."""
    found = staged.hashed()
    return Contents(
        files={PAYLOAD: FileInfo(staged.size, found.root)},
        tensors=found.tensors,
        skeleton=staged.skeleton,
        not_finite=found.not_finite,
    )


def manifest_of(info: SaveInfo, store: UUID, contents: Contents) -> tuple[Manifest, bytes]:
    """The manifest of a checkpoint that is saved now, and its file.

    Raises:
        CheckpointError: larger than any reader would take.
    """
    manifest = Manifest(
        id=info.id,
        store=store,
        session=info.session_name,
        attempt=info.attempt,
        step=info.step,
        kind=info.kind,
        phi=info.phi,
        kappa_eff=info.kappa_eff,
        regime=info.regime,
        created_at=datetime.now(UTC),
        parent=info.parent,
        weights_finite=not contents.not_finite,
        not_finite=tuple(contents.not_finite[:_NAMED_MAX]),
        files=contents.files,
        tensors=contents.tensors,
        skeleton=contents.skeleton,
        metadata=info.metadata,
        sharding=contents.sharding,
    )
    data, digest = encode_manifest(manifest)
    return replace(manifest, digest=digest), data


def record_of(
    manifest: Manifest, path: Location, session_id: int, manifest_bytes: int
) -> Checkpoint:
    """The record of a committed checkpoint, made from its manifest; only a finite Φ ranks."""
    return Checkpoint(
        id=manifest.id,
        session_id=session_id,
        attempt=manifest.attempt,
        step=manifest.step,
        kind=manifest.kind,
        status="committed",
        path=path,
        bytes=manifest.bytes + manifest_bytes,
        digest=manifest.digest,
        weights_finite=manifest.weights_finite,
        created_at=manifest.created_at,
        phi=finite(manifest.phi),
        kappa_eff=finite(manifest.kappa_eff),
        regime=manifest.regime,
        metadata=manifest.metadata,
    )
