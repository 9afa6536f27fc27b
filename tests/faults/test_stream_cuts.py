"""R20: a client that comes back with its last `seq` misses nothing and sees nothing twice.

Real processes train while clients are cut off at random moments and come back, at other rates, to
a server that is killed and started again, on a database that is killed and comes back. Events are
stored by transactions that overlap and commit in another order than they began.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from commands import environment
from figures import figure, in_parts
from processes import python, wait_until
from streams import Ledger, Served, serving
from test_server_kills import _kill_group, _server_to_kill
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from qigstore.database.embedded import EmbeddedServer
from qigstore.errors import StoreUnavailable
from qigstore.repository import Store, open_store

TRAIN = """
import random, sys, time
import qigstore
name, rows, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng, step = random.Random(seed), 0
with qigstore.session(name) as run:
    print("open", flush=True)
    sys.stdin.readline()
    for number in range(rows):
        step = max(0, step + rng.choice((1, 1, 1, 1, 1, 1, 0, -3)))
        run.record(step, loss=rng.random(), phi=0.5, mine=number)
        run.checkpoint({"w": [step]}, step=number, every=40)
        time.sleep(rng.uniform(0, 0.02))
"""
LIMIT_S = 240


class Events(threading.Thread):
    """Stores events in overlapping transactions, and acknowledges some of them."""

    def __init__(self, dsn: str, session: int, rng: random.Random, count: int) -> None:
        super().__init__()
        self._dsn, self._session, self._rng, self._count = dsn, session, rng, count
        self.failure: BaseException | None = None

    def run(self) -> None:
        left = self._count
        try:
            while left > 0:
                try:
                    left -= self._some()
                except psycopg.OperationalError:
                    time.sleep(0.05)
        except BaseException as error:
            self.failure = error
            raise

    def _some(self) -> int:
        rng = self._rng
        connections: list[psycopg.Connection] = []
        try:
            for _ in range(3):  # any of which may fail: the database is killed now and then
                connections.append(psycopg.connect(self._dsn))
            ids = []
            for connection in connections:
                for _ in range(rng.randint(1, 3)):
                    ids.append(uuid4())
                    connection.execute(
                        """INSERT INTO qigstore.event
                           (id, session_id, attempt, rule, severity, message)
                           VALUES (%s, %s, 1, 'test', 'info', 'late')""",
                        (ids[-1], self._session),
                    )
            rng.shuffle(connections)
            for connection in connections:
                time.sleep(rng.uniform(0, 0.1))
                if rng.random() < 0.2:
                    connection.rollback()
                connection.commit()
            known = "UPDATE qigstore.event SET acknowledged_at = now() WHERE id = ANY(%s)"
            with connections[0]:
                connections[0].execute(known, (ids[:2],))
            return len(ids)
        finally:
            for connection in connections:
                connection.close()


async def _client(
    url: str,
    secret: str,
    ledger: Ledger,
    rng: random.Random,
    done: Callable[[Ledger], bool],
    *,
    every_row: bool,
) -> int:
    """Come back until there is nothing left to have; how often it was cut."""
    cuts = 0
    while not done(ledger):
        wishes = {"token": secret, "rate": "all" if every_row else rng.choice(["all", 100, 10, 2])}
        if ledger.last is not None:
            wishes["after"] = ledger.last
        try:
            async with connect(url, open_timeout=20, close_timeout=1, max_size=None) as socket:
                await socket.send(json.dumps(wishes))
                try:
                    # Longer each time, so that it gets somewhere on a machine of any speed.
                    async with asyncio.timeout(rng.uniform(0.05, 1.5) * (1 + cuts / 20)):
                        while True:
                            ledger.take(await socket.recv())
                except TimeoutError:
                    cuts += 1
                    socket.transport.abort()
        except (OSError, WebSocketException, TimeoutError):
            await asyncio.sleep(rng.uniform(0.02, 0.2))
    return cuts


class Clients(threading.Thread):
    """All clients, in an event loop of their own."""

    def __init__(self, url: str, secret: str, count: int, rng: random.Random) -> None:
        super().__init__()
        self._url, self._secret = url, secret
        self._rngs = [random.Random(rng.getrandbits(32)) for _ in range(count)]
        self.ledgers = [Ledger() for _ in range(count)]
        self.expected: dict[tuple[str, int, int], int] | None = None
        self.changes: dict[str, int] = {}
        self.cuts = 0
        self.given_up = False
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self.cuts = sum(asyncio.run(self._all()))
        except BaseException as error:
            self.failure = error
            raise

    async def _all(self) -> list[int]:
        pairs = zip(self.ledgers, self._rngs, strict=True)
        return await asyncio.gather(
            *(
                _client(self._url, self._secret, ledger, rng, self._done, every_row=number == 0)
                for number, (ledger, rng) in enumerate(pairs)
            )
        )

    def finish(self) -> list[str]:
        """Let them have what is left; what somebody lacks in the end."""
        self.join(LIMIT_S)
        lacking = [
            f"client {number}: {ledger.reached} of {self.expected}, changes "
            f"{set(self.changes.items()) ^ set(ledger.changes.items())}"
            for number, ledger in enumerate(self.ledgers)
            if not self._has_all(ledger)
        ]
        self.given_up = True
        self.join(LIMIT_S)
        return lacking

    def _done(self, ledger: Ledger) -> bool:
        return self.given_up or self._has_all(ledger)

    def _has_all(self, ledger: Ledger) -> bool:
        return (
            self.expected is not None
            and ledger.reached == self.expected
            and ledger.changes == self.changes
        )


def _expected(store: Store, clients: Clients) -> None:
    """What there is in the end, read from the database."""
    look = store.feed.look()
    names = {key: progress.session for key, progress in look.writers.items()}
    found = {
        (names[key], key.attempt, key.rank): progress.mark.seq
        for key, progress in look.writers.items()
    }
    with store.database.begin() as connection:
        changed = connection.exec_driver_sql("SELECT id::text, changed_in FROM qigstore.change")
        clients.changes = {row[0]: row[1] for row in changed}
    clients.expected = found


def _patiently(ask: Callable[[], None]) -> None:
    """Ask until the last kill of the database no longer echoes."""
    while True:
        with suppress(StoreUnavailable):
            return ask()


def _disturb(served: Served, root: Path, rng: random.Random, times: int) -> list[str]:
    """Kill the stream's server or the database, some times."""
    done = []
    for _ in range(times):
        time.sleep(rng.uniform(0.5, 1.5))
        way = rng.choice(["server", "database"])
        done.append(way)
        if way == "server":
            served.kill()
            served.start()
        else:
            _kill_group(_server_to_kill(root).server_pid)
    return done


def _trainings(env: dict[str, str], rows: int, seed: int) -> list[subprocess.Popen[str]]:
    children = [python(TRAIN, f"lake-{n}", rows, seed + n, env=env) for n in range(2)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n", child.communicate()
    return children


def _cut(home: Path, seed: int, *, clients: int, rows: int, kills: int) -> None:
    rng = random.Random(seed)
    env = environment(home)
    with open_store(home=home) as store, serving(env) as served:
        _, secret = store.tokens.create("all", ["read"])
        session = store.sessions.open("ocean", {})
        watching = Clients(served.url, secret, clients, rng)
        watching.start()
        wait_until(
            lambda: all(ledger.last for ledger in watching.ledgers) or watching.failure,
            "every client is connected",
            limit_s=120,
        )
        server = EmbeddedServer.start(home / "postgres")
        events = Events(server.dsn(), session.id, rng, rows // 4)
        children = _trainings(env, rows, seed)
        events.start()
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        ways = _disturb(served, home / "postgres", rng, kills)
        for child in children:
            out, err = child.communicate(timeout=LIMIT_S)
            assert child.returncode == 0, out + err
        events.join(LIMIT_S)
        _patiently(lambda: _expected(store, watching))
        lacking = watching.finish()
        stored = {
            row.step: dict(row.metrics)
            for row in store.telemetry.rows(store.sessions.get("lake-0").id)
        }
        server.close()
    gaps = sum(len(ledger.gaps) for ledger in watching.ledgers)
    repeats = sum(len(ledger.repeats) for ledger in watching.ledgers)
    had = sum(ledger.envelopes for ledger in watching.ledgers)
    print(
        f"seed {seed}: {clients} clients, {watching.cuts} cuts, kills of {ways}, {had} envelopes, "
        f"{sum(watching.expected.values()) if watching.expected else 0} records, "
        f"{len(watching.changes)} events and checkpoints: {gaps} gaps, {repeats} repeats"
    )
    assert not lacking, lacking
    assert watching.failure is None
    assert events.failure is None
    assert watching.cuts > clients
    assert gaps == repeats == 0
    assert watching.ledgers[0].rows["lake-0", 1, 0] == stored


@pytest.mark.timeout(1200)
def test_cut_clients_miss_nothing_and_see_nothing_twice(home: Path, seed: int) -> None:
    _cut(home, seed, clients=8, rows=300, kills=3)


@pytest.mark.long(seconds=300)
@in_parts(20)
def test_many_cut_clients_miss_nothing_and_see_nothing_twice(
    home: Path, seed: int, count: int
) -> None:
    for part in range(figure(count)):
        _cut(home / str(part), seed + part, clients=40, rows=1500, kills=8)
