"""The one JSON encoding: strict JSON whatever the value, and nothing of a number is lost."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qigstore.encoding import NON_FINITE, as_json, json_bytes
from qigstore.records import TelemetryRow

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def read(data: bytes) -> Any:
    def refuse(word: str) -> Any:
        pytest.fail(f"{word} is not JSON")

    return json.loads(data, parse_constant=refuse)


def same(told: Any, value: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        names = {"NaN": math.isnan(value), "Infinity": value > 0, "-Infinity": value < 0}
        return told in NON_FINITE and names[told]
    if isinstance(value, list):
        return len(told) == len(value) and all(map(same, told, value))
    if isinstance(value, dict):
        return set(told) == set(value) and all(same(told[k], value[k]) for k in value)
    return bool(told == value) and type(told) is type(value)


@given(plain)
def test_any_value_is_strict_json_and_comes_back(value: Any) -> None:
    assert same(read(json_bytes(value)), value)


@given(st.floats())
def test_every_bit_of_a_number_survives(number: float) -> None:
    told = read(json_bytes(np.array([number])))[0]
    back = float(told)
    assert math.isnan(back) if math.isnan(number) else back.hex() == number.hex()


class Pair(NamedTuple):
    one: int
    two: float


def test_records_arrays_and_times_have_one_form() -> None:
    moment = datetime(2026, 5, 4, 12, 0, tzinfo=timezone(timedelta(hours=2)))
    row = TelemetryRow(1, 0, 3, 4, moment, None, {"loss": math.nan})
    assert as_json(row) == {
        "attempt": 1, "rank": 0, "step": 3, "seq": 4, "recorded_at": "2026-05-04T10:00:00+00:00",
        "regime": None, "metrics": {"loss": "NaN"},
    }  # fmt: skip
    assert as_json(Pair(1, math.inf)) == {"one": 1, "two": "Infinity"}
    assert as_json((1, 2.5)) == [1, 2.5]
    array = np.array([[1.0, np.nan], [-np.inf, 2.0]])
    assert as_json(array) == [[1.0, "NaN"], ["-Infinity", 2.0]]
    assert as_json(np.int64(7)) == 7
    assert as_json(np.float32(0.5)) == 0.5
    assert as_json(datetime(2026, 1, 1, tzinfo=UTC)) == "2026-01-01T00:00:00+00:00"
    assert as_json([Path("a/b"), UUID(int=5)]) == ["a/b", f"{'0' * 8}-0000-0000-0000-{'0' * 11}5"]


def test_half_a_surrogate_pair_is_still_json() -> None:
    assert read(json_bytes("a\udc80b")) == "a\udc80b"
