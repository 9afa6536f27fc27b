"""Declared structures: the same matrix in every operation, and refused when not one."""

from __future__ import annotations

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
    "wide grid": lambda rng: SparsePrecision(grid(9)),
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


@pytest.mark.parametrize(
    "build",
    [
        lambda: Dense(np.array([[1.0, 0.5], [0.4, 1.0]])),
        lambda: Dense(np.array([[1.0, np.nan], [np.nan, 1.0]])),
        lambda: Dense(np.ones((2, 3))),
        lambda: Diagonal(np.ones((2, 2))),
        lambda: Diagonal([1.0, 2.0]).solve(np.ones(3)),
        lambda: DiagPlusLowRank([1.0, 1.0], [[1.0]], [1.0]),
        lambda: BlockDiagonal([]),
        lambda: BlockDiagonal(np.ones((2, 2, 3))),
        lambda: SparsePrecision(sp.csr_array(np.array([[1.0, 0.5], [0.4, 1.0]]))),
        lambda: SparsePrecision(sp.csr_array(np.ones((2, 3)))),
        lambda: fisher.multinomial_fisher([1.0, 0.0]),
        lambda: fisher.dirichlet_fisher([1.0, -1.0]),
        lambda: fisher.kfac_fisher(np.ones((2, 1)), np.ones((3, 1))),
        lambda: SparseFisherMetric(dim=3).compute(np.eye(2)),
        lambda: SparseFisherMetric(dim=2).geodesic_distance(np.ones(2), np.ones(3), np.eye(2)),
    ],
)
def test_bad_arguments_are_refused_by_name(build):
    with pytest.raises(ValidationError) as caught:
        build()
    assert caught.value.argument


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
    assert stats["representations"] == {"Dense": 1, "Diagonal": 1, "DiagPlusLowRank": 1}
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
