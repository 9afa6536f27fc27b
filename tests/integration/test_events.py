"""Events from the row that raised them to their end, by the repository and the command line."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from commands import data, environment, run
from processes import wait_until

import qigstore
from qigstore.records import Event
from qigstore.repository import Store
from qigstore.safety import Heartbeat, Threshold

pytestmark = pytest.mark.usefixtures("home")

RULES = [
    Threshold("loss", above=1.0, off=0.6, name="high", action="checkpoint"),
    Threshold("phi", below=0.2, name="low", action="abort"),
]


@pytest.fixture
def env(home: Path, dsn: str) -> dict[str, str]:
    return environment(home, dsn)


def is_over(store: Store, rule: str, step: int | None = None) -> bool:
    """Whether an event of this rule (of this step) is there and resolved."""
    return any(
        event.rule == rule and event.resolved_at is not None
        for event in store.events.list()
        if step is None or event.step == step
    )


def by_rule(store: Store) -> dict[str, Any]:
    return {event.rule: event for event in store.events.list()}


def test_an_event_tells_its_row_its_rule_its_action_and_the_result(
    store: Store, dsn: str, env: dict[str, str]
) -> None:
    opened = qigstore.session("s", dsn=dsn, quiet=True, rules=RULES).open()
    for step in opened.steps(0, 100):
        loss = {10: 2.0, 11: math.nan}.get(step, 0.5)
        opened.record(step, loss=loss, phi=0.1 if step == 40 else 0.5, other=7.0)
        opened.checkpoint({"step": step}, step=step, every=1000)
        if step == 39:
            wait_until(lambda: is_over(store, "high"), "its end", 60)
    with pytest.raises(qigstore.EmergencyStop):
        opened.close()
    high, low = by_rule(store)["high"], by_rule(store)["low"]
    saved = {c.id: c for c in store.checkpoints.list(high.session_id)}
    assert saved[high.checkpoint_id].step == 10
    assert high.detail["row"] == {"loss": 2.0, "phi": 0.5, "other": 7.0}
    assert high.detail["rule"]["open"] is True
    said = re.fullmatch(
        r"saved at step 10; loss is well again at step (\d+)", high.detail["result"]
    )
    assert said is not None, high.detail["result"]
    assert 10 <= int(said[1]) <= 39  # looked at now and then, on a slow machine amid these
    assert low.detail["row"]["phi"] == 0.1
    assert saved[low.checkpoint_id].step == 40
    assert low.detail["result"] == f"aborted, exit status 75, checkpoint {low.checkpoint_id}"
    shown = run(env, "events", "show", str(low.id)[:8])
    assert shown.returncode == 0
    for words in ("low", "abort", "aborted, exit status 75", '"phi": 0.1', "resolved"):
        assert words in shown.stdout
    found = data(env, "events", "show", str(low.id))
    assert (found["session"], found["event"]["id"]) == ("s", str(low.id))


def test_events_are_acknowledged_once_and_the_open_ones_can_be_listed(
    store: Store, dsn: str, env: dict[str, str]
) -> None:
    with qigstore.session("s", dsn=dsn, quiet=True, rules=RULES[:1]) as opened:
        opened.record(0, loss=2.0)
    (event,) = store.events.list()
    assert [e["id"] for e in data(env, "events", "list", "--open")] == [str(event.id)]
    assert "open" in run(env, "events", "list").stdout
    (first,) = data(env, "events", "ack", str(event.id)[:6])
    (again,) = data(env, "events", "ack", str(event.id))
    assert first["acknowledged_at"] == again["acknowledged_at"] is not None
    assert data(env, "events", "list", "--open") == []
    assert "acknowledged" in run(env, "events", "list").stdout
    assert run(env, "events", "ack", str(event.id)).returncode == 0
    other = f"{int(str(event.id)[:4], 16) ^ 1:04x}"
    for words in (("show", other), ("ack", other), ("show", "x")):
        assert run(env, "events", *words).returncode == 5


def test_what_is_over_stays_as_it_was_told_first(store: Store, dsn: str) -> None:
    with qigstore.session("s", dsn=dsn, quiet=True, rules=RULES[:1]) as opened:
        opened.record(0, loss=2.0)
    (event,) = store.events.list()
    assert store.events.note(event.id, "a")
    assert store.events.resolve(event.id, "b")
    assert not store.events.resolve(event.id, "c")
    assert not store.events.note(event.id, "d")
    assert store.events.get(event.id).detail["result"] == "a; b"
    first, second = uuid4(), uuid4()
    for checkpoint in (first, second):  # which is no result, and counts once
        assert not store.events.resolve(event.id, "e", checkpoint_id=checkpoint)
    told = store.events.get(event.id)
    assert (told.detail["result"], told.checkpoint_id) == ("a; b", first)


def silences(store: Store, step: int) -> list[Event]:
    return [e for e in store.events.list() if (e.rule, e.step) == ("heartbeat", step)]


def test_a_run_that_falls_silent_raises_an_event_while_it_is_silent(store: Store, dsn: str) -> None:
    rules = [Heartbeat(floor_s=0.3, factor=1.0, first_s=0.3)]
    with qigstore.session("s", dsn=dsn, quiet=True, rules=rules) as opened:
        for step in range(5):
            opened.record(step, loss=1.0)
        # A slow machine may be silent earlier, too: that is another event, of an earlier step.
        wait_until(lambda: silences(store, 4), "the silence is noticed", 60)
        opened.record(5, loss=1.0)
        wait_until(lambda: is_over(store, "heartbeat", 4), "its end", 60)
    (event,) = silences(store, 4)
    assert (event.severity, event.metric) == ("warning", "silence_s")
    # Rows and step are looked at while the next row may be on its way.
    assert re.fullmatch(r"silence_s is well again at step [45]", event.detail["result"])
