"""Every argument of every public function against every kind of bad input.

Each refusal is one `ValidationError` that names the argument, its shape, and, where a single entry
is wrong, that entry and its place.
"""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest

from qigkernels import CachedQFI, ValidationError, batch, integration, simplex, states

P = np.array([0.25, 0.25, 0.5])
RHO = np.diag(P)
V = np.array([0.1, -0.1, 0.0])
COV = np.array([[2.0, 0.5, 0.1], [0.5, 1.0, 0.2], [0.1, 0.2, 3.0]])
X = np.random.default_rng(0).standard_normal((40, 3))
ROWS = np.stack((P, P[::-1], P))
DRHO = np.array([[[0.1, 0.2, 0.0], [0.2, -0.1, 0.0], [0.0, 0.0, 0.0]]])

DISTRIBUTIONS = {
    "distance p": ("p", lambda x: simplex.distance(x, P)),
    "distance q": ("q", lambda x: simplex.distance(P, x)),
    "geodesic p": ("p", lambda x: simplex.geodesic(x, P, 0.5)),
    "geodesic q": ("q", lambda x: simplex.geodesic(P, x, 0.5)),
    "log p": ("p", lambda x: simplex.log(x, P)),
    "log q": ("q", lambda x: simplex.log(P, x)),
    "exp p": ("p", lambda x: simplex.exp(x, V)),
    "transport p": ("p", lambda x: simplex.transport(x, P, V)),
    "transport q": ("q", lambda x: simplex.transport(P, x, V)),
    "inner p": ("p", lambda x: simplex.inner(x, V, V)),
    "norm p": ("p", lambda x: simplex.norm(x, V)),
    "natural_gradient p": ("p", lambda x: simplex.natural_gradient(x, V)),
    "metric p": ("p", simplex.metric),
    "metric_inverse p": ("p", simplex.metric_inverse),
    "roots p": ("p", simplex.roots),
    "basin_series reference": ("reference", lambda x: batch.basin_series(ROWS, reference=x)),
    "update_basins reference": (
        "reference",
        lambda x: batch.update_basins(ROWS, ROWS, 0.1, reference=x),
    ),
}
TABLES = {
    "pairwise P": ("P", simplex.pairwise),
    "pairwise Q": ("Q", lambda x: simplex.pairwise(ROWS, x)),
    "frechet_mean P": ("P", simplex.frechet_mean),
    "path_curvature path": ("path", simplex.path_curvature),
    "basin_series path": ("path", batch.basin_series),
    "basin_series anchors": ("anchors", lambda x: batch.basin_series(ROWS, anchors=x)),
}
STATES = {
    "root_fidelity rho": ("rho", lambda x: states.root_fidelity(x, RHO)),
    "root_fidelity sigma": ("sigma", lambda x: states.root_fidelity(RHO, x)),
    "fidelity rho": ("rho", lambda x: states.fidelity(x, RHO)),
    "bures_angle sigma": ("sigma", lambda x: states.bures_angle(RHO, x)),
    "bures_distance rho": ("rho", lambda x: states.bures_distance(x, RHO)),
    "distance sigma": ("sigma", lambda x: states.distance(RHO, x)),
    "entropy rho": ("rho", states.entropy),
    "coherence_relative_entropy rho": ("rho", states.coherence_relative_entropy),
    "qfi_matrix rho": ("rho", lambda x: states.qfi_matrix(x, DRHO)),
    "sld rho": ("rho", lambda x: states.sld(x, DRHO)),
    "ReferenceState rho": ("rho", states.ReferenceState),
    "ReferenceState sigma": ("sigma", lambda x: states.ReferenceState(RHO).bures_angle(x)),
    "compute_qfi rho": ("rho", lambda x: CachedQFI().compute_qfi(x, RHO)),
    "compute_qfi sigma": ("sigma", lambda x: CachedQFI().compute_qfi(RHO, x)),
    "compute_matrix rho": ("rho", lambda x: CachedQFI().compute_matrix(x, DRHO)),
    "drift sigma": ("sigma", lambda x: CachedQFI().drift(RHO, x)),
}
NO_SPECTRUM = {
    "purity rho": ("rho", states.purity),
    "coherence_l1 rho": ("rho", states.coherence_l1),
    "depolarise rho": ("rho", lambda x: states.depolarise(x, 0.5)),
    "trace_distance sigma": ("sigma", lambda x: states.trace_distance(RHO, x)),
}
MATRICES = {
    "phi_mib cov": ("cov", integration.phi_mib),
    "total_correlation cov": ("cov", integration.total_correlation),
    "phi_geometric A": (
        "A",
        lambda x: integration.phi_geometric(x, COV, COV, [[0], [1, 2]]),
    ),
    "phi_geometric cov_x": (
        "cov_x",
        lambda x: integration.phi_geometric(COV, x, COV, [[0], [1, 2]]),
    ),
    "phi_geometric cov_e": (
        "cov_e",
        lambda x: integration.phi_geometric(COV, COV, x, [[0], [1, 2]]),
    ),
}
ARRAYS = {
    "phi_mib_samples X": ("X", integration.phi_mib_samples, X),
    "to_simplex x": ("x", lambda x: simplex.to_simplex(x, how="softmax"), P),
    "exp v": ("v", lambda x: simplex.exp(P, x), V),
    "transport v": ("v", lambda x: simplex.transport(P, P, x), V),
    "inner v": ("v", lambda x: simplex.inner(P, x, V), V),
    "inner w": ("w", lambda x: simplex.inner(P, V, x), V),
    "norm v": ("v", lambda x: simplex.norm(P, x), V),
    "distance_from_roots u": ("u", lambda x: simplex.distance_from_roots(x, P), P),
    "distance_from_roots v": ("v", lambda x: simplex.distance_from_roots(P, x), P),
    "natural_gradient g": ("g", lambda x: simplex.natural_gradient(P, x), V),
    "frechet_mean weights": ("weights", lambda x: simplex.frechet_mean(ROWS, x), P),
    "bures_mean weights": (
        "weights",
        lambda x: states.bures_mean(np.stack((RHO, RHO, RHO)), x),
        P,
    ),
    "fisher_metric_trace gradients": ("gradients", batch.fisher_metric_trace, X),
}


def put(array, place, value):
    found = array.astype(complex) if isinstance(value, complex) else array.copy()
    found[place] = value
    return found


def refused(slot, bad):
    name, call = slot[:2]
    with pytest.raises(ValidationError) as caught:
        call(bad)
    error = caught.value
    assert error.argument == name, str(error)
    assert name in str(error)
    return error


def of_wrong_type(array):
    """Kinds that are wrong whatever the argument means."""
    return {
        "integers": np.ones(array.shape, dtype=int),
        "booleans": np.ones(array.shape, dtype=bool),
        "float16": array.astype(np.float16),
        "text": np.full(array.shape, "a"),
        "objects": np.full(array.shape, None),
        "a list of integers": np.ones(array.shape, dtype=int).tolist(),
        "nothing": None,
        "empty": np.empty((0, *array.shape)),
        "no axis": np.float64(1.0),
    }


ALL = {
    **{k: (*slot, P) for k, slot in DISTRIBUTIONS.items()},
    **{k: (*slot, ROWS) for k, slot in TABLES.items()},
    **{k: (*slot, RHO) for k, slot in {**STATES, **NO_SPECTRUM}.items()},
    "phi_quantum rho": ("rho", lambda x: integration.phi_quantum(x, [2, 2]), np.eye(4) / 4),
    "coherence_drift rho": ("rho", batch.coherence_drift, np.stack((RHO, RHO))),
    **{k: (*slot, COV) for k, slot in MATRICES.items()},
    **ARRAYS,
}


# None leaves these arguments out.
LEFT_OUT = {
    "pairwise Q",
    "basin_series reference",
    "basin_series anchors",
    "update_basins reference",
    "frechet_mean weights",
    "bures_mean weights",
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in ALL
        for kind in of_wrong_type(P)
        if kind != "nothing" or name not in LEFT_OUT
    ],
)
def test_what_is_no_array_of_floats_is_refused(name, kind):
    error = refused(ALL[name], of_wrong_type(ALL[name][2])[kind])
    if kind == "integers":
        assert error.value == "int64"
        assert error.shape is not None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ALL)
def test_nan_and_infinity_are_named_with_their_place(name, value):
    good = ALL[name][2]
    place = (1,) * good.ndim
    error = refused(ALL[name], put(good, place, value))
    assert repr(error.value) == repr(value)
    assert error.shape == good.shape
    assert str(place) in str(error)
    # A state is named by its place in the batch, its entry in the message.
    assert error.index == (place[:-2] if name.endswith((" rho", " sigma")) else place)


@pytest.mark.parametrize("name", [*DISTRIBUTIONS, *TABLES])
def test_what_is_no_distribution_is_named_with_its_place(name):
    slot = ALL[name]
    place = (1,) * slot[2].ndim
    error = refused(slot, put(slot[2], place, -0.25))
    assert (error.value, error.index, error.shape) == (-0.25, place, slot[2].shape)
    error = refused(slot, slot[2] * (1.0 + 1e-7))
    assert error.value == pytest.approx(1.0 + 1e-7, abs=1e-12)
    assert error.index == (0,) * (slot[2].ndim - 1)
    assert refused(slot, slot[2].astype(complex)).value == "complex128"


@pytest.mark.parametrize("name", [*STATES, *NO_SPECTRUM])
def test_what_is_no_state_is_refused(name):
    slot = ALL[name]
    for bad, value in (
        (put(RHO, (0, 1), 0.1), 0.1),
        (put(RHO, (0, 0), 0.25 + 0.1j), 0.25 + 0.1j),
        (2.0 * RHO, 2.0),
        (np.ones((2, 3)), None),
        (P, None),
    ):
        error = refused(slot, bad)
        assert error.shape is not None
        if value is not None:
            assert abs(error.value) == pytest.approx(abs(value)) or error.value == 0.0


@pytest.mark.parametrize("name", STATES)
def test_a_negative_eigenvalue_is_refused_where_the_spectrum_is_needed(name):
    error = refused(STATES[name], np.diag([1.25, -0.25, 0.0]))
    assert error.value < -0.1
    assert error.shape is not None


@pytest.mark.parametrize("name", MATRICES)
def test_what_is_no_covariance_is_refused(name):
    slot = MATRICES[name]
    assert refused(slot, np.ones((2, 3))).shape == (2, 3)
    if slot[0] == "A":
        return
    error = refused(slot, put(COV, (0, 1), 0.7))
    assert set(error.index) == {0, 1}
    assert error.value in {0.7, 0.5}
    error = refused(slot, np.diag([1.0, -1.0, 1.0]))
    assert error.value == -1.0


PAIRS = {
    "distance": lambda x: simplex.distance(P, x(P)),
    "pairwise": lambda x: simplex.pairwise(ROWS, x(ROWS)),
    "geodesic": lambda x: simplex.geodesic(P, x(P), 0.5),
    "log": lambda x: simplex.log(P, x(P)),
    "exp": lambda x: simplex.exp(P, x(V)),
    "transport": lambda x: simplex.transport(P, x(P), V),
    "inner": lambda x: simplex.inner(P, V, x(V)),
    "norm": lambda x: simplex.norm(P, x(V)),
    "natural_gradient": lambda x: simplex.natural_gradient(P, x(V)),
    "frechet_mean": lambda x: simplex.frechet_mean(ROWS, x(P)),
    "distance_from_roots": lambda x: simplex.distance_from_roots(P, x(P)),
    "bures_distance": lambda x: states.bures_distance(RHO, x(RHO)),
    "trace_distance": lambda x: states.trace_distance(RHO, x(RHO)),
    "qfi_matrix": lambda x: states.qfi_matrix(RHO, x(DRHO)),
    "qfi_pure": lambda x: states.qfi_pure(P / np.linalg.norm(P), x(ROWS)),
    "bures_mean": lambda x: states.bures_mean(np.stack((RHO, RHO, RHO)), x(P)),
    "ReferenceState": lambda x: states.ReferenceState(RHO).bures_angle(x(RHO)),
    "update_basins": lambda x: batch.update_basins(ROWS, x(ROWS), 0.1),
    "update_basins, reference": lambda x: batch.update_basins(ROWS, ROWS, 0.1, reference=x(P)),
    "basin_series": lambda x: batch.basin_series(ROWS, reference=x(P)),
    "basin_series, anchors": lambda x: batch.basin_series(ROWS, anchors=x(ROWS)),
}


class Foreign:
    """An array of some other library, as far as it is looked at before it is refused."""

    def __init__(self, array):
        self.shape, self.dtype, self.ndim, self.size = (
            array.shape, array.dtype, array.ndim, array.size,
        )  # fmt: skip

    def __array_namespace__(self, api_version=None):
        return ModuleType("foreign")


@pytest.mark.parametrize("name", PAIRS)
def test_arguments_of_two_array_libraries_are_refused(name):
    with pytest.raises(ValidationError, match="mix array libraries") as caught:
        PAIRS[name](Foreign)
    assert caught.value.argument
