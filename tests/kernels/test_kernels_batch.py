"""Batched basin updates, series and the cache."""

from __future__ import annotations

import math
import threading
from itertools import pairwise

import numpy as np
import pytest

from qigkernels import CachedQFI, ValidationError, simplex, states, update_basins
from qigkernels.batch import basin_series, breakdown_pct, coherence_drift, fisher_metric_trace


def test_update_follows_the_natural_gradient_geodesic(rng):
    P, G = rng.dirichlet(np.ones(16), 50), rng.standard_normal((50, 16))
    found = update_basins(P, G, 0.05)
    for p, g, point, length in zip(P, G, found.points, found.step_length, strict=True):
        v = -0.05 * simplex.natural_gradient(p, g)
        assert np.abs(point - simplex.exp(p, v)).max() <= 1e-15
        assert length == pytest.approx(float(simplex.norm(p, v)), rel=1e-13)
        assert simplex.distance(p, point) == pytest.approx(length, rel=1e-11)
    assert found.valid.all()
    assert np.array_equal(found.reference_distance, found.step_length)


def test_update_goes_downhill_and_stays_on_the_simplex_over_many_steps(rng):
    target = rng.dirichlet(np.ones(8))
    P = rng.dirichlet(np.full(8, 3.0), 20)
    loss = -(target * np.log(P)).sum(axis=1)
    for _ in range(200):
        P = update_basins(P, -target / P, 0.1).points
        now = -(target * np.log(P)).sum(axis=1)
        assert (now <= loss + 1e-12).all()
        loss = now
    assert np.abs(P.sum(axis=1) - 1.0).max() <= 1e-13
    assert simplex.distance(P, target).max() <= 1e-6


def test_bad_rows_stay_as_they_are_and_stop_no_other(rng):
    P, G = rng.dirichlet(np.ones(4), 8), rng.standard_normal((8, 4))
    P[0, 0] = -0.1
    P[1] *= 1.1
    P[2, 3] = math.nan
    G[3, 1] = math.inf
    G[4] *= 1e9
    reference = rng.dirichlet(np.ones(4))
    found = update_basins(P, G, 0.01, reference=reference)
    assert found.valid.tolist() == [False] * 5 + [True] * 3
    assert np.array_equal(found.points[:5], P[:5], equal_nan=True)
    assert not found.step_length[:5].any()
    assert np.isnan(found.reference_distance[:4]).all()
    assert found.reference_distance[4] == pytest.approx(simplex.distance(P[4], reference))
    good = update_basins(P[5:], G[5:], 0.01, reference=reference)
    assert np.array_equal(found.points[5:], good.points)
    assert found.reference_distance[5:] == pytest.approx(
        simplex.distance(good.points, reference), abs=1e-15
    )


def test_chunks_change_nothing_and_each_row_may_have_its_reference(rng):
    P, G = rng.dirichlet(np.ones(64), 33), rng.standard_normal((33, 64))
    R = rng.dirichlet(np.ones(64), 33)
    whole = update_basins(P, G, 0.01, reference=R, chunk_bytes_max=10**9)
    parts = update_basins(P, G, 0.01, reference=R, chunk_bytes_max=1)
    for a, b in zip(whole, parts, strict=True):
        assert np.array_equal(a, b)
    assert whole.reference_distance == pytest.approx(simplex.distance(whole.points, R), abs=1e-15)


def test_float32_is_kept(rng):
    P = rng.dirichlet(np.ones(8), 5).astype(np.float32)
    P /= P.sum(axis=1, keepdims=True)
    found = update_basins(P, np.ones((5, 8), dtype=np.float32), 0.1)
    assert found.points.dtype == found.step_length.dtype == np.float32
    assert found.valid.all()


def test_series_are_the_single_steps_put_together(rng):
    path = rng.dirichlet(np.full(6, 2.0), 12)
    reference, anchors = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6), 3)
    found = basin_series(path, reference=reference, anchors=anchors, window=3)
    steps = [simplex.distance(a, b) for a, b in pairwise(path)]
    assert found.geodesic_distance[1:] == pytest.approx(steps, abs=1e-15)
    assert np.isnan(found.geodesic_distance[0])
    assert found.path_length == pytest.approx(np.concatenate(([0.0], np.cumsum(steps))))
    assert found.basin_distance == pytest.approx(simplex.distance(path, reference), abs=1e-15)
    assert found.curvature[1:-1] == pytest.approx(simplex.path_curvature(path))
    assert np.isnan(found.curvature[[0, -1]]).all()
    nearest = simplex.pairwise(path, anchors).min(axis=1)
    assert found.grounding == pytest.approx(1.0 - nearest / np.pi, abs=1e-13)
    overlaps = np.sqrt(path[:-1] * path[1:]).sum(axis=1)
    for t in range(1, 12):
        assert found.temporal_coherence[t] == pytest.approx(overlaps[max(0, t - 3) : t].mean())
    assert basin_series(path).grounding is None
    short = basin_series(path[:1])
    assert np.isnan(short.geodesic_distance).all()
    assert short.path_length.tolist() == [0.0]
    many = basin_series(np.stack((path, path[::-1])), reference=reference)
    assert many.path_length.shape == (2, 12)


def test_other_telemetry_fields_follow_their_definitions(rng, random_state):
    rho = np.stack([random_state(3) for _ in range(4)])
    values = [states.coherence_relative_entropy(x) for x in rho]
    assert coherence_drift(rho) == pytest.approx(np.abs(np.array(values) - values[0]), abs=1e-15)
    assert breakdown_pct([3, 0, 3, 1, 3, 3], window=4) == 75.0
    assert math.isnan(breakdown_pct([-1, -1], window=4))
    gradients = rng.standard_normal((7, 5))
    assert fisher_metric_trace(gradients) == pytest.approx((gradients**2).sum() / 7)


def test_cache_returns_the_same_value_for_the_same_bytes_only(random_state):
    cache = CachedQFI(cache_size=10)
    rho, sigma = random_state(4), random_state(4)
    value = cache.compute_qfi(rho, sigma)
    assert value == pytest.approx(4.0 * states.bures_distance(rho, sigma) ** 2, abs=1e-14)
    assert cache.compute_qfi(rho.copy(), sigma) == value
    near = sigma.copy()
    near[0, 0] += 1e-12
    near[1, 1] -= 1e-12
    assert cache.compute_qfi(rho, near) != value
    stats = cache.get_stats()
    assert (stats["hits"], stats["misses"], stats["total_queries"]) == (1, 2, 3)
    assert stats["hit_rate"] == pytest.approx(1 / 3)
    assert stats["references"] == 1
    assert cache.invalidate(rho) == 3
    assert cache.get_stats()["cache_size"] == 0
    cache.clear_cache()
    assert cache.get_stats()["hit_rate"] is None
    with pytest.raises(ValidationError):
        cache.compute_qfi(rho, 2.0 * sigma)
    assert cache.get_stats()["cache_size"] == 0


def test_cache_is_bounded_and_forgets_the_least_recently_used(random_state):
    cache = CachedQFI(cache_size=2, references_max=1)
    rho = random_state(2)
    a, b, c = (random_state(2) for _ in range(3))
    cache.compute_qfi(rho, a)
    cache.compute_qfi(rho, b)
    cache.compute_qfi(rho, a)
    cache.compute_qfi(rho, c)
    assert cache.get_stats()["evictions"] == 1
    cache.compute_qfi(rho, a)
    assert cache.get_stats()["hits"] == 2
    cache.compute_qfi(rho, b)
    assert cache.get_stats()["evictions"] == 2
    small = CachedQFI(bytes_max=100)
    small.compute_qfi(rho, a)
    assert small.get_stats()["bytes"] <= 100
    for bad in ({"cache_size": 0}, {"bytes_max": 0}, {"references_max": 0}):
        with pytest.raises(ValidationError):
            CachedQFI(**bad)


def test_cached_matrices_are_those_of_qfi_matrix_and_read_only(random_state):
    cache = CachedQFI()
    rho = random_state(3)
    drho = (random_state(3) - rho)[None]
    found = cache.compute_matrix(rho, drho)
    assert found == pytest.approx(states.qfi_matrix(rho, drho))
    assert not found.flags.writeable
    assert cache.compute_matrix(rho, drho) is found
    assert cache.drift(rho, np.stack((rho, rho))).tolist() == [0.0, 0.0]


def test_no_function_writes_into_its_arguments(rng, random_state):
    P, G = rng.dirichlet(np.ones(6), 5), rng.standard_normal((5, 6))
    G[2, 0] = math.nan
    rho = np.stack([random_state(3) for _ in range(4)])
    drho = (rho[1] - rho[0])[None]
    codes = np.array([0, 3, -1])
    given = [P, G, rho, drho, codes]
    kept = [x.copy() for x in given]
    for x in given:
        x.flags.writeable = False
    update_basins(P, G, 0.1, reference=P)
    update_basins(P, G, 50.0, chunk_bytes_max=1)
    basin_series(P, reference=P[0], anchors=P[:2])
    coherence_drift(rho)
    fisher_metric_trace(P)
    breakdown_pct(codes, window=2)
    cache = CachedQFI()
    cache.compute_qfi(rho[0], rho[1])
    cache.compute_matrix(rho[0], drho)
    cache.drift(rho[0], rho)
    cache.invalidate(rho[0])
    assert all(np.array_equal(x, y, equal_nan=True) for x, y in zip(given, kept, strict=True))


def test_cache_holds_under_threads(random_state):
    cache = CachedQFI(cache_size=5)
    rho = random_state(3)
    others = [random_state(3) for _ in range(12)]
    wanted = [4.0 * states.bures_distance(rho, x) ** 2 for x in others]
    wrong = []

    def work():
        for _ in range(20):
            for x, value in zip(others, wanted, strict=True):
                if abs(cache.compute_qfi(rho, x) - value) > 1e-13:
                    wrong.append(value)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = cache.get_stats()
    assert not wrong
    assert stats["total_queries"] == 4 * 20 * 12
    assert stats["cache_size"] <= 5
