"""Quantum Fisher information: against 50 digits, and its theorems."""

from __future__ import annotations

import kernels_judge as judge
import numpy as np
import pytest

from qigkernels import states


def hermitian(rng, n):
    H = rng.standard_normal((n, n)) + 1j * rng.standard_normal((n, n))
    return 0.5 * (H + H.conj().T)


def rotation(rho, H):
    """dρ/dt = −i[H, ρ]."""
    d = -1j * (H @ rho - rho @ H)
    return 0.5 * (d + d.conj().T)


def traceless(rng, n):
    H = hermitian(rng, n)
    return H - np.eye(n) * np.trace(H).real / n


def relative_error(found, wanted):
    scale = max(abs(x) for x in wanted)
    pairs = ((found[i, j], wanted[i, j]) for i, j in np.ndindex(*found.shape))
    return float(max(judge.error(a, b) for a, b in pairs) / scale)


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_qfi_of_full_rank_states_has_relative_error_below_1e_14(rng, random_state, n):
    rho = random_state(n)
    drho = np.stack([rotation(rho, hermitian(rng, n)), traceless(rng, n)])
    assert relative_error(states.qfi_matrix(rho, drho), judge.qfi(rho, drho)) <= 1e-14


@pytest.mark.parametrize("n", [2, 4, 6])
def test_qfi_keeps_its_digits_where_the_smallest_eigenvalue_is_1e_12(rng, random_state, n):
    spectrum = rng.uniform(0.1, 1.0, n)
    spectrum[0] = 1e-12
    for levels in (spectrum, np.geomspace(1.0, 1e-12, n)):
        rho = random_state(n, spectrum=levels)
        for d in (rotation(rho, hermitian(rng, n)), traceless(rng, n)):
            found = states.qfi_matrix(rho, d[None])
            assert relative_error(found, judge.qfi(rho, d[None])) <= 1e-14


QFI_SPECTRA = {
    "Hilbert-Schmidt": lambda rng, n: None,
    "spiked to 1e-12": lambda rng, n: 10.0 ** rng.uniform(-12.0, 0.0, n),
    "nearly equal": lambda rng, n: 1.0 + 1e-9 * rng.standard_normal(n),
    "two clusters": lambda rng, n: np.where(np.arange(n) < n // 2, 1.0, 1e-7),
    "pure": lambda rng, n: np.eye(n)[0],
    "half rank": lambda rng, n: (np.arange(n) < max(1, n // 2)) * rng.uniform(0.1, 1.0, n),
}


def check_qfi(rng, n, kind, real):
    rho = judge.make_state(rng, n, spectrum=QFI_SPECTRA[kind](rng, n), real=real)
    H = rng.standard_normal((n, n)) if real else hermitian(rng, n)
    d = rotation(rho, 1j * (H - H.T)).real if real else rotation(rho, H)
    other = judge.make_state(rng, n, real=real) - rho
    # Out of its support a state moves at an infinite rate: there only rotations are asked for.
    whole = kind not in {"pure", "half rank"}
    drho = np.stack([d, other - np.eye(n) * np.trace(other) / n]) if whole else d[None]
    assert relative_error(states.qfi_matrix(rho, drho), judge.qfi(rho, drho)) <= 1e-14


@pytest.mark.parametrize("real", [False, True], ids=["complex", "real"])
@pytest.mark.parametrize("kind", QFI_SPECTRA)
@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_qfi_of_every_kind_of_state(rng, n, kind, real):
    for _ in range(2):
        check_qfi(rng, n, kind, real)


@pytest.mark.long
@pytest.mark.parametrize("real", [False, True], ids=["complex", "real"])
@pytest.mark.parametrize("kind", QFI_SPECTRA)
@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_qfi_of_every_kind_of_state_in_full(rng, n, kind, real):
    for _ in range(2 if n == 16 else 20):
        check_qfi(rng, n, kind, real)


@pytest.mark.parametrize("n", [3, 6])
def test_qfi_of_low_rank_states_drops_the_null_space_only(rng, random_state, n):
    rho = random_state(n, spectrum=(np.arange(n) < n // 2 + 1).astype(float))
    drho = rotation(rho, hermitian(rng, n))[None]
    assert relative_error(states.qfi_matrix(rho, drho), judge.qfi(rho, drho)) <= 1e-14


def test_pure_states_have_four_times_the_variance_of_their_generator(rng):
    for n in (2, 5, 16):
        psi = rng.standard_normal(n) + 1j * rng.standard_normal(n)
        psi /= np.linalg.norm(psi)
        H = hermitian(rng, n)
        mean = np.vdot(psi, H @ psi).real
        variance = np.linalg.norm(H @ psi - mean * psi) ** 2
        rho = np.outer(psi, psi.conj())
        by_kets = states.qfi_pure(psi, (-1j * (H @ psi))[None])
        by_states = states.qfi_matrix(rho, rotation(rho, H)[None])
        assert by_kets == pytest.approx(4.0 * variance, rel=1e-13)
        assert by_states == pytest.approx(4.0 * variance, rel=1e-12)


def test_qfi_is_at_most_four_times_the_variance(rng, random_state):
    """Braunstein & Caves 1994: F ≤ 4 Var H for unitary families."""
    for _ in range(20):
        n = int(rng.integers(2, 9))
        rho, H = random_state(n), hermitian(rng, n)
        variance = np.trace(rho @ H @ H).real - np.trace(rho @ H).real ** 2
        found = states.qfi_matrix(rho, rotation(rho, H)[None])[0, 0]
        assert 0.0 <= found <= 4.0 * variance * (1.0 + 1e-13)


def test_qfi_is_convex(rng, random_state):
    """Fujiwara 2001: mixing two families never adds information."""
    for _ in range(20):
        n, w = int(rng.integers(2, 6)), rng.uniform()
        a, b, H = random_state(n), random_state(n), hermitian(rng, n)
        mixed = w * a + (1.0 - w) * b
        d = [rotation(x, H)[None] for x in (a, b, mixed)]
        bound = w * states.qfi_matrix(a, d[0]) + (1.0 - w) * states.qfi_matrix(b, d[1])
        assert states.qfi_matrix(mixed, d[2])[0, 0] <= bound[0, 0] * (1.0 + 1e-12)


def test_qfi_is_positive_semidefinite_and_symmetric(rng, random_state):
    for _ in range(20):
        n, p = int(rng.integers(2, 9)), int(rng.integers(1, 6))
        rho = random_state(n)
        found = states.qfi_matrix(rho, np.stack([traceless(rng, n) for _ in range(p)]))
        assert np.array_equal(found, found.T)
        assert np.linalg.eigvalsh(found).min() >= -1e-12 * np.abs(found).max()


def test_qfi_is_additive_on_tensor_products(rng, random_state):
    a, b, H, K = random_state(3), random_state(2), hermitian(rng, 3), hermitian(rng, 2)
    both = np.kron(a, b)
    d = np.kron(rotation(a, H), b) + np.kron(a, rotation(b, K))
    parts = states.qfi_matrix(a, rotation(a, H)[None]) + states.qfi_matrix(b, rotation(b, K)[None])
    assert states.qfi_matrix(both, d[None]) == pytest.approx(parts, rel=1e-13)


def test_qfi_of_diagonal_states_is_the_classical_fisher_information(rng):
    p = rng.dirichlet(np.ones(7))
    dp = rng.standard_normal((2, 7))
    dp -= dp.mean(axis=1, keepdims=True)
    drho = np.stack([np.diag(row) for row in dp])
    wanted = (dp / p) @ dp.T
    assert states.qfi_matrix(np.diag(p), drho) == pytest.approx(wanted, rel=1e-13)


def test_bures_metric_times_four_is_the_limit_of_the_qfi(rng, random_state):
    """4·d_B²/dt² → F as dt → 0 (Braunstein & Caves 1994); Richardson on two steps."""
    for n in (2, 4):
        rho = random_state(n, spectrum=np.linspace(1.0, 2.0, n))
        d = traceless(rng, n) * 0.05
        reference = states.ReferenceState(rho)

        def quotient(t, reference=reference, rho=rho, d=d):
            ahead, back = (reference.bures_distance(rho + s * t * d) for s in (1.0, -1.0))
            return 2.0 * (ahead**2 + back**2) / t**2

        limit = (4.0 * quotient(1e-3) - quotient(2e-3)) / 3.0
        assert limit == pytest.approx(states.qfi_matrix(rho, d[None])[0, 0], rel=1e-9)


def test_sld_solves_its_equation(rng, random_state):
    """‖½(ρL + Lρ) − ∂ρ‖ ≤ 1e-14·n."""
    for n in (2, 6, 16):
        rho = random_state(n, spectrum=np.linspace(1.0, 3.0, n))
        d = traceless(rng, n) / n
        L = states.sld(rho, d[None])[0]
        assert np.linalg.norm(0.5 * (rho @ L + L @ rho) - d) <= 1e-14 * n


def test_qfi_batches_agree_with_single_calls(rng, random_state):
    rho = np.stack([random_state(4) for _ in range(6)]).reshape(2, 3, 4, 4)
    drho = np.stack([rotation(r, hermitian(rng, 4)) for r in rho.reshape(6, 4, 4)])
    drho = drho.reshape(2, 3, 1, 4, 4)
    found = states.qfi_matrix(rho, drho)
    assert found.shape == (2, 3, 1, 1)
    for i, j in np.ndindex(2, 3):
        one = states.qfi_matrix(rho[i, j], drho[i, j])
        assert found[i, j] == pytest.approx(one, rel=1e-14)
