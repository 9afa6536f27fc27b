"""Roll-ups do not depend on how the rows were cut: rows, buckets and wider buckets agree."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qigstore.repository.buckets import Buckets, bucket_rows, join_buckets, widen

ROWS = st.lists(st.tuples(st.integers(0, 2**62), st.floats(), st.floats()), min_size=1, max_size=60)


def of(rows: list[tuple[int, float, float]], width: int) -> Buckets:
    step = np.array([row[0] for row in rows], np.int64)
    values = np.array([row[1:] for row in rows], np.float64)
    return bucket_rows(step, values, np.array([3, 0]), width)


def assert_same(found: Buckets, expected: Buckets) -> None:
    for name in ("start", "rows", "places", "low", "high", "finite", "nans", "infs"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
    largest = np.maximum(np.abs(expected.low), np.abs(expected.high))
    np.testing.assert_array_equal(np.isnan(found.mean), np.isnan(expected.mean))
    error = np.abs(found.mean / 2 - expected.mean / 2)  # halves: a difference may overflow
    assert np.all((error <= 1e-12 * largest + 1e-320) | np.isnan(largest))


@given(rows=ROWS, width=st.integers(1, 2**40), times=st.integers(1, 64), cut=st.integers(0, 60))
def test_the_way_up_does_not_matter(
    rows: list[tuple[int, float, float]], width: int, times: int, cut: int
) -> None:
    whole = of(rows, width * times)
    assert_same(widen(of(rows, width), width * times), whole)
    pieces = [of(piece, width) for piece in (rows[:cut], rows[cut:]) if piece]
    assert_same(join_buckets(pieces, width * times), whole)
    assert int(whole.rows.sum()) == len(rows)


def test_a_mean_does_not_overflow_where_the_sum_does() -> None:
    found = of([(0, 1.7e308, -1.7e308)] * 3, 4)
    assert found.mean.tolist() == [[-1.7e308, 1.7e308]]


@pytest.mark.parametrize("count", [2, 3, 5, 6, 7, 10, 60])
def test_a_mean_of_the_greatest_numbers_is_no_infinity(count: int) -> None:
    most = sys.float_info.max  # thirds of it add up to more than there is
    rows = [(step, most, -most) for step in range(count)]
    whole = of(rows, 64)
    assert whole.mean.tolist() == [[-most, most]]
    assert_same(widen(of(rows, 1), 64), whole)
    assert_same(join_buckets([of(rows[:1], 8), of(rows[1:], 8)], 64), whole)


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    rows = [(0, math.nan, 1.0), (1, math.inf, 3.0), (2, -math.inf, math.nan)]
    found = of(rows, 4)
    assert found.places.tolist() == [0, 3]
    assert found.mean[0, 0] == 2.0
    assert math.isnan(found.low[0, 1])
    assert [found.finite.tolist(), found.nans.tolist(), found.infs.tolist()] == [
        [[2, 0]], [[1, 1]], [[0, 2]],
    ]  # fmt: skip
