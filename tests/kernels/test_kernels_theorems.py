"""Every theorem over sizes 2 to 64, both precisions, real and complex, batches of 0 to 3 axes.

On NumPy, torch and JAX where they are installed. Tolerances are in rounding units of the precision.
"""

from __future__ import annotations

import itertools
from importlib.util import find_spec

import numpy as np
import pytest

from qigkernels import batch, simplex, states

SIZES = [2, 3, 4, 5, 8, 16, 33, 64]
SHAPES = [(), (3,), (2, 3), (2, 1, 3)]
REAL = [np.float32, np.float64]
FIELDS = [np.float32, np.float64, np.complex64, np.complex128]


def load_numpy():
    return lambda x: x


def load_torch():
    import torch

    return torch.from_numpy


def load_jax():
    import jax

    # Without this JAX turns every float64 into float32.
    jax.config.update("jax_enable_x64", True)
    return jax.numpy.asarray


LIBRARIES = {"numpy": load_numpy, "torch": load_torch, "jax": load_jax}
INSTALLED = [name for name in LIBRARIES if find_spec(name)]


def grid(dtypes):
    """Library, size and dtype; JAX, which compiles every shape anew, at two sizes only."""
    return [
        pytest.param((name, n, dtype), id=f"{name}-{n}-{dtype.__name__}")
        for name, n, dtype in itertools.product(INSTALLED, SIZES, dtypes)
        if name != "jax" or n in {2, 5}
    ]


@pytest.fixture(params=grid(FIELDS))
def case(request, rng):
    """States of one size, dtype and library."""
    return Case(rng, *request.param)


@pytest.fixture(params=grid(REAL))
def points(request, rng):
    """Distributions of one size, dtype and library."""
    return Case(rng, *request.param)


class Case:
    """Random batches of one size, dtype and library; every batch shape comes up."""

    def __init__(self, rng, library, n, dtype):
        self.rng, self.n, self.dtype = rng, n, np.dtype(dtype)
        self.make = LIBRARIES[library]()
        self.shape = SHAPES[(SIZES.index(n) + FIELDS.index(dtype)) % 4]
        self.eps = float(np.finfo(dtype).eps)

    def normal(self, *shape):
        x = self.rng.standard_normal((*self.shape, *shape))
        return x if self.dtype.kind == "f" else x + 1j * self.rng.standard_normal(x.shape)

    def state(self, n=None, *, rank=None):
        """Well-conditioned states; of that rank where one is given."""
        n = n or self.n
        G = self.normal(n, rank or 2 * n)
        rho = G @ G.conj().swapaxes(-1, -2)
        return rho / np.trace(rho, axis1=-2, axis2=-1).real[..., None, None]

    def hermitian(self):
        H = self.normal(self.n, self.n)
        return 0.5 * (H + H.conj().swapaxes(-1, -2))

    def distribution(self, n=None, concentration=2.0):
        return self.rng.dirichlet(np.full(n or self.n, concentration), self.shape or None)

    def given(self, x):
        """The array as this case's library and precision have it, and still on the simplex."""
        complex_ = x.dtype.kind == "c"
        real = np.float32 if self.eps > 1e-10 else np.float64
        dtype = (np.complex64 if real == np.float32 else np.complex128) if complex_ else real
        return self.make(np.ascontiguousarray(x, dtype=dtype))

    def run(self, function, *arrays):
        """The result in float64 or complex128, for arrays in this case's library and precision."""
        given = [self.given(x) if isinstance(x, np.ndarray) else x for x in arrays]
        found = function(*given)
        found = found.cpu().numpy() if hasattr(found, "detach") else np.asarray(found)
        if found.shape:
            # One NumPy number comes as a float.
            assert np.finfo(found.dtype).eps == self.eps
        return found.astype(np.complex128 if found.dtype.kind == "c" else np.float64)


def adjoint(x):
    return x.conj().swapaxes(-1, -2)


def unitary(case):
    return np.linalg.qr(case.normal(case.n, case.n))[0]


def test_uhlmann_1976_bures_angle_and_distance_are_metrics(case):
    a, b, c = (case.state() for _ in range(3))
    for d, top in ((states.bures_angle, np.pi / 2), (states.bures_distance, np.sqrt(2.0))):
        ab, ba, bc, ac = (case.run(d, *pair) for pair in ((a, b), (b, a), (b, c), (a, c)))
        assert ab.shape == case.shape
        slack = 20.0 * case.eps
        assert (case.run(d, a, a) <= slack).all()
        assert (ab > 0.0).all()
        assert (ab <= top + slack).all()
        assert np.abs(ab - ba).max() <= slack
        assert (ac <= ab + bc + slack).all()


def test_pure_and_low_rank_states_keep_range_and_triangle(case):
    a, b, c = (case.state(rank=k) for k in (1, max(1, case.n // 2), 1))
    # The precision sees a null space as the square root of its rounding.
    slack = 8.0 * np.sqrt(case.n * case.eps)
    for d, top in ((states.bures_angle, np.pi / 2), (states.bures_distance, np.sqrt(2.0))):
        ab, bc, ac = (case.run(d, *pair) for pair in ((a, b), (b, c), (a, c)))
        assert (ab >= 0.0).all()
        assert (ab <= top * (1.0 + 2.0 * case.eps)).all()
        assert (ac <= ab + bc + slack).all()
        assert (case.run(d, a, a) <= slack).all()


def test_jozsa_1994_fidelity_is_invariant_under_unitaries_and_permutations(case):
    a, b = case.state(), case.state()
    wanted = case.run(states.root_fidelity, a, b)
    U = unitary(case)
    order = case.rng.permutation(case.n)
    moved = [
        [U @ x @ adjoint(U) for x in (a, b)],
        [x[..., order, :][..., order] for x in (a, b)],
    ]
    for pair in moved:
        found = case.run(states.root_fidelity, *(0.5 * (x + adjoint(x)) for x in pair))
        assert np.abs(found - wanted).max() <= 10.0 * case.eps


def test_fidelity_lies_between_the_overlap_and_one(case):
    a, b = case.state(), case.state(rank=max(1, case.n // 2))
    F = case.run(states.fidelity, a, b)
    overlap = np.trace(a @ b, axis1=-2, axis2=-1).real
    slack = 4.0 * case.eps + (0.0 if case.eps < 1e-10 else 20.0 * case.n * case.eps)
    assert (overlap - slack <= F).all()
    assert (F <= 1.0).all()


def test_fuchs_and_van_de_graaf_1999(case):
    for a, b in ((case.state(), case.state()), (case.state(), case.state(rank=1))):
        overlap = case.run(states.fidelity, a, b)
        apart = case.run(states.trace_distance, a, b)
        slack = 20.0 * np.sqrt(case.n) * case.eps
        assert (1.0 - np.sqrt(overlap) <= apart + slack).all()
        assert (apart <= np.sqrt(1.0 - overlap) + slack).all()


def test_channels_contract_the_bures_angle(case):
    """Uhlmann 1976: partial trace, pinching and depolarising bring states nearer."""
    n, m = (case.n, 2) if case.n <= 32 else (32, 2)
    a, b = case.state(n * m), case.state(n * m)
    whole = case.run(states.bures_angle, a, b)
    slack = 20.0 * case.eps

    def reduced(x):
        return np.einsum("...ikjk->...ij", x.reshape(*case.shape, n, m, n, m))

    pinched = np.eye(n * m)
    for channel in (reduced, lambda x: x * pinched, lambda x: states.depolarise(x, 0.1)):
        assert (case.run(states.bures_angle, channel(a), channel(b)) <= whole + slack).all()


def kron(a, b):
    n = a.shape[-1] * b.shape[-1]
    return np.einsum("...ij,...kl->...ikjl", a, b).reshape(*a.shape[:-2], n, n)


def test_fidelity_is_multiplicative_on_tensor_products(case):
    small = min(case.n, 8)
    a, b, c, d = case.state(small), case.state(small), case.state(3), case.state(3)
    product = case.run(states.root_fidelity, a, b) * case.run(states.root_fidelity, c, d)
    found = case.run(states.root_fidelity, kron(a, c), kron(b, d))
    assert np.abs(found - product).max() <= 20.0 * case.eps


def test_commuting_states_are_classical(case):
    p, q = case.distribution(), case.distribution()
    one = np.eye(case.n, dtype=case.dtype)
    found = case.run(states.distance, p[..., None] * one, q[..., None] * one)
    wanted = case.run(simplex.distance, p, q)
    # A probability at the rounding of the largest one is an eigenvalue that counts as 0.
    slack = np.sqrt(case.n * case.eps) if case.eps > 1e-10 else 8.0 * case.eps
    clear = np.minimum(p, q).min(axis=-1) > 1e-4 if case.eps < 1e-10 else np.full(case.shape, True)
    assert np.abs(found - wanted)[clear].max(initial=0.0) <= slack


def test_entropy_and_purity_have_their_ranges_and_depolarising_moves_them(case):
    rho = case.state(rank=max(1, case.n // 2))
    noisy = states.depolarise(rho, 0.3)
    slack = 20.0 * case.n * case.eps
    before, after = (case.run(states.entropy, x) for x in (rho, noisy))
    assert (before >= -slack).all()
    assert (before <= after + slack).all()
    assert (after <= np.log(case.n) + slack).all()
    before, after = (case.run(states.purity, x) for x in (rho, noisy))
    assert (before <= 1.0 + slack).all()
    assert (before >= after - slack).all()
    assert (after >= 1.0 / case.n - slack).all()


def test_baumgratz_2014_coherence_vanishes_on_diagonal_states_and_is_bounded(case):
    rho = case.state()
    slack = 20.0 * case.n * case.eps
    relative = case.run(states.coherence_relative_entropy, rho)
    absolute = case.run(states.coherence_l1, rho)
    assert ((relative >= 0.0) & (relative <= np.log(case.n) + slack)).all()
    assert ((absolute >= 0.0) & (absolute <= case.n - 1.0 + slack)).all()
    assert (relative <= absolute * np.log2(case.n) + slack).all()
    diagonal = rho * np.eye(case.n)
    assert (case.run(states.coherence_l1, diagonal) == 0.0).all()
    assert (case.run(states.coherence_relative_entropy, diagonal) <= slack).all()


def turned(rho, H):
    """dρ/dt = −i[H, ρ] of a complex family, [K, ρ] with K antisymmetric of a real one."""
    if np.iscomplexobj(rho):
        d = -1j * (H @ rho - rho @ H)
    else:
        K = np.tril(H, -1) - np.tril(H, -1).swapaxes(-1, -2)
        d = K @ rho - rho @ K
    return 0.5 * (d + adjoint(d))


def test_braunstein_caves_1994_qfi_is_positive_and_at_most_four_variances(case):
    rho, H = case.state(), case.hermitian()
    if case.dtype.kind == "f":
        # The generator of a real rotation is i times its antisymmetric part.
        K = np.tril(H, -1) - np.tril(H, -1).swapaxes(-1, -2)
        square = -np.trace(rho @ K @ K, axis1=-2, axis2=-1)
    else:
        mean = np.trace(rho @ H, axis1=-2, axis2=-1).real
        square = np.trace(rho @ H @ H, axis1=-2, axis2=-1).real - mean**2
    found = case.run(states.qfi_matrix, rho, turned(rho, H)[..., None, :, :])[..., 0, 0]
    assert (found >= 0.0).all()
    assert (found <= 4.0 * square * (1.0 + 100.0 * case.n * case.eps)).all()


def test_qfi_matrices_are_symmetric_and_positive_semidefinite(case):
    rho = case.state()
    drho = np.stack([turned(rho, case.hermitian()) for _ in range(3)], axis=-3)
    found = case.run(states.qfi_matrix, rho, drho)
    assert found.shape == (*case.shape, 3, 3)
    assert np.array_equal(found, found.swapaxes(-1, -2))
    slack = 100.0 * case.n * case.eps * np.abs(found).max()
    assert np.linalg.eigvalsh(found).min() >= -slack


def test_qfi_is_convex(case):
    """Fujiwara 2001: mixing two families never adds information."""
    a, b, H = case.state(), case.state(), case.hermitian()
    families = [a, b, 0.3 * a + 0.7 * b]
    one, two, mixed = (
        case.run(states.qfi_matrix, x, turned(x, H)[..., None, :, :])[..., 0, 0] for x in families
    )
    assert (mixed <= (0.3 * one + 0.7 * two) * (1.0 + 100.0 * case.n * case.eps)).all()


def test_sld_solves_its_equation(case):
    """‖½(ρL + Lρ) − ∂ρ‖ ≤ 1e-14·n in float64, as many rounding units in float32."""
    rho = 0.5 * case.state() + 0.5 * np.eye(case.n) / case.n
    d = turned(rho, case.hermitian()) / case.n
    L = case.run(states.sld, rho, d[..., None, :, :])[..., 0, :, :]
    off = 0.5 * (rho @ L + L @ rho) - d
    assert np.linalg.norm(off, axis=(-2, -1)).max() <= 45.0 * case.eps * case.n


def test_pure_states_have_four_variances(case):
    psi, H = case.normal(case.n), case.hermitian()
    psi = psi / np.linalg.norm(psi, axis=-1, keepdims=True)
    turn = 1j * H if case.dtype.kind == "c" else np.tril(H, -1) - np.tril(H, -1).swapaxes(-1, -2)
    step = np.einsum("...ij,...j->...i", turn, psi)
    mean = np.einsum("...i,...i->...", psi.conj(), step)
    square = (np.abs(step) ** 2).sum(axis=-1)
    variance = square - np.abs(mean) ** 2
    found = case.run(states.qfi_pure, psi, step[..., None, :])[..., 0, 0]
    # Near an eigenvector the variance is a small difference of the two.
    assert (np.abs(found - 4.0 * variance) <= 400.0 * case.n * case.eps * square).all()


def test_rao_1945_distance_is_a_metric(points):
    for concentration in (0.1, 2.0):
        p, q, r = (points.distribution(concentration=concentration) for _ in range(3))
        pq, qp, qr, pr = (
            points.run(simplex.distance, *pair) for pair in ((p, q), (q, p), (q, r), (p, r))
        )
        slack = 8.0 * points.eps
        assert pq.shape == points.shape
        assert not points.run(simplex.distance, p, p).any()
        assert ((pq >= 0.0) & (pq <= np.pi + slack)).all()
        assert np.abs(pq - qp).max() <= slack
        assert (pr <= pq + qr + slack).all()


def test_chentsov_1972_stochastic_maps_contract_and_permutations_keep_the_distance(points):
    p, q = points.distribution(), points.distribution()
    whole = points.run(simplex.distance, p, q)
    slack = 16.0 * points.eps
    kernel = points.rng.dirichlet(np.full(max(1, points.n // 2), 0.5), points.n)
    merged = [x @ kernel for x in (p, q)]
    merged = [x / x.sum(axis=-1, keepdims=True) for x in merged]
    assert (points.run(simplex.distance, *merged) <= whole + slack).all()
    order = points.rng.permutation(points.n)
    moved = points.run(simplex.distance, p[..., order], q[..., order])
    assert np.abs(moved - whole).max() <= slack


def test_the_overlap_is_multiplicative_on_products_of_distributions(points):
    p, q, a, b = (
        points.distribution(),
        points.distribution(),
        *(points.distribution(3) for _ in range(2)),
    )
    joint = [(x[..., :, None] * y[..., None, :]).reshape(*points.shape, -1)
             for x, y in ((p, a), (q, b))]  # fmt: skip
    whole = np.cos(0.5 * points.run(simplex.distance, *joint))
    parts = [np.cos(0.5 * points.run(simplex.distance, *pair)) for pair in ((p, q), (a, b))]
    assert np.abs(whole - parts[0] * parts[1]).max() <= 8.0 * points.eps


def test_geodesics_have_constant_speed(points):
    p, q = points.distribution(), points.distribution()
    whole = points.run(simplex.distance, p, q)
    stops = [p, *(points.run(lambda x, y, t=t: simplex.geodesic(x, y, t), p, q)
                  for t in (0.25, 0.5, 0.75)), q]  # fmt: skip
    for a, b in itertools.pairwise(stops):
        step = points.run(simplex.distance, a, b)
        assert np.abs(step - 0.25 * whole).max() <= 30.0 * points.eps


def test_exp_undoes_log_and_the_length_of_log_is_the_distance(points):
    p, q = points.distribution(), points.distribution()
    v = points.run(simplex.log, p, q)
    assert np.abs(v.sum(axis=-1)).max() <= 20.0 * points.eps
    length = points.run(lambda x, y: simplex.norm(x, simplex.log(x, y)), p, q)
    whole = points.run(simplex.distance, p, q)
    assert np.abs(length - whole).max() <= 40.0 * points.eps
    back = points.run(lambda x, y: simplex.exp(x, simplex.log(x, y)), p, q)
    assert np.abs(back - q).max() <= 30.0 * points.eps


def test_parallel_transport_is_an_isometry(points):
    p, q, a = (points.distribution() for _ in range(3))

    def moved(x, y, z):
        return simplex.norm(y, simplex.transport(x, y, simplex.log(x, z)))

    before = points.run(lambda x, z: simplex.norm(x, simplex.log(x, z)), p, a)
    assert np.abs(points.run(moved, p, q, a) - before).max() <= 200.0 * points.eps


def test_natural_gradient_is_a_tangent_that_pairs_as_the_differential_does(points):
    p, g, v = points.distribution(), points.normal(points.n), points.normal(points.n)
    v = v - v.mean(axis=-1, keepdims=True)
    v *= p.min(axis=-1, keepdims=True)
    found = points.run(simplex.natural_gradient, p, g)
    assert np.abs(found.sum(axis=-1)).max() <= 40.0 * points.eps
    paired = (found * v / p).sum(axis=-1)
    slack = 100.0 * points.eps * points.n
    assert np.abs(paired - (g * v).sum(axis=-1)).max() <= slack


def test_frechet_mean_of_two_points_is_the_middle_of_their_geodesic(points):
    p, q = points.distribution(), points.distribution()
    found = points.run(simplex.frechet_mean, np.stack((p, q), axis=-2))
    middle = points.run(lambda x, y: simplex.geodesic(x, y, 0.5), p, q)
    assert np.abs(found - middle).max() <= 30.0 * points.eps


def test_basin_updates_have_the_length_they_say(points):
    P = points.distribution().reshape(-1, points.n)
    G = points.normal(points.n).reshape(-1, points.n)
    valid = points.run(lambda x, g: batch.update_basins(x, g, 0.01).points, P, G)
    length = points.run(lambda x, g: batch.update_basins(x, g, 0.01).step_length, P, G)
    assert np.abs(valid.sum(axis=-1) - 1.0).max() <= 20.0 * points.eps
    moved = points.run(simplex.distance, P, valid)
    assert np.abs(moved - length).max() <= 60.0 * points.eps
