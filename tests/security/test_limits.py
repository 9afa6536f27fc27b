"""Rates, time-outs, a dead database: each with one answer, and never a wait without an end."""

from __future__ import annotations

import random
from pathlib import Path

import psycopg
from places import CONNECT_S, new_database
from processes import wait_until
from rest import PROBLEM, Rest, served

from qigstore.database.engine import Database
from qigstore.repository import Store
from qigstore.server.limits import RateLimit


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_no_window_holds_more_than_the_burst_and_the_rate(rng: random.Random) -> None:
    for _ in range(100):
        clock, rate, burst = Clock(), rng.uniform(0.1, 50), rng.randint(1, 20)
        limit, allowed = RateLimit(rate, burst, clock=clock), []
        for _ in range(200):
            clock.now += rng.expovariate(rate) if rng.random() < 0.8 else 0
            wait = limit.take("me")
            assert wait >= 0
            if wait == 0:
                allowed.append(clock.now)
        for i, first in enumerate(allowed):
            for j in range(i, len(allowed)):
                assert j - i + 1 <= burst + rate * (allowed[j] - first) + 1e-6


def test_after_the_told_wait_it_is_allowed(rng: random.Random) -> None:
    clock = Clock()
    limit = RateLimit(rng.uniform(0.1, 9), 3, clock=clock)
    for _ in range(100):
        wait = limit.take("me")
        if wait:
            clock.now += wait + 1e-9
            assert limit.take("me") == 0


def test_askers_do_not_share_and_are_forgotten_in_the_end() -> None:
    clock = Clock()
    limit = RateLimit(1, 1, clock=clock)
    assert [limit.take(asker) for asker in range(10_000)] == [0] * 10_000
    assert limit.take(9_999) > 0
    assert len(limit._buckets) <= 4096


def test_a_token_that_asks_too_fast_is_told_how_long_to_wait(store: Store, home: Path) -> None:
    with served(store, home, requests_per_s=0.01, burst=3) as rest:
        answers = [rest.get("/v1/sessions", "read") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert answers[-1].headers["content-type"] == PROBLEM
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 101
        assert rest.get("/v1/sessions", "admin").status_code == 200, "another token is not slowed"


def test_guessing_is_slowed_and_does_not_slow_others(store: Store, home: Path) -> None:
    with served(store, home, refusals_per_s=0.001, refusals_burst=3) as rest:
        wrong = {"Authorization": f"Bearer qs_{'0' * 32}_{'A' * 43}"}
        codes = [rest.client.get("/v1/sessions", headers=wrong).status_code for _ in range(5)]
        assert codes == [401, 401, 401, 429, 429]
        assert rest.client.get("/v1/sessions").status_code == 429, "nor is no token a way around"
        assert rest.get("/v1/sessions", "read").status_code == 200
        assert rest.client.get("/v1/health").status_code == 200, "its own count"
        codes = [rest.client.get("/v1/health").status_code for _ in range(5)]
        assert codes[-1] == 429


def test_what_is_no_bearer_token_is_unauthorized(rest: Rest) -> None:
    latin = "Bearer é".encode("latin-1")
    for value in ("", "Bearer", "Bearer ", "Basic eDp5", latin, "Bearer a b", "qs_1"):
        answer = rest.client.get("/v1/sessions", headers={"Authorization": value})
        assert answer.status_code == 401, value
        assert answer.headers["content-type"] == PROBLEM


def test_a_question_that_takes_too_long_is_given_up(dsn: str, home: Path) -> None:
    with (
        Store(Database(dsn, statement_timeout_s=3)) as store,
        served(store, home) as rest,
        psycopg.connect(dsn) as other,
    ):
        rest.token()
        other.execute("LOCK TABLE qigstore.session IN ACCESS EXCLUSIVE MODE")
        answer = rest.get("/v1/sessions")
        assert answer.status_code == 503
        assert answer.json()["type"] == "urn:qigstore:problem:query-too-long"
        assert int(answer.headers["retry-after"]) >= 1
        other.rollback()
        wait_until(lambda: rest.get("/v1/sessions").status_code == 200, "it answers again")


def test_a_dead_database_is_503_and_is_not_described(
    server_dsn: str, template: str, home: Path
) -> None:
    with new_database(server_dsn, template) as dsn:
        store = Store(Database(dsn, connect_timeout_s=CONNECT_S))
        with served(store, home) as rest:
            filled = rest.fill()
            name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
            with psycopg.connect(server_dsn, autocommit=True) as admin:
                admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                    (name,),
                )
            for answer in (
                rest.get("/v1/sessions"),
                rest.get("/metrics"),
                rest.client.get("/v1/health"),
                rest.record(filled.claimed, [{"step": 99}], first_seq=21),
            ):
                assert answer.status_code == 503
                assert answer.headers["content-type"] == PROBLEM
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["type"] == "urn:qigstore:problem:store-unavailable"
                assert str(name) not in answer.text
                assert "postgres" not in answer.text.lower()
            with psycopg.connect(server_dsn, autocommit=True) as admin:
                admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            assert rest.get("/v1/sessions").status_code == 200
            assert rest.record(filled.claimed, [{"step": 99}], first_seq=21).json()["rows"] == 1
        store.close()
