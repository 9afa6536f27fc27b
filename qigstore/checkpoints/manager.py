"""The manager that programs hold: the keeper, and the names known from what it replaces.

Differences, all on purpose: no state is refused for its Φ, what cannot be done raises instead of
returning None, and nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

import numpy as np

from qigstore.checkpoints.base import AnyPins
from qigstore.checkpoints.folders import parse_id
from qigstore.checkpoints.keeper import CheckpointKeeper
from qigstore.checkpoints.ranking import best_first, finite, newest_first
from qigstore.errors import CheckpointCorrupt, CheckpointError, NoHealthyCheckpoint, NotFound
from qigstore.records import Checkpoint

__all__ = ["CheckpointManager"]


class CheckpointManager(CheckpointKeeper):
    """`CheckpointKeeper` with the older names beside its own."""

    @property
    def keep_top_k(self) -> int:
        """How many of the highest Φ are kept."""
        return self.retention.keep_best

    @property
    def pins(self) -> AnyPins:
        """What stays whatever retention says."""
        return self.store.pins(self.session_name)

    def save_checkpoint(  # noqa: PLR0917 - the order that its users know
        self,
        state_dict: Any,
        phi: float,
        kappa: float,
        regime: str,
        basin_coords: Any = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        step: int | None = None,
    ) -> str:
        """Save and wait; unlike its predecessor it refuses no state for its Φ.

        `step` comes from the argument, else from ``metadata["step"]``, else it is the next one.
        """
        extra = dict(metadata or {})
        if step is None:
            step = int(extra["step"]) if "step" in extra else self.last_step + 1
        if basin_coords is not None:
            extra["basin"] = np.asarray(basin_coords, float).tolist()
        found = self.save(
            state_dict,
            step=step,
            phi=phi,
            kappa_eff=kappa,
            regime=regime,
            metadata=extra,
            wait=True,
        )
        return str(found)

    def load_checkpoint(self, checkpoint_id: UUID | str) -> tuple[Any, dict[str, Any]]:
        """The state and what is known of it.

        Raises:
            NotFound, CheckpointCorrupt, CheckpointFormatError: see `CheckpointStore.load`.
        """
        state = self.load(checkpoint_id)
        path = self.store.locate(self.session_name, checkpoint_id)
        return state, _summary(self.store.record(path, session_id=self.session_id))

    def load_best_checkpoint(self) -> tuple[Any, dict[str, Any]]:
        """The healthy checkpoint of the highest Φ; a corrupt one is put aside and the next taken.

        Raises:
            NoHealthyCheckpoint: there is none, with every candidate's reason.
        """
        found = self.candidates()
        refused = [f"{item.checkpoint.id}: {item.reason}" for item in found if not item.healthy]
        healthy = [item.checkpoint for item in found if item.healthy]
        refused += [f"{i.id}: Φ was not measured" for i in healthy if finite(i.phi) is None]
        for item in best_first(healthy):
            try:
                return self.load(item.id), _summary(item)
            except CheckpointCorrupt as error:
                with suppress(NotFound):  # another process was faster
                    self.quarantine(item.id, str(error))
                refused.append(f"{item.id}: {error}")
            except (NotFound, CheckpointError) as error:
                refused.append(f"{item.id}: {error}")
        raise NoHealthyCheckpoint(self.session_name, refused)

    def get_checkpoint_history(self, limit: int | None = None) -> list[dict[str, Any]]:
        """What is known of every checkpoint, the highest Φ first, those without one last."""
        found = list(self.known().values())
        ranked = best_first(found)
        others = newest_first(item for item in found if finite(item.phi) is None)
        return [_summary(item) for item in [*ranked, *others][:limit]]

    def delete_checkpoint(self, checkpoint_id: UUID | str) -> bool:
        """Remove a checkpoint; False where there is none of that id.

        Raises:
            CheckpointError: it is pinned, in use, or not provably ours.
        """
        path = self.store.locate(self.session_name, checkpoint_id)
        key = parse_id(checkpoint_id)
        if key in self.pins.all():
            raise CheckpointError(
                f"checkpoint {key} is pinned, so it is not deleted. Unpin it first "
                f"(`qigstore checkpoints unpin {key}`)."
            )
        with self.store.removing(path) as free:
            if not free and self.store.has(path):
                raise CheckpointError(f"checkpoint {key} is being read now; try again later")
            return self.remove(key, "deleted by name")

    def get_stats(self) -> dict[str, Any]:
        """Counts, Φ of what is there, and what went wrong last."""
        known = self.known()
        phis = [item.phi for item in best_first(known.values()) if item.phi is not None]
        return {
            "total_checkpoints": len(known),
            "best_phi": phis[0] if phis else None,
            "worst_phi": phis[-1] if phis else None,
            "avg_phi": sum(phis) / len(phis) if phis else None,
            "checkpoints": [str(key) for key in known],
            **self.progress(),
        }


def _summary(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "checkpoint_id": str(checkpoint.id),
        "timestamp": checkpoint.created_at.isoformat(),
        "attempt": checkpoint.attempt,
        "step": checkpoint.step,
        "kind": checkpoint.kind,
        "phi": checkpoint.phi,
        "kappa": checkpoint.kappa_eff,
        "regime": checkpoint.regime,
        "weights_finite": checkpoint.weights_finite,
        "basin_coords": checkpoint.metadata.get("basin"),
        "metadata": dict(checkpoint.metadata),
    }
