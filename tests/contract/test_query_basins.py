"""Paths of basins and nearest basins, against the distances of the geometry core."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from senders import Sender, rows

from qigkernels.simplex import distance as fisher_rao
from qigkernels.simplex import frechet_mean, geodesic
from qigstore import query
from qigstore.database.views import REGIMES
from qigstore.errors import InvalidInput, NotFound
from qigstore.query.projection import project_path
from qigstore.repository import Store
from qigstore.repository import basins as stored_basins

pytest_plugins = ["ways"]


@pytest.fixture
def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def send(
    sender: Sender, steps: Any, points: NDArray[np.float64], regime: int = 1, **values: Any
) -> None:
    steps, first = list(steps), sender.acked + 1
    codes = [regime] * len(steps)
    sender.ship(rows(steps, values, first_seq=first, basins=points.tolist(), regime=codes))


def test_the_nearest_are_those_of_brute_force(
    any_store: Store, generator: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_basins, "_ROWS_AT_ONCE", 7)
    known: dict[tuple[str, int, int, int], NDArray[np.float64]] = {}
    for name in ("a", "b"):
        first = Sender(any_store, name)
        for sender in (first, Sender(any_store, name, rank=1, of=first.attempt)):
            points = generator.dirichlet([0.3] * 5, size=20)
            send(sender, range(20), points, loss=[1.0] * 20)
            known |= {(name, 1, sender.rank, step): point for step, point in enumerate(points)}
        send(first, range(30, 32), generator.dirichlet([1.0] * 3, size=2))  # of another size
    wanted = generator.dirichlet([0.3] * 5)
    expected = sorted((fisher_rao(wanted, p), key) for key, p in known.items())
    found = query.nearest(any_store, wanted, k=6)
    assert found.how == "exact"
    for each, (distance, key) in zip(found.found, expected[:6], strict=True):
        assert (each.session, each.attempt, each.rank, each.step) == key
        assert each.distance == pytest.approx(distance, rel=1e-12, abs=1e-15)
    inside = query.nearest(any_store, wanted, k=1000, session="b").found
    assert [each.session for each in inside] == ["b"] * 40
    assert [each.distance for each in inside] == sorted(each.distance for each in inside)
    at = query.nearest(any_store, known["a", 1, 1, 3], k=1).found[0]
    assert (at.session, at.rank, at.step, at.distance) == ("a", 1, 3, 0.0)


def test_a_removed_session_is_nobodys_neighbour(
    any_store: Store, generator: np.random.Generator
) -> None:
    for name in ("kept", "removed"):
        send(Sender(any_store, name), range(5), generator.dirichlet([0.3] * 64, size=5))
    with any_store.database.raw() as connection:
        connection.execute("DELETE FROM qigstore.session WHERE name = 'removed'")
    wanted = generator.dirichlet([0.3] * 64)
    found = query.nearest(any_store, wanted, k=10).found
    assert [each.session for each in found] == ["kept"] * 5


def test_pgvectors_index_gives_the_same_neighbours_in_exact_order(
    store: Store, generator: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = Sender(store)
    points = generator.dirichlet([0.3] * 64, size=300)
    send(sender, range(300), points)
    send(sender, range(300, 303), generator.dirichlet([1.0] * 3, size=3))
    with store.database.raw() as connection:
        there = connection.execute(
            "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'"
        ).fetchone()
    if there == (0,):
        pytest.skip("this server has no pgvector")
    store.basins.make_index()
    store.basins.make_index()  # again: nothing happens
    monkeypatch.setattr(stored_basins, "_INDEX_FROM_ROWS", -2)  # never analysed: -1
    for wanted in generator.dirichlet([0.3] * 64, size=5):
        by_index = query.nearest(store, wanted, k=10)
        exactly = query.nearest(store, wanted, k=10, exact=True)
        assert (by_index.how, exactly.how) == ("index", "exact")
        assert by_index.found[0] == exactly.found[0]
        assert len({each.step for each in by_index.found + exactly.found}) <= 14
        distances = [each.distance for each in by_index.found]
        assert distances == sorted(distances)
    assert query.nearest(store, points[7], k=1, session="ocean").how == "exact"
    assert query.nearest(store, np.full(3, 1 / 3), k=1).how == "exact"
    store.basins.drop_index()
    assert query.nearest(store, points[7], k=1).how == "exact"


@pytest.mark.parametrize(
    "bad",
    [[0.5, 0.6], [1.5, -0.5], [math.nan, 1.0], [], [1.0], [[0.5, 0.5]], "text", None],
    ids=str,
)
def test_what_is_no_distribution_has_no_neighbours(store: Store, bad: Any) -> None:
    with pytest.raises(InvalidInput, match="basin"):
        query.nearest(store, bad)


def test_neighbours_out_of_bounds_or_of_nobody(store: Store) -> None:
    half = [0.5, 0.5]
    for k in (0, 1001, 10**9):
        with pytest.raises(InvalidInput, match="'k'"):
            query.nearest(store, half, k=k)
    with pytest.raises(NotFound, match="session"):
        query.nearest(store, half, session="nobody")
    assert query.nearest(store, half).found == ()


def test_a_geodesic_is_projected_to_a_straight_line_of_its_length(
    generator: np.random.Generator,
) -> None:
    for _ in range(10):
        p, q = generator.dirichlet([1.0] * 8, size=2)
        points = np.stack([geodesic(p, q, t) for t in np.linspace(0, 1, 21)])
        path, explained = project_path(np.sqrt(points), 2)
        assert explained[0] == pytest.approx(1.0)
        assert np.abs(path[:, 1]).max() < 1e-7
        length = np.linalg.norm(path[-1] - path[0])
        assert length == pytest.approx(fisher_rao(p, q), rel=1e-9)
        steps = np.diff(path[:, 0])
        np.testing.assert_allclose(steps, steps.mean(), rtol=1e-6)


def test_distances_from_the_centre_are_kept_where_the_plane_holds_the_path(
    generator: np.random.Generator,
) -> None:
    points = generator.dirichlet([2.0] * 3, size=50)  # n = 3: two dimensions hold everything
    path, explained = project_path(np.sqrt(points), 3)
    assert explained.sum() == pytest.approx(1.0)
    assert explained[2] == pytest.approx(0.0, abs=1e-12)

    centre = frechet_mean(points)
    expected = [fisher_rao(centre, p) for p in points]
    np.testing.assert_allclose(np.linalg.norm(path, axis=1), expected, rtol=1e-6)


def test_a_path_that_does_not_move_is_a_point() -> None:
    path, explained = project_path(np.sqrt(np.full((5, 4), 0.25)), 2)
    assert np.abs(path).max() < 1e-12
    assert explained.tolist() == [0.0, 0.0]
    assert project_path(np.empty((0, 0)), 3)[0].shape == (0, 3)


def test_a_trajectory_follows_the_timeline_evenly(
    any_store: Store, generator: np.random.Generator
) -> None:
    first = Sender(any_store)
    points = generator.dirichlet([1.0] * 6, size=1000)
    send(first, range(1000), points, phi=[0.1] * 1000, kappa_eff=[60.0] * 1000)
    second = Sender(any_store)
    again = [step for step in range(500, 900) if step != 600]
    values = {"phi": [0.2] * len(again), "kappa_eff": [64.0] * len(again)}
    send(second, again, points[again], regime=2, **values)
    found = query.trajectory(any_store, "ocean", points=100)
    assert 80 <= len(found) <= 100
    assert (np.diff(found.step) > 0).all()
    assert np.diff(found.step).max() <= 25
    owner = np.where((found.step >= 500) & (found.step < 900) & (found.step != 600), 2, 1)
    assert found.attempts.tolist() == owner.tolist()
    np.testing.assert_array_equal(found.phi, owner / 10)
    assert set(found.regime) == {REGIMES[1], REGIMES[2]}
    assert np.isfinite(found.path).all()
    whole = query.trajectory(any_store, "ocean", points=2000, dimensions=3)
    assert whole.step.tolist() == list(range(1000))
    assert whole.attempts[600] == 1
    assert whole.path.shape == (1000, 3)
    expected, explained = project_path(np.sqrt(points), 3)
    np.testing.assert_allclose(whole.path, expected, atol=1e-9)
    np.testing.assert_allclose(whole.explained, explained)
    part = query.trajectory(any_store, "ocean", start=598, stop=603, attempt=2)
    assert part.step.tolist() == [598, 599, 601, 602]


def test_rows_without_a_basin_have_no_place_on_the_path(store: Store) -> None:
    sender = Sender(store)
    sender.send(range(3), {"loss": [1.0] * 3})
    send(sender, range(3, 5), np.array([[0.5, 0.5], [0.1, 0.9]]))
    found = query.trajectory(store, "ocean")
    assert np.isnan(found.path[:3]).all()
    assert np.isfinite(found.path[3:]).all()
    assert np.isnan(found.phi).all()
    assert len(query.trajectory(store, "ocean", rank=5)) == 0
    # Of few points those are taken that have a basin.
    assert query.trajectory(store, "ocean", points=1).step.tolist() == [3]


def test_more_basins_than_memory_is_meant_for_are_refused(
    store: Store, generator: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(Sender(store), range(50), generator.dirichlet([1.0] * 8, size=50))
    monkeypatch.setattr(stored_basins, "_SAMPLED_ENTRIES_MAX", 80)
    assert len(query.trajectory(store, "ocean", points=10)) == 10
    with pytest.raises(InvalidInput, match=r"points.*at most 10"):
        query.trajectory(store, "ocean", points=17)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"points": 0}, "points"),
        ({"points": 10**9}, "10,000"),
        ({"dimensions": 4}, "dimensions"),
        ({"start": 2, "stop": 1}, "stop"),
    ],
)
def test_a_trajectory_out_of_bounds_is_refused(
    store: Store, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        query.trajectory(store, "ocean", **given)
    with pytest.raises(NotFound, match="session"):
        query.trajectory(store, "ocean")
