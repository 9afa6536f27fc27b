"""How old a row is when a stream's client has it, and what many clients and a silent one change.

    python -m benchmarks.stream

A training process records every 10 ms; each row carries when. A server of its own, and clients in
this process: one, many, and many beside one that never reads, in turn, so that what the machine
does meanwhile falls on all of them. Beside them a bare WebSocket echo, for the machine's own part.
Every client's records are counted: gaps and repeats must be 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve

from qigstore.database.embedded import kept_port
from qigstore.repository import Store, open_store

__all__ = ["main"]

_PACE_S = 0.01
_OF_ONE_TOKEN = 90
_TRAIN = f"""
import time, qigstore
row = {{f"metric_{{n}}": n / 7 for n in range(18)}}
with qigstore.session("bench") as run:
    step = 0
    while True:
        run.record(step, {{**row, "loss": 1 / (step + 1), "sent": time.time()}})
        step += 1
        time.sleep({_PACE_S})
"""


class Client:
    """A client, and what it had.

    Attributes:
        ages: seconds between `record()` and here, of each row while `measuring`.
        faults: gaps and repeats.
    """

    def __init__(self, url: str, secret: str) -> None:
        self._url, self._secret = url, secret
        self.ages: list[float] = []
        self.measuring = False
        self.faults = 0
        self._reached: int | None = None
        self._ready = asyncio.Event()

    async def run(self) -> None:
        """Read until called off."""
        async with connect(self._url, max_size=None, compression=None, open_timeout=60) as opened:
            await opened.send(json.dumps({"token": self._secret, "rate": "all"}))
            await opened.recv()
            self._ready.set()
            async for text in opened:
                self._take(str(text))

    async def ready(self) -> None:
        """Return once it is connected."""
        await self._ready.wait()

    def _take(self, text: str) -> None:
        now = time.time()
        for first, last, sent in _parts(text):
            if self._reached is not None and first != self._reached + 1:
                self.faults += 1
            self._reached = last
            if self.measuring:
                self.ages.extend(now - at for at in sent)


@lru_cache(maxsize=64)
def _parts(text: str) -> list[tuple[int, int, list[float]]]:
    """Records of an envelope; all clients get the same text, so that it is read once."""
    one = json.loads(text)
    if one["kind"] != "telemetry":
        return []
    return [
        (part["first_seq"], part["last_seq"], [row["metrics"]["sent"] for row in part["rows"]])
        for part in one["data"]["parts"]
    ]


@asynccontextmanager
async def _clients(url: str, secrets: Sequence[str], count: int) -> AsyncIterator[list[Client]]:
    made = [Client(url, secrets[number // _OF_ONE_TOKEN]) for number in range(count)]
    tasks = []
    for number, client in enumerate(made):
        tasks.append(asyncio.create_task(client.run()))
        if number % 20 == 19:  # not all at once: a token has its rate
            await asyncio.gather(*(other.ready() for other in made[: number + 1]))
    await asyncio.gather(*(client.ready() for client in made))
    try:
        yield made
        failed = [task for task in tasks if task.done()]
        assert not failed, f"{len(failed)} clients were cut off: {failed[0]}"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _silent(url: str, secret: str) -> AsyncIterator[None]:
    """A client that asks for everything and never reads."""
    opened: ClientConnection
    async with connect(url, compression=None, max_queue=1, open_timeout=60) as opened:
        await opened.send(json.dumps({"token": secret, "rate": "all"}))
        opened.transport.pause_reading()
        try:
            yield
        finally:
            opened.transport.abort()


async def _measure(clients: Sequence[Client], seconds: float) -> np.ndarray[Any, Any]:
    """Ages of rows, once what came before is past."""
    await asyncio.sleep(1.0)
    for client in clients:
        client.ages.clear()
        client.measuring = True
    await asyncio.sleep(seconds)
    for client in clients:
        client.measuring = False
    return np.concatenate([np.array(client.ages) for client in clients])


async def _echo(seconds: float) -> np.ndarray[Any, Any]:
    """Round trips of a bare echo, every 10 ms."""

    async def answer(opened: ServerConnection) -> None:
        async for message in opened:
            await opened.send(message)

    trips = []
    async with serve(answer, "127.0.0.1", 0, compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}", compression=None) as opened:
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                began = time.perf_counter()
                await opened.send("x" * 500)
                await opened.recv()
                trips.append(time.perf_counter() - began)
                await asyncio.sleep(_PACE_S)
    return np.array(trips)


def _shown(name: str, seconds: np.ndarray[Any, Any]) -> str:
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1e3
    return f"{name:44} p50 {p50:7.1f} ms   p99 {p99:7.1f} ms   most {seconds.max() * 1e3:7.1f} ms"


@contextmanager
def _process(*command: str, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def _cpu_s(pid: int) -> float:
    """Processor time of a process so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mb(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


async def _rounds(url: str, secrets: Sequence[str], given: argparse.Namespace, pid: int) -> None:
    faults, ratios = 0, []
    for number in range(given.rounds):
        print(f"round {number + 1} of {given.rounds}; server {_memory_mb(pid):.0f} MB")
        print(_shown("  bare echo, round trip", await _echo(given.seconds)))
        async with _clients(url, secrets, 1) as one:
            print(_shown("  record() to one client", await _measure(one, given.seconds)))
            faults += sum(client.faults for client in one)
        async with _clients(url, secrets, given.clients) as many:
            began, busy, own = time.perf_counter(), _cpu_s(pid), time.process_time()
            plain = await _measure(many, given.seconds)
            passed = time.perf_counter() - began
            print(
                f"  of one core: the server {(_cpu_s(pid) - busy) / passed:.0%}, "
                f"these clients {(time.process_time() - own) / passed:.0%}"
            )
            print(_shown(f"  record() to {given.clients} clients", plain))
            async with _silent(url, secrets[-1]):
                beside = await _measure(many, given.seconds)
            print(_shown(f"  record() to {given.clients}, one more never reads", beside))
            print(f"  server with all of them {_memory_mb(pid):.0f} MB")
            faults += sum(client.faults for client in many)
        ratios.append(np.quantile(beside, 0.99) / np.quantile(plain, 0.99))
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"p99 beside one that never reads, over p99 without: {shown}")
    print(f"gaps and repeats: {faults}")


def _tokens(store: Store, clients: int) -> list[str]:
    count = clients // _OF_ONE_TOKEN + 2
    return [store.tokens.create(f"bench {number}", ["read"])[1] for number in range(count)]


def main(words: Sequence[str] | None = None) -> None:
    """Run it and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="qs-", dir="/tmp") as home:
        env = {**os.environ, "QIGSTORE_HOME": home}
        with kept_port() as port, open_store(home=Path(home)) as store:
            secrets = _tokens(store, given.clients)
            serving = [sys.executable, "-m", "qigstore", "serve", "--port", str(port)]
            with (
                _process(*serving, env=env) as server,
                _process(sys.executable, "-c", _TRAIN, env=env),
            ):
                assert server.stdout is not None
                server.stdout.readline()
                url = f"ws://127.0.0.1:{port}/v1/stream"
                asyncio.run(_rounds(url, secrets, given, server.pid))


if __name__ == "__main__":
    main()
