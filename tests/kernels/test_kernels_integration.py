"""Integrated information: against 50 digits, closed forms and its properties."""

from __future__ import annotations

import itertools

import kernels_judge as judge
import numpy as np
import pytest

from qigkernels import integration
from qigkernels._queyranne import minimum_cut
from qigkernels.integration import (
    phi_geometric,
    phi_mib,
    phi_mib_samples,
    phi_quantum,
    total_correlation,
)


def covariance(rng, n, extra=2):
    A = rng.standard_normal((n, n + extra))
    return A @ A.T


def ranges(sizes):
    ends = np.cumsum(sizes).tolist()
    return [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]


@pytest.mark.parametrize("m", [2, 3, 5, 7, 8])
def test_phi_of_a_gaussian_is_within_1e_12_of_the_definition(rng, m):
    for extra in (1, 5):
        cov = covariance(rng, m, extra)
        wanted = judge.phi_gaussian(cov, ranges([1] * m))
        assert judge.error(phi_mib(cov).value, wanted) <= 1e-12


def test_phi_of_groups_is_within_1e_12_of_the_definition(rng):
    for sizes in ([2, 1, 3], [1, 2, 2, 1], [3, 3]):
        cov = covariance(rng, sum(sizes))
        groups = ranges(sizes)
        wanted = judge.phi_gaussian(cov, groups)
        assert judge.error(phi_mib(cov, groups).value, wanted) <= 1e-12
        mixed = list(rng.permutation(sum(sizes)))
        scattered = [[int(mixed.index(i)) for i in group] for group in groups]
        assert phi_mib(cov[np.ix_(mixed, mixed)], scattered).value == pytest.approx(
            float(wanted), abs=1e-12
        )


def test_two_variables_have_the_information_of_their_correlation():
    """Linfoot 1957: I = −½ ln(1 − r²), and 1 − exp(−2I) = r²."""
    for r in (0.0, 1e-6, 0.3, -0.9, 0.999999):
        found = phi_mib(np.array([[1.0, r], [r, 1.0]]))
        assert found.value == pytest.approx(-0.5 * np.log1p(-r * r), rel=1e-9, abs=1e-15)
        assert found.phi == pytest.approx(r * r, rel=1e-9, abs=1e-15)
        assert found.cut == ((0,), (1,))


def test_phi_is_zero_where_a_cut_is_independent_and_only_there(rng):
    for m in (4, 9, 14):
        blocks = np.zeros((m, m))
        k = m // 2
        blocks[:k, :k], blocks[k:, k:] = covariance(rng, k), covariance(rng, m - k)
        order = rng.permutation(m)
        found = phi_mib(blocks[np.ix_(order, order)])
        assert found.value <= 1e-13
        sides = [sorted(int(order[i]) for i in side) for side in found.cut]
        assert sorted(sides) == [list(range(k)), list(range(k, m))]
        assert phi_mib(covariance(rng, m)).value > 1e-6


def test_phi_is_invariant_under_scaling_and_permutation(rng):
    for m in (3, 6, 10, 13):
        cov = covariance(rng, m)
        scale = np.exp(rng.uniform(-5.0, 5.0, m))
        order = rng.permutation(m)
        base = phi_mib(cov)
        assert phi_mib(cov * scale * scale[:, None]).value == pytest.approx(base.value, abs=1e-12)
        assert phi_mib(cov[np.ix_(order, order)]).value == pytest.approx(base.value, abs=1e-12)
        assert 0.0 <= base.phi <= 1.0


def test_phi_is_invariant_under_mixing_inside_the_groups(rng):
    sizes = [2, 3, 2]
    cov = covariance(rng, 7)
    mix = np.zeros((7, 7))
    for group in ranges(sizes):
        mix[np.ix_(group, group)] = rng.standard_normal((len(group), len(group)))
    found = phi_mib(mix @ cov @ mix.T, ranges(sizes))
    assert found.value == pytest.approx(phi_mib(cov, ranges(sizes)).value, abs=1e-11)


def test_queyranne_finds_the_exhaustive_minimum(rng):
    """Queyranne 1998: I(S; rest) is symmetric submodular, so pendant pairs are exact."""
    for trial in range(30):
        sizes = tuple(rng.integers(1, 3, int(rng.integers(3, 10))).tolist())
        n = sum(sizes)
        v = rng.standard_normal(n)
        cov = covariance(rng, n) if trial % 2 else np.eye(n) + np.outer(v, v)
        groups = ranges(sizes)
        wanted = phi_mib(cov, groups).value
        side = minimum_cut(cov, sizes)
        far = [i for k in side for i in groups[k]]
        near = [i for k in range(len(sizes)) if k not in side for i in groups[k]]
        assert phi_mib(cov, [near, far]).value == pytest.approx(wanted, abs=1e-11)


@pytest.mark.long
@pytest.mark.parametrize("m", [13, 15])
def test_queyranne_agrees_with_every_cut_above_twelve(rng, m):
    for _ in range(3):
        cov = covariance(rng, m)
        d = 1.0 / np.sqrt(cov.diagonal())
        every = integration._by_elimination(cov * d * d[:, None])
        assert phi_mib(cov).value == pytest.approx(every.min(), abs=1e-11)


def test_elimination_and_cholesky_score_every_cut_alike(rng):
    for m in (7, 9, 12):
        cov = covariance(rng, m)
        d = 1.0 / np.sqrt(cov.diagonal())
        correlation = cov * d * d[:, None]
        one = integration._by_elimination(correlation)
        two = integration._by_cholesky(correlation, (1,) * m)
        assert np.abs(one - two).max() <= 1e-12


def test_no_function_writes_into_its_arguments(rng, random_state):
    small, large, X = covariance(rng, 4), covariance(rng, 14), rng.standard_normal((90, 4))
    rho = random_state(8)
    given = [small, large, X, rho]
    kept = [x.copy() for x in given]
    for x in given:
        x.flags.writeable = False
    for cov in (small, large):
        phi_mib(cov)
        total_correlation(cov)
    phi_mib(large, [[0, 3], [1, 2], *[[k] for k in range(4, 14)]])
    phi_mib_samples(X, [[0, 1], [2, 3]])
    phi_quantum(rho, [2, 2, 2])
    phi_geometric(small, small, small, [[0, 1], [2, 3]])
    assert all(np.array_equal(x, y) for x, y in zip(given, kept, strict=True))


def test_chunks_of_cuts_change_nothing(rng):
    cov = covariance(rng, 12)
    whole = integration._by_cholesky(cov, (2,) * 6)
    for bytes_max in (1, 5 * 8 * 144, 10**6):
        assert np.array_equal(integration._by_cholesky(cov, (2,) * 6, bytes_max), whole)


def test_total_correlation_is_the_sum_of_entropies_less_the_joint_one(rng):
    cov = covariance(rng, 5)
    d = np.linalg.slogdet(cov)[1]
    assert total_correlation(cov) == pytest.approx(0.5 * (np.log(cov.diagonal()).sum() - d))
    assert total_correlation(cov) >= phi_mib(cov).value
    pair = [[0, 1], [2, 3, 4]]
    assert total_correlation(cov, pair) == pytest.approx(phi_mib(cov, pair).value, abs=1e-13)


def test_samples_estimate_without_bias_and_with_the_spread_they_say(rng):
    """Goodman 1963: the mean of ln|S| is known, so the corrected estimate is centred."""
    cov = np.array([[1.0, 0.5, 0.2], [0.5, 1.0, 0.4], [0.2, 0.4, 1.0]])
    L = np.linalg.cholesky(cov)
    pair = [[0], [1, 2]]
    truth = phi_mib(cov, pair).value
    found = [phi_mib_samples(rng.standard_normal((60, 3)) @ L.T, pair) for _ in range(2000)]
    plugin = np.array([phi.plugin for phi in found])
    corrected = plugin - found[0].bias
    standard_error = corrected.std() / np.sqrt(len(found))
    assert abs(corrected.mean() - truth) <= 4.0 * standard_error
    assert plugin.mean() - truth > 6.0 * standard_error
    assert np.mean([phi.sd for phi in found]) == pytest.approx(corrected.std(), rel=0.15)
    assert all(phi.samples == 60 for phi in found)


def test_too_few_samples_have_no_phi(rng):
    X = rng.standard_normal((200, 4))
    assert phi_mib_samples(X[:19]) is None
    assert phi_mib_samples(X[:20]) is not None
    assert phi_mib_samples(X[:10], [[0], [1]]) is not None


def test_samples_agree_with_their_own_covariance(rng):
    X = rng.standard_normal((100, 6)) @ rng.standard_normal((6, 6))
    groups = [[0, 1], [2, 3], [4, 5]]
    found = phi_mib_samples(X, groups)
    cuts = {
        tuple(side): phi_mib(np.cov(X.T), [groups[side[0]], rest])
        for side, rest in (
            ((0,), groups[1] + groups[2]),
            ((1,), groups[0] + groups[2]),
            ((2,), groups[0] + groups[1]),
        )
    }
    side = next(side for side in found.cut if len(side) == 1)
    assert found.plugin == pytest.approx(cuts[side].value, abs=1e-9)
    assert found.value == pytest.approx(max(0.0, found.plugin - found.bias), abs=1e-15)


def test_a_column_that_never_changes_drops_out(rng):
    X = rng.standard_normal((100, 4)) @ rng.standard_normal((4, 4))
    still = np.column_stack((X, np.full(100, 3.0)))
    with_it = phi_mib_samples(still, [[0, 1, 4], [2, 3]])
    assert with_it.value == pytest.approx(phi_mib_samples(X, [[0, 1], [2, 3]]).value, abs=1e-14)
    alone = phi_mib_samples(still, [[0, 1], [2, 3], [4]])
    assert (alone.value, alone.cut) == (0.0, ((0, 1), (2,)))


def ket(n, entries):
    psi = np.zeros(2**n)
    psi[list(entries)] = len(entries) ** -0.5
    return np.outer(psi, psi)


def test_ghz_w_and_bell_states_have_their_closed_forms():
    for n in (2, 3, 4, 5):
        ghz = phi_quantum(ket(n, [0, 2**n - 1]), [2] * n)
        assert ghz.value == pytest.approx(2.0 * np.log(2.0), abs=1e-14)
        assert ghz.phi == pytest.approx(1.0, abs=1e-14)

    def entropy(p):
        return -sum(x * np.log(x) for x in p if x)

    w3 = phi_quantum(ket(3, [1, 2, 4]), [2] * 3)
    assert w3.value == pytest.approx(2.0 * entropy((1 / 3, 2 / 3)), abs=1e-14)
    assert w3.value == pytest.approx(1.2730, abs=1e-4)
    w4 = phi_quantum(ket(4, [1, 2, 4, 8]), [2] * 4)
    assert w4.value == pytest.approx(2.0 * entropy((0.25, 0.75)), abs=1e-14)
    assert w4.value == pytest.approx(1.1247, abs=1e-4)
    assert sorted(len(side) for side in w4.cut) == [1, 3]
    bell = ket(2, [0, 3])
    pairs = phi_quantum(np.kron(bell, bell), [2] * 4)
    assert pairs.value == pytest.approx(0.0, abs=1e-14)
    assert pairs.cut == ((0, 1), (2, 3))


def test_phi_of_a_product_state_is_zero_and_mixtures_agree_with_the_definition(rng, random_state):
    product = np.kron(random_state(2), random_state(6))
    assert phi_quantum(product, [2, 2, 3]).value <= 2e-14
    rho = random_state(8)
    found = phi_quantum(rho, [2, 2, 2]).value
    t = rho.reshape([2] * 6)
    values = []
    for k in range(3):
        others = [i for i in range(3) if i != k]
        one = t.transpose([k, *others, 3 + k, *[3 + i for i in others]]).reshape(2, 4, 2, 4)
        a, b = np.einsum("ikjk->ij", one), np.einsum("kikj->ij", one)
        values.append(judge.entropy(a) + judge.entropy(b) - judge.entropy(rho))
    assert judge.error(found, min(values)) <= 1e-12


def test_phi_geometric_is_zero_for_a_disconnected_model_and_below_the_stochastic_interaction(rng):
    """Oizumi, Tsuchiya & Amari 2016: 0 ≤ Φ_G ≤ stochastic interaction; Φ_G = 0 iff no links."""
    n, parts = 4, [[0, 1], [2, 3]]
    for _ in range(10):
        cov_x, cov_e = covariance(rng, n, 4), covariance(rng, n, 4)
        A = 0.4 * rng.standard_normal((n, n))
        inside = np.kron(np.eye(2), np.ones((2, 2)))
        assert phi_geometric(A * inside, cov_x, cov_e, parts).value <= 1e-13
        found = phi_geometric(A, cov_x, cov_e, parts)
        assert found.converged
        assert found.value > 0.0
        assert not np.any(found.A * (1.0 - inside))
        # Each part predicts its own future from its own past alone, residuals taken apart.
        joint = A @ cov_x @ A.T + cov_e
        alone = 0.0
        for part in parts:
            past = cov_x[np.ix_(part, part)]
            link = (A @ cov_x)[np.ix_(part, part)]
            left = joint[np.ix_(part, part)] - link @ np.linalg.solve(past, link.T)
            alone += 0.5 * np.linalg.slogdet(left)[1]
        interaction = alone - 0.5 * np.linalg.slogdet(cov_e)[1]
        assert found.value <= interaction + 1e-12


def test_phi_geometric_is_a_stationary_minimum(rng):
    n, parts = 5, [[0, 2], [1], [3, 4]]
    cov_x, cov_e = covariance(rng, n, 3), covariance(rng, n, 3)
    A = 0.5 * rng.standard_normal((n, n))
    found = phi_geometric(A, cov_x, cov_e, parts)
    base = np.linalg.slogdet(cov_e)[1]

    def cost(link):
        gap = A - link
        return 0.5 * (np.linalg.slogdet(cov_e + gap @ cov_x @ gap.T)[1] - base)

    assert cost(found.A) == pytest.approx(found.value, abs=1e-13)
    for part in parts:
        for i, j in itertools.product(part, part):
            for step in (1e-4, -1e-4):
                moved = found.A.copy()
                moved[i, j] += step
                assert cost(moved) >= found.value - 1e-13


def test_phi_geometric_against_a_direct_minimiser(rng):
    from scipy.optimize import minimize

    n, parts = 4, [[0, 1], [2, 3]]
    cov_x, cov_e, A = covariance(rng, n), covariance(rng, n), rng.standard_normal((n, n))
    inside = np.kron(np.eye(2), np.ones((2, 2))).astype(bool)
    base = np.linalg.slogdet(cov_e)[1]

    def cost(free):
        link = np.zeros((n, n))
        link[inside] = free
        gap = A - link
        return 0.5 * (np.linalg.slogdet(cov_e + gap @ cov_x @ gap.T)[1] - base)

    direct = minimize(cost, A[inside], method="BFGS", options={"gtol": 1e-9})
    assert phi_geometric(A, cov_x, cov_e, parts).value == pytest.approx(direct.fun, abs=1e-8)
