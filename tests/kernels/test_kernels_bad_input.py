"""Bad input is refused with the argument's name, its shape, the value and the place."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qigkernels import ValidationError, batch, integration, simplex, states
from qigkernels.validation import (
    GeometryError,
    validate_basin,
    validate_density_matrix,
    validate_distribution,
    validate_kappa,
    validate_phi,
)

GOOD = np.array([0.25, 0.25, 0.5])
STATE = np.diag(GOOD)


def with_entry(index, value, base=GOOD):
    x = base.astype(complex) if isinstance(value, complex) else base.copy()
    x[index] = value
    return x


NOT_DISTRIBUTIONS = {
    "negative": (with_entry(1, -0.25), "negative entry: -0.25 at index \\(1,\\)"),
    "off by 2e-8": (GOOD * (1.0 + 2e-8), "not normalized"),
    "NaN": (with_entry(2, math.nan), "NaN: nan at index \\(2,\\)"),
    "inf": (with_entry(0, math.inf), "infinite entry: inf at index \\(0,\\)"),
    "integers": (np.array([1, 0, 0]), "dtype int64"),
    "a list of integers": ([1, 0, 0], "dtype int"),
    "booleans": (np.array([True, False, False]), "dtype bool"),
    "complex": (GOOD.astype(complex), "dtype complex128"),
    "float16": (GOOD.astype(np.float16), "dtype float16"),
    "objects": (np.array(["a", "b", "c"]), "dtype <U1"),
    "text": ("abc", "dtype"),
    "nothing": (None, "dtype object"),
    "empty": (np.empty((0, 3)), "empty"),
    "no axis": (np.float64(1.0), "at least 1 axes"),
    "ragged": ([[0.5, 0.5], [1.0]], "no array"),
}


@pytest.mark.parametrize("name", NOT_DISTRIBUTIONS)
def test_what_is_no_distribution_is_refused_by_every_simplex_function(name):
    bad, message = NOT_DISTRIBUTIONS[name]
    calls = [
        lambda: validate_distribution(bad),
        lambda: simplex.distance(bad, GOOD),
        lambda: simplex.distance(GOOD, bad),
        lambda: simplex.geodesic(bad, GOOD, 0.5),
        lambda: simplex.log(GOOD, bad),
        lambda: simplex.exp(bad, np.zeros(3)),
        lambda: simplex.transport(bad, GOOD, np.zeros(3)),
        lambda: simplex.natural_gradient(bad, np.zeros(3)),
        lambda: simplex.metric(bad),
        lambda: simplex.roots(bad),
    ]
    for call in calls:
        with pytest.raises(ValidationError, match=message) as caught:
            call()
        assert caught.value.argument in {"p", "q"}


def test_the_error_carries_its_data_and_has_two_names():
    rows = np.stack((GOOD, with_entry(1, -1e-3)))
    with pytest.raises(GeometryError) as caught:
        simplex.distance(GOOD, rows)
    error = caught.value
    assert (error.argument, error.shape, error.value, error.index) == ("q", (2, 3), -1e-3, (1, 1))
    assert GeometryError is ValidationError
    assert issubclass(ValidationError, ValueError)
    with pytest.raises(ValidationError) as caught:
        simplex.distance(np.stack((GOOD, 2.0 * GOOD)), GOOD)
    assert (caught.value.value, caught.value.index) == (2.0, (1,))


@pytest.mark.parametrize(
    "call",
    [
        lambda: simplex.distance(GOOD, np.array([0.5, 0.5])),
        lambda: simplex.distance(np.tile(GOOD, (2, 1)), np.tile(GOOD, (3, 1))),
        lambda: simplex.pairwise(GOOD),
        lambda: simplex.pairwise(STATE, np.array([[0.5, 0.5]])),
        lambda: simplex.geodesic(GOOD, GOOD, 1.5),
        lambda: simplex.geodesic(GOOD, GOOD, math.nan),
        lambda: simplex.geodesic(GOOD, GOOD, np.array([0.5, -0.1])),
        lambda: simplex.exp(GOOD, np.array([1.0, 0.0, 0.0])),
        lambda: simplex.exp(GOOD, np.array([-2.0, 1.0, 1.0])),
        lambda: simplex.exp(GOOD, np.array([math.nan, 0.0, 0.0])),
        lambda: simplex.exp(np.array([0.0, 0.5, 0.5]), np.array([0.1, -0.1, 0.0])),
        lambda: simplex.inner(GOOD, np.ones(3), np.zeros(3)),
        lambda: simplex.natural_gradient(GOOD, np.array([0.0, math.inf, 0.0])),
        lambda: simplex.natural_gradient(GOOD, np.zeros(2)),
        lambda: simplex.metric(np.array([1.0, 0.0])),
        lambda: simplex.metric(np.array([1.0])),
        lambda: simplex.frechet_mean(GOOD),
        lambda: simplex.frechet_mean(np.tile(GOOD, (2, 1)), np.array([0.5, 0.6])),
        lambda: simplex.frechet_mean(np.tile(GOOD, (2, 1)), np.array([1.5, -0.5])),
        lambda: simplex.frechet_mean(np.tile(GOOD, (2, 1)), np.array([1.0])),
        lambda: simplex.path_curvature(np.tile(GOOD, (2, 1))),
        lambda: simplex.to_simplex(GOOD, how="guess"),
        lambda: simplex.to_simplex(-GOOD, how="counts"),
        lambda: simplex.to_simplex(np.zeros(3), how="counts"),
        lambda: simplex.to_simplex(np.array([math.nan]), how="softmax"),
        lambda: simplex.distance_from_roots(GOOD, np.ones(2)),
    ],
)
def test_bad_calls_to_the_simplex_name_their_argument(call):
    with pytest.raises(ValidationError) as caught:
        call()
    assert caught.value.argument


NOT_STATES = {
    "not Hermitian": (with_entry((0, 1), 0.1, STATE), "not Hermitian at \\((0, 1|1, 0)\\)"),
    "complex diagonal": (with_entry((0, 0), 0.25 + 0.1j, STATE), "not Hermitian"),
    "trace 2": (2.0 * STATE, "not normalized"),
    "negative": (np.diag([1.5, -0.5, 0.0]), "not positive semidefinite"),
    "barely negative": (np.diag([1.0 + 1e-9, -1e-9, 0.0]), "not positive semidefinite"),
    "NaN": (with_entry((2, 1), math.nan, STATE), "NaN"),
    "inf": (with_entry((2, 2), math.inf, STATE), "infinite"),
    "not square": (np.ones((2, 3)), "square"),
    "one axis": (GOOD, "at least 2 axes"),
    "empty": (np.empty((0, 3, 3)), "empty"),
    "integers": (np.diag([1, 0, 0]), "dtype int64"),
}


@pytest.mark.parametrize("name", NOT_STATES)
def test_what_is_no_state_is_refused_by_every_function_on_states(name):
    bad, message = NOT_STATES[name]
    calls = [
        lambda: validate_density_matrix(bad),
        lambda: states.bures_distance(bad, STATE),
        lambda: states.root_fidelity(STATE, bad),
        lambda: states.entropy(bad),
        lambda: states.coherence_relative_entropy(bad),
        lambda: states.ReferenceState(bad),
        lambda: states.ReferenceState(STATE).bures_distance(bad),
    ]
    for call in calls:
        with pytest.raises(ValidationError, match=message) as caught:
            call()
        assert caught.value.argument in {"rho", "sigma"}


@pytest.mark.parametrize("shift", [0.0, 1e-9])
def test_two_level_states_that_are_none_are_refused(shift):
    bad = np.diag([1.0 + shift, -shift]) if shift else np.array([[0.5, 0.6], [0.6, 0.5]])
    with pytest.raises(ValidationError, match="positive semidefinite"):
        states.bures_angle(bad, np.eye(2) / 2)
    with pytest.raises(ValidationError, match="positive semidefinite"):
        states.bures_angle(np.eye(2) / 2, bad)


def test_a_bad_member_of_a_batch_is_named_by_its_place():
    rows = np.stack((STATE, STATE, np.diag([1.5, -0.5, 0.0])))
    with pytest.raises(ValidationError, match="in matrix \\(2,\\)") as caught:
        states.bures_distance(rows, STATE)
    assert caught.value.index == (2,)
    many = np.stack([STATE] * 6).reshape(2, 3, 3, 3)
    many[1, 2] = np.diag([1.5, -0.5, 0.0])
    with pytest.raises(ValidationError) as caught:
        states.root_fidelity(STATE, many)
    assert (caught.value.argument, caught.value.index) == ("sigma", (1, 2))
    assert caught.value.shape == (2, 3, 3, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: states.bures_distance(STATE, np.eye(2) / 2),
        lambda: states.bures_distance(np.stack([STATE] * 2), np.stack([STATE] * 3)),
        lambda: states.depolarise(STATE, 1.5),
        lambda: states.qfi_matrix(STATE, STATE),
        lambda: states.qfi_matrix(STATE, np.eye(3)[None]),
        lambda: states.qfi_matrix(STATE, np.triu(np.ones((1, 3, 3)), 1)),
        lambda: states.qfi_matrix(STATE, np.zeros((1, 2, 2))),
        lambda: states.qfi_pure(np.ones(2), np.ones((1, 2))),
        lambda: states.qfi_pure(np.array([1.0, 0.0]), np.ones((1, 3))),
        lambda: states.bures_mean(STATE),
        lambda: states.bures_mean(np.stack([np.diag([1.0, 0.0])] * 2)),
        lambda: states.bures_mean(np.stack([STATE] * 2), np.array([0.2, 0.2])),
        lambda: states.ReferenceState(np.stack([STATE] * 2)),
        lambda: integration.phi_mib(np.array([[1.0, 2.0], [2.0, 1.0]])),
        lambda: integration.phi_mib(np.array([[1.0, 1.0], [1.0, 1.0]])),
        lambda: integration.phi_mib(np.ones((2, 3))),
        lambda: integration.phi_mib(np.array([[1.0, 0.1], [0.2, 1.0]])),
        lambda: integration.phi_mib(np.array([[1.0, math.nan], [math.nan, 1.0]])),
        lambda: integration.phi_mib(np.array([[0.0, 0.0], [0.0, 1.0]])),
        lambda: integration.phi_mib(np.eye(1)),
        lambda: integration.phi_mib(np.eye(3), [[0], [0, 1]]),
        lambda: integration.phi_mib(np.eye(3), [[0], [3]]),
        lambda: integration.phi_mib(np.eye(3), [[0], []]),
        lambda: integration.phi_mib(np.eye(14) + 1.0 - np.eye(14)),
        lambda: integration.phi_mib_samples(np.ones(5)),
        lambda: integration.phi_mib_samples(np.full((50, 2), math.nan)),
        lambda: integration.phi_mib_samples(np.tile(np.arange(50.0)[:, None], (1, 2))),
        lambda: integration.phi_quantum(np.eye(4) / 4, [2, 3]),
        lambda: integration.phi_quantum(np.stack([np.eye(2) / 2] * 2), [2, 2]),
        lambda: integration.phi_quantum(np.eye(4) / 4, [4]),
        lambda: integration.phi_quantum(np.diag([1.5, -0.5, 0.0, 0.0]), [2, 2]),
        lambda: integration.phi_geometric(np.eye(2), np.eye(2), np.eye(3), [[0], [1]]),
        lambda: integration.phi_geometric(np.eye(2), -np.eye(2), np.eye(2), [[0], [1]]),
        lambda: integration.phi_geometric(np.eye(2), np.eye(2), np.eye(2), [[0]]),
        lambda: batch.update_basins(GOOD, GOOD, 0.1),
        lambda: batch.update_basins(GOOD[None], GOOD[None, :2], 0.1),
        lambda: batch.update_basins(GOOD[None], GOOD[None].astype(np.float32), 0.1),
        lambda: batch.update_basins(GOOD[None], GOOD[None], math.nan),
        lambda: batch.update_basins(GOOD[None], GOOD[None], 0.1, chunk_bytes_max=0),
        lambda: batch.update_basins(GOOD[None], GOOD[None], 0.1, reference=np.array([0.5, 0.5])),
        lambda: batch.basin_series(GOOD[None], window=0),
        lambda: batch.fisher_metric_trace(np.array([[math.nan]])),
    ],
)
def test_bad_calls_name_their_argument(call):
    with pytest.raises(ValidationError) as caught:
        call()
    assert caught.value.argument


@pytest.mark.parametrize(
    ("basin", "message"),
    [
        (np.zeros(32), "must be 64D, got 32D"),
        (np.float64(1.0), "must be 64D"),
        (np.full(64, math.nan), "NaN"),
        (np.full(64, -math.inf), "infinite"),
        (np.zeros(64, dtype=int), "dtype"),
    ],
)
def test_basins_of_the_wrong_dimension_or_not_finite_are_refused(basin, message):
    with pytest.raises(ValidationError, match=message):
        validate_basin(basin, expected_dim=64)


def test_phi_and_kappa_out_of_range_are_refused():
    for phi in (-0.1, 1.1, math.nan, "high", None):
        with pytest.raises(ValidationError, match="phi"):
            validate_phi(phi)
    for kappa in (math.inf, math.nan, "strong"):
        with pytest.raises(ValidationError, match="kappa"):
            validate_kappa(kappa)


def test_nothing_is_clipped_or_renormalised_in_silence():
    off = GOOD * (1.0 + 5e-8)
    for call in (simplex.distance, simplex.log):
        with pytest.raises(ValidationError):
            call(off, GOOD)
    assert simplex.distance(simplex.to_simplex(off, how="counts"), GOOD) <= 1e-15
