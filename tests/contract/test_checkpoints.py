"""Checkpoints: ranked the same way each time, healthy for a reason, chosen fast among many."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.exc import IntegrityError

from qigstore.errors import InvalidInput, NotFound
from qigstore.records import Candidate, Checkpoint, Event
from qigstore.repository import Store
from qigstore.repository.candidates import statement

pytest_plugins = ["ways"]

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def made(session_id: int, step: int, phi: float | None = 0.5, **more: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "id": uuid4(),
        "session_id": session_id,
        "attempt": 1,
        "step": step,
        "kind": "regular",
        "status": "committed",
        "path": Path(f"/data/{step}"),
        "bytes": 5_000_000,
        "digest": "d" * 64,
        "weights_finite": True,
        "created_at": NOW,
        "phi": phi,
    }
    return Checkpoint(**values | more)


def alarm(
    store: Store,
    session_id: int,
    step: int | None,
    severity: Literal["critical", "warning"] = "critical",
    attempt: int = 1,
) -> None:
    store.events.add(
        Event(uuid4(), session_id, attempt, 0, step, "loss.ewma", severity, "loss rose", NOW)
    )


@pytest.fixture
def session_id(any_store: Store) -> int:
    return any_store.sessions.open("ocean", {}).id


def keep(store: Store, *checkpoints: Checkpoint) -> None:
    for checkpoint in checkpoints:
        assert store.checkpoints.add(checkpoint)


def test_a_checkpoint_is_kept_once_and_comes_back_whole(any_store: Store, session_id: int) -> None:
    checkpoint = made(
        session_id, 7, -0.25, kappa_eff=64.2, regime="geometric", verified_at=NOW,
        status_reason="none", metadata={"optimizer": {"name": "adam"}}, kind="emergency",
    )  # fmt: skip
    keep(any_store, checkpoint)
    assert not any_store.checkpoints.add(replace(checkpoint, step=8))
    assert any_store.checkpoints.get(checkpoint.id) == checkpoint
    assert any_store.checkpoints.get(checkpoint.id.hex[:12]) == checkpoint
    with pytest.raises(NotFound, match="checkpoint"):
        any_store.checkpoints.get(uuid4())


@pytest.mark.parametrize("phi", [math.nan, math.inf, -math.inf])
def test_a_phi_that_is_not_finite_is_refused_here_and_by_the_table(
    any_store: Store, session_id: int, phi: float
) -> None:
    with pytest.raises(InvalidInput, match="phi"):
        any_store.checkpoints.add(made(session_id, 1, phi))
    checkpoint = made(session_id, 1)
    keep(any_store, checkpoint)
    with pytest.raises(IntegrityError, match="ck_checkpoint_phi_finite"), \
         any_store.database.begin() as connection:  # fmt: skip
        connection.exec_driver_sql("UPDATE qigstore.checkpoint SET phi = %s", (phi,))


def test_every_order_of_saving_gives_the_same_ranking(store: Store) -> None:
    values = (0.9, 0.5, 0.7, 0.3, None)
    orders = list(itertools.permutations(values))
    assert len(orders) == 120
    for number, order in enumerate(orders):
        session_id = store.sessions.open(f"order {number}", {}).id
        keep(store, *(made(session_id, step, phi) for step, phi in enumerate(order)))
        assert [c.phi for c in store.checkpoints.ranked(session_id)] == [0.9, 0.7, 0.5, 0.3]
        assert [c.phi for c in store.checkpoints.ranked(session_id, limit=2)] == [0.9, 0.7]
        candidates = store.checkpoints.candidates(session_id, settle_steps=1)
        assert [(c.checkpoint.phi, c.healthy) for c in candidates] == [
            (0.9, True), (0.7, True), (0.5, True), (0.3, True), (None, False)
        ]  # fmt: skip


def test_equal_phi_goes_to_the_later_step_then_to_the_lesser_id(
    any_store: Store, session_id: int, rng: random.Random
) -> None:
    ids = sorted((uuid4() for _ in range(6)), key=lambda one: one.int)
    expected = [made(session_id, step, 0.5, id=ids[i])
                for i, step in enumerate([30, 30, 20, 20, 10, 10])]  # fmt: skip
    keep(any_store, *rng.sample(expected, 6))
    assert any_store.checkpoints.ranked(session_id) == expected
    chosen = any_store.checkpoints.candidates(session_id, settle_steps=5)
    assert [candidate.checkpoint for candidate in chosen] == expected


def test_listing_is_by_step_and_status_changes_are_kept(any_store: Store, session_id: int) -> None:
    first, second = made(session_id, 1), made(session_id, 2)
    keep(any_store, first, second)
    checkpoints = any_store.checkpoints
    assert checkpoints.list(session_id) == [second, first]
    checkpoints.set_status(first.id, "quarantined", "digest differs")
    assert checkpoints.get(first.id).status_reason == "digest differs"
    assert [c.id for c in checkpoints.list(session_id, status="quarantined")] == [first.id]
    assert checkpoints.list(session_id, limit=1) == [second]
    assert checkpoints.ranked(session_id) == [second]
    checkpoints.set_status(second.id, "deleted")
    assert checkpoints.ranked(session_id) == []
    checkpoints.mark_verified(first.id)
    assert checkpoints.get(first.id).verified_at is not None
    for change in (
        lambda: checkpoints.set_status(uuid4(), "deleted"),
        lambda: checkpoints.mark_verified(uuid4()),
    ):
        with pytest.raises(NotFound):
            change()
    with pytest.raises(InvalidInput):
        checkpoints.set_status(first.id, "gone")  # type: ignore[arg-type]


def test_put_makes_the_row_say_what_the_folder_says(any_store: Store, session_id: int) -> None:
    checkpoints, checkpoint = any_store.checkpoints, made(session_id, 5, verified_at=NOW)
    checkpoints.put(checkpoint)
    checkpoints.set_status(checkpoint.id, "deleted", "by mistake")
    moved = replace(checkpoint, path=Path("/elsewhere/5"), phi=None, verified_at=None)
    checkpoints.put(moved)
    assert checkpoints.get(checkpoint.id) == replace(moved, verified_at=NOW)
    other = any_store.sessions.open("another", {}).id
    with pytest.raises(InvalidInput, match="no other session"):
        checkpoints.put(replace(moved, session_id=other))
    assert checkpoints.get(checkpoint.id).session_id == session_id


def test_an_unknown_id_names_the_nearest(any_store: Store, session_id: int) -> None:
    ids = [UUID(int=n << 96) for n in (0x10000000, 0x20000000, 0x20001000, 0x30000000)]
    keep(any_store, *(made(session_id, n, id=key) for n, key in enumerate(ids)))
    with pytest.raises(NotFound) as refused:
        any_store.checkpoints.get("20000fff")
    assert refused.value.near == (str(ids[1]), str(ids[2]))


def reasons(candidates: list[Candidate]) -> dict[int, tuple[bool, str]]:
    return {c.checkpoint.step: (c.healthy, c.reason) for c in candidates}


def test_each_candidate_says_why(any_store: Store, session_id: int) -> None:
    keep(
        any_store,
        made(session_id, 100, 0.8123),
        made(session_id, 800, 0.95),
        made(session_id, 812, 0.94),
        made(session_id, 300, None),
        made(session_id, 400, 0.2),
        made(session_id, 500, 0.99, weights_finite=False),
        made(session_id, 600, 0.98, kind="emergency"),
        made(session_id, 700, 0.97, status="quarantined", status_reason="digest differs"),
        made(session_id, 701, 0.96, status="deleted"),
        made(session_id, 790, None, kind="emergency", weights_finite=False),
    )
    alarm(any_store, session_id, 812)
    alarm(any_store, session_id, 840)
    found = any_store.checkpoints.candidates(session_id, settle_steps=50, phi_floor=0.5)
    assert reasons(found) == {
        100: (True, "Φ 0.8123, no critical event within 50 steps"),
        800: (False, "critical event loss.ewma at step 812 (12 steps later)"),
        812: (False, "critical event loss.ewma at step 812 (at the same step)"),
        300: (False, "Φ was not measured"),
        400: (False, "Φ 0.2000 is below the floor 0.5000"),
        500: (False, "the weights are not finite"),
        600: (False, "an emergency checkpoint, saved while a stop was under way"),
        700: (False, "quarantined: digest differs"),
        790: (
            False,
            "an emergency checkpoint, saved while a stop was under way; Φ was not measured; the "
            "weights are not finite; critical event loss.ewma at step 812 (22 steps later)",
        ),
    }
    assert [c.checkpoint.step for c in found] == [100, 500, 600, 700, 800, 812, 400, 790, 300]


def test_a_session_that_measures_no_phi_is_judged_by_the_rest(
    any_store: Store, session_id: int
) -> None:
    keep(
        any_store,
        made(session_id, 100, None),
        made(session_id, 200, None),
        made(session_id, 300, None, weights_finite=False),
        made(session_id, 400, None),
    )
    alarm(any_store, session_id, 410)
    found = any_store.checkpoints.candidates(session_id, settle_steps=50)
    fit = "Φ is not measured in this session, no critical event within 50 steps"
    assert reasons(found) == {
        200: (True, fit),
        100: (True, fit),
        400: (False, "critical event loss.ewma at step 410 (10 steps later)"),
        300: (False, "the weights are not finite"),
    }
    assert [c.checkpoint.step for c in found] == [200, 100, 400, 300]
    floor = any_store.checkpoints.candidates(session_id, settle_steps=50, phi_floor=0.1)
    assert not any(c.healthy for c in floor)
    # One that measured it, and missing Φ counts against the others again.
    keep(any_store, made(session_id, 50, 0.3))
    found = any_store.checkpoints.candidates(session_id, settle_steps=50)
    assert [c.checkpoint.step for c in found if c.healthy] == [50]


@pytest.mark.parametrize(
    ("step", "severity", "attempt", "healthy"),
    [
        (99, "critical", 1, True),
        (100, "critical", 1, False),
        (150, "critical", 1, False),
        (151, "critical", 1, True),
        (120, "warning", 1, True),
        (120, "critical", 2, True),
        (None, "critical", 1, True),
    ],
)
def test_only_a_critical_event_of_the_same_attempt_in_reach_makes_it_unfit(
    store: Store,
    step: int | None,
    severity: Literal["critical", "warning"],
    attempt: int,
    healthy: bool,
) -> None:
    session_id = store.sessions.open("ocean", {}).id
    keep(store, made(session_id, 100))
    alarm(store, session_id, step, severity, attempt)
    (found,) = store.checkpoints.candidates(session_id, settle_steps=50)
    assert found.healthy is healthy


def test_events_and_checkpoints_of_another_session_do_not_count(any_store: Store) -> None:
    one, other = (any_store.sessions.open(name, {}).id for name in ("one", "other"))
    keep(any_store, made(one, 100), made(other, 100, 0.9))
    alarm(any_store, other, 100)
    assert [c.healthy for c in any_store.checkpoints.candidates(one, settle_steps=9)] == [True]
    assert [c.healthy for c in any_store.checkpoints.candidates(other, settle_steps=9)] == [False]


def order(c: Checkpoint) -> tuple[bool, float, int, int]:
    return c.phi is None, -(c.phi or 0.0), -c.step, c.id.int


def unranked(candidate: Candidate) -> bool:
    return candidate.checkpoint.phi is None or candidate.checkpoint.status == "quarantined"


def model(checkpoints: list[Checkpoint], alarms: list[int], settle: int) -> list[tuple[UUID, bool]]:
    def healthy(c: Checkpoint) -> bool:
        near = any(c.step <= step <= c.step + settle for step in alarms)
        regular = c.status == "committed" and c.kind == "regular" and c.weights_finite
        return regular and c.phi is not None and not near

    alive = sorted((c for c in checkpoints if c.status != "deleted"), key=order)
    return [(c.id, True) for c in alive if healthy(c)] + [
        (c.id, False) for c in alive if not healthy(c)
    ]


def test_candidates_agree_with_a_model_on_random_histories(
    store: Store, rng: random.Random
) -> None:
    for number in range(15):
        session_id = store.sessions.open(f"history {number}", {}).id
        checkpoints = [
            made(
                session_id,
                rng.randrange(20) * 15,
                rng.choice([None, round(rng.random(), 1), 0.5]),
                kind=rng.choice(["regular"] * 5 + ["emergency"]),
                status=rng.choice(["committed"] * 6 + ["quarantined", "deleted"]),
                weights_finite=rng.random() < 0.9,
            )
            for _ in range(rng.randrange(30))
        ]
        # One that measured Φ, so that missing Φ counts against the others.
        checkpoints.append(made(session_id, 299, 0.05))
        alarms = [rng.randrange(300) for _ in range(rng.randrange(6))]
        keep(store, *checkpoints)
        for step in alarms:
            alarm(store, session_id, step)
        settle = rng.randrange(60)
        found = store.checkpoints.candidates(session_id, settle_steps=settle, limit=100)
        assert [(c.checkpoint.id, c.healthy) for c in found] == model(checkpoints, alarms, settle)
        # A short list: the best healthy ones, and the refused ones that rank above the last.
        few = store.checkpoints.candidates(session_id, settle_steps=settle, limit=3)
        healthy = [c for c in found if c.healthy][:3]
        assert [c for c in few if c.healthy] == healthy
        asked = [c for c in found if not c.healthy and (len(healthy) < 3 or unranked(c)
                 or order(c.checkpoint) < order(healthy[-1].checkpoint))]  # fmt: skip
        assert [c for c in few if not c.healthy] == asked[:3]


def test_a_healthy_one_is_found_below_any_number_of_refused_ones(store: Store) -> None:
    session_id = store.sessions.open("ocean", {}).id
    keep(store, *(made(session_id, step, step / 100) for step in range(60)))
    alarm(store, session_id, 59)
    found = store.checkpoints.candidates(session_id, settle_steps=58, limit=5)
    assert [(c.checkpoint.step, c.healthy) for c in found] == [
        (0, True), (59, False), (58, False), (57, False), (56, False), (55, False)
    ]  # fmt: skip


def test_a_limit_or_settling_time_below_zero_is_refused(store: Store) -> None:
    for settle, limit in ((-1, 20), (5, -1)):
        with pytest.raises(InvalidInput):
            store.checkpoints.candidates(1, settle_steps=settle, limit=limit)


def plan_nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in plan_nodes(child))]


def test_choosing_among_many_reads_the_first_entries_of_an_index(any_store: Store) -> None:
    """What is counted is rows read, not time: it does not grow with the number of checkpoints."""
    session_id = any_store.sessions.open("many", {}).id
    with any_store.database.raw() as connection:
        connection.execute(
            "INSERT INTO qigstore.checkpoint (id, session_id, attempt, step, phi, weights_finite, "
            "path, bytes, digest) SELECT gen_random_uuid(), %s, 1, g, "
            "CASE WHEN g %% 50 > 0 THEN (g * 7919 %% 10007) / 10007.0 END, true, '/p', 1, 'x' "
            "FROM generate_series(1, 20000) g",
            (session_id,),
        )
        connection.execute(
            "INSERT INTO qigstore.event (id, session_id, attempt, step, rule, severity, message) "
            "SELECT gen_random_uuid(), %s, 1, g * 97, 'loss', "
            "CASE WHEN g %% 2 = 0 THEN 'critical' ELSE 'warning' END, 'm' "
            "FROM generate_series(1, 200) g",
            (session_id,),
        )
        connection.execute("ANALYZE qigstore.checkpoint, qigstore.event")
    found = any_store.checkpoints.candidates(session_id, settle_steps=50)
    assert [c.healthy for c in found].count(True) == 20
    newest = any_store.checkpoints.candidates(session_id, settle_steps=50, by_age=True)
    assert newest[0].checkpoint.step == 20000 - 20000 % 50 - 1
    for by_age, index in ((False, "ix_checkpoint_fit_ranking"), (True, "ix_checkpoint_fit_newest")):
        asked = {"session": session_id, "settle": 50, "floor": None, "by_age": by_age}
        read, used = explained(any_store, asked)
        assert read < 500
        assert {index, "ix_event_critical"} <= used


def test_equal_phi_however_often_does_not_widen_what_is_read(store: Store) -> None:
    session_id = store.sessions.open("equal", {}).id
    with store.database.raw() as connection:
        connection.execute(
            "INSERT INTO qigstore.checkpoint (id, session_id, attempt, step, phi, weights_finite, "
            "path, bytes, digest) SELECT gen_random_uuid(), %s, 1, g, 0.5, true, '/p', 1, 'x' "
            "FROM generate_series(1, 20000) g",
            (session_id,),
        )
        connection.execute("ANALYZE qigstore.checkpoint, qigstore.event")
    for floor in (None, 0.25):
        asked = {"session": session_id, "settle": 50, "floor": floor, "by_age": False}
        assert explained(store, asked)[0] < 500


UNFIT = {
    "alarms": ("regular", "0.5", "true", 20),
    "alarms, not measured": ("regular", "NULL", "true", 20),
    "emergencies": ("emergency", "0.5", "true", 0),
    "not finite": ("regular", "0.5", "false", 0),
}
"""Kind, Φ, whether weights are finite, and how many steps from one critical event to the next."""


@pytest.mark.parametrize("healthy", [0, 3])
@pytest.mark.parametrize("unfit", UNFIT)
def test_where_few_are_healthy_no_more_is_read(store: Store, unfit: str, healthy: int) -> None:
    kind, phi, finite, every = UNFIT[unfit]
    session_id = store.sessions.open("few", {}).id
    rows = (
        "INSERT INTO qigstore.checkpoint (id, session_id, attempt, step, kind, phi, weights_finite,"
        " path, bytes, digest) SELECT gen_random_uuid(), %s, 1, g, '{}', {}, {}, '/p', 1, 'x' "
        "FROM generate_series({}, {}) g"
    )
    with store.database.raw() as connection:
        connection.execute(rows.format("regular", phi, "true", 1, healthy), (session_id,))
        connection.execute(rows.format(kind, phi, finite, 1000, 5_000), (session_id,))
        if every:
            connection.execute(
                "INSERT INTO qigstore.event (id, session_id, attempt, step, rule, severity, "
                "message) SELECT gen_random_uuid(), %s, 1, g, 'loss', 'critical', 'm' "
                "FROM generate_series(1000, 5000, %s) g",
                (session_id, every),
            )
        connection.execute("ANALYZE qigstore.checkpoint, qigstore.event")
    for by_age in (False, True):
        asked = {"session": session_id, "settle": 50, "floor": None, "by_age": by_age}
        assert explained(store, asked)[0] < 500
        found = store.checkpoints.candidates(session_id, settle_steps=50, by_age=by_age)
        assert [item.checkpoint.step for item in found if item.healthy] == [3, 2, 1][3 - healthy :]
        assert len(found) == healthy + 20


BOUNDS = (0, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


@pytest.mark.parametrize("seed", range(5))
def test_the_level_of_a_checkpoint_follows_from_its_next_alarm_in_whatever_order_they_come(
    any_store: Store, session_id: int, seed: int
) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    scale = rng.choice([30, 300, 3000, 40_000])
    alarms: list[tuple[int, int]] = []
    for _ in range(60):
        attempt, step = rng.randint(1, 2), rng.randrange(scale)
        if rng.random() < 0.6:
            checkpoint = made(session_id, step, 0.5, attempt=attempt)
            keep(any_store, checkpoint)
            if rng.random() < 0.2:  # the folder says that the row was wrong
                any_store.checkpoints.put(replace(checkpoint, step=rng.randrange(scale)))
        elif rng.random() < 0.7:
            alarm(any_store, session_id, step, attempt=attempt)
            alarms.append((attempt, step))
    with any_store.database.raw() as connection:
        rows = connection.execute("SELECT attempt, step, quiet FROM qigstore.checkpoint").fetchall()
    assert rows
    for attempt, step, quiet in rows:
        after = [to - step for number, to in alarms if number == attempt and to >= step]
        assert quiet == (sum(bound < min(after) for bound in BOUNDS) if after else len(BOUNDS))


def test_a_level_that_is_too_high_makes_nothing_healthy(store: Store) -> None:
    """It may be where an event and a checkpoint come at once; the events have the last word."""
    session_id = store.sessions.open("ocean", {}).id
    keep(store, *(made(session_id, step, step / 100) for step in range(0, 90, 10)))
    alarm(store, session_id, 60)
    before = store.checkpoints.candidates(session_id, settle_steps=20)
    with store.database.raw() as connection:
        connection.execute("UPDATE qigstore.checkpoint SET quiet = 11")
    assert store.checkpoints.candidates(session_id, settle_steps=20) == before
    assert {item.checkpoint.step for item in before if not item.healthy} == {40, 50, 60}


def explained(store: Store, asked: dict[str, Any]) -> tuple[int, set[str]]:
    """Rows that the statement reads from tables and indexes, and the indexes it uses."""
    read, used = 0.0, set()
    with store.database.raw() as connection, psycopg.ClientCursor(connection) as cursor:
        explain = sql.SQL("EXPLAIN (ANALYZE, FORMAT JSON) ") + statement(20)
        row = cursor.execute(explain, asked).fetchone()
        assert row is not None
        for node in plan_nodes(row[0][0]["Plan"]):
            if "Scan" in node["Node Type"]:
                dropped = node.get("Rows Removed by Filter", 0)
                read += (node["Actual Rows"] + dropped) * node["Actual Loops"]
                used.add(node.get("Index Name"))
    return int(read), used


def test_by_age_the_newest_come_first_and_older_refused_ones_are_left_out(
    any_store: Store, session_id: int
) -> None:
    keep(
        any_store,
        *(made(session_id, step, step / 100, attempt=1) for step in range(10, 15)),
        *(made(session_id, step, 0.1, attempt=2) for step in range(5)),
        made(session_id, 3, None, attempt=2, kind="emergency"),
        made(session_id, 1, 0.9, attempt=2, weights_finite=False),
    )
    found = any_store.checkpoints.candidates(session_id, settle_steps=9, limit=3, by_age=True)
    seen = [(c.checkpoint.attempt, c.checkpoint.step, c.healthy) for c in found]
    assert seen == [(2, 4, True), (2, 3, True), (2, 2, True), (2, 3, False)]
    all_of_them = any_store.checkpoints.candidates(session_id, settle_steps=9, by_age=True)
    ages = [(c.checkpoint.attempt, c.checkpoint.step) for c in all_of_them if c.healthy]
    assert ages == sorted(ages, reverse=True)
    assert len(all_of_them) == 12
