"""Declared structures: the same matrix in every operation, and refused when not one."""

from __future__ import annotations

import kernels_judge as judge
import mpmath as mp
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import polygamma

from qigkernels import ValidationError, fisher
from qigkernels.fisher import (
    BlockDiagonal,
    Dense,
    Diagonal,
    DiagPlusLowRank,
    Kronecker,
    SparseFisherMetric,
    SparsePrecision,
    from_dense,
)


def spd(rng, n):
    A = rng.standard_normal((n, 2 * n))
    return A @ A.T / n


def grid(k):
    line = sp.diags_array(
        [np.full(k - 1, -1.0), np.full(k, 2.0), np.full(k - 1, -1.0)], offsets=[-1, 0, 1]
    )
    one = sp.eye_array(k)
    return (sp.kron(line, one) + sp.kron(one, line) + 0.1 * sp.eye_array(k * k)).tocsr()


def scattered(rng, matrix):
    order = rng.permutation(matrix.shape[0])
    return matrix.tocsr()[order][:, order]


def expander(rng, n):
    """Three random neighbours each: no order makes it a band."""
    rows = np.repeat(np.arange(n), 3)
    links = sp.coo_array((np.full(3 * n, -0.1), (rows, rng.integers(0, n, 3 * n))), shape=(n, n))
    return (links + links.T + 3.0 * sp.eye_array(n)).tocsr()


def in_pieces(matrix):
    """The same matrix with every entry in two halves, in no order, and a zero said aloud."""
    one = sp.coo_array(matrix)
    data = np.concatenate((0.5 * one.data, 0.5 * one.data, [0.0]))
    rows, columns = (np.concatenate((x, x, [0])) for x in (one.row, one.col))
    return sp.coo_array((data, (rows, columns)), shape=one.shape)


BUILDERS = {
    "dense": lambda rng: Dense(spd(rng, 6)),
    "diagonal": lambda rng: Diagonal(rng.uniform(0.5, 2.0, 7)),
    "low rank": lambda rng: DiagPlusLowRank(
        rng.uniform(1.0, 2.0, 8), rng.standard_normal((8, 3)), [2.0, 0.5, -0.01]
    ),
    "multinomial": lambda rng: fisher.multinomial_fisher(rng.dirichlet(np.full(9, 3.0)), 5),
    "dirichlet": lambda rng: fisher.dirichlet_fisher(rng.uniform(0.5, 3.0, 6)),
    "blocks": lambda rng: BlockDiagonal([spd(rng, 3), Diagonal([1.0, 2.0]), spd(rng, 4)]),
    "equal blocks": lambda rng: BlockDiagonal(np.stack([spd(rng, 3) for _ in range(4)])),
    "kronecker": lambda rng: Kronecker(spd(rng, 3), spd(rng, 4)),
    "kfac": lambda rng: fisher.kfac_fisher(
        rng.standard_normal((40, 3)), rng.standard_normal((40, 2)), 0.01
    ),
    "chain": lambda rng: SparsePrecision.from_band(np.stack((np.full(12, 2.5), np.full(12, -1.0)))),
    "narrow field": lambda rng: fisher.gaussian_markov_fisher(grid(2)),
    "equal blocks of 20": lambda rng: BlockDiagonal(np.stack([spd(rng, 20) for _ in range(3)])),
    "band of 3": lambda rng: SparsePrecision.from_band(
        np.stack((np.full(11, 9.0), *rng.uniform(-1.0, 1.0, (3, 11))))
    ),
    "one parameter": lambda rng: SparsePrecision.from_band(np.array([[2.0], [7.0]])),
    "grid": lambda rng: SparsePrecision(grid(9)),
    "grid in pieces": lambda rng: SparsePrecision(in_pieces(grid(4))),
    "scattered chain": lambda rng: SparsePrecision(
        scattered(rng, sp.diags_array([-1.0, 2.5, -1.0], offsets=[-1, 0, 1], shape=(60, 60)))
    ),
    "scattered grid": lambda rng: SparsePrecision(scattered(rng, grid(20))),
    "expander": lambda rng: SparsePrecision(expander(rng, 400)),
    "multinomial of two": lambda rng: fisher.multinomial_fisher([0.3, 0.7], 4),
    "gaussian": lambda rng: fisher.gaussian_fisher(spd(rng, 3)),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_every_operation_is_that_of_the_dense_matrix(rng, name):
    metric = BUILDERS[name](rng)
    full = metric.to_dense()
    v, many = rng.standard_normal(metric.n), rng.standard_normal((metric.n, 3))
    scale = np.abs(full).max()
    assert full.shape == (metric.n, metric.n)
    assert np.abs(full - full.T).max() <= 1e-14 * scale
    for x in (v, many):
        assert np.abs(metric.matvec(x) - full @ x).max() <= 1e-13 * scale * metric.n
        assert metric.solve(x) == pytest.approx(np.linalg.solve(full, x), rel=1e-9, abs=1e-11)
        assert np.abs(full @ metric.solve(x) - x).max() <= 1e-11
    assert np.array_equal(metric @ v, metric.matvec(v))
    assert metric.logdet() == pytest.approx(np.linalg.slogdet(full)[1], abs=1e-11)
    assert metric.trace() == pytest.approx(full.trace(), rel=1e-13)
    assert metric.norm(v) == pytest.approx(np.sqrt(v @ full @ v), rel=1e-14)
    assert np.count_nonzero(full == 0.0) / full.size == pytest.approx(metric.natural_sparsity)


def test_only_what_no_order_makes_narrow_is_solved_by_sparse_lu(rng):
    assert SparsePrecision(grid(12)).banded
    assert SparsePrecision(scattered(rng, grid(12))).banded
    assert not SparsePrecision(expander(rng, 400)).banded


def test_structures_keep_copies_of_their_arguments(rng):
    """Writing into an argument later changes nothing."""
    full, d, p = spd(rng, 4), rng.uniform(1.0, 2.0, 4), rng.dirichlet(np.full(5, 3.0))
    band, stack, field = np.array([[2.0] * 4, [0.5] * 4]), np.stack([spd(rng, 2)] * 2), grid(2)
    columns = rng.standard_normal((4, 1))
    forms = [
        Dense(full), Diagonal(d), fisher.multinomial_fisher(p), SparsePrecision.from_band(band),
        BlockDiagonal(stack), SparsePrecision(field), DiagPlusLowRank(d, columns, d[:1]),
    ]  # fmt: skip
    kept = [(form.to_dense(), form.matvec(np.ones(4)), form.solve(np.ones(4))) for form in forms]
    for argument in (full, d, p, band, stack, field.data, columns):
        np.multiply(argument, 3.0, out=argument)
    for form, (dense, product, solution) in zip(forms, kept, strict=True):
        assert np.array_equal(form.to_dense(), dense)
        assert np.array_equal(form.matvec(np.ones(4)), product)
        assert np.array_equal(form.solve(np.ones(4)), solution)


def test_multinomial_keeps_its_digits_at_any_probability(rng):
    """The closed form against 50 digits, where the metric itself reaches 1e300."""
    for _ in range(20):
        p = 10.0 ** rng.uniform(-300.0, 0.0, 6)
        p[-1] = 1.0
        p /= p.sum()
        v = rng.standard_normal(5)
        exact = [mp.mpf(float(x)) for x in p]
        total = mp.fsum(exact)
        mean = mp.fsum(a * mp.mpf(float(b)) for a, b in zip(exact[:-1], v, strict=True)) / total
        for found, a, b in zip(fisher.multinomial_fisher(p).solve(v), exact, v, strict=False):
            wanted = a * (mp.mpf(float(b)) - mean)
            assert judge.error(found, wanted) <= 4e-15 * float(abs(wanted) + a)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_structure_is_positive_definite_by_its_cholesky(rng, name):
    np.linalg.cholesky(BUILDERS[name](rng).to_dense())


def test_multinomial_fisher_is_the_simplex_metric(rng):
    from qigkernels import simplex

    p = rng.dirichlet(np.full(6, 2.0))
    metric = fisher.multinomial_fisher(p)
    assert metric.to_dense() == pytest.approx(simplex.metric(p), rel=1e-14)
    v = rng.standard_normal(6)
    v -= v.mean()
    assert metric.norm(v[:-1]) == pytest.approx(simplex.norm(p, v), rel=1e-12)


def test_dirichlet_fisher_is_the_hessian_of_its_log_normaliser(rng):
    alpha = rng.uniform(0.5, 4.0, 5)
    wanted = np.diag(polygamma(1, alpha)) - polygamma(1, alpha.sum())
    assert fisher.dirichlet_fisher(alpha).to_dense() == pytest.approx(wanted, rel=1e-14)


def test_gaussian_fisher_is_the_curvature_of_the_divergence(rng):
    """The Hessian of KL(N(0, Σ) ‖ N(μ, Σ + dΣ)) at 0 is the Fisher matrix."""
    cov = spd(rng, 2) + np.eye(2)
    rows, columns = np.tril_indices(2)

    def divergence(theta):
        moved = cov.copy()
        for x, i, j in zip(theta[2:], rows, columns, strict=True):
            moved[i, j] += x
            if i != j:
                moved[j, i] += x
        inverse = np.linalg.inv(moved)
        return 0.5 * (
            np.trace(inverse @ cov)
            - 2
            + theta[:2] @ inverse @ theta[:2]
            + np.linalg.slogdet(moved)[1]
            - np.linalg.slogdet(cov)[1]
        )

    h = 1e-3
    G = fisher.gaussian_fisher(cov).to_dense()
    steps = h * np.eye(5)
    for i in range(5):
        for j in range(5):
            second = (
                divergence(steps[i] + steps[j])
                - divergence(steps[i] - steps[j])
                - divergence(steps[j] - steps[i])
                + divergence(-steps[i] - steps[j])
            ) / (4.0 * h * h)
            assert second == pytest.approx(G[i, j], abs=1e-4 * np.abs(G).max())


def test_exact_zeros_are_recognised_and_small_entries_kept(rng):
    chain = SparsePrecision.from_band(np.stack((np.full(64, 2.5), np.full(64, -1.0)))).to_dense()
    cases = {
        "Diagonal": np.diag(rng.uniform(1.0, 2.0, 8)),
        "SparsePrecision": chain,
        "BlockDiagonal": BlockDiagonal([spd(rng, 9), spd(rng, 7), spd(rng, 8)]).to_dense(),
        "Dense": spd(rng, 8),
    }
    for name, full in cases.items():
        found = from_dense(full)
        assert found.representation == name
        assert found.validated
        assert np.array_equal(found.metric.to_dense(), full)
        assert found.natural_sparsity == np.count_nonzero(full == 0.0) / full.size
        assert found.speedup is None
    tiny = chain.copy()
    tiny[0, 63] = tiny[63, 0] = 1e-300
    assert from_dense(tiny).metric.to_dense()[0, 63] == 1e-300


def test_scattered_sparse_matrices_are_recognised_and_measured(rng):
    order = rng.permutation(100)
    full = grid(10).toarray()[np.ix_(order, order)]
    found = from_dense(full)
    assert found.representation == "SparsePrecision"
    measured = from_dense(full, measure=True)
    assert measured.speedup > 0.0
    assert (measured.representation == "Dense") == (measured.speedup <= 1.0)


def test_truncation_makes_fisher_matrices_indefinite(rng):
    """Why it is forbidden: 40 % of random 64-D matrices at 1 % of the maximum."""
    lost = 0
    for _ in range(40):
        A = rng.standard_normal((64, 72))
        full = A @ A.T
        cut = np.where(np.abs(full) < 0.05 * np.abs(full).max(), 0.0, full)
        lost += np.linalg.eigvalsh(cut)[0] < 0.0
    assert lost > 0
    with pytest.raises(ValidationError, match="not positive definite"):
        from_dense(np.array([[1.0, 2.0], [2.0, 1.0]]))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Dense(np.array([[1.0, 2.0], [2.0, 1.0]])),
        lambda: Diagonal([1.0, 0.0]),
        lambda: DiagPlusLowRank([1.0, 1.0], [[1.0], [1.0]], [-0.5]),
        lambda: BlockDiagonal(np.array([[[1.0, 2.0], [2.0, 1.0]]])),
        lambda: SparsePrecision.from_band(np.array([[1.0, 1.0], [2.0, 0.0]])),
        lambda: SparsePrecision(sp.csr_array(grid(9) - 4.0 * sp.eye_array(81))),
        lambda: fisher.kfac_fisher(np.ones((2, 4)), np.ones((2, 1))),
    ],
)
def test_what_is_not_positive_definite_is_refused(build):
    with pytest.raises(ValidationError, match="positive definite"):
        build()


NAN, INF = float("nan"), float("inf")
LOPSIDED = np.array([[1.0, 0.5], [0.4, 1.0]])
BAD = {
    "asymmetric": (lambda: Dense(LOPSIDED), "matrix", 0.5, (0, 1)),
    "NaN": (lambda: Dense(np.array([[1.0, NAN], [NAN, 1.0]])), "matrix", NAN, (0, 1)),
    "infinite": (lambda: Dense(np.array([[1.0, 0.0], [0.0, -INF]])), "matrix", -INF, (1, 1)),
    "not square": (lambda: Dense(np.ones((2, 3))), "matrix", None, None),
    "empty": (lambda: Dense(np.ones((0, 0))), "matrix", None, None),
    "integers": (lambda: Dense(np.eye(2, dtype=int)), "matrix", "int64", None),
    "complex": (lambda: Dense(np.eye(2, dtype=complex)), "matrix", "complex128", None),
    "two axes": (lambda: Diagonal(np.ones((2, 2))), "diagonal", None, None),
    "infinite diagonal": (lambda: Diagonal([1.0, INF]), "diagonal", INF, (1,)),
    "long vector": (lambda: Diagonal([1.0, 2.0]).solve(np.ones(3)), "v", None, None),
    "no vector": (lambda: Diagonal([1.0, 2.0]).solve(np.ones((2, 0))), "v", None, None),
    "NaN vector": (lambda: Diagonal([1.0, 2.0]).matvec([1.0, NAN]), "v", NAN, (1,)),
    "whole numbers": (lambda: Diagonal([1.0, 2.0]).norm([1, 2]), "v", "int64", None),
    "norms": (lambda: Diagonal([1.0, 2.0]).norm(np.eye(2)), "v", None, None),
    "columns": (lambda: DiagPlusLowRank([1.0, 1.0], [[1.0]], [1.0]), "columns", None, None),
    "scales": (lambda: DiagPlusLowRank([1.0], [[1.0]], [NAN]), "scales", NAN, (0,)),
    "no block": (lambda: BlockDiagonal([]), "blocks", None, None),
    "blocks not square": (lambda: BlockDiagonal(np.ones((2, 2, 3))), "blocks", None, None),
    "blocks asymmetric": (
        lambda: BlockDiagonal(np.stack((np.eye(2), LOPSIDED))), "blocks", 0.5, (1, 0, 1),
    ),
    "one block": (lambda: BlockDiagonal(np.eye(2)), "blocks", None, None),
    "sparse asymmetric": (lambda: SparsePrecision(sp.csr_array(LOPSIDED)), "matrix", 0.4, (1, 0)),
    "sparse not square": (lambda: SparsePrecision(sp.csr_array((2, 3))), "matrix", None, None),
    "sparse nothing": (lambda: SparsePrecision(sp.csr_array((3, 3))), "matrix", None, None),
    "sparse integers": (
        lambda: SparsePrecision(sp.eye_array(2, dtype=int).tocsr()), "matrix", "int64", None,
    ),
    "sparse NaN": (
        lambda: SparsePrecision(sp.csr_array(np.array([[1.0, 0.0], [0.0, NAN]]))),
        "matrix", NAN, (1, 1),
    ),
    "band of one axis": (lambda: SparsePrecision.from_band(np.ones(3)), "band", None, None),
    "band": (lambda: SparsePrecision.from_band([[1.0, NAN], [0.0, 0.0]]), "band", NAN, (0, 1)),
    "zero": (lambda: fisher.multinomial_fisher([1.0, 0.0]), "p", 0.0, (1,)),
    "negative": (lambda: fisher.multinomial_fisher([1.5, -0.5]), "p", -0.5, (1,)),
    "sum": (lambda: fisher.multinomial_fisher([0.5, 0.25]), "p", 0.75, ()),
    "no distribution": (lambda: fisher.multinomial_fisher([NAN, 1.0]), "p", NAN, (0,)),
    "trials": (lambda: fisher.multinomial_fisher([0.5, 0.5], 0), "trials", 0, None),
    "alpha": (lambda: fisher.dirichlet_fisher([1.0, -1.0]), "alpha", -1.0, (1,)),
    "samples": (lambda: fisher.kfac_fisher(np.ones((2, 1)), np.ones((3, 1))),
                "gradients", None, None),
    "damping": (lambda: fisher.kfac_fisher(np.ones((2, 1)), np.ones((2, 1)), -1.0),
                "damping", -1.0, None),
    "dimension": (lambda: SparseFisherMetric(dim=3).compute(np.eye(2)), "state", 2, None),
    "far end": (
        lambda: SparseFisherMetric(dim=2).geodesic_distance(np.ones(2), np.ones(3), np.eye(2)),
        "b", None, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused_with_name_value_and_place(name):
    call, argument, value, index = BAD[name]
    with pytest.raises(ValidationError) as caught:
        call()
    error = caught.value
    assert error.argument == argument
    if value is not None:
        # repr, so that NaN is NaN.
        assert repr(error.value) == repr(value) or str(error.value) == value
    if index is not None:
        assert error.index == index


def test_an_asymmetric_field_is_refused_in_every_form(rng):
    for field in (grid(9), scattered(rng, grid(20)), expander(rng, 400)):
        lopsided = field.copy()
        lopsided.data[np.flatnonzero(lopsided.data < 0.0)[7]] *= 1.5
        with pytest.raises(ValidationError, match="not symmetric") as caught:
            SparsePrecision(lopsided)
        i, j = caught.value.index
        assert abs(lopsided[i, j] - lopsided[j, i]) > 0.01


def test_sparse_fisher_metric_counts_what_it_did(rng):
    metric = SparseFisherMetric(dim=8)
    a, b = rng.standard_normal((2, 8))
    dense = metric.compute(spd(rng, 8))
    diagonal = metric.compute(np.diag(np.full(8, 4.0)))
    p = metric.compute(rng.dirichlet(np.full(9, 3.0)))
    assert metric.geodesic_distance(a, b, diagonal) == pytest.approx(2 * np.linalg.norm(a - b))
    assert metric.geodesic_distance(a, b, dense.to_dense()) == pytest.approx(dense.norm(a - b))
    assert isinstance(p, DiagPlusLowRank)
    stats = metric.get_stats()
    assert stats["total_computes"] == 3
    assert stats["representations"] == {"Dense": 1, "Diagonal": 1, "Multinomial": 1}
    assert (stats["natural_sparse"], stats["dense"]) == (2, 1)
    assert stats["validation_failures"] == 0
    assert stats["avg_natural_sparsity"] == pytest.approx((1 - 1 / 8) / 3)
    assert stats["measured_speedup"] is None
    metric.reset_stats()
    assert metric.get_stats()["total_computes"] == 0
    measured = SparseFisherMetric(dim=8, measure=True)
    measured.compute(np.diag(np.full(8, 4.0)))
    assert measured.get_stats()["measured_speedup"] > 0.0


def test_a_family_of_your_own_may_declare_its_structure(rng):
    metric = SparseFisherMetric(dim=6, family=lambda cov: Kronecker(cov, np.eye(2)))
    assert isinstance(metric.compute(spd(rng, 3)), Kronecker)
