"""The views: what a person sees in SQL, and that the migration makes what the models say."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from psycopg.rows import dict_row
from senders import Sender, rows

from qigstore.database import migrate, schema, views
from qigstore.database.engine import Database
from qigstore.records import Candidate, Checkpoint, Decision, Event
from qigstore.repository import Store
from qigstore.repository.curve_buckets import BUCKET_ROWS

pytest_plugins = ["ways"]

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def seen(store: Store, query: str, *values: object) -> list[dict[str, Any]]:
    with store.database.raw() as connection, connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, values).fetchall()


def resumed(store: Store, name: str, step: int) -> Sender:
    """The next attempt, resumed from a checkpoint at a step."""
    sender = Sender(store, name)
    store.sessions.set_lineage(sender.attempt.id, uuid4(), step)
    return sender


def timeline(store: Store, name: str, rank: int = 0) -> list[tuple[int, int, bool]]:
    query = (
        "SELECT attempt, step, abandoned FROM qigstore.canonical_telemetry "
        "WHERE session = %s AND rank = %s ORDER BY step"
    )
    return [tuple(row.values()) for row in seen(store, query, name, rank)]  # type: ignore[misc]


def test_the_timeline_takes_the_newest_attempt_and_marks_an_abandoned_future(
    any_store: Store,
) -> None:
    first = Sender(any_store)
    first.send(range(10), {"loss": [1.0] * 10})
    # Back to 4; steps 5 and 6 are left out, and it ends before the first one did.
    second = resumed(any_store, "ocean", 4)
    second.send([7, 8], {"loss": [2.0, 2.0]})
    expected = [(1, step, False) for step in range(5)]
    expected += [(1, 5, True), (1, 6, True), (2, 7, False), (2, 8, False), (1, 9, True)]
    assert timeline(any_store, "ocean") == expected
    canonical = any_store.telemetry.canonical(first.id)
    assert [(r.attempt, r.step) for r in canonical] == [(a, s) for a, s, _ in expected]
    assert [r.metrics["loss"] for r in canonical] == [float(a) for a, _, _ in expected]
    within = any_store.telemetry.canonical(first.id, start=6, stop=8)
    assert [(r.attempt, r.step) for r in within] == [(1, 6), (2, 7)]


def test_a_fresh_start_abandons_everything_and_ranks_have_their_own_timeline(
    any_store: Store,
) -> None:
    first = Sender(any_store)
    first.send(range(4))
    beside = Sender(any_store, rank=1, of=first.attempt)
    beside.send(range(6))
    fresh = resumed(any_store, "ocean", -1)
    fresh.send([0, 1])
    other = Sender(any_store, "another")
    other.send([9])
    assert timeline(any_store, "ocean") == [
        (2, 0, False),
        (2, 1, False),
        (1, 2, True),
        (1, 3, True),
    ]
    assert timeline(any_store, "ocean", 1) == [(1, step, True) for step in range(6)]
    assert timeline(any_store, "another") == [(1, 9, False)]


def test_the_timeline_agrees_with_a_model_on_random_lives(store: Store, rng: random.Random) -> None:
    for number in range(10):
        name = f"life {number}"
        newest: dict[int, int] = {}
        resumes: list[tuple[int, int]] = []
        for attempt in range(1, rng.randrange(2, 6)):
            sender = Sender(store, name)
            if rng.random() < 0.7:
                back = rng.randrange(-1, 20)
                store.sessions.set_lineage(sender.attempt.id, None, back)
                resumes.append((attempt, back))
            for _ in range(rng.randrange(3)):
                steps = rng.sample(range(30), rng.randrange(1, 12))
                sender.send(steps)
                newest |= dict.fromkeys(steps, attempt)
        expected = [
            (attempt, step, any(later > attempt and step > back for later, back in resumes))
            for step, attempt in sorted(newest.items())
        ]
        assert timeline(store, name) == expected


def test_custom_metrics_are_shown_by_name_and_only_where_measured(any_store: Store) -> None:
    sender = Sender(any_store)
    sender.ship(
        rows([0, 1], {"a": [1.0, math.nan], "loss": [0.0, 0.0]}, first_seq=1),
        rows([2], {"b": [2.0]}, first_seq=3),
    )
    Sender(any_store, "another").send([0], {"b": [5.0]})
    found = seen(
        any_store,
        "SELECT * FROM qigstore.telemetry_metric WHERE session = 'ocean' ORDER BY step",
    )
    key = {"session": "ocean", "attempt": 1, "rank": 0}
    assert found[0] == key | {"step": 0, "name": "a", "value": 1.0}
    assert math.isnan(found[1].pop("value"))
    assert found[1] == key | {"step": 1, "name": "a"}
    assert found[2] == key | {"step": 2, "name": "b", "value": 2.0}
    assert len(found) == 3


@pytest.mark.parametrize("places", [(1,), (3, 16), (16, 17), (2, 30), (17,), ()])
def test_custom_metrics_in_columns_and_past_them_are_one_array_by_position(
    store: Store, places: tuple[int, ...]
) -> None:
    sender = Sender(store)
    sender.send([0], {f"m{place}": [float(place)] for place in range(1, 31)})
    sender.send([1], {f"m{place}": [float(place)] for place in places})
    expected = [float(p) if p in places else None for p in range(1, max(places, default=0) + 1)]
    for view in ("all_telemetry", "canonical_telemetry", "latest_telemetry"):
        (row,) = seen(store, f"SELECT custom FROM qigstore.{view} WHERE step = 1")
        assert row["custom"] == (expected or None)
    by_name = "SELECT name, value FROM qigstore.telemetry_metric WHERE step = 1"
    found = {row["name"]: row["value"] for row in seen(store, by_name)}
    assert found == {f"m{place}": float(place) for place in places}
    assert store.telemetry.rows(sender.id)[1].metrics == found
    assert store.telemetry.canonical(sender.id)[1].metrics == found


def test_every_row_of_every_attempt_and_rank_keeps_its_number_in_the_writer_s_order(
    any_store: Store,
) -> None:
    first = Sender(any_store)
    first.send([10, 11, 13, 12])
    first.acked += 3  # lost to damage
    any_store.telemetry.append(first.batch(first=5, last=7))
    first.send([14, 11])
    Sender(any_store, rank=1, of=first.attempt).send([0])
    resumed(any_store, "ocean", 11).send([12])
    found = seen(any_store, "SELECT * FROM qigstore.all_telemetry ORDER BY attempt, rank, seq")
    key = [(row["attempt"], row["rank"], row["step"], row["seq"]) for row in found]
    expected = [(1, 0, s, q) for s, q in ((10, 1), (13, 3), (12, 4), (14, 8), (11, 9))]
    assert key == [*expected, (1, 1, 0, 1), (2, 0, 12, 1)]
    assert sorted((r.step, r.seq) for r in first.read()) == sorted(row[2:] for row in expected)


def test_the_latest_row_is_the_newest_attempt_s_and_names_its_regime(any_store: Store) -> None:
    Sender(any_store).send(range(100), {"phi": [0.1] * 100})
    second = Sender(any_store)
    second.send([5, 6], {"phi": [0.5, 0.8]}, regime=[-1, 2])
    Sender(any_store, "another").send([1], regime=[-1])
    any_store.sessions.open("empty", {})
    Sender(any_store, "no rows")
    found = seen(any_store, "SELECT * FROM qigstore.latest_telemetry ORDER BY session")
    shown = [(r["session"], r["attempt"], r["step"], r["phi"], r["regime"]) for r in found]
    assert shown == [("another", 1, 1, None, None), ("ocean", 2, 6, 0.8, "hyperdimensional")]


def a_checkpoint(session_id: int, step: int, phi: float | None, **more: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "id": uuid4(), "session_id": session_id, "attempt": 1, "step": step, "kind": "regular",
        "status": "committed", "path": Path("/secret/place"), "bytes": 5_000_000, "digest": "d",
        "weights_finite": True, "created_at": NOW, "phi": phi, "regime": "geometric",
    }  # fmt: skip
    return Checkpoint(**values | more)


def an_event(session_id: int, second: int, severity: Any = "critical", **more: Any) -> Event:
    when = NOW + timedelta(seconds=second)
    rule = more.pop("rule", "loss.ewma")
    return Event(uuid4(), session_id, 1, 0, second, rule, severity, f"at {second}", when, **more)


def test_best_checkpoints_are_ranked_within_their_session(any_store: Store) -> None:
    ids = {name: any_store.sessions.open(name, {}).id for name in ("a", "b")}
    for checkpoint in (
        a_checkpoint(ids["a"], 1, 0.5),
        a_checkpoint(ids["a"], 2, 0.9, kind="emergency"),
        a_checkpoint(ids["a"], 3, 0.5, verified_at=NOW),
        a_checkpoint(ids["a"], 4, None),
        a_checkpoint(ids["a"], 5, 0.99, status="quarantined"),
        a_checkpoint(ids["b"], 9, -0.5),
    ):
        any_store.checkpoints.add(checkpoint)
    found = seen(any_store, "SELECT * FROM qigstore.best_checkpoints ORDER BY session, place")
    shown = [(r["session"], r["place"], r["step"], r["phi"], r["verified"]) for r in found]
    assert shown == [
        ("a", 1, 2, 0.9, False), ("a", 2, 3, 0.5, True), ("a", 3, 1, 0.5, False),
        ("b", 1, 9, -0.5, False),
    ]  # fmt: skip
    assert (found[0]["size"], found[0]["regime"]) == ("4883 kB", "geometric")
    assert "path" not in found[0]


def test_emergencies_are_summed_up_by_rule_and_severity(any_store: Store) -> None:
    ids = [any_store.sessions.open(name, {}).id for name in ("a", "b")]
    made = [
        an_event(ids[0], 1),
        an_event(ids[0], 5),
        an_event(ids[0], 3, resolved_at=NOW),
        an_event(ids[0], 2, "warning"),
        an_event(ids[1], 4, rule="finite"),
    ]
    for event in made:
        any_store.events.add(event)
    any_store.events.acknowledge(made[0].id)
    found = seen(any_store, "SELECT * FROM qigstore.emergency_summary ORDER BY session, severity")
    assert [tuple(row.values())[:5] for row in found] == [
        ("a", "loss.ewma", "critical", 3, 1),
        ("a", "loss.ewma", "warning", 1, 1),
        ("b", "finite", "critical", 1, 1),
    ]
    first = found[0]
    assert first["last_at"] - first["first_at"] == timedelta(seconds=4)
    assert (first["first_step"], first["last_step"], first["last_message"]) == (1, 5, "at 5")


def test_session_stats_agree_with_what_was_stored(any_store: Store) -> None:
    first = Sender(any_store)
    first.send([3, 4, 5, 4])
    Sender(any_store, rank=1, of=first.attempt).send([2])
    second = Sender(any_store)
    second.send([4])
    best = a_checkpoint(first.id, 5, 0.9)
    for checkpoint in (best, a_checkpoint(first.id, 6, 0.1), a_checkpoint(first.id, 7, None)):
        any_store.checkpoints.add(checkpoint)
    for severity in ("critical", "critical", "info"):
        any_store.events.add(an_event(first.id, 1, severity))
    any_store.sessions.open("empty", {})
    query = "SELECT * FROM qigstore.session_stats ORDER BY session"
    empty, ocean = seen(any_store, query)
    assert ocean.pop("last_seen_at") is not None
    assert ocean.pop("created_at") == first.session.created_at
    assert ocean == {
        "session": "ocean", "attempts": 2, "status": "running", "rows": 5, "repeated_rows": 1,
        "first_step": 2, "last_step": 4, "best_phi": 0.9, "best_step": 5,
        "best_checkpoint": best.id, "checkpoints": 3, "critical": 2, "warning": 0, "info": 1,
    }  # fmt: skip
    assert (empty["attempts"], empty["status"], empty["rows"]) == (0, None, 0)
    with any_store.database.raw() as connection:
        connection.execute("UPDATE qigstore.attempt SET heartbeat_at = now() - interval '31 s'")
    assert seen(any_store, query)[1]["status"] == "lost"
    any_store.sessions.close_attempt(second.attempt.id, "completed")
    assert seen(any_store, query)[1]["status"] == "completed"


def test_recovery_history_tells_what_was_chosen(any_store: Store) -> None:
    session_id = any_store.sessions.open("a", {}).id
    good, bad = a_checkpoint(session_id, 5, 0.9), a_checkpoint(session_id, 6, 0.95)
    any_store.checkpoints.add(good)
    candidates = (Candidate(good, True, "fit"), Candidate(bad, False, "damaged"))
    any_store.decisions.add(
        Decision(uuid4(), session_id, "best", good, candidates, "the best of 1", NOW, 2, (6, 8))
    )
    any_store.decisions.add(Decision(uuid4(), session_id, "best", None, (), "none", NOW, 1))
    found = seen(any_store, "SELECT * FROM qigstore.recovery_history ORDER BY attempt")
    shown = [tuple(row.values())[:-1] for row in found]
    assert shown == [
        ("a", 1, NOW, "best", None, None, "none", 0, 0, None, None, None),
        ("a", 2, NOW, "best", 5, 0.9, "the best of 1", 2, 1, 6, 8, good.id),
    ]


def test_removing_a_session_leaves_nothing_of_it_in_any_view(any_store: Store) -> None:
    sender = Sender(any_store)
    sender.send([0], {"mine": [1.0]}, basins=[[1.0]])
    any_store.checkpoints.add(a_checkpoint(sender.id, 5, 0.9))
    any_store.events.add(an_event(sender.id, 1))
    with any_store.database.raw() as connection:
        connection.execute("DELETE FROM qigstore.session")
    for name in views.VIEWS:
        assert seen(any_store, f"SELECT * FROM qigstore.{name}") == []


def test_each_view_and_its_columns_are_documented(any_store: Store) -> None:
    found = seen(
        any_store,
        "SELECT c.relname AS name, obj_description(c.oid, 'pg_class') AS purpose, "
        "(SELECT count(*) FROM pg_description d WHERE d.objoid = c.oid AND d.objsubid > 0) AS n "
        "FROM pg_class c WHERE c.relkind = 'v' AND c.relnamespace = 'qigstore'::regnamespace",
    )
    assert {row["name"]: row["purpose"] for row in found} == {
        name: view.purpose for name, view in views.VIEWS.items()
    }
    assert {row["name"]: row["n"] for row in found} == {
        name: len(view.columns) for name, view in views.VIEWS.items()
    }


CATALOGUE = {
    "columns": "SELECT table_name, column_name, data_type, udt_name, is_nullable, column_default, "
    "identity_generation FROM information_schema.columns WHERE table_schema = 'qigstore'",
    "constraints": "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) "
    "FROM pg_constraint WHERE connamespace = 'qigstore'::regnamespace",
    "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'qigstore'",
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'qigstore'",
    "comments": "SELECT objoid::regclass::text, objsubid, description FROM pg_description "
    "WHERE classoid = 'pg_class'::regclass AND objoid IN "
    "(SELECT oid FROM pg_class WHERE relnamespace = 'qigstore'::regnamespace)",
}


def catalogue(database: Database) -> dict[str, set[tuple[Any, ...]]]:
    with database.begin() as connection:
        return {
            part: {
                tuple(row) for row in connection.exec_driver_sql(query)
                if "alembic_version" not in str(row)
            }
            for part, query in CATALOGUE.items()
        }  # fmt: skip


@pytest.fixture
def from_models(empty_dsn: str) -> Iterator[Database]:
    """A database made from the models, without any migration."""
    database = Database(empty_dsn)
    with database.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA qigstore")
        schema.metadata.create_all(connection)
        for statement in views.statements():
            connection.exec_driver_sql(statement)
    yield database
    database.dispose()


def test_the_migrations_make_exactly_what_the_models_say(
    database: Database, from_models: Database
) -> None:
    assert migrate.check(database) == []
    migrated, expected = catalogue(database), catalogue(from_models)
    for part, found in migrated.items():
        assert len(found) > 5
        assert found == expected[part]


def test_curve_buckets_are_the_stored_ones_by_name(any_store: Store) -> None:
    sender = Sender(any_store)
    width = BUCKET_ROWS
    steps = range(4 * width - 1)
    loss = [math.nan if step == 5 else float(step) for step in steps]
    sender.send(steps, {"loss": loss, "mine": [1.0] * len(steps)})
    found = seen(
        any_store,
        "SELECT * FROM qigstore.curve_buckets "
        f"WHERE session = 'ocean' AND width = {width} ORDER BY metric, start",
    )
    key = {"session": "ocean", "attempt": 1, "rank": 0, "width": width}
    assert [(row["metric"], row["start"]) for row in found] == [
        (name, start) for name in ("loss", "mine") for start in (0, width, 2 * width)
    ]
    counts = {"finite": width - 1, "nans": 1, "infs": 0}
    mean = (sum(range(width)) - 5) / (width - 1)
    values = {"metric": "loss", "start": 0, "low": 0.0, "high": width - 1.0}
    assert found[0] == key | values | counts | {"mean": pytest.approx(mean)}
    assert (found[3]["finite"], found[3]["nans"], found[3]["mean"]) == (width, 0, 1.0)


def test_event_history_is_each_event_by_the_name_of_its_session(any_store: Store) -> None:
    sender = Sender(any_store)
    event = an_event(sender.id, 1)
    any_store.events.add(event)
    (found,) = seen(any_store, "SELECT * FROM qigstore.event_history")
    assert (found["session"], found["id"], found["open"]) == ("ocean", event.id, True)
    any_store.events.resolve(event.id, "all is well")
    (found,) = seen(any_store, "SELECT * FROM qigstore.event_history")
    assert (found["open"], found["result"]) == (False, "all is well")
