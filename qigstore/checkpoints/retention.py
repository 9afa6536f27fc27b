"""Which checkpoints to keep: a union of roles; what has any role is never removed.

Roles: ``newest`` (the newest k), ``best`` (the k of highest finite Φ among the healthy), ``every``
(the first regular one of every n steps), ``emergency`` (the newest k of those), what somebody holds
(``pinned``, ``resumed from``, ``in use``), ``newest healthy``, ``settled``: the newest healthy one
so old that no event to come can make it unhealthy after the fact, and ``settling``: the oldest that
is not so old yet, which takes that place in time. Without the last two, an episode could condemn
all that is kept, and nothing to recover from is the one mistake that cannot be mended.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from uuid import UUID

from qigstore.checkpoints.ranking import best_first, newest_first
from qigstore.errors import ConfigurationError
from qigstore.records import Checkpoint

__all__ = ["Retention", "roles"]

_LEAST = {
    "keep_newest": 1, "keep_best": 1, "keep_emergency": 1, "keep_every": 1, "settle_steps": 0
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How many to keep. The defaults are generous: disk is cheaper than a lost week.

    Attributes:
        keep_newest, keep_best, keep_emergency: how many of each.
        keep_every: keep one of every so many steps for ever; None: none for that reason.
        settle_steps: a critical event so many steps later still condemns a checkpoint.

    Raises:
        ConfigurationError: fewer than one of a kind, or fewer than no settle steps.
    """

    keep_newest: int = 3
    keep_best: int = 3
    keep_emergency: int = 3
    keep_every: int | None = None
    settle_steps: int = 50

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if name == "keep_every" and value is None:
                continue
            if not isinstance(value, int) or value < least:
                raise ConfigurationError(f"{name}={value!r}; expected a whole number ≥ {least}")


def roles(
    checkpoints: Iterable[Checkpoint],
    retention: Retention,
    *,
    healthy: Collection[UUID],
    held: Mapping[str, Collection[UUID]] = MappingProxyType({}),
) -> dict[UUID, tuple[str, ...]]:
    """Each checkpoint's roles, the newest first; one without any may be removed.

    Args:
        checkpoints: all committed ones of a session.
        retention: how many.
        healthy: ids of those fit to recover from.
        held: ids that must stay whatever they are, by the role that holds them.
    """
    ordered = newest_first(checkpoints)
    fit = [item for item in ordered if item.id in healthy]
    found: dict[UUID, list[str]] = {item.id: [] for item in ordered}

    def give(role: str, items: Iterable[Checkpoint]) -> None:
        for item in items:
            found[item.id].append(role)

    give("newest", ordered[: retention.keep_newest])
    give("best", best_first(fit)[: retention.keep_best])
    if retention.keep_every is not None:
        give("every", _first_of_every(retention.keep_every, ordered))
    emergencies = [item for item in ordered if item.kind == "emergency"]
    give("emergency", emergencies[: retention.keep_emergency])
    for role, ids in held.items():
        give(role, (item for item in ordered if item.id in ids))
    give("newest healthy", fit[:1])
    settled = [item for item in fit if _settled(item, ordered[0], retention)]
    give("settled", settled[:1])
    give("settling", [item for item in fit if item not in settled][-1:])
    return {key: tuple(names) for key, names in found.items()}


def _first_of_every(steps: int, newest: Sequence[Checkpoint]) -> Iterator[Checkpoint]:
    """The first regular one with finite weights in each range of so many steps.

    The first, so that a later save never changes which one it is; of one step in several attempts
    it is the newest attempt's.
    """
    seen = set()
    for item in sorted(newest, key=lambda item: (item.step, -item.attempt, item.id)):
        place = item.step // steps
        if item.kind == "regular" and item.weights_finite and place not in seen:
            seen.add(place)
            yield item


def _settled(item: Checkpoint, newest: Checkpoint, retention: Retention) -> bool:
    """Whether the session is known to have lived on for the settle time after this one."""
    later = item.attempt < newest.attempt
    return later or item.step + retention.settle_steps <= newest.step
