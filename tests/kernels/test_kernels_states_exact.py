"""States against 50 decimal digits."""

from __future__ import annotations

import kernels_judge as judge
import mpmath as mp
import numpy as np
import pytest

from qigkernels import states


def check_pair(rho, sigma):
    """√F within 2e-15, Bures angle and distance within 4e-15, one pair and batched.

    Nineteen of twenty pairs keep to half of that (`test_kernels_states_judge`); which of them do
    not depends on how a machine's BLAS rounds.
    """
    overlap, angle, distance = judge.bures(rho, sigma)
    for first, second in ((rho, sigma), (rho[None], sigma[None])):
        assert judge.error(np.ravel(states.root_fidelity(first, second))[0], overlap) <= 2e-15
        assert judge.error(np.ravel(states.bures_angle(first, second))[0], angle) <= 4e-15
        assert judge.error(np.ravel(states.bures_distance(first, second))[0], distance) <= 4e-15


SIZES = [2, 3, 4, 6]
FIELDS = pytest.mark.parametrize("real", [False, True], ids=["complex", "real"])


@FIELDS
@pytest.mark.parametrize("n", SIZES)
def test_full_rank_pairs(random_state, n, real):
    for _ in range(4):
        check_pair(random_state(n, real=real), random_state(n, real=real))


@FIELDS
@pytest.mark.parametrize("n", SIZES)
def test_smallest_eigenvalue_1e_12_on_one_side_and_on_both(rng, random_state, n, real):
    spectrum = rng.uniform(0.1, 1.0, n)
    spectrum[0] = 1e-12
    weak = random_state(n, spectrum=spectrum, real=real)
    check_pair(weak, random_state(n, real=real))
    check_pair(random_state(n, real=real), weak)
    check_pair(weak, random_state(n, spectrum=spectrum, real=real))
    graded = np.geomspace(1.0, 1e-12, n)
    check_pair(random_state(n, spectrum=graded, real=real), weak)


@pytest.mark.parametrize("apart", [0.3, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12, 1e-14])
@pytest.mark.parametrize("n", SIZES)
def test_near_pairs(rng, random_state, n, apart):
    rho = random_state(n)
    check_pair(rho, (1.0 - apart) * rho + apart * random_state(n))
    weak = random_state(n, spectrum=np.geomspace(1.0, 1e-10, n))
    check_pair(weak, (1.0 - apart) * weak + apart * random_state(n))


@FIELDS
@pytest.mark.parametrize("n", SIZES)
def test_pure_low_rank_and_orthogonal_pairs(rng, random_state, n, real):
    pure = np.eye(n)[0]
    half = (np.arange(n) < max(1, n // 2)).astype(float)
    for first, second in ((pure, pure), (pure, None), (half, half), (half, None), (half, pure)):
        check_pair(
            random_state(n, spectrum=first, real=real),
            random_state(n, spectrum=second, real=real),
        )
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    k = max(1, n // 2)
    check_pair(Q[:, :k] @ Q[:, :k].T / k, Q[:, k:] @ Q[:, k:].T / (n - k))


def test_small_pivots_in_a_row_do_not_hide_a_lost_rank(rng):
    """A Cholesky pivot of 1e-11 may stand over an eigenvalue of 1e-17: rank is read off the
    eigenvalues, or √F of orthogonal states would be 1e-9."""
    for n, k in ((3, 1), (4, 2), (8, 3)):
        for _ in range(300):
            Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
            # A nearly missing first coordinate makes the early pivots small.
            Q[:, 0] = np.linalg.qr(np.column_stack((Q[:, 0] + 1e3 * np.eye(n)[0], Q[:, 1:])))[0][
                :, 0
            ]
            Q = np.linalg.qr(Q)[0]
            rho, sigma = Q[:, :k] @ Q[:, :k].T / k, Q[:, k:] @ Q[:, k:].T / (n - k)
            assert states.root_fidelity(rho, sigma) <= 1e-15


@pytest.mark.parametrize("angle", [1.0, 1e-2, 1e-5, 1e-9])
def test_pure_states_at_a_known_angle(rng, angle):
    for n in SIZES:
        u, v = np.linalg.qr(rng.standard_normal((n, n)))[0].T[:2]
        w = np.cos(angle) * u + np.sin(angle) * v
        check_pair(np.outer(u, u), np.outer(w, w))


@pytest.mark.parametrize("n", [2, 4, 16])
def test_equal_states_are_at_distance_below_2e_15(random_state, n):
    for spectrum in (None, np.eye(n)[0], np.geomspace(1.0, 1e-12, n)):
        rho = random_state(n, spectrum=spectrum)
        assert states.bures_distance(rho, rho) <= 2e-15
        assert states.root_fidelity(rho, rho) == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("apart", [1e-3, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("n", [3, 6])
def test_reference_state_keeps_relative_accuracy_of_tiny_drift(random_state, n, apart):
    rho = random_state(n, spectrum=np.linspace(1.0, 2.0, n))
    sigma = (1.0 - apart) * rho + apart * random_state(n)
    wanted = judge.bures(rho, sigma)[2]
    found = states.ReferenceState(rho).bures_distance(sigma)
    assert judge.error(found, wanted) <= 1e-14 * wanted + 2e-17


def test_entropy_purity_and_coherence_match_the_definitions(rng, random_state):
    for n in SIZES:
        for spectrum in (None, np.geomspace(1.0, 1e-12, n), np.eye(n)[0]):
            rho = random_state(n, spectrum=spectrum)
            entropy = judge.entropy(rho)
            diagonal = [mp.mpf(float(x)) for x in rho.diagonal().real]
            mixed = -mp.fsum(x * mp.log(x) for x in diagonal)
            assert judge.error(states.entropy(rho), entropy) <= 1e-14
            assert judge.error(states.coherence_relative_entropy(rho), mixed - entropy) <= 1e-14
            matrix = judge.exact(rho)
            off = mp.fsum(abs(matrix[i, j]) for i in range(n) for j in range(n) if i != j)
            assert judge.error(states.coherence_l1(rho), off) <= 1e-15 * n
            square = mp.fsum(abs(x) ** 2 for x in matrix)
            assert judge.error(states.purity(rho), square) <= 1e-15


@pytest.mark.long
@pytest.mark.parametrize("n", [16, 24])
def test_larger_states_in_full(rng, random_state, n):
    for spectrum in (None, np.geomspace(1.0, 1e-12, n), (np.arange(n) < n // 2).astype(float)):
        check_pair(random_state(n, spectrum=spectrum), random_state(n))


@pytest.mark.long
def test_many_random_pairs_in_full(rng, random_state):
    for _ in range(300):
        n = int(rng.integers(2, 8))
        rank = int(rng.integers(1, n + 1))
        spectrum = rng.uniform(0.05, 1.0, n) * (np.arange(n) < rank)
        check_pair(random_state(n, spectrum=spectrum), random_state(n))
