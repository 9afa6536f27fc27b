"""Theorems about states, on generated cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_judge import make_state

from qigkernels import simplex, states

PROFILE = settings(max_examples=40)


@st.composite
def state_sets(draw, count, high=9):
    """`count` states of one size: full rank, low rank or pure, real or complex."""
    n = draw(st.integers(2, high))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    real = draw(st.booleans())
    found = []
    for _ in range(count):
        rank = draw(st.integers(1, n))
        spectrum = rng.uniform(0.05, 1.0, n) * (np.arange(n) < rank)
        found.append(make_state(rng, n, spectrum=spectrum, real=real))
    return found


def unitary(rng, n):
    return np.linalg.qr(rng.standard_normal((n, n)) + 1j * rng.standard_normal((n, n)))[0]


@PROFILE
@given(state_sets(3))
def test_uhlmann_1976_bures_angle_and_distance_are_metrics(three):
    a, b, c = three
    for d, top in ((states.bures_angle, np.pi / 2), (states.bures_distance, np.sqrt(2.0))):
        assert 0.0 <= d(a, a) <= 2e-15
        assert 0.0 <= d(a, b) <= top + 1e-15
        assert d(a, b) == pytest.approx(d(b, a), abs=3e-15)
        assert d(a, c) <= d(a, b) + d(b, c) + 5e-15


@PROFILE
@given(state_sets(2), st.integers(0, 2**32 - 1))
def test_jozsa_1994_fidelity_is_unitarily_invariant(pair, seed):
    a, b = pair
    U = unitary(np.random.default_rng(seed), len(a))
    turned = states.root_fidelity(U @ a @ U.conj().T, U @ b @ U.conj().T)
    # The rotation itself rounds the states, which low rank feels as √ε at most on the null space.
    assert turned == pytest.approx(states.root_fidelity(a, b), abs=2e-7)


@PROFILE
@given(state_sets(2))
def test_fidelity_lies_between_the_overlap_and_one(pair):
    a, b = pair
    F = states.fidelity(a, b)
    overlap = np.trace(a @ b).real
    assert overlap - 1e-14 <= F <= 1.0
    assert states.bures_distance(a, b) ** 2 == pytest.approx(
        2.0 - 2.0 * states.root_fidelity(a, b), abs=5e-15
    )


@PROFILE
@given(state_sets(2))
def test_fuchs_van_de_graaf_bounds(pair):
    a, b = pair
    F, T = states.fidelity(a, b), states.trace_distance(a, b)
    assert 1.0 - np.sqrt(F) <= T + 1e-14
    assert T**2 <= 1.0 - F + 1e-14


@PROFILE
@given(st.integers(2, 6), st.integers(2, 4), st.integers(0, 2**32 - 1))
def test_partial_trace_contracts_the_bures_angle(n, m, seed):
    """Monotonicity under channels (Uhlmann 1976), here the partial trace."""
    rng = np.random.default_rng(seed)
    a, b = make_state(rng, n * m), make_state(rng, n * m)
    reduced = [np.einsum("ikjk->ij", x.reshape(n, m, n, m)) for x in (a, b)]
    assert states.bures_angle(*reduced) <= states.bures_angle(a, b) + 2e-15


@PROFILE
@given(state_sets(2, high=4), state_sets(2, high=3))
def test_fidelity_is_multiplicative_on_tensor_products(first, second):
    (a, b), (c, d) = first, second
    product = states.root_fidelity(a, b) * states.root_fidelity(c, d)
    # Kronecker products round, and null spaces feel it as √ε.
    assert states.root_fidelity(np.kron(a, c), np.kron(b, d)) == pytest.approx(product, abs=2e-7)


@PROFILE
@given(st.integers(2, 32), st.integers(0, 2**32 - 1), st.floats(0.1, 5.0))
def test_commuting_states_are_classical(n, seed, concentration):
    p, q = np.random.default_rng(seed).dirichlet(np.full(n, concentration), 2)
    wanted = simplex.distance(p, q)
    assert states.distance(np.diag(p), np.diag(q)) == pytest.approx(wanted, abs=1e-7)
    if min(p.min(), q.min()) > 1e-6:
        assert states.distance(np.diag(p), np.diag(q)) == pytest.approx(wanted, abs=4e-15)


@PROFILE
@given(state_sets(1), st.floats(0.0, 1.0))
def test_depolarising_never_lowers_entropy_nor_raises_purity(one, a):
    rho = one[0]
    n = len(rho)
    noisy = states.depolarise(rho, a)
    assert np.trace(noisy).real == pytest.approx(1.0, abs=1e-14)
    assert states.entropy(noisy) >= states.entropy(rho) - 1e-13
    assert states.purity(noisy) <= states.purity(rho) + 1e-14
    assert 1.0 / n - 1e-14 <= states.purity(rho) <= 1.0 + 1e-14
    assert -1e-15 <= states.entropy(rho) <= np.log(n) + 1e-14


@PROFILE
@given(state_sets(1))
def test_baumgratz_2014_coherence_is_zero_on_diagonal_states_and_bounded(one):
    rho = one[0]
    n = len(rho)
    assert 0.0 <= states.coherence_relative_entropy(rho) <= np.log(n) + 1e-13
    assert 0.0 <= states.coherence_l1(rho) <= n - 1.0 + 1e-13
    diagonal = np.diag(rho.diagonal())
    assert states.coherence_l1(diagonal) == 0.0
    assert states.coherence_relative_entropy(diagonal) <= 1e-14


def test_bures_mean_is_a_fixed_point_and_the_middle_of_two(rng):
    a, b = make_state(rng, 4), make_state(rng, 4)
    mean = states.bures_mean(np.stack((a, b)))
    first, second = states.bures_distance(a, mean), states.bures_distance(b, mean)
    assert first == pytest.approx(second, abs=1e-12)
    assert states.bures_angle(a, mean) + states.bures_angle(mean, b) == pytest.approx(
        states.bures_angle(a, b), abs=1e-12
    )
    # The roots of the steps to it feel a small eigenvalue.
    off = np.abs(states.bures_mean(np.stack((a, a))) - a).max()
    assert off <= 1e-15 / np.linalg.eigvalsh(a)[0]


def test_bures_mean_of_commuting_states_is_the_mean_of_their_roots(rng):
    P = rng.dirichlet(np.full(5, 2.0), 3)
    w = rng.dirichlet(np.ones(3))
    found = states.bures_mean(np.stack([np.diag(p) for p in P]), w)
    wanted = (w @ np.sqrt(P)) ** 2
    assert np.abs(found - np.diag(wanted / wanted.sum())).max() <= 1e-13


def test_bures_mean_minimises_the_sum_of_squares(rng):
    rho = np.stack([make_state(rng, 3) for _ in range(4)])
    mean = states.bures_mean(rho)

    def cost(x):
        return np.sum(states.bures_distance(rho, x) ** 2)

    for _ in range(20):
        other = (1.0 - 1e-3) * mean + 1e-3 * make_state(rng, 3)
        assert cost(mean) <= cost(other)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_every_batch_shape_agrees_with_single_calls(rng, batch, n):
    count = int(np.prod(batch, dtype=int))
    ranks = rng.integers(1, n + 1, count)
    a, b = (
        np.stack(
            [make_state(rng, n, spectrum=(np.arange(n) < r).astype(float)) for r in ranks]
        ).reshape(*batch, n, n)
        for _ in range(2)
    )
    for function in (states.root_fidelity, states.bures_angle, states.bures_distance):
        found = np.asarray(function(a, b))
        assert found.shape == batch
        for index in np.ndindex(*batch):
            assert found[index] == pytest.approx(function(a[index], b[index]), abs=2e-15)


def test_batch_axes_broadcast_and_reference_states_agree(rng):
    rho = make_state(rng, 4)
    sigma = np.stack(
        [make_state(rng, 4) for _ in range(5)] + [rho, 0.999 * rho + 0.00025 * np.eye(4)]
    )
    found = states.bures_distance(rho, sigma)
    assert found.shape == (7,)
    reference = states.ReferenceState(rho)
    assert np.abs(reference.bures_distance(sigma) - found).max() <= 3e-15
    assert np.abs(reference.bures_angle(sigma) - states.bures_angle(rho, sigma)).max() <= 3e-15
    assert reference.bures_distance(rho) == 0.0
    table = states.bures_distance(sigma[:, None], sigma)
    assert table.shape == (7, 7)
    assert np.abs(table - table.T).max() <= 4e-15


def test_no_function_writes_into_its_arguments(rng):
    rho = np.stack([make_state(rng, 3), make_state(rng, 3, spectrum=[1.0, 0.0, 0.0])])
    sigma = np.stack([make_state(rng, 3, spectrum=[1.0, 1e-8, 1e-12]) for _ in range(2)])
    drho = (rho[0] - sigma)[None, :1]
    psi, dpsi = np.array([1.0, 0.0]), np.array([[0.0, 1.0]])
    given = [rho, sigma, drho, psi, dpsi]
    kept = [x.copy() for x in given]
    for x in given:
        x.flags.writeable = False
    for function in (states.root_fidelity, states.bures_angle, states.trace_distance):
        function(rho, sigma)
    for function in (
        states.entropy,
        states.purity,
        states.coherence_l1,
        states.coherence_relative_entropy,
    ):
        function(rho)
    states.qfi_matrix(sigma[0], drho[0])
    states.qfi_pure(psi, dpsi)
    states.bures_mean(np.stack((sigma[0], rho[0])))
    states.depolarise(rho, 0.5)
    states.ReferenceState(sigma[0]).bures_distance(rho)
    assert all(np.array_equal(x, y) for x, y in zip(given, kept, strict=True))


def test_float32_states_give_float32_results_of_float32_accuracy(rng):
    for n in (2, 4, 8):
        a, b = make_state(rng, n), make_state(rng, n)
        found = states.bures_distance(a.astype(np.complex64)[None], b.astype(np.complex64)[None])
        assert found.dtype == np.float32
        assert found[0] == pytest.approx(states.bures_distance(a, b), abs=2e-5)


@pytest.mark.parametrize("n", [3, 4, 5, 8])
def test_one_state_against_many_is_the_same_as_pair_by_pair(rng, random_state, n):
    spectra = [
        None,
        np.geomspace(1.0, 1e-3, n),
        np.geomspace(1.0, 1e-9, n),
        np.arange(n) < n - 1,
        np.arange(n) < 1,
    ]
    many = np.stack([random_state(n, spectrum=spectrum) for spectrum in spectra * 4])
    for spectrum in spectra:
        one = random_state(n, spectrum=spectrum)
        wanted = [states.bures_angle(other, one) for other in many]
        for found in (
            states.bures_angle(many, one),
            states.bures_angle(one, many),
            states.bures_angle(many.reshape(4, 5, n, n), one[None, None]).ravel(),
        ):
            assert np.abs(found - wanted).max() <= 4e-15
    # A batch of many chunks, the singular states in one of them.
    batch = np.concatenate([np.repeat(many[:1], 20_000 // n**2, axis=0), many])
    assert np.abs(states.bures_angle(batch, one)[-len(many) :] - wanted).max() <= 4e-15


def test_one_state_against_many_random_ones(rng, random_state):
    """Some of these pairs have several small eigenvalues and go by singular values."""
    many, one = np.stack([random_state(8) for _ in range(200)]), random_state(8)
    wanted = [states.bures_angle(other, one) for other in many]
    for found in (states.bures_angle(many, one), states.bures_angle(one, many)):
        assert np.abs(found - wanted).max() <= 4e-15
