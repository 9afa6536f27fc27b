"""Which checkpoints to keep: a union of roles; what has any role is never removed.

Roles: ``newest`` (the newest k), ``best`` (the k of highest finite Φ among the healthy),
``emergency``, ``protected`` (resumed from, or named by the caller), ``newest healthy``,
``settled``: the newest healthy one so old that no event to come can make it unhealthy after the
fact, and ``settling``: the oldest that is not so old yet, which takes that place in time. Without
the last two, an episode could condemn all that is kept, and nothing to recover from is the one
mistake that cannot be mended.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from uuid import UUID

from qigstore.checkpoints.ranking import best_first, newest_first
from qigstore.errors import ConfigurationError
from qigstore.records import Checkpoint

__all__ = ["Retention", "roles"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How many to keep. The defaults are generous: disk is cheaper than a lost week.

    Raises:
        ConfigurationError: fewer than one newest or best, or fewer than no settle steps.
    """

    keep_newest: int = 3
    keep_best: int = 3
    settle_steps: int = 50

    def __post_init__(self) -> None:
        for name, least in (("keep_newest", 1), ("keep_best", 1), ("settle_steps", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ConfigurationError(f"{name}={value!r}; expected a whole number ≥ {least}")


def roles(
    checkpoints: Iterable[Checkpoint],
    retention: Retention,
    *,
    healthy: Collection[UUID],
    protected: Collection[UUID] = (),
) -> dict[UUID, tuple[str, ...]]:
    """Each checkpoint's roles; one without any may be removed.

    Args:
        checkpoints: all committed ones of a session.
        retention: how many.
        healthy: ids of those fit to recover from.
        protected: ids that must stay whatever they are.
    """
    ordered = newest_first(checkpoints)
    fit = [item for item in ordered if item.id in healthy]
    found: dict[UUID, list[str]] = {item.id: [] for item in ordered}

    def give(role: str, items: Iterable[Checkpoint]) -> None:
        for item in items:
            found[item.id].append(role)

    give("newest", ordered[: retention.keep_newest])
    give("best", best_first(fit)[: retention.keep_best])
    give("emergency", (item for item in ordered if item.kind == "emergency"))
    give("protected", (item for item in ordered if item.id in protected))
    give("newest healthy", fit[:1])
    settled = [item for item in fit if _settled(item, ordered[0], retention)]
    give("settled", settled[:1])
    give("settling", [item for item in fit if item not in settled][-1:])
    return {key: tuple(names) for key, names in found.items()}


def _settled(item: Checkpoint, newest: Checkpoint, retention: Retention) -> bool:
    """Whether the session is known to have lived on for the settle time after this one."""
    later = item.attempt < newest.attempt
    return later or item.step + retention.settle_steps <= newest.step
