"""Recovery takes the same checkpoint every time, never a bad one, and says why."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qigstore.checkpoints import CheckpointManager, CheckpointStore, Retention
from qigstore.checkpoints.disk import Disk
from qigstore.checkpoints.format import PAYLOAD
from qigstore.errors import ConfigurationError, NoHealthyCheckpoint
from qigstore.records import AttemptInfo, Candidate, Checkpoint, Event
from qigstore.recovery import decide, explain, poisoned, recover, steps_to_skip

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class NoSync(Disk):
    """A disk that does not wait; what is tested here is not durability."""

    def fsync(self, fd: int) -> None:
        pass

    def fsync_folder(self, path: Path) -> None:
        pass


def checkpoint(number: int, phi: float | None = 0.5, **changes: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "id": UUID(int=number),
        "session_id": 1,
        "attempt": 1,
        "step": number,
        "kind": "regular",
        "status": "committed",
        "path": Path("/nowhere") / str(number),
        "bytes": 1,
        "digest": "",
        "weights_finite": True,
        "created_at": NOW,
        "phi": phi,
    }
    return Checkpoint(**values | changes)


def fit(number: int, phi: float | None = 0.5, **changes: Any) -> Candidate:
    return Candidate(checkpoint(number, phi, **changes), True, "fit")


def attempt(number: int, status: str = "failed", resumed_from: int | None = None) -> AttemptInfo:
    return AttemptInfo(
        id=UUID(int=1000 + number),
        session_id=1,
        number=number,
        status=status,  # type: ignore[arg-type]
        host="here",
        pid=1,
        started_at=NOW,
        heartbeat_at=NOW,
        resumed_from=None if resumed_from is None else UUID(int=resumed_from),
    )


def event(step: int, severity: str = "critical", number: int = 1) -> Event:
    return Event(
        id=uuid4(),
        session_id=1,
        attempt=number,
        rank=0,
        step=step,
        rule="loss is finite",
        severity=severity,  # type: ignore[arg-type]
        message="",
        raised_at=NOW,
    )


def numbers(order: tuple[Candidate, ...]) -> list[int]:
    return [item.checkpoint.id.int for item in order]


# ---------------------------------------------------------------- the choice


def test_best_takes_phi_then_step_then_id(rng: random.Random) -> None:
    items = [
        fit(1, 0.9, step=10),
        fit(2, 0.9, step=20),
        fit(3, 0.9, step=20),
        fit(4, 0.95, step=1),
        Candidate(checkpoint(5, 0.99), False, "bad"),
        fit(6, None, step=99),
        fit(7, math.nan, step=98),
        fit(8, math.inf, step=97),
    ]
    rng.shuffle(items)
    assert numbers(decide(items)) == [4, 2, 3, 1, 6, 7, 8]


def test_newest_takes_the_latest_attempt_then_the_latest_step() -> None:
    items = [fit(1, 0.9, attempt=1, step=900), fit(2, 0.1, attempt=2, step=500), fit(3, step=901)]
    assert numbers(decide(items, policy="newest")) == [2, 3, 1]


def test_best_recent_looks_at_the_newest_few_and_falls_back_by_age() -> None:
    items = [fit(n, phi) for n, phi in enumerate([0.99, 0.98, 0.3, 0.5, 0.4, 0.2, 0.1])]
    assert numbers(decide(items, policy="best_recent", recent=5)) == [3, 4, 2, 5, 6, 1, 0]


def test_an_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="'worst' is unknown; expected one of best,"):
        decide([], policy="worst")  # type: ignore[arg-type]


@given(
    items=st.lists(
        st.tuples(st.none() | st.floats(), st.integers(0, 3), st.integers(1, 2), st.booleans()),
        max_size=12,
    ),
    policy=st.sampled_from(["best", "newest", "best_recent"]),
    data=st.data(),
)
def test_the_order_given_never_matters_and_nothing_unfit_is_tried(
    items: list[tuple[float | None, int, int, bool]], policy: Any, data: st.DataObject
) -> None:
    found = [
        Candidate(checkpoint(n, phi, step=step, attempt=number), healthy, "")
        for n, (phi, step, number, healthy) in enumerate(items)
    ]
    shuffled = data.draw(st.permutations(found))
    assert decide(found, policy=policy) == decide(shuffled, policy=policy)
    assert sorted(numbers(decide(found, policy=policy))) == [
        n for n, item in enumerate(found) if item.healthy
    ]


# ---------------------------------------------------------------- poison and steps to skip


def tries(*reached: int, status: str = "lost") -> tuple[list[AttemptInfo], dict[int, int]]:
    attempts = [attempt(n, status, resumed_from=7) for n in range(2, 2 + len(reached))]
    return attempts, dict(enumerate(reached, 2))


def test_three_fruitless_resumes_make_poison_and_two_do_not() -> None:
    bad = checkpoint(7, step=100)
    assert poisoned(bad, *tries(120, 150)) is None
    why = poisoned(bad, *tries(120, 150, 101))
    assert why is not None
    assert "attempts 2, 3, 4 resumed from it" in why
    assert poisoned(checkpoint(8, step=100), *tries(120, 150, 101)) is None


def test_an_attempt_that_got_somewhere_or_completed_clears_it() -> None:
    bad = checkpoint(7, step=100)
    assert poisoned(bad, *tries(101, 101, 151)) is None
    assert poisoned(bad, *tries(101, 101, 101, status="completed")) is None
    assert poisoned(bad, *tries(500, 101, 101, 101)) is not None
    assert poisoned(bad, *tries(101, 101, 101, status="running")) is None


def test_an_attempt_that_recorded_nothing_got_nowhere() -> None:
    attempts, _ = tries(0, 0, 0)
    assert poisoned(checkpoint(7, step=100), attempts, {}) is not None


def test_the_range_to_skip_is_the_episode_and_a_margin() -> None:
    events = [
        event(120, "warning"),
        event(180, "warning"),
        event(190),
        event(200),
        event(199, "info"),
    ]
    found = steps_to_skip(checkpoint(1, step=100), [attempt(1)], {1: 200}, events, margin=10)
    assert found == (170, 210)


def test_the_range_never_begins_at_or_before_the_checkpoint() -> None:
    events = [event(95, "warning"), event(103, "warning"), event(110)]
    chosen = checkpoint(1, step=100)
    assert steps_to_skip(chosen, [attempt(1)], {1: 110}, events) == (101, 120)


@pytest.mark.parametrize(
    ("status", "events", "last"),
    [
        ("failed", [], 200),
        ("failed", [event(200, "warning")], 200),
        ("failed", [event(100)], 100),
        ("failed", [event(110)], 5000),
        ("completed", [event(200)], 200),
        ("running", [event(200)], 200),
        ("failed", [event(200, number=9)], 200),
    ],
    ids=["quiet", "warning", "not beyond", "lived on", "completed", "running", "another attempt"],
)
def test_nothing_is_skipped_where_no_critical_event_ended_an_attempt_beyond(
    status: str, events: list[Event], last: int
) -> None:
    chosen = checkpoint(1, step=100)
    assert steps_to_skip(chosen, [attempt(1, status)], {1: last}, events) is None


def test_several_failed_attempts_are_covered_by_one_range() -> None:
    events = [event(200), event(300, number=2)]
    found = steps_to_skip(
        checkpoint(1, step=100), [attempt(1), attempt(2)], {1: 200, 2: 300}, events, margin=5
    )
    assert found == (195, 305)


# ---------------------------------------------------------------- from folders alone


@pytest.fixture
def manager(tmp_path: Path) -> CheckpointManager:
    return CheckpointManager(
        CheckpointStore(tmp_path, disk=NoSync()),
        None,
        session_id=1,
        session_name="ocean",
        attempt=1,
        retention=Retention(keep_newest=10),
    )


def save(manager: CheckpointManager, step: int, phi: float | None, **options: Any) -> UUID:
    state = {"w": np.full(4, options.pop("weight", 1.0)), "step": step}
    return manager.save(state, step=step, phi=phi, wait=True, **options)


def spoil(manager: CheckpointManager, key: UUID) -> None:
    path = manager.store.locate("ocean", key) / PAYLOAD
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_the_best_healthy_one_is_loaded(manager: CheckpointManager) -> None:
    save(manager, 1, 0.9, weight=math.nan)
    save(manager, 2, 0.7)
    save(manager, 3, 0.6)
    save(manager, 4, 0.95, kind="emergency")
    save(manager, 5, math.nan)
    save(manager, 6, None)
    state, decision = recover(manager)
    assert state["step"] == 2
    assert decision.chosen is not None
    assert decision.chosen.step == 2
    refused = {
        item.checkpoint.step: item.reason for item in decision.candidates if not item.healthy
    }
    assert set(refused) == {1, 4, 5, 6}
    assert "NaN" in refused[1]
    assert "emergency" in refused[4]


def test_a_corrupt_one_is_put_aside_and_the_next_is_taken(manager: CheckpointManager) -> None:
    best, next_best = save(manager, 1, 0.9), save(manager, 2, 0.8)
    spoil(manager, best)
    state, decision = recover(manager)
    assert state["step"] == 2
    (refused,) = [item for item in decision.candidates if not item.healthy]
    assert refused.checkpoint.id == best
    assert "BLAKE3" in refused.reason
    assert [item.id for item in manager.store.scan("ocean")] == [next_best]
    assert (manager.store.folder_of("ocean") / ".quarantine" / f"{best}.json").exists()
    again, second = recover(manager)
    assert again["step"] == 2
    assert second.chosen == decision.chosen


def test_a_dry_run_says_the_same_and_changes_nothing(manager: CheckpointManager) -> None:
    best = save(manager, 1, 0.9)
    save(manager, 2, 0.8)
    spoil(manager, best)
    before = sorted(manager.store.root.rglob("*"))
    state, told = recover(manager, dry_run=True)
    assert state is None
    assert sorted(manager.store.root.rglob("*")) == before
    _, decision = recover(manager)
    assert told.chosen == decision.chosen
    assert told.reason == decision.reason


def test_nothing_fit_names_every_candidate_unless_there_is_a_default(
    manager: CheckpointManager,
) -> None:
    spoil(manager, save(manager, 1, 0.9))
    save(manager, 2, None)
    state, decision = recover(manager, has_default=True, dry_run=True)
    assert (state, decision.chosen) == (None, None)
    with pytest.raises(NoHealthyCheckpoint) as refused:
        recover(manager)
    assert len(refused.value.reasons) == 2
    assert all(f"step {n}" in str(refused.value) for n in (1, 2))
    assert refused.value.decision.chosen is None
    assert "started afresh" in explain(decision)


def test_a_session_without_checkpoints_starts_afresh(manager: CheckpointManager) -> None:
    state, decision = recover(manager, has_default=True)
    assert (state, decision.candidates) == (None, ())
    assert explain(decision) == "recovery (best): no checkpoint yet; started afresh\n"


def test_what_was_resumed_from_is_kept_whatever_comes(manager: CheckpointManager) -> None:
    manager.retention = Retention(keep_newest=1, keep_best=1, settle_steps=0)
    first = save(manager, 1, 0.9)
    recover(manager)
    for step in range(2, 8):
        save(manager, step, 0.9 + step / 100)
    steps = {item.step for item in manager.store.scan("ocean")}
    assert first in {item.id for item in manager.store.scan("ocean")}
    assert steps == {1, 7}


def test_the_explanation_names_all_and_why(manager: CheckpointManager) -> None:
    good = save(manager, 10, 0.7)
    save(manager, 20, 0.6)
    spoil(manager, save(manager, 30, 0.9))
    save(manager, 40, 0.5, kind="emergency")
    _, decision = recover(manager)
    lines = explain(decision).splitlines()
    assert lines[0] == f"recovery (best): resume from step 10, checkpoint {good}"
    assert lines[2].split()[0] == "chosen"
    assert [line.split()[0] for line in lines[3:]] == ["refused", "refused", "-"]
    assert "newest, but an emergency checkpoint" in lines[3]
    assert "highest Φ, but corrupt" in lines[4]
    assert "healthy" in lines[5]
    assert len({line.index("0.") for line in lines[2:]}) == 1  # the columns are aligned
    assert "\x1b" not in explain(decision)
