"""Exactly once by REST, though both lines are bad: the node's, and the server's to PostgreSQL."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
import uvicorn
from figures import figure
from processes import wait_until
from proxy import HEALTHY, Fault, Proxy, random_fault

from qigstore import query
from qigstore.database.engine import Database
from qigstore.repository import Store
from qigstore.server import ServerConfig, create_app
from qigstore.server.listening import listen, url_of
from qigstore.settings import Settings

LIMITS = {"statement_timeout_s": 0.8, "answer_margin_s": 0.2, "connect_timeout_s": 1}
QUICK = {"requests_per_s": 1e6, "burst": 10**6, "refusals_per_s": 1e6, "refusals_burst": 10**6}
ROWS_AT_ONCE_MAX = 40


@contextmanager
def hosted(store: Store, home: Path) -> Iterator[str]:
    """A server in a thread of this process, and its URL."""
    config = ServerConfig(settings=Settings(home=home), port=0, **QUICK)
    with listen(config) as bound:
        made = uvicorn.Config(
            create_app(store, config), log_config=None, access_log=False,
            timeout_graceful_shutdown=2,
        )  # fmt: skip
        server = uvicorn.Server(made)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive(), "the server listens")
            yield url_of(bound)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def line_fault(rng: random.Random) -> Fault:
    """A cut within the first few requests of a connection, on the way there or back."""
    where = rng.choice(["to server", "to client"])
    return Fault(rng.choice(["close", "reset"]), where, after=10 ** rng.uniform(1, 4.3))


class Node:
    """A training node that knows nothing but its own ids and what it recorded."""

    def __init__(self, url: str, secret: str, session: str) -> None:
        self.session, self.at = session, 0
        self.ids = {"attempt": str(uuid4()), "writer": str(uuid4())}
        self.answers: Counter[str] = Counter()
        self._path = f"{url}/v1/sessions/{session}"
        bearer = {"Authorization": f"Bearer {secret}"}
        self._client = httpx2.Client(headers=bearer, timeout=3, trust_env=False)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request; None where nobody knows what became of it."""
        try:
            answer = self._client.request(method, f"{self._path}/{path}", json=body)
        except httpx2.HTTPError:
            self.answers["lost"] += 1
            return None
        self.answers[str(answer.status_code)] += 1
        assert answer.status_code in {200, 201, 409, 503}, answer.text
        return answer

    def claim(self) -> bool:
        """Open the attempt; once, however often it is asked."""
        answer = self.ask("POST", "attempts", {**self.ids, "host": "node"})
        return answer is not None and answer.status_code == 201

    def send(self, rows: int) -> None:
        """Send the next rows; where it went wrong, the next call sends some of them again."""
        last = self.at + rows
        batch = {
            "writer": self.ids["writer"], "epoch": 1, "attempt": 1, "first_seq": self.at + 1,
            "rows": [{"step": seq - 1, "metrics": {"loss": seq * 0.5}}
                     for seq in range(self.at + 1, last + 1)],
        }  # fmt: skip
        answer = self.ask("POST", "ingest", batch)
        if answer is None or answer.status_code == 503:
            return
        if answer.status_code == 200:
            self.at = last
            return
        path = f"attempts/{self.ids['attempt']}/writers/{self.ids['writer']}"
        state = self.ask("GET", path)
        if state is not None and state.status_code == 200:
            self.at = state.json()["acked_seq"]

    def close(self) -> None:
        """Let the connection go."""
        self._client.close()


def cut(cuts: int, dsn: str, store: Store, home: Path, rng: random.Random) -> None:
    _, secret = store.tokens.create("nodes", ["write"])
    began = time.monotonic()
    with (
        Proxy(dsn, lambda: random_fault(rng)) as database_line,
        Store(Database(database_line.dsn, **LIMITS)) as through,
        hosted(through, home) as url,
        Proxy(f"host=127.0.0.1 port={url.rpartition(':')[2]}", lambda: line_fault(rng)) as line,
    ):
        port = dict(part.split("=", 1) for part in line.dsn.split())["port"]
        node = Node(f"http://127.0.0.1:{port}", secret, "ocean-7")
        wait_until(node.claim, "the attempt is open", limit_s=120)
        end = time.monotonic() + 120 + cuts
        while min(line.cuts, database_line.cuts) < cuts // 2:
            assert time.monotonic() < end, f"stuck after {line.cuts} cuts"
            node.send(rng.randint(1, ROWS_AT_ONCE_MAX))
        line.plan = database_line.plan = lambda: HEALTHY
        line.cut_all()
        wanted = node.at + 1

        def arrived() -> bool:
            node.send(1)
            return node.at >= wanted

        wait_until(arrived, "one more row", limit_s=120)
        node.close()
        done = {"of the node": line.cuts, "of the database": database_line.cuts}
    # The answer to its last batch may be lost: then more of it has arrived than it knows.
    sent = store.writers.state(UUID(node.ids["writer"])).acked_seq
    assert node.at <= sent <= node.at + ROWS_AT_ONCE_MAX
    rows = [
        row
        for start in range(0, sent, 5_000)
        for row in query.rows(store, "ocean-7", start=start, stop=start + 5_000, limit=10_000).rows
    ]
    found = [(row.seq, row.step, row.metrics["loss"]) for row in rows]
    print(
        f"{sum(done.values())} cuts {dict(done)} in {time.monotonic() - began:.0f} s: "
        f"{sent} rows sent, {sent - len(set(found))} missing, "
        f"{len(found) - len(set(found))} doubled; answers {dict(node.answers)}"
    )
    assert found == [(seq, seq - 1, seq * 0.5) for seq in range(1, sent + 1)]


@pytest.mark.timeout(1200)
def test_thirty_cuts_of_both_lines_lose_and_double_nothing(
    dsn: str, store: Store, home: Path, rng: random.Random
) -> None:
    cut(30, dsn, store, home, rng)


@pytest.mark.long(seconds=260)
def test_two_thousand_cuts_of_both_lines_lose_and_double_nothing(
    dsn: str, store: Store, home: Path, rng: random.Random
) -> None:
    cut(figure(2_000), dsn, store, home, rng)
