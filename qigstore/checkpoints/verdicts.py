"""What each rank found, said so that all of them raise the same error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qigstore.errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointFormatError,
    CheckpointMismatch,
    NotFound,
)

__all__ = ["KNOWN", "raise_worst", "verdict"]

KNOWN = (CheckpointError, NotFound, OSError)
"""Errors that a verdict tells of; anything else is a fault of the program."""


def verdict(error: BaseException | None) -> dict[str, Any]:
    """An error in JSON; empty where there is none."""
    match error:
        case None:
            return {}
        case CheckpointMismatch():
            return {"kind": "mismatch", "differences": list(error.differences)}
        case CheckpointCorrupt():
            sides = {"expected": str(error.expected), "found": str(error.found)}
            return {"kind": "corrupt", "path": str(error.path), "what": error.what, **sides}
        case CheckpointFormatError():
            return {"kind": "format", "path": str(error.path), "reason": error.reason}
        case NotFound():
            return {"kind": "missing", "what": error.kind, "name": str(error.name)}
    return {"kind": "other", "text": str(error)}


_RAISES: Mapping[str, Callable[[Mapping[str, Any]], Exception]] = {
    # The worst first: what is corrupt is to be put aside, whatever else is wrong.
    "corrupt": lambda told: CheckpointCorrupt(
        Path(told["path"]), told["what"], expected=told["expected"], found=told["found"]
    ),
    "format": lambda told: CheckpointFormatError(Path(told["path"]), told["reason"]),
    "missing": lambda told: NotFound(told["what"], told["name"], hint="No rank could go on"),
    "other": lambda told: CheckpointError(f"rank {told['rank']}: {told['text']}"),
    "mismatch": lambda told: CheckpointMismatch(
        "the checkpoint does not fit the state; nothing was changed", told["differences"]
    ),
}


def raise_worst(verdicts: Sequence[Mapping[str, Any]]) -> None:
    """Raise the worst of what the ranks found, the lowest rank's first.

    Raises:
        CheckpointCorrupt, CheckpointFormatError, NotFound, CheckpointError, CheckpointMismatch.
    """
    for kind, error_of in _RAISES.items():
        for rank, told in enumerate(verdicts):
            if told.get("kind") == kind:
                raise error_of({"rank": rank, **told})
