"""Theorems about the simplex, on generated cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qigkernels import simplex

PROFILE = settings(max_examples=60)


def counts(n, rows):
    """Rows of non-negative weights with a positive sum, zeros and tiny entries included."""
    entries = st.one_of(st.just(0.0), st.floats(1e-12, 1.0), st.floats(0.0, 1e-200))
    return hnp.arrays(np.float64, (rows, n), elements=entries).filter(
        lambda x: bool((x.sum(axis=1) > 1e-6).all())
    )


@st.composite
def distributions(draw, rows, low=1, high=64):
    x = draw(st.integers(low, high).flatmap(lambda n: counts(n, rows)))
    return x / x.sum(axis=1, keepdims=True)


@st.composite
def interior(draw, rows, low=2, high=32):
    n = draw(st.integers(low, high))
    x = draw(hnp.arrays(np.float64, (rows, n), elements=st.floats(1e-3, 1.0)))
    return x / x.sum(axis=1, keepdims=True)


@PROFILE
@given(distributions(3))
def test_rao_1945_distance_is_a_metric(points):
    p, q, r = points
    d = simplex.distance
    assert d(p, p) == 0.0
    assert 0.0 <= d(p, q) <= np.pi
    assert d(p, q) == pytest.approx(d(q, p), rel=1e-12, abs=1e-160)
    assert d(p, r) <= d(p, q) + d(q, r) + 1e-15


@PROFILE
@given(distributions(2), st.randoms(use_true_random=False))
def test_distance_is_invariant_under_permutations(points, random):
    p, q = points
    order = list(range(len(p)))
    random.shuffle(order)
    assert simplex.distance(p[order], q[order]) == pytest.approx(
        simplex.distance(p, q), rel=1e-12, abs=1e-15
    )


@PROFILE
@given(interior(2), st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_chentsov_contraction_under_stochastic_maps(points, seed, m):
    p, q = points
    kernel = np.random.default_rng(seed).dirichlet(np.full(m, 0.5), len(p))
    a, b = p @ kernel, q @ kernel
    assert simplex.distance(a / a.sum(), b / b.sum()) <= simplex.distance(p, q) + 1e-15


@PROFILE
@given(interior(2), st.integers(1, 6))
def test_splitting_an_outcome_without_information_keeps_the_distance(points, parts):
    """A congruent embedding (Chentsov 1972) is an isometry."""
    p, q = points
    share = np.arange(1.0, parts + 1.0) / np.arange(1.0, parts + 1.0).sum()
    a = np.concatenate((p[:1] * share, p[1:]))
    b = np.concatenate((q[:1] * share, q[1:]))
    assert simplex.distance(a, b) == pytest.approx(simplex.distance(p, q), rel=1e-12, abs=1e-15)


@PROFILE
@given(distributions(2), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_geodesic_has_constant_speed(points, s, t):
    p, q = points
    whole = simplex.distance(p, q)
    x, y = simplex.geodesic(p, q, s), simplex.geodesic(p, q, t)
    assert simplex.distance(x, y) == pytest.approx(abs(s - t) * whole, rel=1e-9, abs=3e-8)
    assert simplex.distance(p, x) == pytest.approx(s * whole, rel=1e-9, abs=3e-8)
    assert np.array_equal(simplex.geodesic(p, q, 0.0), p)
    assert np.array_equal(simplex.geodesic(p, q, 1.0), q)


def test_geodesic_has_constant_speed_between_points_1e_9_apart(rng):
    for _ in range(20):
        p = rng.dirichlet(np.full(64, 5.0))
        q = p * (1.0 + 1e-9 * rng.standard_normal(64))
        q /= q.sum()
        whole = simplex.distance(p, q)
        t = np.linspace(0.0, 1.0, 5)
        path = simplex.geodesic(p, q, t)
        steps = simplex.distance(path[:-1], path[1:])
        assert np.abs(steps / (0.25 * whole) - 1.0).max() <= 1e-6


@PROFILE
@given(interior(2))
def test_exp_is_the_inverse_of_log_and_the_length_of_log_is_the_distance(points):
    p, q = points
    v = simplex.log(p, q)
    assert abs(v.sum()) <= 1e-14
    assert simplex.norm(p, v) == pytest.approx(simplex.distance(p, q), rel=1e-11, abs=1e-15)
    assert np.abs(simplex.exp(p, v) - q).max() <= 1e-14
    assert np.abs(simplex.exp(p, 0.5 * v) - simplex.geodesic(p, q, 0.5)).max() <= 1e-14


@PROFILE
@given(interior(4))
def test_parallel_transport_is_an_isometry_and_takes_the_geodesic_along(points):
    p, q, a, b = points
    v, w = simplex.log(p, a), simplex.log(p, b)
    moved_v, moved_w = (simplex.transport(p, q, x) for x in (v, w))
    assert abs(moved_v.sum()) <= 1e-13
    assert simplex.inner(q, moved_v, moved_w) == pytest.approx(
        float(simplex.inner(p, v, w)), rel=1e-9, abs=1e-13
    )
    forth, back = simplex.log(p, q), simplex.log(q, p)
    assert np.abs(simplex.transport(p, q, forth) + back).max() <= 1e-13


@PROFILE
@given(interior(2))
def test_amari_natural_gradient_is_the_inverse_metric_times_the_gradient(points):
    p, g = points
    found = simplex.natural_gradient(p, g)
    reduced = g[:-1] - g[-1]
    assert np.abs(found[:-1] - simplex.metric_inverse(p) @ reduced).max() <= 1e-14
    assert abs(found.sum()) <= 1e-15
    solved = np.linalg.solve(simplex.metric(p), reduced)
    assert found[:-1] == pytest.approx(solved, rel=1e-6, abs=1e-12)


@PROFILE
@given(interior(1))
def test_metric_and_its_inverse_are_inverse_and_positive(points):
    p = points[0]
    G, inverse = simplex.metric(p), simplex.metric_inverse(p)
    # An entry of the inverse is pᵢ − pᵢpⱼ, right to the rounding of pᵢ ≤ 1.
    assert np.abs(G @ inverse - np.eye(len(p) - 1)).max() <= 1e-15 * np.abs(G).max() * len(p)
    np.linalg.cholesky(G)


@PROFILE
@given(interior(5, high=8))
def test_frechet_mean_is_where_the_logs_balance(points):
    mean = simplex.frechet_mean(points)
    pull = simplex.log(mean, points).mean(axis=0)
    assert np.abs(pull).max() <= 1e-14
    assert mean.sum() == pytest.approx(1.0, abs=1e-15)
    order = [3, 0, 4, 2, 1]
    assert np.abs(simplex.frechet_mean(points[order]) - mean).max() <= 1e-14


def test_frechet_mean_of_two_points_is_the_middle_of_their_geodesic(rng):
    for n in (2, 10, 64):
        p, q = rng.dirichlet(np.ones(n), 2)
        middle = simplex.geodesic(p, q, 0.5)
        assert np.abs(simplex.frechet_mean(np.stack((p, q))) - middle).max() <= 1e-14
        weighted = simplex.frechet_mean(np.stack((p, q)), np.array([0.25, 0.75]))
        assert np.abs(weighted - simplex.geodesic(p, q, 0.75)).max() <= 1e-14
        assert np.abs(simplex.frechet_mean(np.stack((p, p))) - p).max() <= 1e-15


def test_a_geodesic_has_no_curvature_and_a_circle_that_of_its_radius(rng):
    p, q = rng.dirichlet(np.full(8, 5.0), 2)
    path = simplex.geodesic(p, q, np.linspace(0.0, 1.0, 9))
    assert np.abs(simplex.path_curvature(path)).max() <= 1e-12
    # A small circle of geodesic radius r around the centre of the 3-simplex: on the sphere of
    # radius 2 its geodesic curvature is cot(r/2)/2; the polygon tends to it.
    centre = np.full(3, 1.0 / 3.0)
    e1, e2 = np.array([1.0, -1.0, 0.0]), np.array([1.0, 1.0, -2.0])
    e1, e2 = (e / simplex.norm(centre, e) for e in (e1, e2))
    turns = np.linspace(0.0, 2.0 * np.pi, 4001)[:-1, None]
    radius = 0.4
    circle = simplex.exp(
        np.broadcast_to(centre, (4000, 3)), radius * (np.cos(turns) * e1 + np.sin(turns) * e2)
    )
    found = simplex.path_curvature(circle)
    assert found == pytest.approx(np.full(3998, 0.5 / np.tan(0.5 * radius)), rel=1e-5)
    still = np.stack((p, p, q))
    assert simplex.path_curvature(still).tolist() == [0.0]


def test_the_simplex_has_constant_curvature_one_quarter(rng):
    """Girard: the angles of a geodesic triangle exceed π by its area/4 (sphere of radius 2)."""
    a, b, c = rng.dirichlet(np.full(3, 4.0), 3)

    def angle(x, y, z):
        v, w = simplex.log(x, y), simplex.log(x, z)
        return np.arccos(simplex.inner(x, v, w) / (simplex.norm(x, v) * simplex.norm(x, w)))

    excess = angle(a, b, c) + angle(b, c, a) + angle(c, a, b) - np.pi
    U = np.sqrt(np.stack((a, b, c)))
    cosines = U @ U.T
    solid = 2.0 * np.arctan2(
        abs(np.linalg.det(U)), 1.0 + cosines[0, 1] + cosines[1, 2] + cosines[2, 0]
    )
    assert excess == pytest.approx(solid, rel=1e-8)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (2, 1, 3)])
def test_every_batch_shape_agrees_with_single_calls(rng, batch):
    p, q = (rng.dirichlet(np.full(5, 2.0), batch or None) for _ in range(2))
    d = simplex.distance(p, q)
    x, v = simplex.geodesic(p, q, 0.25), simplex.log(p, q)
    assert np.shape(d) == batch
    assert x.shape == v.shape == (*batch, 5)
    for index in np.ndindex(*batch):
        one = np.asarray(d)[index]
        assert one == pytest.approx(simplex.distance(p[index], q[index]), rel=1e-14)
        single = simplex.geodesic(p[index], q[index], 0.25)
        assert np.abs(x[index] - single).max() <= 1e-15


def test_batch_axes_broadcast(rng):
    P, q = rng.dirichlet(np.ones(4), (5, 1)), rng.dirichlet(np.ones(4), 3)
    found = simplex.distance(P, q)
    assert found.shape == (5, 3)
    assert found == pytest.approx(simplex.pairwise(P[:, 0], q), abs=5e-14)


def test_no_function_writes_into_its_arguments(rng):
    p, q, a = rng.dirichlet(np.ones(6), 3)
    v = simplex.log(p, a)
    P = rng.dirichlet(np.ones(6), 4)
    given = [p, q, a, v, P]
    kept = [x.copy() for x in given]
    for x in given:
        x.flags.writeable = False
    simplex.distance(p, q)
    simplex.distance(P, q)
    simplex.distance_from_roots(p, q)
    simplex.pairwise(P, P)
    simplex.geodesic(p, q, 0.5)
    simplex.exp(p, 0.1 * v)
    simplex.transport(p, q, v)
    simplex.frechet_mean(P)
    simplex.natural_gradient(p, v)
    simplex.metric(p)
    simplex.path_curvature(P)
    simplex.to_simplex(v, how="softmax")
    assert all(np.array_equal(x, y) for x, y in zip(given, kept, strict=True))


def test_to_simplex_does_only_what_it_is_told(rng):
    x = rng.standard_normal((3, 5)) * 300.0
    soft = simplex.to_simplex(x, how="softmax")
    assert soft.sum(axis=1) == pytest.approx(np.ones(3), abs=1e-15)
    assert np.array_equal(soft.argmax(axis=1), x.argmax(axis=1))
    assert simplex.to_simplex(np.array([1.0, 3.0]), how="counts").tolist() == [0.25, 0.75]
    assert simplex.to_simplex(np.array([3.0, -4.0]), how="amplitudes") == pytest.approx(
        [0.36, 0.64], rel=1e-15
    )
    huge = simplex.to_simplex(np.array([1e308, 1e308]), how="counts")
    assert huge.tolist() == [0.5, 0.5]
