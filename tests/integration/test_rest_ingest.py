"""Training nodes without a way to the database: every record arrives once, and a stop is heard."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
from rest import Rest

from qigstore import query


def steps_of(rest: Rest, session: str = "ocean-7") -> list[tuple[int, int, float]]:
    rows = query.rows(rest.store, session, limit=10_000).rows
    return [(row.seq, row.step, row.metrics["loss"]) for row in rows]


def rows_of(first: int, last: int) -> list[dict[str, Any]]:
    return [{"step": seq - 1, "metrics": {"loss": float(seq)}} for seq in range(first, last + 1)]


def acked(rest: Rest, claimed: dict[str, Any]) -> int:
    path = f"/v1/sessions/{claimed['session']}/attempts/{claimed['attempt']['id']}"
    answer = rest.get(f"{path}/writers/{claimed['writer']['id']}")
    return int(answer.json()["acked_seq"])


def test_each_record_is_stored_once_however_often_it_is_sent(
    rest: Rest, rng: random.Random
) -> None:
    """A client that never learns what became of its last batch, and asks or just sends again."""
    claimed = rest.claim("ocean-7")
    at, total = 0, 300
    while at < total:
        last = min(at + rng.randint(1, 40), total)
        for _ in range(rng.randint(1, 3)):
            answer = rest.record(claimed, rows_of(at + 1, last), first_seq=at + 1)
            assert answer.status_code == 200, answer.text
        if rng.random() < 0.3:  # it forgot how far it was: an older start is refused, and asked
            behind = max(at - rng.randint(0, 20), 0)
            again = rest.record(claimed, rows_of(behind + 1, last + 1), first_seq=behind + 1)
            assert again.status_code in {200, 409}
            last = acked(rest, claimed)
        at = last
        assert acked(rest, claimed) == at
    total = at
    assert steps_of(rest) == [(seq, seq - 1, float(seq)) for seq in range(1, total + 1)]


def test_the_same_batch_from_many_at_once_is_stored_once(rest: Rest) -> None:
    claimed = rest.claim("ocean-7")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: rest.record(claimed, rows_of(1, 50)), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(answer.json()["rows"] for answer in answers) == [0] * 7 + [50]
    assert len(steps_of(rest)) == 50


def test_a_gap_is_refused_and_the_answer_helps(rest: Rest) -> None:
    claimed = rest.claim("ocean-7")
    assert rest.record(claimed, rows_of(1, 5)).json() == {"rows": 5, "repeated": 0, "acked_seq": 5}
    answer = rest.record(claimed, rows_of(8, 9), first_seq=8)
    assert answer.status_code == 409
    found = answer.json()
    assert found["type"].endswith(":stale-writer")
    assert found["epoch"] == 1
    assert "up to 5" in found["detail"]
    assert acked(rest, claimed) == 5


def test_a_batch_is_whole_or_not_at_all(rest: Rest) -> None:
    claimed = rest.claim("ocean-7")
    good = rows_of(1, 3)
    bad: list[dict[str, Any]] = [
        {"step": -1}, {"step": 2**62}, {"step": 1.5}, {"step": True}, {"step": "3"}, {"step": 3.0},
        {}, {"step": 4, "basin": [10**400, 0]}, {"step": 10**400},
        {"step": 4, "metrics": {"": 1}}, {"step": 4, "metrics": {"step": 1}},
        {"step": 4, "metrics": {"a\x00": 1}}, {"step": 4, "metrics": {"a": "1"}},
        {"step": 4, "metrics": {"a": "nan"}}, {"step": 4, "metrics": {"a": True}},
        {"step": 4, "metrics": {"a": None}}, {"step": 4, "metrics": {"a": [1]}},
        {"step": 4, "metrics": {"a": 10**400}}, {"step": 4, "metrics": {"x" * 300: 1}},
        {"step": 4, "metrics": {f"m{i}": 1 for i in range(1001)}},
        {"step": 4, "regime": "odd"}, {"step": 4, "basin": [0.5, 0.6]},
        {"step": 4, "basin": [1.0]}, {"step": 4, "basin": [-0.5, 1.5]},
        {"step": 4, "basin": ["NaN", 1]}, {"step": 4, "basin": ["0.5", "0.5"]},
        {"step": 4, "time": "2026-05-04T10:00:00"}, {"step": 4, "time": "yesterday"},
        {"step": 4, "rank": 1}, {"step": 4, "time": "3735-08-27T06:14:20Z"},
    ]  # fmt: skip
    for row in bad:
        answer = rest.record(claimed, [*good, row])
        assert answer.status_code == 422, (row, answer.text)
    assert rest.record(claimed, []).status_code == 422
    assert rest.record(claimed, rows_of(1, 10_001)).status_code == 422
    assert acked(rest, claimed) == 0
    assert rest.record(claimed, good).json()["rows"] == 3


def test_what_a_node_sends_is_what_the_store_holds(rest: Rest) -> None:
    claimed = rest.claim("ocean-7", config={"lr": 0.1}, rank=0)
    sent = {
        "step": 3, "time": "2026-05-04T12:15:30.123456+02:00", "regime": "Geometric",
        "metrics": {"loss": 1.5, "mine": 2}, "basin": [0.25, 0.75],
    }  # fmt: skip
    assert rest.record(claimed, [sent]).json()["rows"] == 1
    (row,) = query.rows(rest.store, "ocean-7").rows
    assert row.recorded_at.isoformat() == "2026-05-04T10:15:30.123456+00:00"
    assert (row.regime, row.metrics) == ("geometric", {"loss": 1.5, "mine": 2.0})
    basin = rest.store.telemetry.basin(rest.store.sessions.get("ocean-7").id, 1, 0, 3)
    assert basin is not None
    assert basin.tolist() == pytest.approx([0.25, 0.75])
    assert rest.store.sessions.get("ocean-7").config == {"lr": 0.1}


def test_a_claim_sent_again_is_the_same_claim(rest: Rest) -> None:
    ids = {"attempt": str(uuid4()), "writer": str(uuid4())}
    first = rest.claim("ocean-7", **ids)
    rest.record(first, rows_of(1, 5))
    again = rest.claim("ocean-7", **ids)
    assert again["attempt"]["number"] == 1
    assert again["writer"] == {**first["writer"], "acked_seq": 5, "stored_rows": 5, "max_step": 4}
    other = rest.claim("ocean-7", attempt=ids["attempt"], rank=1)
    assert other["attempt"]["id"] == ids["attempt"], "a second rank of the same run"
    assert len(rest.store.sessions.attempts(rest.store.sessions.get("ocean-7").id)) == 1


def test_a_session_that_is_recorded_is_refused_until_taken_over(rest: Rest) -> None:
    first = rest.claim("ocean-7")
    rest.record(first, rows_of(1, 5))
    wanted = {"attempt": str(uuid4()), "writer": str(uuid4()), "host": "elsewhere"}
    path = "/v1/sessions/ocean-7/attempts"
    busy = rest.post(path, json=wanted)
    assert busy.status_code == 409
    assert busy.json()["type"].endswith(":session-busy")
    assert rest.record(first, rows_of(6, 7), first_seq=6).status_code == 200, "it goes on"
    ended = rest.post(path, json=wanted)
    assert ended.json()["type"].endswith(":not-running"), "that attempt was given up"
    taken = rest.claim("ocean-7", takeover=True)
    stale = rest.record(first, rows_of(8, 9), first_seq=8)
    assert stale.status_code == 409
    assert stale.json()["epoch"] == 2
    beat = rest.post(f"{path}/{first['attempt']['id']}/heartbeat").json()
    assert beat == {"alive": False, "stop": None}
    assert rest.record(taken, rows_of(1, 2)).status_code == 200
    statuses = [item["status"] for item in rest.get(path).json()]
    assert statuses == ["lost", "failed", "running"]


def test_a_stop_reaches_the_node_with_its_heartbeat(rest: Rest) -> None:
    claimed = rest.claim("ocean-7")
    path = f"/v1/sessions/ocean-7/attempts/{claimed['attempt']['id']}"
    assert rest.post(f"{path}/heartbeat").json() == {"alive": True, "stop": None}
    asked = rest.post("/v1/sessions/ocean-7/abort", json={"reason": "too hot"})
    assert asked.status_code == 202
    again = rest.post("/v1/sessions/ocean-7/abort", json={"reason": "still"})
    assert again.json()["id"] == asked.json()["id"], "asked twice, it is asked once"
    heard = rest.post(f"{path}/heartbeat").json()["stop"]
    assert heard["id"] == asked.json()["id"]
    assert "too hot" in heard["message"]
    assert heard["detail"]["checkpoint"] is True
    closed = rest.post(f"{path}/close", json={"status": "aborted", "exit_status": 75}).json()
    assert (closed["status"], closed["exit_status"]) == ("aborted", 75)
    event = rest.store.events.get(UUID(asked.json()["id"]))
    assert event.resolved_at is not None
    over = rest.post("/v1/sessions/ocean-7/abort", json={})
    assert over.status_code == 202, "the answer to a request that was heard stays"
    rest.claim("lake-1")
    done = rest.get("/v1/sessions/lake-1/attempts").json()[0]["id"]
    rest.post(f"/v1/sessions/lake-1/attempts/{done}/close", json={"status": "completed"})
    late = rest.post("/v1/sessions/lake-1/abort", json={})
    assert late.status_code == 409
    assert late.json()["status_of_attempt"] == "completed"


def test_what_no_node_sends_is_refused(rest: Rest) -> None:
    ids = {"attempt": str(uuid4()), "writer": str(uuid4())}
    bad: list[tuple[str, Any]] = [
        ("attempts", {**ids, "attempt": "1", "host": "n"}),
        ("attempts", {**ids, "host": "n", "pid": -1}),
        ("attempts", {**ids, "host": "n", "rank": True}),
        ("attempts", {**ids, "host": "a\0b"}),
        ("attempts", {**ids, "host": "n", "config": {"a\0": 1}}),
        ("attempts", {"attempt": ids["attempt"], "host": "n"}),
        ("attempts", {**ids, "host": "n", "more": 1}),
        ("abort", {"reason": 5}), ("abort", {"checkpoint": "yes"}), ("abort", []),
        ("abort", {"reason": "a\0b"}),
    ]  # fmt: skip
    rest.claim("ocean-7")
    for path, body in bad:
        session = "ocean-7" if path == "abort" else "lake-1"
        answer = rest.post(f"/v1/sessions/{session}/{path}", json=body)
        assert answer.status_code == 422, (body, answer.text)
