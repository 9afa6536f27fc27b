"""`qigstore serve`: where it listens, what it refuses, how it stops, what memory it takes."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import commands
import httpx2
import pytest
from processes import kill, wait_until

from qigstore.database.engine import Database
from qigstore.repository import Store
from qigstore.server import ServerConfig
from qigstore.server.listening import listen, url_of

LIMIT_S = 120


def get(url: str, **more: Any) -> httpx2.Response:
    return httpx2.get(url, timeout=LIMIT_S, **more)


def said_in(home: Path) -> str:
    """What the server of this home wrote on stderr."""
    return (home / "said").read_text()


@contextmanager
def serving(env: dict[str, str], *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server as a process of its own, and its URL.

    It writes a line a request: into a file, for a pipe that nobody reads would hold it up.
    """
    home = Path(env["QIGSTORE_HOME"])
    command = [sys.executable, "-W", "error", "-m", "qigstore", "serve", "--port", "0"]
    command += ["--statement-timeout", "60", *words]
    with (
        (home / "said").open("w") as said,
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=said, text=True) as child,
    ):
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            match = re.search(r"http://\S+:\d+", line)
            assert match is not None, line + said_in(home)
            assert "qigstore token create" in line
            assert "***" in line or "@" not in line, "no password in it"
            yield child, match.group()
        finally:
            child.kill()


def token(env: dict[str, str], *words: str) -> dict[str, str]:
    made = commands.data(env, "token", "create", f"t{len(words)}", *words)
    return {"Authorization": f"Bearer {made['token']}"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(dsn: str, home: Path, number: int) -> None:
    env = commands.environment(home, dsn)
    bearer = token(env)
    with serving(env) as (child, url):
        wait_until(lambda: get(f"{url}/v1/health").status_code == 200, "healthy", 60)
        forged = {"X-Forwarded-For": "6.6.6.6", "Forwarded": "for=6.6.6.6"}
        answer = get(f"{url}/v1/sessions?limit=3", headers=bearer | forged)
        assert (answer.status_code, answer.json()) == (200, [])
        assert "server" not in answer.headers
        assert get(f"{url}/v1/sessions?token=hunter2").status_code == 400
        child.send_signal(number)
        status = child.wait(LIMIT_S)
    err = said_in(home)
    assert status == 0, err
    with Store(Database(dsn)) as store:
        used = [line.address for line in store.audit.list() if line.action == "token.use"]
    assert used == ["127.0.0.1"], "the peer's address, whatever it says of itself"
    assert re.search(r"GET /v1/sessions 200 [\d.]+ ms t0", err)
    assert "limit=3" not in err
    assert "hunter2" not in err
    assert bearer["Authorization"][7:] not in err
    assert "Traceback" not in err


def test_other_machines_need_a_token_first(dsn: str, home: Path) -> None:
    env = commands.environment(home, dsn)
    for host in ("0.0.0.0", "::"):
        refused = commands.run(env, "serve", "--host", host, "--port", "0")
        assert refused.returncode == 2
        assert "no active token" in refused.stderr
    token(env)
    commands.run(env, "token", "revoke", "t0")
    assert "no active token" in commands.run(env, "serve", "--host", "0.0.0.0").stderr
    token(env, "--scope", "read")
    with serving(env, "--host", "0.0.0.0") as (_, url):
        port = url.rpartition(":")[2]
        answer = get(f"http://127.0.0.1:{port}/v1/sessions")
        assert answer.status_code == 401
        named = get(f"http://127.0.0.1:{port}/v1/health", headers={"Host": "evil.example"})
        assert named.status_code == 421


def test_it_says_what_it_lacks(dsn: str, home: Path) -> None:
    """Without the extra: one line that says what to install."""
    hide = (
        "import sys, importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'uvicorn' else real(name, *a)\n"
        "from qigstore.cli import main; main(['serve'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", hide], check=False, env=commands.environment(home, dsn),
        capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 2
    assert "needs uvicorn" in done.stderr
    assert "pip install 'qigstore[server]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_address_that_cannot_be_used_is_one_line(dsn: str, home: Path) -> None:
    env = commands.environment(home, dsn)
    with listen(ServerConfig(port=0)) as taken:
        port = url_of(taken).rpartition(":")[2]
        done = commands.run(env, "serve", "--port", port)
    assert done.returncode == 2
    assert f"cannot listen at 127.0.0.1 port {port}" in done.stderr
    token(env)
    unknown = commands.run(env, "serve", "--host", "no.such.host.invalid")
    assert unknown.returncode == 2
    assert "cannot listen" in unknown.stderr
    origin = commands.run(env, "serve", "--origin", "*")
    assert origin.returncode == 2
    assert "origin" in origin.stderr


def resident(pid: int) -> int:
    """Bytes of memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def send_endlessly(url: str, bearer: dict[str, str], limit: int) -> tuple[bytes, int]:
    """A body in chunks without an end; what was answered, and how many bytes went out before."""
    host, port = url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/nearest HTTP/1.1\r\nHost: {host}:{port}\r\nTransfer-Encoding: chunked\r\n"
        f"Content-Type: application/json\r\nAuthorization: {bearer['Authorization']}\r\n\r\n"
    )
    chunk, sent = b"10000\r\n" + bytes(1 << 16) + b"\r\n", 0
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
        connection.sendall(head.encode())
        try:
            while sent < limit:
                connection.sendall(chunk)
                sent += 1 << 16
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has said what it thinks of it, and hung up
        try:
            return connection.recv(1 << 16), sent
        except ConnectionResetError:
            return b"", sent


def test_a_body_without_an_end_takes_no_memory(dsn: str, home: Path) -> None:
    env = commands.environment(home, dsn)
    bearer = token(env)
    with serving(env) as (child, url):
        assert (
            httpx2.post(f"{url}/v1/nearest", headers=bearer, json={}, timeout=LIMIT_S).status_code
            == 422
        )
        before = resident(child.pid)
        for _ in range(3):
            answer, sent = send_endlessly(url, bearer, 256 << 20)
            assert answer == b"" or b" 413 " in answer.partition(b"\r\n")[0]
            assert sent < 64 << 20, "it hung up long before the end"
        assert resident(child.pid) - before < 24 << 20
        assert get(f"{url}/v1/sessions", headers=bearer).status_code == 200


def test_a_reader_that_never_reads_takes_no_memory(dsn: str, home: Path) -> None:
    """A download nobody takes: the server waits with it, and serves the others."""
    env = commands.environment(home, dsn)
    code = (
        "import numpy as np, qigstore\n"
        "with qigstore.session('big') as run:\n"
        "    run.record(0, loss=1.0)\n"
        "    run.checkpoint({'w': np.zeros(12 << 20)}, step=0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=120)
    bearer = token(env, "--scope", "admin")
    with serving(env) as (child, url):
        listed = get(f"{url}/v1/sessions/big/checkpoints", headers=bearer).json()
        path = f"/v1/sessions/big/checkpoints/{listed[0]['id']}/download"
        before = resident(child.pid)
        host, port = url.removeprefix("http://").split(":")
        lazy = [socket.create_connection((host, int(port)), timeout=LIMIT_S) for _ in range(3)]
        try:
            head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n"
            for connection in lazy:
                connection.sendall(
                    f"{head}Authorization: {bearer['Authorization']}\r\n\r\n".encode()
                )
            for connection in lazy:
                assert connection.recv(12) == b"HTTP/1.1 200"
            whole = get(f"{url}{path}", headers=bearer)
            assert len(whole.content) == int(whole.headers["content-length"]) > 96 << 20
            assert resident(child.pid) - before < 48 << 20
        finally:
            for connection in lazy:
                connection.close()


def test_a_dead_database_is_503_until_it_is_back(home: Path) -> None:
    """The embedded server killed under it: no answer but 503 and a right one, and it heals."""
    env = commands.environment(home)
    bearer = token(env)
    statuses: set[int] = set()
    with serving(env) as (_, url):

        def ask() -> int:
            answer = get(f"{url}/v1/sessions", headers=bearer)
            if answer.status_code != 200:
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.headers["retry-after"]
            statuses.add(answer.status_code)
            return int(answer.status_code)

        assert ask() == 200
        kill(*postmasters(home))  # some go by themselves when others are gone
        wait_until(lambda: ask() == 200, "it serves again", limit_s=120)
    assert statuses <= {200, 503}


def postmasters(home: Path) -> list[int]:
    """Every process of the embedded server's PostgreSQL."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
                where = (entry / "cwd").readlink()
            except OSError:
                continue
            if "postgres" in words and where.is_relative_to(home):
                found.append(int(entry.name))
    return found


def curl_blocks() -> list[str]:
    """The documents' lines of curl."""
    root = Path(__file__).parents[2]
    texts = [
        path.read_text() for path in (root / "README.md", *sorted((root / "docs").glob("*.md")))
    ]
    found = [re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for text in texts]
    return [block for blocks in found for block in blocks if "curl" in block]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
@pytest.mark.parametrize("block", curl_blocks(), ids=lambda block: f"{block.count(chr(10))} lines")
def test_the_lines_of_curl_in_the_documents_work(dsn: str, home: Path, block: str) -> None:
    env = commands.environment(home, dsn)
    bearer = token(env, "--scope", "admin")
    with serving(env) as (_, url):
        script = block.replace("http://127.0.0.1:8720", url)
        kept = [line for line in script.splitlines() if "qigstore serve" not in line]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(kept)], check=False, cwd=home,
            env={**env, "PATH": path}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + done.stdout
        assert "urn:qigstore:problem" not in done.stdout, done.stdout
        named = get(f"{url}/v1/sessions", headers=bearer).json()
        assert [one["name"] for one in named] == ["ocean-7"]
        assert named[0]["last_step"] == 1
    documents = [
        json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "["))
    ]
    assert len(documents) >= 6
    assert "qigstore_session_last_step" in done.stdout


def test_the_documents_show_lines_of_curl() -> None:
    assert curl_blocks()
