"""The simplex against 50 decimal digits."""

from __future__ import annotations

import kernels_judge as judge
import mpmath as mp
import numpy as np
import pytest

from qigkernels import simplex


def close_pair(rng, n, apart):
    p = rng.dirichlet(np.ones(n))
    q = p * np.exp(apart * rng.standard_normal(n))
    return p, q / q.sum()


@pytest.mark.parametrize("concentration", [0.05, 1.0, 10.0])
@pytest.mark.parametrize("n", [2, 3, 8, 64])
def test_distance_is_within_4e_16_of_the_definition(rng, n, concentration):
    for _ in range(20):
        p, q = rng.dirichlet(np.full(n, concentration), 2)
        wanted = judge.fisher_rao(p, q)
        assert judge.error(simplex.distance(p, q), wanted) <= 4e-16
        assert judge.error(simplex.distance(p[None], q[None])[0], wanted) <= 4e-16


@pytest.mark.parametrize("apart", [0.3, 0.1, 1e-2, 1e-4, 1e-8, 1e-12])
@pytest.mark.parametrize("n", [2, 5, 64])
def test_distance_of_near_points_keeps_its_digits(rng, n, apart):
    for _ in range(10):
        p, q = close_pair(rng, n, apart)
        wanted = judge.fisher_rao(p, q)
        for found in (simplex.distance(p, q), simplex.distance(p[None], q[None])[0]):
            assert judge.error(found, wanted) <= 4e-16
            assert judge.error(found, wanted) <= 5e-15 * wanted


def test_distance_of_points_1e_14_apart_has_relative_error_below_1e_15(rng):
    for _ in range(40):
        p, q = close_pair(rng, 64, 1e-14)
        wanted = judge.fisher_rao(p, q)
        if wanted > 5e-15:
            assert judge.error(simplex.distance(p, q), wanted) <= 1e-15 * wanted


def test_extended_overlap_of_long_double_and_of_float64_pairs_agree(rng):
    from qigkernels._arrays import namespace
    from qigkernels._extended import overlap

    for _ in range(50):
        p, q = rng.dirichlet(np.ones(64), 2)
        head, tail = overlap(namespace(p), p, q)
        u, v = judge.roots(p), judge.roots(q)
        wanted = mp.fsum(a * b for a, b in zip(u, v, strict=True))
        assert float(abs(mp.mpf(float(head)) + mp.mpf(float(tail)) - wanted)) <= 1e-22


def spiked(rng, n, low):
    """Probabilities of every size from 1 down to 10^low, some of them 0."""
    p = 10.0 ** rng.uniform(low, 0.0, n) * (rng.random(n) < 0.9)
    p[int(rng.integers(n))] = 1.0
    return p / p.sum()


def check_spiked(rng, n, low):
    p, q = spiked(rng, n, low), spiked(rng, n, low)
    near = p * np.exp(10.0 ** rng.uniform(-13.0, -1.0) * rng.standard_normal(n))
    for other in (q, near / near.sum(), p[rng.permutation(n)]):
        wanted = judge.fisher_rao(p, other)
        for found in (simplex.distance(p, other), simplex.distance(p[None], other[None])[0]):
            assert judge.error(found, wanted) <= 4e-16
            assert wanted < 1e-12 or judge.error(found, wanted) <= 5e-15 * wanted


@pytest.mark.parametrize("low", [-3.0, -15.0, -300.0])
@pytest.mark.parametrize("n", [2, 3, 4, 8, 16, 64])
def test_distance_of_probabilities_of_every_size(rng, n, low):
    for _ in range(10):
        check_spiked(rng, n, low)


@pytest.mark.long
@pytest.mark.parametrize("low", [-3.0, -15.0, -300.0])
@pytest.mark.parametrize("n", [2, 3, 4, 8, 16, 64])
def test_distance_of_probabilities_of_every_size_in_full(rng, n, low):
    for _ in range(1000):
        check_spiked(rng, n, low)


@pytest.mark.parametrize("tiny", [1e-300, 1e-310, 5e-324])
def test_probabilities_down_to_subnormal_numbers_are_measured_right(tiny):
    rest = np.array([0.25, 0.75])
    p = np.array([tiny, *rest])
    q = np.array([0.0, *rest])
    # √ of the probability is the whole gap: d = 2·√tiny to first order.
    assert simplex.distance(p, q) == pytest.approx(2.0 * np.sqrt(tiny), rel=1e-15)
    assert simplex.distance(p[None], q[None])[0] == pytest.approx(2.0 * np.sqrt(tiny), rel=1e-15)


def test_distance_is_exactly_zero_between_equal_points_and_pi_between_disjoint_ones(rng):
    for n in (1, 2, 7, 64):
        p = rng.dirichlet(np.ones(n))
        assert simplex.distance(p, p) == 0.0
        assert simplex.distance(p, p.copy()) == 0.0
        assert not np.any(simplex.distance(p[None], p[None]))
    assert simplex.distance(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == np.pi


def test_inputs_that_are_off_the_simplex_by_their_own_rounding_count_as_on_it(rng):
    p, q = rng.dirichlet(np.ones(16), 2)
    scaled = q * (1.0 + 9e-9)
    assert judge.error(simplex.distance(p, scaled), judge.fisher_rao(p, q)) <= 1e-15
    assert simplex.distance(q, scaled) <= 1e-15


def test_pairwise_matches_the_definition_to_5e_14_and_pairs_to_4e_16_when_near(rng):
    P = rng.dirichlet(np.ones(16), 6)
    Q = np.concatenate((rng.dirichlet(np.ones(16), 4), P[:2]))
    Q[4] = Q[4] * (1.0 + 1e-6 * rng.standard_normal(16))
    Q[4] /= Q[4].sum()
    D = simplex.pairwise(P, Q)
    for i, j in np.ndindex(*D.shape):
        assert judge.error(D[i, j], judge.fisher_rao(P[i], Q[j])) <= 5e-14
    assert D[1, 5] == 0.0
    assert judge.error(D[0, 4], judge.fisher_rao(P[0], Q[4])) <= 4e-16
    many = np.concatenate((P, Q, rng.dirichlet(np.ones(16), 400)))
    table = simplex.pairwise(many)
    assert np.abs(table - simplex.pairwise(many, many.copy())).max() <= 1e-14
    assert np.array_equal(table, table.T)
    own = simplex.pairwise(P)
    assert np.array_equal(own, own.T)
    assert not own.diagonal().any()
    assert np.abs(own - simplex.pairwise(P, P.copy())).max() <= 1e-15


def test_stored_roots_give_the_distance_to_1e_15(rng):
    for _ in range(20):
        p, q = rng.dirichlet(np.ones(64), 2)
        found = simplex.distance_from_roots(simplex.roots(p), simplex.roots(q))
        assert judge.error(found, judge.fisher_rao(p, q)) <= 1.5e-15


@pytest.mark.parametrize("concentration", [0.3, 5.0])
@pytest.mark.parametrize(("k", "n"), [(2, 2), (5, 3), (12, 16)])
def test_frechet_mean_is_within_1e_14_of_the_definition(rng, k, n, concentration):
    P = rng.dirichlet(np.full(n, concentration), k)
    w = rng.dirichlet(np.ones(k))
    for weights in (None, w):
        found = simplex.frechet_mean(P, weights)
        wanted = judge.frechet_mean(P, weights)
        assert max(judge.error(a, b) for a, b in zip(found, wanted, strict=True)) <= 1e-14


@pytest.mark.parametrize("low", [-15.0, -300.0])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_frechet_mean_of_probabilities_of_every_size(rng, n, low):
    for _ in range(3):
        P = np.stack([spiked(rng, n, low) for _ in range(4)])
        found, wanted = simplex.frechet_mean(P), judge.frechet_mean(P)
        assert max(judge.error(a, b) for a, b in zip(found, wanted, strict=True)) <= 1e-14


def test_geodesic_log_and_exp_match_the_great_circle_in_50_digits(rng):
    for apart in (None, 1e-3, 1e-9):
        p, q = rng.dirichlet(np.ones(6), 2) if apart is None else close_pair(rng, 6, apart)
        u, v = judge.roots(p), judge.roots(q)
        angle = judge.fisher_rao(p, q) / 2
        along = [(b - mp.cos(angle) * a) / mp.sin(angle) for a, b in zip(u, v, strict=True)]
        tangent = simplex.log(p, q)
        for i in range(6):
            assert judge.error(tangent[i], 2 * u[i] * angle * along[i]) <= 1e-15
        for t in (0.0, 0.3, 0.5, 0.9, 1.0):
            found = simplex.geodesic(p, q, t)
            wanted = [
                (mp.cos(t * angle) * a + mp.sin(t * angle) * e) ** 2
                for a, e in zip(u, along, strict=True)
            ]
            assert max(judge.error(a, b) for a, b in zip(found, wanted, strict=True)) <= 3e-16
        back = simplex.exp(p, tangent)
        assert np.abs(back - q / q.sum()).max() <= 1e-15
