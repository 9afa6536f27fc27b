"""One source on the array API: torch and JAX give NumPy's numbers, dtypes and refusals.

torch on CUDA and CuPy are tested where there is a device.
"""

from __future__ import annotations

import kernels_judge as judge
import numpy as np
import pytest

from qigkernels import ValidationError, batch, simplex, states
from qigkernels._arrays import product


def load_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `torch`)")
    return torch.from_numpy, torch.Tensor


def load_torch_cuda():
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `torch`)")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    return lambda x: torch.from_numpy(x).to("cuda"), torch.Tensor


def load_jax():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    # Without this JAX turns every float64 into float32.
    jax.config.update("jax_enable_x64", True)
    return jax.numpy.asarray, jax.Array


def load_cupy():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not cupy.cuda.is_available():
        pytest.skip("CuPy finds no CUDA device")
    return cupy.asarray, cupy.ndarray


@pytest.fixture(
    params=[load_torch, load_torch_cuda, load_jax, load_cupy],
    ids=["torch", "torch-cuda", "jax", "cupy"],
)
def backend(request):
    """`(make, kind)`: from a NumPy array to the library's, and the library's array type."""
    return request.param()


def back(x):
    if hasattr(x, "detach"):
        return x.cpu().numpy()
    return x.get() if hasattr(x, "get") else np.asarray(x)


def same(backend, function, *arrays, atol=1e-14):
    """The function on the library's arrays: same type, dtype and numbers as on NumPy's."""
    make, kind = backend
    wanted = function(*arrays)
    found = function(*(make(x.copy()) for x in arrays))
    if not isinstance(wanted, tuple):
        wanted, found = (wanted,), (found,)
    for a, expected in zip(found, wanted, strict=True):
        if expected is None:
            assert a is None
            continue
        assert isinstance(a, kind)
        assert a.device == make(arrays[0]).device
        b = np.asarray(expected)
        assert back(a).dtype == b.dtype
        assert back(a).shape == b.shape
        assert np.array_equal(np.isnan(back(a)), np.isnan(b))
        if b.dtype == bool:
            assert np.array_equal(back(a), b)
        else:
            assert np.nanmax(np.abs(back(a) - b), initial=0.0) <= atol


@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 3, 64)])
def test_simplex_functions_agree_with_numpy(backend, rng, shape):
    p, q, a = (rng.dirichlet(np.full(shape[-1], 2.0), shape[:-1] or None) for _ in range(3))
    v = simplex.log(p, a)
    same(backend, simplex.distance, p, q)
    same(backend, simplex.distance_from_roots, np.sqrt(p), np.sqrt(q))
    same(backend, simplex.roots, p)
    same(backend, lambda x, y: simplex.geodesic(x, y, 0.3), p, q)
    same(backend, simplex.log, p, q)
    same(backend, simplex.exp, p, v)
    same(backend, simplex.transport, p, q, v)
    same(backend, simplex.inner, p, v, v)
    same(backend, simplex.norm, p, v)
    same(backend, simplex.natural_gradient, p, v)
    same(backend, simplex.metric, p, atol=1e-9)
    same(backend, simplex.metric_inverse, p)
    for how in ("softmax", "counts", "amplitudes"):
        same(backend, lambda x, how=how: simplex.to_simplex(x, how=how), p)


def test_means_paths_and_tables_agree_with_numpy(backend, rng):
    P, Q, w = rng.dirichlet(np.full(8, 2.0), 6), rng.dirichlet(np.ones(8), 4), np.full(6, 1 / 6)
    Q[0] = P[0]
    same(backend, simplex.pairwise, P, Q)
    same(backend, simplex.pairwise, P)
    same(backend, simplex.frechet_mean, P, w)
    same(backend, simplex.path_curvature, P, atol=1e-12)
    same(backend, lambda x, t: simplex.geodesic(x[0], x[1], t), P, np.linspace(0.0, 1.0, 5))


def test_near_and_subnormal_points_keep_their_digits(backend, rng):
    make, _ = backend
    for apart in (1e-4, 1e-8, 1e-12):
        p = rng.dirichlet(np.ones(32))
        q = p * (1.0 + apart * rng.standard_normal(32))
        q /= q.sum()
        wanted = judge.fisher_rao(p, q)
        found = simplex.distance(make(p[None]), make(q[None]))
        assert judge.error(back(found)[0], wanted) <= 5e-15 * wanted
    p = np.array([[1e-300, 0.25, 0.75]])
    q = np.array([[0.0, 0.25, 0.75]])
    assert back(simplex.distance(make(p), make(q)))[0] == pytest.approx(2e-150, rel=1e-14)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_functions_on_states_agree_with_numpy(backend, rng, random_state, n):
    ranks = [n, n, max(1, n // 2), 1]
    pairs = [
        np.stack(
            [random_state(n, spectrum=(np.arange(n) < r) * rng.uniform(0.5, 1.0, n)) for r in ranks]
        )
        for _ in range(2)
    ]
    rho, sigma = pairs
    sigma[1] = 0.999 * rho[1] + 0.001 * sigma[0]
    same(backend, states.root_fidelity, rho, sigma)
    same(backend, states.fidelity, rho, sigma)
    same(backend, states.bures_angle, rho, sigma)
    same(backend, states.bures_distance, rho, sigma)
    same(backend, states.distance, rho[:, None], sigma, atol=2e-14)
    same(backend, states.trace_distance, rho, sigma)
    for function in (
        states.entropy,
        states.purity,
        states.coherence_l1,
        states.coherence_relative_entropy,
    ):
        same(backend, function, rho)
    same(backend, lambda x: states.depolarise(x, 0.25), rho)
    same(backend, states.bures_mean, rho[None, :2], atol=1e-12)
    drho = (sigma[:1] - rho[:1])[:, None]
    same(backend, states.qfi_matrix, rho[:1], drho, atol=1e-11)
    make, _ = backend
    reference = states.ReferenceState(make(rho[0]))
    found = reference.bures_distance(make(sigma))
    assert np.abs(back(found) - states.ReferenceState(rho[0]).bures_distance(sigma)).max() <= 1e-14


def test_weak_eigenvalues_are_as_exact_as_on_numpy(backend, rng, random_state):
    make, _ = backend
    rho = random_state(5, spectrum=np.geomspace(1.0, 1e-12, 5))
    sigma = random_state(5)
    overlap, angle, _ = judge.bures(rho, sigma)
    assert judge.error(float(states.root_fidelity(make(rho), make(sigma))), overlap) <= 1e-15
    assert judge.error(float(states.bures_angle(make(rho), make(sigma))), angle) <= 2e-15


def test_pure_states_and_real_states_agree_with_numpy(backend, rng, random_state):
    psi = rng.standard_normal(6) + 1j * rng.standard_normal(6)
    psi /= np.linalg.norm(psi)
    dpsi = rng.standard_normal((3, 6)) + 1j * rng.standard_normal((3, 6))
    same(backend, states.qfi_pure, psi, dpsi, atol=1e-12)
    for n in (2, 5):
        rho, sigma = (np.stack([random_state(n, real=True) for _ in range(3)]) for _ in range(2))
        same(backend, states.bures_distance, rho, sigma)


def test_batches_agree_with_numpy(backend, rng, random_state):
    P, G = rng.dirichlet(np.full(16, 2.0), 9), rng.standard_normal((9, 16))
    P[3, 0] += 0.5
    G[5, 5] = np.nan
    reference = rng.dirichlet(np.ones(16))
    for chunk in (None, 1):
        same(
            backend,
            lambda p, g, r, chunk=chunk: tuple(
                batch.update_basins(p, g, 0.02, reference=r, chunk_bytes_max=chunk)
            ),
            P,
            G,
            reference,
        )
    path = rng.dirichlet(np.full(8, 2.0), 10)
    same(
        backend,
        lambda x, r, a: tuple(batch.basin_series(x, reference=r, anchors=a, window=3)),
        path,
        rng.dirichlet(np.ones(8)),
        rng.dirichlet(np.ones(8), 2),
        atol=1e-12,
    )
    same(backend, batch.coherence_drift, np.stack([random_state(3) for _ in range(4)]))
    same(backend, batch.fisher_metric_trace, rng.standard_normal((5, 4)))


def test_float32_stays_float32(backend, rng, random_state):
    p, q = (rng.dirichlet(np.full(8, 2.0), 5).astype(np.float32) for _ in range(2))
    same(backend, simplex.distance, p, q, atol=2e-6)
    same(backend, lambda x, y: simplex.geodesic(x, y, 0.5), p, q, atol=1e-6)
    rho, sigma = (
        np.stack([random_state(3) for _ in range(4)]).astype(np.complex64) for _ in range(2)
    )
    same(backend, states.bures_distance, rho, sigma, atol=1e-4)
    same(backend, lambda x, y: tuple(batch.update_basins(x, y, 0.1)), p, q, atol=2e-6)


def test_refusals_are_the_same(backend, rng):
    make, _ = backend
    p = rng.dirichlet(np.ones(4))
    for bad, message in (
        (np.array([0.5, 0.6, -0.1, 0.0]), "negative entry"),
        (2.0 * p, "not normalized"),
        (np.array([np.nan, 0.5, 0.25, 0.25]), "NaN"),
        (np.array([1, 0, 0, 0]), "dtype int"),
    ):
        with pytest.raises(ValidationError, match=message):
            simplex.distance(make(bad), make(p))
    with pytest.raises(ValidationError, match="mix array libraries"):
        simplex.distance(make(p), p)
    with pytest.raises(ValidationError, match="not Hermitian"):
        states.entropy(make(np.array([[0.5, 0.1], [0.0, 0.5]])))
    with pytest.raises(ValidationError, match="positive semidefinite"):
        states.bures_distance(make(np.diag([1.5, -0.5, 0.0])), make(np.eye(3) / 3))


def test_arguments_are_left_unwritten(backend, rng, random_state):
    make, _ = backend
    p, q = rng.dirichlet(np.ones(5), (2, 4))
    rho = np.stack([random_state(3, spectrum=[1.0, 1e-9, 0.0]), random_state(3)])
    arrays = [make(x.copy()) for x in (p, q, rho)]
    simplex.distance(arrays[0], arrays[1])
    simplex.pairwise(arrays[0], arrays[1])
    states.bures_distance(arrays[2], arrays[2])
    batch.update_basins(arrays[0], arrays[1], 0.1)
    for array, kept in zip(arrays, (p, q, rho), strict=True):
        assert np.array_equal(back(array), kept)


def test_distance_can_be_compiled_and_differentiated_without_its_checks(rng):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    jax.config.update("jax_enable_x64", True)
    p, q = rng.dirichlet(np.full(6, 3.0), (2, 3))
    compiled = jax.jit(lambda x, y: simplex.distance(x, y, check=False))
    assert np.abs(np.asarray(compiled(p, q)) - simplex.distance(p, q)).max() <= 1e-14


def test_no_product_on_jax_is_of_less_than_full_precision(rng, monkeypatch):
    # On a GPU its `@` rounds float32 to 10 bits first; that none is used shows on any machine.
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    jax.config.update("jax_enable_x64", True)
    from benchmarks.geometry_gpu import batch_cases, simplex_cases, state_cases

    one = jax.numpy.ones((2, 2), dtype="float32")
    assert str(jax.make_jaxpr(product)(one, one, one)).count("HIGHEST") >= 2

    def refuse(*_):
        raise AssertionError("`@` on an array of JAX")

    monkeypatch.setattr(type(one), "__matmul__", refuse)
    with pytest.raises(AssertionError, match="on an array of JAX"):
        one @ one
    narrow = {np.dtype(np.float64): np.float32, np.dtype(np.complex128): np.complex64}
    done = 0
    for cases in (simplex_cases, batch_cases, state_cases):
        for name, function, arrays in cases(rng):
            # Two points that are one in float32; sizes that go the ways of n = 2, 3 and 8.
            if "1e-9" not in name and not name.endswith(("n = 4", "n = 16", "n = 33")):
                function(*(jax.numpy.asarray(x.astype(narrow[x.dtype])) for x in arrays))
                done += 1
    assert done > 40


def test_the_gpu_benchmark_finds_every_function_in_agreement():
    pytest.importorskip("torch", reason="torch is not installed (extra `torch`)")
    from benchmarks.geometry_gpu import TOLERANCE, disagreements

    found = disagreements("cpu")
    assert len(found) > 60
    assert [pair for pair in found if not pair[1] <= TOLERANCE] == []


def test_the_gpu_benchmark_says_in_one_line_that_there_is_no_device(capsys):
    from benchmarks.geometry_gpu import main, missing_device

    why = missing_device("cuda")
    if why is None:
        pytest.skip("there is a CUDA device")
    assert main([]) == 0
    assert capsys.readouterr().out == f"not run: {why}\n"
