"""A bad network in front of PostgreSQL: cuts, resets, goes deaf, is slow, is not there."""

from __future__ import annotations

import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

__all__ = ["HEALTHY", "Fault", "Proxy", "random_fault"]

_COMMIT = b"COMMIT\0"
_RESET = struct.pack("ii", 1, 0)
_HOWS = ("close", "reset", "deaf")
_PLACES = ("to server", "to client", "before commit", "after commit")


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls one connection.

    Attributes:
        how: "close" both sides, "reset" both, go "deaf" (nothing passes, nothing closes), or
            "refuse" at once.
        where: after `after` bytes in a direction, or around the first COMMIT after them.
        delay_s: before each piece passes.
    """

    how: str = "close"
    where: str = "to server"
    after: float = float("inf")
    delay_s: float = 0.0


HEALTHY = Fault()


def random_fault(rng: random.Random) -> Fault:
    """A cut somewhere: in the handshake, in a batch, around a COMMIT; some lines are slow too."""
    where = rng.choice(_PLACES)
    after = 0.0 if where.endswith("commit") and rng.random() < 0.5 else 10 ** rng.uniform(0, 5)
    # Deafness takes the client its whole limit to notice, so it is the rare one.
    how = rng.choices(_HOWS, [12, 12, 1])[0]
    delay_s = rng.uniform(0, 0.02) if rng.random() < 0.05 else 0.0
    return Fault(how, where, after, delay_s)


class Proxy:
    """Listens on a port of its own; `plan` says what befalls each new connection.

    Attributes:
        dsn: the same database, through the proxy.
        done: how often each fault happened, as "how, where".
    """

    def __init__(self, dsn: str, plan: Callable[[], Fault] = lambda: HEALTHY) -> None:
        self.plan = plan
        self.done: Counter[str] = Counter()
        self._to = conninfo_to_dict(dsn)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        host, port = self._listener.getsockname()
        self.dsn = make_conninfo(dsn, host=host, hostaddr="", port=port)
        self._closed, self._generation = threading.Event(), 0
        self._threads = [threading.Thread(target=self._listen, name="proxy")]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a connection of the proxy hangs"

    def cut_all(self) -> None:
        """Close every connection there is now."""
        self._generation += 1

    @property
    def cuts(self) -> int:
        """Faults so far."""
        return sum(self.done.values())

    def _listen(self) -> None:
        with suppress(OSError):  # closed
            while not self._closed.is_set():
                client = self._listener.accept()[0]
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                serving = threading.Thread(target=self._serve, args=(client, self.plan()))
                self._threads = [t for t in self._threads if t.is_alive()] + [serving]
                serving.start()

    def _serve(self, client: socket.socket, fault: Fault) -> None:
        with ExitStack() as stack:
            stack.enter_context(client)
            if fault.how == "refuse":
                self._strike(fault, [client])
                return
            server = stack.enter_context(self._connect())
            with suppress(ConnectionError):
                self._pass(client, server, fault)

    def _connect(self) -> socket.socket:
        host, port = str(self._to["host"]), self._to.get("port", 5432)
        if host.startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(Path(host) / f".s.PGSQL.{port}"))
            return server
        return socket.create_connection((host, int(str(port))))

    def _pass(self, client: socket.socket, server: socket.socket, fault: Fault) -> None:
        passed = {client: 0, server: 0}
        committing, generation = False, self._generation
        while not self._closed.is_set() and self._generation == generation:
            for source in select.select([client, server], [], [], 0.1)[0]:
                data = source.recv(1 << 16)
                if not data:
                    return
                time.sleep(fault.delay_s)
                kept, struck = len(data), False
                if fault.where == ("to server" if source is client else "to client"):
                    struck = passed[source] + len(data) > fault.after
                    kept = int(fault.after) - passed[source] if struck else kept
                elif source is client and passed[client] >= fault.after and _COMMIT in data:
                    committing = fault.where == "after commit"
                    struck = fault.where == "before commit"
                    kept = data.index(_COMMIT) if struck else kept
                elif source is server and committing:
                    # The server has committed: this is its answer.
                    kept, struck = 0, True
                (server if source is client else client).sendall(data[:kept])
                passed[source] += kept
                if struck:
                    self._strike(fault, [client, server])
                    return

    def _strike(self, fault: Fault, sockets: list[socket.socket]) -> None:
        self.done[f"{fault.how}, {fault.where}"] += 1
        if fault.how == "deaf":
            # Nothing passes and nothing closes, until the client has had enough.
            generation = self._generation
            while self._generation == generation and not self._closed.is_set():
                if _has_gone(sockets[0]):
                    break
                time.sleep(0.01)
        if fault.how == "reset":
            for one in sockets:
                if one.family != socket.AF_UNIX:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def _has_gone(client: socket.socket) -> bool:
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    return bool(poll.poll(0))
