"""Rates, escalations and heartbeats: once an episode, bounded, and remembered through JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from qigstore.errors import InvalidInput, StoreUnavailable
from qigstore.records import Event
from qigstore.safety.lookout import Lookout
from qigstore.safety.rules import (
    Alarm,
    Escalation,
    Finite,
    Heartbeat,
    Rate,
    Rule,
    RuleSet,
    Threshold,
)

HIGH = Threshold("loss", above=1.0, off=0.5, name="high")


def feed(rules: RuleSet, values: Sequence[float], start: int = 0) -> list[Alarm]:
    check = rules.bind(("loss",))
    return [alarm for step, value in enumerate(values, start) for alarm in check(step, [value])]


@pytest.mark.parametrize("over", [1, 3, 10])
@pytest.mark.parametrize(
    ("direction", "slope", "fires"),
    [("up", 1.0, True), ("up", -1.0, False), ("down", -1.0, True), ("both", -1.0, True)],
)
def test_a_rate_is_the_change_over_so_many_values(
    over: int, direction: str, slope: float, fires: bool
) -> None:
    rule = Rate("loss", limit=0.9 * over, over=over, direction=direction)  # type: ignore[arg-type]
    values = [5.0] * 30 + [5.0 + slope * i for i in range(1, 31)]
    alarms = feed(RuleSet([rule]), values)
    assert [a.step for a in alarms] == ([29 + over] if fires else [])


def test_a_relative_rate_knows_no_scale_and_nan_does_not_enter_it() -> None:
    for scale in (1e-9, 1.0, 1e9):
        rules = RuleSet([Rate("loss", limit=0.5, over=2, relative=True)])
        values = [scale, scale, float("nan"), 1.4 * scale, 1.6 * scale, 1.6 * scale, 2.2 * scale]
        assert [a.step for a in feed(rules, values)] == [4]


def test_a_rate_from_zero_is_a_rate() -> None:
    assert len(feed(RuleSet([Rate("loss", limit=0.5, relative=True)]), [0.0, 0.0, 1e-3])) == 1


def test_three_alarms_in_a_while_escalate_once_and_two_do_not() -> None:
    rules = RuleSet([HIGH, Escalation(alarms=3, within=100, action="abort")])
    spikes = [2.0 if step in {10, 30, 50, 60, 400, 450} else 0.0 for step in range(500)]
    alarms = feed(rules, spikes)
    escalated = [a for a in alarms if a.metric == "alarms"]
    assert [a.step for a in escalated] == [50]
    assert escalated[0].action == "abort"
    assert alarms[alarms.index(escalated[0]) + 1].rule == "high"  # worst first


def test_an_escalation_counts_the_rules_it_names_and_never_itself() -> None:
    other = Threshold("loss", above=1.5, off=0.5, name="very high")
    rules = RuleSet([HIGH, other, Escalation(of="very*", alarms=2, within=50)])
    alarms = feed(rules, [1.2 if step % 2 else 0.0 for step in range(40)])
    assert {a.rule for a in alarms} == {"high"}
    alarms = feed(rules, [2.0 if step % 2 else 0.0 for step in range(200, 240)], 200)
    assert [a.step for a in alarms if a.metric == "alarms"] == [203]


@pytest.mark.parametrize("rule", [Rate("loss", limit=0.3, over=7), Escalation(alarms=2, within=9)])
def test_state_through_json_continues_exactly(rule: Rule, rng: random.Random) -> None:
    values = [rng.choice([0.0, 0.2, 2.0]) for _ in range(200)]
    whole = feed(RuleSet([HIGH, rule]), values)
    assert len(whole) > 3
    for cut in (1, 50, 119):
        first, second = RuleSet([HIGH, rule]), RuleSet([HIGH, rule])
        before = feed(first, values[:cut])
        second.restore(json.loads(json.dumps(first.state())))
        assert before + feed(second, values[cut:], cut) == whole


def test_a_list_that_is_none_is_refused() -> None:
    state = RuleSet([Rate("loss", limit=1.0)]).state()
    rules = RuleSet([Rate("loss", limit=1.0)])
    feed(rules, [1.0])
    state = rules.state()
    state["rules"]["loss rate"]["loss"]["recent"] = ["x"]
    with pytest.raises(InvalidInput, match="recent"):
        RuleSet([Rate("loss", limit=1.0)]).restore(state)


def test_silence_is_five_of_the_longest_pauses_and_a_start_takes_its_time() -> None:
    rules = RuleSet([Heartbeat(floor_s=10.0, factor=5.0, first_s=100.0)])
    seen: list[float] = []

    def look(now_s: float, rows: int) -> None:
        seen.extend(now_s for _ in rules.look(now_s, rows, rows - 1))

    for now in range(99):
        look(float(now), 0)
    assert seen == []  # a start
    for now in range(100, 120, 3):
        look(float(now), now)
    for now in range(120, 160):
        look(float(now), 119)
    assert len(seen) == 1
    assert 118 + 15 < seen[0] < 118 + 20
    look(160.0, 200)  # it goes on, and the silence is over; it does not make the next one longer
    for now in range(161, 200):
        look(float(now), 200)
    assert len(seen) == 2


def test_a_run_that_never_records_is_silent_too() -> None:
    rules = RuleSet([Heartbeat(first_s=100.0)])
    assert rules.look(0.0, 0, -1) == []
    assert rules.look(99.0, 0, -1) == []
    assert [a.step for a in rules.look(101.0, 0, -1)] == [0]


def event() -> Event:
    return Event(uuid4(), 1, 1, 0, 3, "high", "critical", "m", datetime.now(UTC))


class Told:
    def __init__(self) -> None:
        self.said: list[tuple[UUID, str, UUID | None, bool]] = []
        self.idle: list[str] = []
        self.away = False

    def tell(self, event_id: UUID, result: str, checkpoint: UUID | None, over: bool) -> None:
        if self.away:
            raise StoreUnavailable("nowhere", "refused")
        self.said.append((event_id, result, checkpoint, over))


def test_an_event_is_resolved_when_its_episode_ends_also_when_the_database_was_away() -> None:
    rules, told, raised = RuleSet([HIGH]), Told(), event()
    lookout = Lookout(rules, lambda: (5, 4), print, told.tell)
    (alarm,) = feed(rules, [0.0, 2.0])
    lookout.follow(alarm, raised)
    lookout.look()
    assert told.said == []
    feed(rules, [0.1], 2)
    told.away = True
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            lookout.look()
    told.away = False
    lookout.look()
    lookout.look()
    assert told.said == [(raised.id, "loss is well again at step 4", None, True)]


def test_a_rule_whose_metric_nobody_records_is_told_once_with_the_nearest() -> None:
    rules = RuleSet([Threshold("los", above=1.0), HIGH, Finite(), Heartbeat()])
    told, rows = Told(), [0]
    lookout = Lookout(rules, lambda: (rows[0], 0), print, told.tell, idle=told.idle.append)
    feed(rules, [0.0])
    for rows[0] in (1, 99, 100, 101):
        lookout.look()
    assert told.idle == ["rules without a metric: 'los > 1' on 'los' (did you mean 'loss'?)"]
