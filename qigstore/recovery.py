"""Choose the checkpoint to go on from, say why, load it.

The choice is a pure function of what is known: the same inputs give the same decision. What was
chosen is verified while it is loaded; a corrupt one is put aside and the next one taken. A
checkpoint that several attempts resumed from without getting anywhere is passed over ("poison").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, get_args
from uuid import UUID, uuid4

from qigstore.checkpoints import CheckpointManager
from qigstore.errors import (
    CheckpointCorrupt,
    CheckpointError,
    ConfigurationError,
    NoHealthyCheckpoint,
    NotFound,
)
from qigstore.records import AttemptInfo, Candidate, Checkpoint, Decision, Event, Location

__all__ = [
    "POISON_LIMIT",
    "RECENT",
    "SKIP_MARGIN",
    "Policy",
    "RecoveryStore",
    "decide",
    "explain",
    "poisoned",
    "recover",
    "steps_to_skip",
]

Policy = Literal["best", "newest", "best_recent"]

RECENT = 5
"""How many of the newest healthy checkpoints `best_recent` chooses among."""
POISON_LIMIT = 3
SKIP_MARGIN = 10
_EVENTS_MAX = 10_000
_FEW, _MANY = 20, 10_000


class _Sessions(Protocol):
    def attempts(self, session_id: int, /) -> list[AttemptInfo]: ...
    def set_lineage(
        self, attempt_id: UUID, resumed_from: UUID | None, resumed_step: int, /
    ) -> object: ...


class _Telemetry(Protocol):
    def progress(self, session_id: int, /) -> dict[int, int]: ...


class _Events(Protocol):
    def list(self, session_id: int | None = None, /, *, limit: int = ...) -> list[Event]: ...


class _Verified(Protocol):
    def mark_verified(self, checkpoint_id: UUID, /) -> object: ...


class _Decisions(Protocol):
    def add(self, decision: Decision, /) -> object: ...


class RecoveryStore(Protocol):
    """What recovery asks of the repository."""

    @property
    def sessions(self) -> _Sessions: ...
    @property
    def telemetry(self) -> _Telemetry: ...
    @property
    def events(self) -> _Events: ...
    @property
    def checkpoints(self) -> _Verified: ...
    @property
    def decisions(self) -> _Decisions: ...


# ---------------------------------------------------------------- the pure part


def decide(
    candidates: Sequence[Candidate], *, policy: Policy = "best", recent: int = RECENT
) -> tuple[Candidate, ...]:
    """The healthy candidates in the order in which to try them.

    ``best``: Φ descending, then step descending, then id. ``newest``: the latest attempt's latest
    step. ``best_recent``: the best of the `recent` newest, then the older ones by age. NaN, ±inf
    and missing Φ come after every number, by age: so a session that measures no Φ goes on from
    its newest healthy checkpoint.

    Raises:
        ConfigurationError: an unknown policy, or `recent` is below 1.

    >>> decide([], policy="best")
    ()
    """
    if policy not in get_args(Policy):
        names = ", ".join(get_args(Policy))
        raise ConfigurationError(f"policy {policy!r} is unknown; expected one of {names}")
    if recent < 1:
        raise ConfigurationError(f"recent={recent}; expected a whole number ≥ 1")
    healthy = [item for item in candidates if item.healthy]
    newest = sorted(healthy, key=_age)
    if policy == "newest":
        return tuple(newest)
    if policy == "best_recent":
        return (*sorted(newest[:recent], key=_rank), *newest[recent:])
    return tuple(sorted(healthy, key=_rank))


def _rank(candidate: Candidate) -> tuple[float, int, int, UUID]:
    item = candidate.checkpoint
    if item.phi is None or not math.isfinite(item.phi):
        return (math.inf, *_age(candidate))
    return -item.phi, 0, -item.step, item.id


def _age(candidate: Candidate) -> tuple[int, int, UUID]:
    item = candidate.checkpoint
    return -item.attempt, -item.step, item.id


def poisoned(
    checkpoint: Checkpoint,
    attempts: Sequence[AttemptInfo],
    progress: Mapping[int, int],
    *,
    settle_steps: int = 50,
    limit: int = POISON_LIMIT,
) -> str | None:
    """Why a checkpoint is passed over as poison, or None where it is not.

    It is poison when the last `limit` attempts that resumed from it all ended, none of them by
    completing, none more than `settle_steps` past it.
    """
    tries = [
        item
        for item in sorted(attempts, key=lambda item: item.number)
        if item.resumed_from == checkpoint.id and item.status != "running"
    ]
    fruitless = 0
    for item in reversed(tries):
        reached = progress.get(item.number, -1)
        if item.status == "completed" or reached > checkpoint.step + settle_steps:
            break
        fruitless += 1
    if fruitless < limit:
        return None
    numbers = ", ".join(str(item.number) for item in tries[-fruitless:])
    return (
        f"attempts {numbers} resumed from it and none got more than {settle_steps} steps past "
        f"step {checkpoint.step}"
    )


def steps_to_skip(
    chosen: Checkpoint,
    attempts: Sequence[AttemptInfo],
    progress: Mapping[int, int],
    events: Sequence[Event],
    *,
    settle_steps: int = 50,
    margin: int = SKIP_MARGIN,
) -> tuple[int, int] | None:
    """First and last step to leave out after resuming, or None.

    For each attempt that a critical event at step E ended, beyond the chosen checkpoint: from
    `margin` steps before the first warning or critical event of that episode (within
    `settle_steps` before E) to E + `margin`; over several attempts the range that covers them all.
    The lead is there because what a step did wrong shows in the loss of a later one.

    Source: PaLM restarted about 100 steps before a spike and left out 200-500 batches, and the
    spike did not come back (doi:10.48550/arXiv.2204.02311, §5.1); the GLM-130B runs did the same
    with about 200 steps (doi:10.48550/arXiv.2210.02414). Data and state make a spike together.
    """
    ranges = []
    for item in attempts:
        if item.status in {"running", "completed"}:
            continue
        mine = [e for e in events if e.attempt == item.number and e.step is not None]
        steps = sorted(e.step for e in mine if e.severity == "critical" and e.step is not None)
        last = progress.get(item.number, -1)
        if not steps or steps[-1] <= chosen.step or steps[-1] + settle_steps < last:
            continue
        end = steps[-1]
        early = [
            e.step
            for e in mine
            if e.step is not None
            and e.severity != "info"
            and max(chosen.step, end - settle_steps - 1) < e.step <= end
        ]
        ranges.append((max(chosen.step + 1, min(early) - margin), end + margin))
    if not ranges:
        return None
    return min(first for first, _ in ranges), max(last for _, last in ranges)


# ---------------------------------------------------------------- the deed


@dataclass(frozen=True, slots=True)
class _Known:
    attempts: Sequence[AttemptInfo]
    progress: Mapping[int, int]
    events: Sequence[Event]


def recover(
    manager: CheckpointManager,
    repository: RecoveryStore | None = None,
    *,
    attempt: AttemptInfo | None = None,
    policy: Policy = "best",
    recent: int = RECENT,
    has_default: bool = False,
    dry_run: bool = False,
    load: bool | Callable[[Location], Any] = True,
    skip_margin: int = SKIP_MARGIN,
    poison_limit: int = POISON_LIMIT,
) -> tuple[Any, Decision]:
    """Choose, verify and load the checkpoint to go on from.

    Args:
        manager: the session's checkpoints; its settle time and Φ floor apply.
        repository: attempts, events and progress; None: decide from the folders alone.
        attempt: the attempt that this opens; its lineage is stored.
        policy, recent: see `decide`.
        has_default: the caller can start afresh; then nothing fit is no error.
        dry_run: say what would happen; verify, but load, move and store nothing.
        load: how to load it, `manager.store.load` unless told otherwise; False: put aside what is
            corrupt, but only verify what is chosen, and return no state.
        skip_margin: steps left out after a critical event, see `steps_to_skip`.
        poison_limit: fruitless resumes after which a checkpoint is passed over.

    Returns:
        The state and the decision; the state is None where nothing was chosen or loaded.

    Raises:
        NoHealthyCheckpoint: nothing fit and no default; the decision rides on it.
        StoreError: a repository was given and its database is away.
    """
    if not dry_run:
        manager.reconcile()
    known = _known(manager, repository, attempt)
    loader = manager.store.load if load is True else load or None
    how = _How(policy, recent, poison_limit, dry=dry_run, load=None if dry_run else loader)
    choice = _choose(manager, known, how)
    chosen = choice.chosen
    decision = Decision(
        id=uuid4(),
        session_id=manager.session_id,
        policy=policy,
        chosen=chosen,
        candidates=choice.candidates,
        reason=choice.reason if chosen else _why_none(choice.candidates, has_default),
        decided_at=datetime.now(UTC),
        attempt=None if dry_run or attempt is None else attempt.number,
        skip_steps=_skip(manager, chosen, known, skip_margin),
    )
    if not dry_run:
        _store(manager, repository, attempt, decision)
    if chosen is None and not has_default:
        reasons = [f"{_label(c.checkpoint)}: {c.reason}" for c in decision.candidates]
        raise NoHealthyCheckpoint(manager.session_name, reasons, decision=decision)
    return choice.state, decision


@dataclass(frozen=True, slots=True)
class _How:
    policy: Policy
    recent: int
    poison_limit: int
    dry: bool
    load: Callable[[Location], Any] | None


@dataclass(frozen=True, slots=True)
class _Choice:
    chosen: Checkpoint | None
    state: Any
    candidates: tuple[Candidate, ...]
    reason: str = ""


def _choose(manager: CheckpointManager, known: _Known, how: _How) -> _Choice:
    """Look at a few candidates first, at more only where none of them is sound."""
    for limit in (max(_FEW, how.recent), _MANY):
        found = sorted(manager.candidates(limit=limit, by_age=how.policy != "best"), key=_age)
        judged = {
            item.checkpoint.id: _unless_poisoned(manager, item, known, how.poison_limit)
            for item in found
        }
        fit = [judged[item.checkpoint.id] for item in found]
        order = decide(fit, policy=how.policy, recent=how.recent)
        chosen, state, refused = _first_sound(manager, order, how)
        judged |= refused
        if chosen is not None:
            why = _why(how, chosen, order, refused)
            judged[chosen.id] = replace(judged[chosen.id], reason=why)
            return _Choice(chosen, state, tuple(judged.values()), why)
        if sum(item.healthy for item in found) < limit:
            break
    return _Choice(None, None, tuple(judged.values()))


def _unless_poisoned(
    manager: CheckpointManager, item: Candidate, known: _Known, limit: int
) -> Candidate:
    settle = manager.retention.settle_steps
    why = poisoned(
        item.checkpoint, known.attempts, known.progress, settle_steps=settle, limit=limit
    )
    if not item.healthy or not why:
        return item
    return replace(item, healthy=False, reason=f"poison: {why}")


def _skip(
    manager: CheckpointManager, chosen: Checkpoint | None, known: _Known, margin: int
) -> tuple[int, int] | None:
    if chosen is None:
        return None
    settle = manager.retention.settle_steps
    attempts, progress, events = known.attempts, known.progress, known.events
    return steps_to_skip(chosen, attempts, progress, events, settle_steps=settle, margin=margin)


def _known(
    manager: CheckpointManager, repository: RecoveryStore | None, attempt: AttemptInfo | None
) -> _Known:
    if repository is None:
        return _Known((), {}, ())
    attempts = repository.sessions.attempts(manager.session_id)
    if attempt is not None:
        # A session has one living attempt: what came before ours has ended, heard of lately or not.
        attempts = [
            replace(item, status="lost") if item.status == "running" else item
            for item in attempts
            if item.number < attempt.number
        ]
    return _Known(
        attempts,
        repository.telemetry.progress(manager.session_id),
        repository.events.list(manager.session_id, limit=_EVENTS_MAX),
    )


def _first_sound(
    manager: CheckpointManager, order: Sequence[Candidate], how: _How
) -> tuple[Checkpoint | None, Any, dict[UUID, Candidate]]:
    """The first one that loads, its state, and those before it that did not."""
    refused: dict[UUID, Candidate] = {}

    def refuse(item: Candidate, reason: str) -> None:
        refused[item.checkpoint.id] = replace(item, healthy=False, reason=reason)

    for item in order:
        key = item.checkpoint.id
        path = manager.store.locate(manager.session_name, key)
        try:
            with manager.store.in_use(path):
                if how.load is not None:
                    return item.checkpoint, how.load(path), refused
                manager.store.verify(path)
                return item.checkpoint, None, refused
        except CheckpointCorrupt as error:
            refuse(item, f"corrupt, {'to be ' if how.dry else ''}put aside: {error.brief}")
            if not how.dry:
                with suppress(NotFound):  # another process was faster
                    manager.quarantine(key, str(error))
        except NotFound:
            refuse(item, f"its folder is not below {manager.store.root}")
        except (CheckpointError, OSError) as error:
            refuse(item, f"cannot be read: {error}")
    return None, None, refused


def _store(
    manager: CheckpointManager,
    repository: RecoveryStore | None,
    attempt: AttemptInfo | None,
    decision: Decision,
) -> None:
    chosen = decision.chosen
    if chosen is not None:
        manager.protect(chosen.id)
    if repository is None:
        return
    if chosen is not None:
        repository.checkpoints.mark_verified(chosen.id)
    if attempt is not None:
        repository.decisions.add(decision)
        repository.sessions.set_lineage(
            attempt.id, chosen.id if chosen else None, chosen.step if chosen else -1
        )


# ---------------------------------------------------------------- the words


def _why(
    how: _How, chosen: Checkpoint, order: Sequence[Candidate], refused: Mapping[UUID, Candidate]
) -> str:
    words = {
        "best": "highest Φ",
        "newest": "newest",
        "best_recent": f"highest Φ among the {how.recent} newest",
    }[how.policy]
    if chosen.phi is None:
        words = "newest (Φ is not measured)"
    phi = "" if chosen.phi is None else f" (Φ {chosen.phi:.4f})"
    among = f"of {len(order)} healthy ones" if len(order) > 1 else "and the only healthy one"
    tried = f", after {len(refused)} that could not be loaded" if refused else ""
    return f"{words}{phi} {among}{tried}"


def _why_none(candidates: Sequence[Candidate], has_default: bool) -> str:
    what = f"none of {len(candidates)} checkpoints is fit" if candidates else "no checkpoint yet"
    return f"{what}; " + ("started afresh" if has_default else "and there is no default")


def _label(item: Checkpoint) -> str:
    return f"{str(item.id)[:8]} (attempt {item.attempt}, step {item.step})"


def explain(decision: Decision) -> str:
    """A decision as plain text: what was chosen and why, what was not and why, what to skip."""
    head = f"recovery ({decision.policy}): "
    if decision.chosen is None:
        head += decision.reason
    else:
        head += f"resume from step {decision.chosen.step}, checkpoint {decision.chosen.id}"
    rows = [("", "checkpoint", "attempt", "step", "Φ", "reason")]
    rows += [_row(decision, item) for item in sorted(decision.candidates, key=_shown(decision))]
    lines = [head]
    if len(rows) > 1:
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        right = (False, False, True, True, True)
        for row in rows:
            cells = zip(row[:5], widths, right, strict=True)
            text = "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in cells)
            lines.append(f"  {text}  {row[5]}")
    if decision.skip_steps is not None:
        first, last = decision.skip_steps
        lines.append(
            f"  leave out steps {first} to {last}: an earlier attempt ended there with a "
            "critical event"
        )
    return "\n".join(lines) + "\n"


def _shown(decision: Decision) -> Any:
    chosen = None if decision.chosen is None else decision.chosen.id
    return lambda item: (item.checkpoint.id != chosen, _age(item))


def _row(decision: Decision, item: Candidate) -> tuple[str, str, str, str, str, str]:
    checkpoint = item.checkpoint
    chosen = decision.chosen is not None and checkpoint.id == decision.chosen.id
    reason = " ".join(item.reason.split())
    if not chosen:
        words = _distinction(decision, item)
        if item.healthy:
            reason = "; ".join([*words, "healthy, comes after"])
        elif words:
            reason = f"{', '.join(words)}, but {reason}"
    return (
        "chosen" if chosen else "refused" if not item.healthy else "-",
        str(checkpoint.id)[:8],
        str(checkpoint.attempt),
        str(checkpoint.step),
        "-" if checkpoint.phi is None else f"{checkpoint.phi:.4f}",
        reason,
    )


def _distinction(decision: Decision, item: Candidate) -> list[str]:
    """What a reader would ask about first: why not the newest, why not the highest Φ?"""
    words = []
    if min(decision.candidates, key=_age).checkpoint.id == item.checkpoint.id:
        words.append("newest")
    top = min(decision.candidates, key=_rank).checkpoint
    if top.phi is not None and top.id == item.checkpoint.id:
        words.append("highest Φ")
    return words
