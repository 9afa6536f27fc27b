"""A rule that puts a living run back to its healthy checkpoint, or stops it when in vain."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from processes import wait_until

import qigstore
from qigstore.repository import Store
from qigstore.safety import Threshold, reset

DRIFT = Threshold("basin_distance", above=0.3, off=0.1, action="soft_reset", name="drift")


pytestmark = pytest.mark.usefixtures("home", "patience")


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an event makes unhealthy is known before anything is chosen, on a slow disk, too."""
    monkeypatch.setattr(reset, "_SETTLE_LIMIT_S", 60.0)


class Model:
    """Its basin leaves the corner it was in from a step on, unless it is put back."""

    def __init__(self, bad_steps: set[int]) -> None:
        self.bad_steps, self.weights, self.taken = bad_steps, [0.1, 0.9], []

    def take_in(self, state: dict[str, Any]) -> None:
        self.weights = list(state["weights"])
        self.taken.append(state["step"])

    def train(self, step: int) -> None:
        if step in self.bad_steps:
            self.weights = [0.9, 0.1]


def train(model: Model, dsn: str, until: int = 200, **options: Any) -> list[int]:
    recorded = []
    with qigstore.session("s", dsn=dsn, quiet=True, rules=[DRIFT], settle_steps=10) as run:
        if options.pop("arm", True):
            run.on_soft_reset(model.take_in, **{"cooldown_s": 0.0, **options})
        for step in run.steps(0, until):
            model.train(step)
            run.record(step, basin=model.weights, phi=0.5 + step / 1000)
            run.checkpoint({"step": step, "weights": model.weights}, step=step, every=10)
            recorded.append(step)
    return recorded


def test_a_drift_puts_the_state_back_and_the_steps_go_on(store: Store, dsn: str) -> None:
    model = Model({95})
    assert train(model, dsn) == list(range(200))
    # Step 89 ranks best, but lies within the settle time of the event at 95.
    assert model.taken == [79]
    assert model.weights == [0.1, 0.9]
    info = store.sessions.get("s")
    assert info.status == "completed"
    told = {event.rule: event for event in store.events.list(info.id)}
    drift, back = told["drift"], told["soft reset"]
    assert (drift.step, drift.action, back.severity, back.step) == (95, "soft_reset", "info", 96)
    assert back.detail["event"] == str(drift.id)
    assert drift.detail["row"]["basin_distance"] > 0.3
    assert drift.detail["rule"]["open"] is True
    assert drift.resolved_at is not None
    assert "went back to step 79" in drift.detail["result"]
    assert drift.checkpoint_id == back.checkpoint_id
    checkpoint = store.checkpoints.get(drift.checkpoint_id or "")
    assert checkpoint.step == 79
    (decision,) = store.decisions.list(info.id)
    assert decision.reason.startswith("soft reset: ")
    assert [a.resumed_step for a in store.sessions.attempts(info.id)] == [None]


def test_a_reset_just_before_the_end_is_told_all_the_same(store: Store, dsn: str) -> None:
    train(Model({95}), dsn, until=97)
    (drift,) = (event for event in store.events.list() if event.rule == "drift")
    assert "went back to step 79" in drift.detail["result"]


def test_resets_in_vain_are_bounded_and_then_the_run_stops(store: Store, dsn: str) -> None:
    model = Model(set(range(95, 200)))
    with pytest.raises(qigstore.EmergencyStop, match="2 resets in a row brought no progress"):
        train(model, dsn, resets_max=2)
    assert model.taken == [79, 79]
    info = store.sessions.get("s")
    assert info.status == "aborted"


def test_without_anybody_to_take_the_state_in_the_run_stops_and_the_next_start_goes_back(
    store: Store, dsn: str
) -> None:
    with pytest.raises(qigstore.EmergencyStop, match="drift"):
        train(Model({95}), dsn, arm=False)
    with qigstore.session("s", dsn=dsn, quiet=True, settle_steps=10) as run:
        assert run.recover()["step"] == 79


def test_a_misspelt_metric_is_an_event_and_an_ended_episode_is_resolved(
    store: Store, dsn: str, home: Path
) -> None:
    file = home / "rules.toml"
    file.write_text(
        '[[rules]]\nkind = "threshold"\nmetric = "los"\nabove = 1.0\n'
        '[[rules]]\nkind = "threshold"\nmetric = "loss"\nabove = 1.0\nname = "high"\n'
    )
    with qigstore.session("s", dsn=dsn, quiet=True, rules=file) as run:
        info = store.sessions.get("s")
        for step in range(150):
            run.record(step, loss=2.0 if step == 20 else 0.5)

        def told() -> dict[str, Any]:
            return {event.rule: event for event in store.events.list(info.id)}

        wait_until(lambda: {"rules", "high"} <= set(told()), "both events", 60)
        wait_until(lambda: told()["high"].resolved_at is not None, "the episode's end", 60)
    assert "did you mean 'loss'?" in told()["rules"].message
    said = re.fullmatch(r"loss is well again at step (\d+)", told()["high"].detail["result"])
    assert said is not None
    assert 20 <= int(said[1]) <= 149  # looked at now and then, on a slow machine amid these steps
