"""The stream over real sockets: what comes, how fast, and what a slow client costs the others."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import uvicorn
from commands import environment
from processes import REPOSITORY, wait_until
from streams import Ledger, serving
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.uri import parse_uri

import qigstore
from qigstore.database.embedded import status
from qigstore.records import Event
from qigstore.repository import Store, open_store
from qigstore.server import ServerConfig, create_app, listening
from qigstore.server.listening import listen
from qigstore.server.stream import channel, endpoints, tail

LIMIT_S = 60


class Hosted:
    """A server in a thread of this process, so that a test may set its limits."""

    def __init__(self, store: Store) -> None:
        self.store = store
        _, self.secret = store.tokens.create(f"reader {uuid4().hex[:6]}", ["read"])
        self.app = create_app(store, ServerConfig())
        self.bound = listen(ServerConfig(port=0))
        # What the kernel holds for a client that does not read is small.
        self.bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        self.port = int(self.bound.getsockname()[1])
        self.connections: Collection[Any] = ()

    def socket(self) -> socket.socket:
        """A connection with a small buffer."""
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        made.connect(("127.0.0.1", self.port))
        return made

    @property
    def url(self) -> str:
        """Of the WebSocket."""
        return f"ws://127.0.0.1:{self.port}/v1/stream"

    @contextmanager
    def connect(
        self, ledger: Ledger | None = None, *, small: bool = False, **wishes: Any
    ) -> Iterator[ClientConnection]:
        """A stream from where the ledger ends, with its first envelope taken.

        `small`: whoever does not take what comes has hardly anything of it in a buffer.
        """
        ledger = ledger or Ledger()
        if ledger.last is not None:
            wishes["after"] = ledger.last
        options: dict[str, Any] = {"max_queue": 1, "sock": self.socket()} if small else {}
        # A client that takes nothing for a while, as here some do, does not answer a ping either.
        options |= {"ping_interval": None, "open_timeout": LIMIT_S}
        with connect(self.url, max_size=None, **options) as opened:
            opened.send(json.dumps({"token": self.secret, **wishes}))
            ledger.take(opened.recv(LIMIT_S))
            yield opened


@contextmanager
def hosted(store: Store) -> Iterator[Hosted]:
    found = Hosted(store)
    server = uvicorn.Server(
        uvicorn.Config(
            found.app,
            log_config=None,
            timeout_graceful_shutdown=2,
            ws_per_message_deflate=False,
            ws_ping_interval=None,
        )
    )
    found.connections = server.server_state.connections
    thread = threading.Thread(target=server.run, kwargs={"sockets": [found.bound]})
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), "the server listens", LIMIT_S)
        yield found
    finally:
        server.should_exit = True
        thread.join(60)
        found.bound.close()
        assert not thread.is_alive()


@pytest.fixture
def host(store: Store) -> Iterator[Hosted]:
    with hosted(store) as found:
        yield found


@pytest.fixture
def run(home: Path, dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[qigstore.Run]:
    monkeypatch.setenv("QIGSTORE_DSN", dsn)
    with qigstore.session("ocean", rules=[]) as opened:
        yield opened


def until(opened: ClientConnection, ledger: Ledger, enough: Callable[[], object]) -> None:
    """Take envelopes until there are enough."""
    while not enough():
        ledger.take(opened.recv(LIMIT_S))


def event(store: Store, session: str = "ocean", message: str = "m") -> Event:
    made = Event(
        id=uuid4(), session_id=store.sessions.get(session).id, attempt=1, rank=0, step=3, rule="r",
        severity="warning", message=message, raised_at=datetime.now(UTC), value=float("nan"),
    )  # fmt: skip
    store.events.add(made)
    return made


def test_rows_come_one_by_one_or_in_buckets_as_asked(host: Hosted, run: qigstore.Run) -> None:
    every, few, chosen = Ledger(), Ledger(), Ledger()
    with (
        host.connect(every, rate="all") as one,
        host.connect(few, rate=0.5, sessions=["ocean"]) as two,
        host.connect(chosen, rate=100, metrics=["phi"], kinds=["telemetry"]) as three,
    ):
        for step in range(300):
            run.record(step, loss=1 / (step + 1), phi=float("inf") if step == 7 else 0.5)
        run.flush()
        key = ("ocean", 1, 0)
        until(one, every, lambda: every.reached.get(key) == 300)
        until(two, few, lambda: few.reached.get(key) == 300)
        until(three, chosen, lambda: chosen.reached.get(key) == 300)
    assert not any(ledger.gaps or ledger.repeats for ledger in (every, few, chosen))
    assert every.rows[key][7] == {"loss": 1 / 8, "phi": "Infinity"}
    assert {step: row["loss"] for step, row in every.rows[key].items()} == {
        step: 1 / (step + 1) for step in range(300)
    }
    assert few.kinds["telemetry"] < every.kinds["telemetry"] + 3
    assert not few.rows.get(key, {}).keys() & set(range(100, 200))
    assert all(set(row) <= {"phi"} for row in chosen.rows.get(key, {}).values())


def test_events_and_checkpoints_come_and_come_again_when_they_change(
    host: Hosted, run: qigstore.Run
) -> None:
    ledger = Ledger()
    with host.connect(ledger) as opened:
        run.record(0, loss=1.0, phi=0.7)
        run.checkpoint({"w": [1.0]}, step=0)
        made = event(host.store)
        seen: list[dict[str, Any]] = []
        while len({one["kind"] for one in seen}) < 2:
            one = ledger.take(opened.recv(LIMIT_S))
            seen += [one] if one["kind"] in {"event", "checkpoint"} else []
        host.store.events.acknowledge(made.id)
        while seen[-1]["data"].get("acknowledged_at") is None:
            one = ledger.take(opened.recv(LIMIT_S))
            seen += [one] if one["kind"] == "event" else []
    shown = next(one["data"] for one in seen if one["kind"] == "event")
    assert (shown["id"], shown["session"], shown["value"]) == (str(made.id), "ocean", "NaN")
    saved = next(one["data"] for one in seen if one["kind"] == "checkpoint")
    assert (saved["step"], saved["phi"], saved["status"]) == (0, 0.7, "committed")
    assert "path" not in saved
    assert not ledger.repeats


def test_what_a_client_did_not_ask_for_does_not_come(host: Hosted, run: qigstore.Run) -> None:
    host.store.sessions.open("lake", {})
    ledger = Ledger()
    with host.connect(ledger, sessions=["lake"], kinds=["event"]) as opened:
        run.record(0, loss=1.0)
        run.flush()
        event(host.store)
        mine = event(host.store, "lake")
        until(opened, ledger, lambda: ledger.changes)
    assert set(ledger.changes) == {str(mine.id)}
    assert "telemetry" not in ledger.kinds


def test_server_sent_events_are_the_same_envelopes_and_resume(
    host: Hosted, run: qigstore.Run
) -> None:
    ledger = Ledger()
    url = f"http://127.0.0.1:{host.port}/v1/stream/sse?rate=all&session=ocean"
    for upto in (30, 60):
        headers = {"Authorization": f"Bearer {host.secret}"}
        if ledger.last is not None:
            headers["Last-Event-ID"] = ledger.last
        with httpx2.stream("GET", url, headers=headers, timeout=LIMIT_S) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.iter_lines()
            named: dict[str, str] = {}
            while ledger.reached.get(("ocean", 1, 0)) != upto:
                line = next(lines)
                name, _, value = line.partition(": ")
                named[name] = value
                if name == "data":
                    one = ledger.take(value)
                    assert (named["id"], named["event"]) == (one["seq"], one["kind"])
                    if one["kind"] == "health":
                        for step in range(upto - 30, upto):
                            run.record(step, loss=1.0)
                        run.flush()
    assert not ledger.gaps
    assert not ledger.repeats
    assert set(ledger.rows["ocean", 1, 0]) == set(range(60))


def test_what_was_stored_meanwhile_comes_first(host: Hosted, run: qigstore.Run) -> None:
    ledger = Ledger()
    with host.connect(ledger, rate="all") as opened:
        run.record(0, loss=0.0)
        run.flush()
        until(opened, ledger, lambda: ledger.reached)
    for step in range(1, 5000):
        run.record(step, loss=float(step))
    run.flush()
    made = event(host.store)
    with host.connect(ledger, rate="all") as opened:
        until(opened, ledger, lambda: ledger.reached["ocean", 1, 0] == 5000 and ledger.changes)
        run.record(5000, loss=1.0)
        until(opened, ledger, lambda: ledger.reached["ocean", 1, 0] == 5001)
    assert not ledger.gaps
    assert not ledger.repeats
    assert set(ledger.rows["ocean", 1, 0]) == set(range(5001))
    assert set(ledger.changes) == {str(made.id)}


def test_a_cut_between_an_event_and_the_rows_of_a_new_writer(
    host: Hosted, run: qigstore.Run
) -> None:
    ledger = Ledger()
    with host.connect(ledger, rate="all"):
        pass
    with qigstore.session("lake", rules=[]) as other:
        other.record(0, loss=1.0)
    made = event(host.store, "lake")
    while not ledger.changes:  # it comes back, and is cut off by the first event
        with host.connect(ledger, rate="all") as opened:
            until(opened, ledger, lambda: ledger.changes)
    with host.connect(ledger, rate="all") as opened:
        until(opened, ledger, lambda: ledger.reached.get(("lake", 1, 0)) == 1)
    assert set(ledger.changes) == {str(made.id)}
    assert not ledger.gaps
    assert not ledger.repeats


ROW = {f"metric_{n}": n / 7 for n in range(20)}
KEY = ("ocean", 1, 0)


def record(run: qigstore.Run, first: int, count: int) -> int:
    """Record and store so many steps; the step after them."""
    for step in range(first, first + count):
        run.record(step, ROW)
    run.flush()
    return first + count


def ask_by_websocket(host: Hosted, silent: socket.socket) -> None:
    protocol = ClientProtocol(parse_uri(host.url))
    protocol.send_request(protocol.connect())
    silent.sendall(b"".join(protocol.data_to_send()))
    while not protocol.events_received():
        protocol.receive_data(silent.recv(4096))
    protocol.send_text(json.dumps({"token": host.secret, "rate": "all"}).encode())
    silent.sendall(b"".join(protocol.data_to_send()))


def ask_by_http(host: Hosted, silent: socket.socket) -> None:
    silent.sendall(
        f"GET /v1/stream/sse?rate=all HTTP/1.1\r\nHost: 127.0.0.1:{host.port}\r\n"
        f"Authorization: Bearer {host.secret}\r\n\r\n".encode()
    )


@pytest.mark.parametrize("ask", [ask_by_websocket, ask_by_http])
def test_a_client_that_never_reads_is_let_go_and_costs_the_others_nothing(
    ask: Callable[[Hosted, socket.socket], None],
    store: Store,
    run: qigstore.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Longer than a busy machine lets the other one wait, who does read.
    monkeypatch.setattr(endpoints, "SEND_S", 3.0)
    monkeypatch.setattr(endpoints, "_CLOSE_S", 0.5)
    monkeypatch.setattr(listening, "STUCK_S", 6.0)
    with hosted(store) as host:
        hub, ledger, step = host.app.state.hub, Ledger(), 0
        with host.connect(ledger, rate="all") as opened, host.socket() as silent:
            ask(host, silent)
            wait_until(lambda: hub.streams == 2, "both are there", LIMIT_S)
            while hub.streams == 2:
                step = record(run, step, 500)
                while ledger.reached.get(KEY) != step:
                    ledger.take(opened.recv(LIMIT_S))
                assert step < 500_000, "it is still there"
            wait_until(lambda: len(host.connections) == 1, "its connection is cut off", LIMIT_S)
        assert not ledger.gaps
        assert not ledger.repeats


def reads_late(
    host: Hosted, run: qigstore.Run, ledger: Ledger, step: int, rows: int
) -> tuple[int, int]:
    """A client that takes nothing until so much is stored: the next step, and how it ended."""
    with host.connect(ledger, rate="all", small=True) as opened:
        for _ in range(rows // 500):
            step = record(run, step, 500)
        try:
            while ledger.reached.get(KEY) != step:
                ledger.take(opened.recv(LIMIT_S))
        except ConnectionClosed as error:
            return step, error.rcvd.code if error.rcvd else 1006
        return step, 1000


def test_a_slow_client_is_closed_and_resumes(
    host: Hosted, run: qigstore.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, step, code, rows = Ledger(), 0, 1000, 4_000
    with monkeypatch.context() as limits:
        limits.setattr(channel, "QUEUE_ENVELOPES_MAX", 3)
        limits.setattr(tail, "ROWS_A_PAGE", 20)
        limits.setattr(endpoints, "SEND_S", 600.0)  # the queue alone says who is slow
        while code == 1000:
            # More each time: what the kernel and the libraries hold for it has an end.
            step, code = reads_late(host, run, ledger, step, rows)
            rows *= 2
            assert step < 500_000, "it was never too slow"
    assert code == 4008
    with host.connect(ledger, rate=1) as opened:
        until(opened, ledger, lambda: ledger.reached.get(KEY) == step)
    assert not ledger.gaps
    assert not ledger.repeats


def test_a_dead_database_is_told_and_nothing_is_lost(home: Path) -> None:
    with open_store(home=home) as store, serving(environment(home)) as served:
        _, secret = store.tokens.create("reader", ["read"])
        session = store.sessions.open("ocean", {})
        ledger, states = Ledger(), []
        with connect(served.url, max_size=None, open_timeout=LIMIT_S) as opened:
            opened.send(json.dumps({"token": secret}))
            states.append(ledger.take(opened.recv(LIMIT_S))["data"]["database"])
            server = status(home / "postgres").server_pid
            assert server is not None
            os.killpg(os.getpgid(server), signal.SIGKILL)
            while states[-1:] != ["up"] or "down" not in states:
                one = ledger.take(opened.recv(LIMIT_S))
                states += [one["data"]["database"]] if one["kind"] == "health" else []
            made = event(store, session.name)
            until(opened, ledger, lambda: ledger.changes)
        assert set(ledger.changes) == {str(made.id)}
        assert states[0] == "up"


def take_all(opened: ClientConnection) -> None:
    """Whatever comes until it is closed: the server's health may be told now and then."""
    while True:
        opened.recv(LIMIT_S)


def test_a_server_that_leaves_ends_its_streams_first(home: Path) -> None:
    with open_store(home=home) as store, serving(environment(home)) as served:
        _, secret = store.tokens.create("reader", ["read"])
        with connect(served.url, open_timeout=LIMIT_S) as opened:
            opened.send(json.dumps({"token": secret}))
            Ledger().take(opened.recv(LIMIT_S))
            bearer = {"Authorization": f"Bearer {secret}"}
            with httpx2.stream("GET", served.sse, headers=bearer, timeout=LIMIT_S) as answer:
                lines = answer.iter_lines()
                assert next(lines).startswith("id: ")
                stopped = threading.Thread(target=served.stop)
                stopped.start()
                assert not [line for line in lines if line.startswith("id: ")]
            with pytest.raises(ConnectionClosed) as closed:
                take_all(opened)
            stopped.join(60)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code in {4503, 1012}


def test_it_sleeps_while_nobody_listens(host: Hosted, run: qigstore.Run) -> None:
    feed, looks = host.store.feed, []
    plain = feed.look
    feed.look = lambda *given, **more: looks.append(1) or plain(*given, **more)  # type: ignore[method-assign]
    with host.connect():
        run.record(0, loss=1.0)
        run.flush()
        wait_until(lambda: looks, "it looks", LIMIT_S)
    wait_until(lambda: not host.app.state.hub.streams, "the stream is gone", LIMIT_S)
    asyncio.run(asyncio.sleep(0.2))
    before = len(looks)
    run.record(1, loss=1.0)
    run.flush()
    ledger = Ledger()
    with host.connect(ledger, rate="all") as opened:
        run.record(2, loss=1.0)
        run.flush()
        until(opened, ledger, lambda: ledger.reached)
    # What was stored while nobody listened is not new to the one who comes.
    assert set(ledger.rows["ocean", 1, 0]) == {2}
    assert len(looks) > before


def test_the_example_watches_through_a_restart(home: Path) -> None:
    env = environment(home)
    with open_store(home=home) as store, serving(env) as served:
        _, secret = store.tokens.create("reader", ["read"])
        store.sessions.open("ocean", {})
        command = [sys.executable, "-W", "error", str(REPOSITORY / "examples" / "watch.py")]
        with (
            subprocess.Popen(
                [*command, served.url, "ocean"], env=env | {"QIGSTORE_TOKEN": secret},
                stdout=subprocess.PIPE, text=True,
            ) as watcher,
            qigstore.session("ocean", home=home, rules=[]) as run,
        ):  # fmt: skip
            try:
                assert watcher.stdout is not None
                shown = records_of(watcher.stdout, run, 0)
                served.kill()
                step = record(run, shown, 10)
                served.start()
                while shown < step:
                    shown = next_records(watcher.stdout, after=shown)
            finally:
                watcher.kill()


def records_of(lines: Iterator[str], run: qigstore.Run, step: int) -> int:
    """Record until the watcher shows something; the last record that it shows."""
    reader = threading.Thread(target=lambda: found.append(next_records(lines, after=None)))
    found: list[int] = []
    reader.start()
    while reader.is_alive():
        step = record(run, step, 1)
        reader.join(0.2)
    last = step
    shown = found[0]
    while shown < last:
        shown = next_records(lines, after=shown)
    return shown


def next_records(lines: Iterator[str], after: int | None) -> int:
    """The next line about records, which begin where the ones before ended."""
    for line in lines:
        found = re.fullmatch(r"ocean records (\d+) to (\d+)\n", line)
        if found:
            assert after is None or int(found[1]) == after + 1
            return int(found[2])
    raise AssertionError("the watcher ended")
