"""What a client is sent of rows: themselves, or buckets that lose no spike; and what it may ask."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qigstore.errors import InvalidInput
from qigstore.records import TelemetryRow
from qigstore.server.stream.points import Pending
from qigstore.server.stream.subscription import KINDS, Subscription

START = datetime(2026, 1, 1, tzinfo=UTC)
values = st.floats(allow_nan=True, allow_infinity=True)
metrics = st.dictionaries(st.sampled_from(["loss", "phi", "mine"]), values)


def rows_of(given: list[dict[str, float]]) -> list[TelemetryRow]:
    return [
        TelemetryRow(1, 0, n, n + 1, START + timedelta(seconds=n), "linear", row)
        for n, row in enumerate(given)
    ]


def pieces(rows: list[TelemetryRow], cuts: list[int]) -> list[list[TelemetryRow]]:
    edges = [0, *sorted(cut % (len(rows) + 1) for cut in cuts), len(rows)]
    return [rows[a:b] for a, b in pairwise(edges)]


@given(
    st.lists(metrics, max_size=60),
    st.lists(st.integers(0, 60), max_size=6),
    st.integers(1, 8),
    st.sampled_from([None, frozenset({"loss"}), frozenset({"loss", "mine"})]),
)
def test_points_hold_every_row_once_and_every_extreme(
    recorded: list[dict[str, float]], cuts: list[int], most: int, chosen: frozenset[str] | None
) -> None:
    rows = rows_of(recorded)
    pending = Pending(chosen, most)
    for piece in pieces(rows, cuts):
        pending.add(piece)
    assert len(pending) <= most
    shown = pending.shown()
    if "rows" in shown:
        assert [row["step"] for row in shown["rows"]] == [row.step for row in rows]
        return
    buckets = shown["buckets"]
    assert sum(bucket["rows"] for bucket in buckets) == len(rows)
    steps = [step for bucket in buckets for step in (bucket["first_step"], bucket["last_step"])]
    assert steps == sorted(steps)
    for name in ("loss", "phi", "mine") if chosen is None else chosen:
        _check_extremes(name, [row[name] for row in recorded if name in row], buckets)


def _check_extremes(name: str, found: list[float], buckets: list[dict[str, Any]]) -> None:
    parts = [bucket["metrics"][name] for bucket in buckets if name in bucket["metrics"]]
    finite = [value for value in found if math.isfinite(value)]
    assert sum(part["count"] for part in parts) == len(finite)
    assert sum(part.get("nans", 0) for part in parts) == sum(map(math.isnan, found))
    assert sum(part.get("infs", 0) for part in parts) == sum(map(math.isinf, found))
    if finite:
        lows = [part["min"] for part in parts if part["count"]]
        highs = [part["max"] for part in parts if part["count"]]
        assert (min(lows), max(highs)) == (min(finite), max(finite))
    for part in parts:
        if part["count"]:
            slack = 1e-9 * max(abs(part["min"]), abs(part["max"]))
            assert part["min"] - slack <= part["mean"] <= part["max"] + slack
        else:
            assert part["min"] is part["max"] is part["mean"] is None


def test_metrics_that_were_not_asked_for_are_left_out() -> None:
    pending = Pending(frozenset({"loss"}), 10)
    pending.add(rows_of([{"loss": 1.0, "phi": 2.0}, {"phi": 3.0}]))
    assert [row["metrics"] for row in pending.shown()["rows"]] == [{"loss": 1.0}, {}]


@pytest.mark.parametrize(
    ("wishes", "what"),
    [
        ({"sesions": ["a"]}, "sesions"),
        ({"sessions": "ocean"}, "1 to 100 names"),
        ({"sessions": []}, "1 to 100 names"),
        ({"sessions": ["x"] * 101}, "1 to 100 names"),
        ({"sessions": [1]}, "names of 1 to 200"),
        ({"sessions": ["y" * 201]}, "names of 1 to 200"),
        ({"metrics": {}}, "1 to 500 names"),
        ({"metrics": 7}, "1 to 500 names"),
        ({"kinds": ["health"]}, "of checkpoint, event, telemetry"),
        ({"rate": "fast"}, "points a second"),
        ({"rate": 0}, "points a second"),
        ({"rate": 1e9}, "points a second"),
        ({"rate": True}, "points a second"),
        ({"rate": math.nan}, "points a second"),
        ({"rate": None}, "points a second"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused(wishes: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidInput, match=what):
        Subscription.of(wishes)


def test_a_subscription_covers_its_sessions_and_what_its_token_is_for() -> None:
    assert Subscription.of({}).covers("ocean")
    assert Subscription.of({}).kinds == KINDS
    assert math.isinf(Subscription.of({"rate": "all"}).rate)
    named = Subscription.of({"sessions": ["ocean"]})
    assert named.covers("ocean")
    assert not named.covers("lake")
    limited = Subscription.of({}, "lake-*")
    assert limited.covers("lake-1")
    assert not limited.covers("ocean")


def test_a_place_holds_for_every_rate_and_for_no_other_sessions_or_kinds() -> None:
    scope = Subscription.of({}).scope
    assert Subscription.of({"rate": 1, "metrics": ["phi"]}).scope == scope
    others = [{"sessions": ["a"]}, {"sessions": ["b"]}, {"kinds": ["event"]}]
    scopes = {scope, *(Subscription.of(other).scope for other in others)}
    scopes.add(Subscription.of({}, "lake-*").scope)
    assert len(scopes) == 5
