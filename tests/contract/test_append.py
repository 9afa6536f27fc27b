"""Storing telemetry: once, in order, to the bit, whoever sends it and how often."""

from __future__ import annotations

import math
import random
import struct
import threading
from datetime import UTC, datetime
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.errors import CheckViolation, UniqueViolation
from senders import Sender, column, rows

from qigstore.errors import InvalidInput, NotFound, StaleWriter, StoreUnavailable
from qigstore.records import STANDARD_METRICS
from qigstore.repository import AppendResult, Store, copy_stream

pytest_plugins = ["ways"]


def bits(value: float) -> bytes:
    return struct.pack(">d", value)


def test_a_batch_sent_again_after_an_unknown_commit_is_stored_once(any_store: Store) -> None:
    sender = Sender(any_store)
    batch = sender.batch(rows([0, 1, 2], {"loss": [3.0, 2.0, 1.0]}))
    assert any_store.telemetry.append(batch) == AppendResult(3, 0)
    assert any_store.telemetry.append(batch) == AppendResult(0, 0)
    assert column(sender, "loss") == [3.0, 2.0, 1.0]
    assert any_store.writers.state(sender.writer).stored_rows == 3


def test_a_batch_that_leaves_a_gap_or_overlaps_is_refused_and_changes_nothing(
    any_store: Store,
) -> None:
    sender = Sender(any_store)
    sender.send([0, 1])
    for first, last in ((4, 5), (2, 3)):
        with pytest.raises(StaleWriter) as caught:
            any_store.telemetry.append(
                sender.batch(rows([7, 8], first_seq=first), first=first, last=last)
            )
        assert "settled are those up to 2" in str(caught.value)
    assert [row.step for row in sender.read()] == [0, 1]
    assert any_store.writers.state(sender.writer).acked_seq == 2


def test_after_a_take_over_only_the_new_epoch_stores(any_store: Store) -> None:
    sender = Sender(any_store)
    sender.send([0])
    taken = any_store.writers.take_over(sender.writer)
    assert (taken.epoch, taken.acked_seq) == (2, 1)
    with pytest.raises(StaleWriter) as caught:
        sender.send([1])
    assert (caught.value.epoch, caught.value.current) == (1, 2)
    # What was stored before the take-over is refused too: its sender must notice.
    with pytest.raises(StaleWriter):
        any_store.telemetry.append(sender.batch(rows([0]), first=1, last=1))
    sender.epoch = 2
    assert sender.send([1]) == AppendResult(1, 0)


def test_of_many_processes_that_send_the_same_batch_one_stores_it(any_store: Store) -> None:
    sender = Sender(any_store)
    batch = sender.batch(rows(range(500), {"loss": [1.0] * 500, "mine": [2.0] * 500}))
    results: list[AppendResult] = []
    threads = [
        threading.Thread(target=lambda: results.append(any_store.telemetry.append(batch)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [AppendResult(0, 0)] * 3 + [AppendResult(500, 0)]
    assert len(sender.read()) == 500


def test_lost_records_are_settled_without_rows(any_store: Store) -> None:
    sender = Sender(any_store)
    assert any_store.telemetry.append(sender.batch(first=1, last=10)) == AppendResult(0, 0)
    sender.acked = 10
    assert sender.send([4]) == AppendResult(1, 0)
    state = any_store.writers.state(sender.writer)
    assert (state.acked_seq, state.stored_rows, state.max_step) == (11, 1, 4)


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        ("PERFORM pg_terminate_backend(pg_backend_pid())", StoreUnavailable),
        ("RAISE check_violation", CheckViolation),
    ],
)
@pytest.mark.parametrize("sends", ["we", "libpq"])
def test_a_server_that_breaks_off_amid_a_long_copy_has_stored_nothing_and_takes_it_again(
    store: Store, harm: str, error: type[Exception], sends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sends == "libpq":  # as it does over TCP
        monkeypatch.setattr(copy_stream, "_local", lambda _: False)
    sender, count = Sender(store), 20_000
    with store.database.raw() as connection:
        connection.execute(
            "CREATE FUNCTION harm() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN IF NEW.step = 15000 THEN {harm}; END IF; RETURN NEW; END $$"
        )
        connection.execute(
            "CREATE TRIGGER harm BEFORE INSERT ON qigstore.telemetry "
            "FOR EACH ROW EXECUTE FUNCTION harm()"
        )
    values = {"loss": [1.0] * count, "mine": [2.0] * count}
    with pytest.raises(error):
        sender.send(range(count), values)
    assert store.writers.state(sender.writer).acked_seq == 0
    assert sender.read() == []
    with store.database.raw() as connection:
        connection.execute("DROP TRIGGER harm ON qigstore.telemetry")
    assert sender.send(range(count), values) == AppendResult(count, 0)
    assert len(sender.read()) == count


def test_a_batch_for_another_rank_or_an_unknown_writer_is_refused(any_store: Store) -> None:
    sender = Sender(any_store)
    batch = sender.batch(rows([0]))
    sender.rank = 1
    with pytest.raises(InvalidInput, match="rank 0"):
        any_store.telemetry.append(sender.batch(rows([0])))
    sender.writer = uuid4()
    with pytest.raises(NotFound, match="writer"):
        any_store.telemetry.append(sender.batch(rows([0])))
    assert any_store.telemetry.append(batch).rows == 1


def test_a_refused_batch_leaves_no_metric_name_and_the_next_one_finds_its_place(
    any_store: Store,
) -> None:
    sender = Sender(any_store)
    too_many = {f"m{i}": [0.0] for i in range(10_001)}
    with pytest.raises(InvalidInput, match="10000 custom metrics"):
        sender.send([0], too_many)
    sender.send([0], {"b": [2.0], "a": [1.0]})
    other = Sender(Store(any_store.database), rank=1, of=sender.attempt)
    other.send([0], {"a": [10.0], "c": [30.0], "b": [20.0]})
    assert sender.read()[0].metrics == {"a": 1.0, "b": 2.0}
    assert other.read()[0].metrics == {"a": 10.0, "b": 20.0, "c": 30.0}


def test_places_given_in_a_transaction_that_failed_are_forgotten(any_store: Store) -> None:
    sender = Sender(any_store)
    # A row that nobody recorded: the batch meets it in COPY, after its metric got a place.
    with any_store.database.raw() as connection:
        connection.execute(
            "INSERT INTO qigstore.telemetry (writer, step, seq, recorded_at) "
            "SELECT number, 0, 1, now() FROM qigstore.writer WHERE id = %s",
            (sender.writer,),
        )
    with pytest.raises(UniqueViolation):
        sender.send([0], {"a": [1.0]})
    with any_store.database.raw() as connection:
        connection.execute("DELETE FROM qigstore.telemetry")
    other = Sender(Store(any_store.database), rank=1, of=sender.attempt)
    other.send([0], {"b": [2.0]})
    sender.send([0], {"a": [1.0]})
    assert sender.read()[0].metrics == {"a": 1.0}
    assert other.read()[0].metrics == {"b": 2.0}


def test_ranks_that_name_new_metrics_at_once_give_each_its_own_place(
    any_store: Store, rng: random.Random
) -> None:
    first = Sender(any_store)
    ranks = [first] + [
        Sender(Store(any_store.database), rank=rank, of=first.attempt) for rank in (1, 2, 3)
    ]
    gate = threading.Barrier(len(ranks))
    failures: list[BaseException] = []

    def work(sender: Sender, order: list[int]) -> None:
        try:
            for step, names in enumerate(zip(order[::2], order[1::2], strict=True)):
                gate.wait()
                sender.send([step], {f"m{n}": [n + sender.rank / 10] for n in names})
        except BaseException as error:
            failures.append(error)
            gate.abort()

    orders = [rng.sample(range(40), 40) for _ in ranks]
    threads = [threading.Thread(target=work, args=pair) for pair in zip(ranks, orders, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for sender in ranks:
        found: dict[str, float] = {}
        for row in sender.read():
            found |= row.metrics
        assert found == {f"m{n}": n + sender.rank / 10 for n in range(40)}


def test_the_last_record_of_a_step_wins_within_a_batch_and_across_groups(
    any_store: Store,
) -> None:
    sender = Sender(any_store)
    early = rows([5, 6, 5], {"loss": [1.0, 2.0, 3.0]}, first_seq=1)
    late = rows([6, 7], {"mine": [4.0, 5.0]}, first_seq=4)
    # Handed over the other way round: the sequence number decides, not the place.
    assert sender.ship(late, early) == AppendResult(5, 2)
    found = {row.step: dict(row.metrics) for row in sender.read()}
    assert found == {5: {"loss": 3.0}, 6: {"mine": 4.0}, 7: {"mine": 5.0}}


def test_the_last_record_of_a_step_wins_across_batches_basin_included(any_store: Store) -> None:
    sender = Sender(any_store)
    sender.send([0, 1, 2], {"loss": [0.0, 1.0, 2.0]}, basins=[[0.5, 0.5]] * 3)
    assert sender.send([2, 3], {"loss": [20.0, 30.0]}) == AppendResult(2, 1)
    assert sender.send([0], {"loss": [-1.0]}, basins=[[1.0, 0.0]]) == AppendResult(1, 1)
    assert column(sender, "loss") == [-1.0, 1.0, 20.0, 30.0]
    key = (sender.id, sender.attempt.number, 0)
    first = any_store.telemetry.basin(*key, 0)
    assert first is not None
    assert first.tolist() == [1.0, 0.0]
    assert any_store.telemetry.basin(*key, 2) is None
    state = any_store.writers.state(sender.writer)
    assert (state.stored_rows, state.repeated_rows, state.max_step) == (4, 2, 3)


def test_any_order_of_steps_and_batches_keeps_the_last_record_of_each_step(
    any_store: Store, rng: random.Random
) -> None:
    sender = Sender(any_store)
    expected: dict[int, float] = {}
    totals = [0, 0]
    for _ in range(20):
        steps = [rng.randrange(30) for _ in range(rng.randrange(1, 12))]
        values = [rng.random() for _ in steps]
        cut = rng.randrange(len(steps) + 1)
        first = sender.acked + 1
        groups = (
            rows(steps[:cut], {"loss": values[:cut]}, first_seq=first),
            rows(steps[cut:], {"loss": values[cut:], "x": values[cut:]}, first_seq=first + cut),
        )
        totals = [a + b for a, b in zip(totals, sender.ship(*groups), strict=True)]
        expected |= dict(zip(steps, values, strict=True))
    assert {row.step: row.metrics["loss"] for row in sender.read()} == expected
    (count,) = any_store.telemetry.counts(sender.id)
    assert count[2:] == (len(expected), min(expected), max(expected))
    assert totals[0] - totals[1] == len(expected)


@settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(values=st.lists(st.floats(), min_size=1, max_size=40))
def test_every_float_comes_back_to_the_bit(any_store: Store, values: list[float]) -> None:
    sender = Sender(any_store, f"floats {uuid4()}")
    sender.send(range(len(values)), {"loss": values, "mine": values})
    for name in ("loss", "mine"):
        for sent, found in zip(values, column(sender, name), strict=True):
            assert found is not None
            assert math.isnan(found) if math.isnan(sent) else bits(found) == bits(sent)


def test_zeros_infinities_denormals_and_nan_payloads_arrive_bit_for_bit(any_store: Store) -> None:
    payloads = [0x7FF8000000000001, 0xFFF8000000000000, 0x7FFDEADBEEF00001]
    nans = [struct.unpack(">d", struct.pack(">Q", payload))[0] for payload in payloads]
    values = [-0.0, 0.0, math.inf, -math.inf, 5e-324, -2.2e-308, 1.7e308, *nans]
    sender = Sender(any_store)
    sender.send(range(len(values)), {"loss": values, "mine": values})
    with any_store.database.raw() as connection:
        query = (
            "SELECT float8send(loss), float8send(custom[1]) "
            "FROM qigstore.all_telemetry ORDER BY seq"
        )
        stored = connection.execute(query).fetchall()
    sent = [bits(value) for value in np.asarray(values).tolist()]
    assert [(bytes(a), bytes(b)) for a, b in stored] == list(zip(sent, sent, strict=True))


def test_not_measured_is_null_and_a_recorded_nan_is_nan(any_store: Store) -> None:
    sender = Sender(any_store)
    with_both = rows([0], {"phi": [math.nan], "mine": [math.nan], "theirs": [1.0]}, first_seq=1)
    with_none = rows([1], {"theirs": [2.0], "loss": [0.0]}, first_seq=2)
    sender.ship(with_both, with_none)
    first, second = sender.read()
    assert math.isnan(first.metrics["phi"])
    assert math.isnan(first.metrics["mine"])
    assert "loss" not in first.metrics
    assert second.metrics == {"theirs": 2.0, "loss": 0.0}
    with any_store.database.raw() as connection:
        query = "SELECT phi IS NULL, custom FROM qigstore.all_telemetry ORDER BY step"
        found = connection.execute(query).fetchall()
    assert [row[0] for row in found] == [False, True]
    assert found[1][1] == [None, 2.0]


def test_layouts_of_every_kind_travel_in_one_batch(any_store: Store, rng: random.Random) -> None:
    sender = Sender(any_store)
    names = [*STANDARD_METRICS, *(f"custom {i}" for i in range(12))]
    groups, expected = [], {}
    for first in range(1, 301, 10):
        chosen = rng.sample(names, rng.randrange(len(names) + 1))
        steps = range(first, first + 10)
        values = {name: [rng.gauss(0, 1) for _ in steps] for name in chosen}
        regime = [rng.randrange(-1, 4) for _ in steps]
        groups.append(rows(steps, values, first_seq=first, regime=regime))
        for i, step in enumerate(steps):
            expected[step] = ({name: values[name][i] for name in chosen}, regime[i])
    sender.ship(*groups)
    known = [None, "linear", "geometric", "hyperdimensional", "topological_instability"]
    found = {row.step: (dict(row.metrics), known.index(row.regime) - 1) for row in sender.read()}
    assert found == expected


def test_a_thousand_custom_metrics_keep_their_names(any_store: Store) -> None:
    sender = Sender(any_store)
    names = [f"layer.{i}.grad" for i in range(1000)]
    sender.send([0, 1], {name: [i, -i] for i, name in enumerate(names)})
    sender.send([2], {names[999]: [7.0]})
    first, second, third = sender.read()
    assert first.metrics == {name: float(i) for i, name in enumerate(names)}
    assert second.metrics[names[500]] == -500.0
    assert third.metrics == {names[999]: 7.0}


def test_names_that_look_like_sql_are_plain_data(any_store: Store) -> None:
    hostile = [
        "'; DROP TABLE qigstore.telemetry; --",
        'loss" = 0; --',
        "%s %(x)s $1 :name {0} \\",
        "a,b}{\"'\u2028Φ\U0001f30a",
        "NULL",
        "phi = 1 OR 1=1",
    ]
    sender = Sender(any_store, hostile[0])
    sender.send([0], {name: [float(i)] for i, name in enumerate(hostile)})
    assert sender.read()[0].metrics == {name: float(i) for i, name in enumerate(hostile)}
    assert any_store.sessions.get(hostile[0]).id == sender.id
    with any_store.database.raw() as connection:
        query = "SELECT name FROM qigstore.telemetry_metric WHERE session = %s ORDER BY value"
        assert [row[0] for row in connection.execute(query, (hostile[0],))] == hostile


def test_a_name_that_sql_cannot_hold_is_refused_before_anything_is_sent() -> None:
    for name in ("a\0b", "", "\ud800", "x" * 501):
        with pytest.raises(InvalidInput):
            rows([0], {name: [1.0]})


@pytest.mark.parametrize(
    ("time_ns", "expected"),
    [
        (1_700_000_000_123_456_789, datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)),
        (-1, datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (2**63 - 1, datetime(2262, 4, 11, 23, 47, 16, 854775, tzinfo=UTC)),
        (-(2**63), datetime(1677, 9, 21, 0, 12, 43, 145224, tzinfo=UTC)),
    ],
)
def test_any_clock_is_kept_to_the_microsecond_rounded_down(
    store: Store, time_ns: int, expected: datetime
) -> None:
    sender = Sender(store)
    sender.send([0], time_ns=[time_ns])
    assert sender.read()[0].recorded_at == expected


def test_a_basin_comes_back_as_a_distribution(any_store: Store, rng: random.Random) -> None:
    p = np.array([[rng.random() for _ in range(64)] for _ in range(3)])
    p[1] = 0.0
    p[1, 5] = 1.0
    p /= p.sum(axis=1, keepdims=True)
    sender = Sender(any_store)
    sender.send([3, 4, 5], {"loss": [0.0] * 3}, basins=p)
    for i, step in enumerate((3, 4, 5)):
        found = any_store.telemetry.basin(sender.id, sender.attempt.number, 0, step)
        assert found is not None
        np.testing.assert_allclose(found, p[i], rtol=1e-15, atol=0)
    assert any_store.telemetry.basin(sender.id, sender.attempt.number, 0, 6) is None


def test_a_limit_counts_over_the_attempts_in_their_order(store: Store) -> None:
    for attempt in range(1, 4):
        Sender(store).send(range(attempt, attempt + 3), {"loss": [float(attempt)] * 3})
    session = store.sessions.get("ocean").id
    every = [(a, s) for a in (1, 2, 3) for s in range(a, a + 3)]
    for limit in range(len(every) + 2):
        found = store.telemetry.rows(session, limit=limit)
        assert [(row.attempt, row.step) for row in found] == every[:limit]
    from_four = store.telemetry.rows(session, start=4, limit=2)
    assert [(row.attempt, row.step) for row in from_four] == [(2, 4), (3, 4)]


def test_rows_are_read_by_attempt_rank_and_range(any_store: Store) -> None:
    first = Sender(any_store)
    first.send(range(10), {"loss": range(10)})
    beside = Sender(any_store, rank=1, of=first.attempt)
    beside.send(range(3))
    second = Sender(any_store)
    second.send(range(5, 8))
    telemetry = any_store.telemetry
    assert [r.step for r in first.read(start=2, stop=5)] == [2, 3, 4]
    assert [r.step for r in first.read(start=8, limit=1)] == [8]
    everything = [(r.attempt, r.step) for r in telemetry.rows(first.id)]
    assert everything == [(1, s) for s in range(10)] + [(2, s) for s in range(5, 8)]
    assert telemetry.counts(first.id) == [(1, 0, 10, 0, 9), (1, 1, 3, 0, 2), (2, 0, 3, 5, 7)]
    assert telemetry.progress(first.id) == {1: 9, 2: 7}
    latest = telemetry.latest(first.id)
    assert latest is not None
    assert (latest.attempt, latest.step) == (2, 7)
    assert telemetry.latest(any_store.sessions.open("empty", {}).id) is None
