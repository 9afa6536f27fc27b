"""R4: a PostgreSQL crash loses nothing stored; the embedded server comes back by itself."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from figures import figure
from processes import kill, servers_in, wait_until

from qigstore.database.embedded import EmbeddedServer, ServerStatus, status
from qigstore.database.engine import Database
from qigstore.errors import StoreUnavailable


class Client(threading.Thread):
    """Inserts rows, one transaction each, and remembers which were acknowledged."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.database = database
        self.acknowledged: list[int] = []
        self.unknown: list[int] = []
        self.failure: BaseException | None = None
        self.enough = threading.Event()

    def run(self) -> None:
        number = 0
        try:
            while not self.enough.is_set():
                number += 1
                try:
                    with self.database.begin() as connection:
                        connection.exec_driver_sql("INSERT INTO kept VALUES (%s)", (number,))
                except StoreUnavailable:
                    self.unknown.append(number)
                else:
                    self.acknowledged.append(number)
        except BaseException as error:
            self.failure = error
            raise


def _kill_group(leader: int | None) -> None:
    assert leader
    with suppress(ProcessLookupError):
        os.killpg(os.getpgid(leader), signal.SIGKILL)


def _server_to_kill(root: Path) -> ServerStatus:
    """What lives there, seen in one look: what the last kill hit may be dying between two."""
    looks: list[ServerStatus] = []

    def there() -> int | None:
        looks.append(status(root))
        return looks[-1].server_pid

    wait_until(there, "a server to kill")
    return looks[-1]


def _strike(root: Path, rng: random.Random) -> str:
    """SIGKILL a part of the server, or all of it."""
    found = _server_to_kill(root)
    way = rng.choice(("server's group", "keeper's group", "both groups", "every process"))
    if way in ("server's group", "both groups"):
        _kill_group(found.server_pid)
    if way in ("keeper's group", "both groups"):
        _kill_group(found.keeper_pid)
    if way == "every process":
        kill(*servers_in(root))
    return way


def _read(database: Database) -> Sequence[int]:
    """Every stored row; asked again where the last kill still echoes."""
    while True:
        with suppress(StoreUnavailable), database.begin() as connection:
            return connection.exec_driver_sql("SELECT number FROM kept").scalars().all()


def _rounds(root: Path, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    ways: dict[str, int] = {}
    with EmbeddedServer.start(root) as server:
        database = Database(server.dsn(), revive=server.ensure)
        with database.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE kept (number bigint PRIMARY KEY)")
        client = Client(database)
        client.start()
        try:
            for _ in range(rounds):
                before = len(client.acknowledged)
                wait_until(
                    lambda before=before: len(client.acknowledged) > before or client.failure,
                    "a row is acknowledged again",
                    limit_s=120,
                )
                assert client.failure is None
                time.sleep(rng.uniform(0, 0.05))
                way = _strike(root, rng)
                ways[way] = ways.get(way, 0) + 1
        finally:
            client.enough.set()
            client.join()
        assert client.failure is None
        rows = _read(database)
        database.dispose()
    stored, acknowledged = set(rows), set(client.acknowledged)
    lost = acknowledged - stored
    print(
        f"seed {seed}: {rounds} kills {ways}, {len(acknowledged)} rows acknowledged, "
        f"{len(client.unknown)} attempts failed ({len(stored - acknowledged)} of them stored), "
        f"{len(lost)} lost"
    )
    assert sum(ways.values()) == rounds
    assert len(rows) == len(stored)
    assert not lost
    assert stored <= acknowledged | set(client.unknown)


@pytest.mark.timeout(1200)
def test_fifty_kills_lose_no_acknowledged_row(home: Path, seed: int) -> None:
    _rounds(home / "postgres", 50, seed)


@pytest.mark.long(seconds=120)
def test_two_hundred_kills_lose_no_acknowledged_row(home: Path, seed: int) -> None:
    _rounds(home / "postgres", figure(200), seed)
