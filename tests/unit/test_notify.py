"""The hook of events: a command or a webhook from the settings, bounded, never waited for."""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from qigstore.errors import ConfigurationError
from qigstore.records import Event
from qigstore.safety.notify import Notifier

LIMIT_S = 60.0
EVENT = Event(
    uuid4(), 1, 2, 0, 35, "loss finite", "critical", "loss = nan; $(touch owned) `x` {rule}",
    datetime.now(UTC), metric="loss", value=math.nan,
)  # fmt: skip
KEEP = (
    "import sys, pathlib; told = [sys.stdin.read(), *sys.argv[2:]];"
    "pathlib.Path(sys.argv[1]).write_text('|'.join(told))"
)


def command(path: Path, *words: str) -> str:
    return " ".join([sys.executable, "-c", f'"{KEEP}"', str(path), *words])


def test_a_command_gets_the_event_as_json_and_its_words_without_a_shell(tmp_path: Path) -> None:
    words = command(tmp_path / "out", "{rule}", "'{message} !'")
    notifier = Notifier("ocean", command=words, limit_s=LIMIT_S)
    notifier.notify(EVENT)
    assert notifier.close(LIMIT_S)
    document, rule, message = (tmp_path / "out").read_text().split("|")
    assert json.loads(document)["value"] == "nan"
    assert json.loads(document)["session"] == "ocean"
    assert (rule, message) == ("loss finite", f"{EVENT.message} !")
    assert not (tmp_path / "owned").exists()
    assert (notifier.told, notifier.failed) == (1, 0)


def test_only_what_is_bad_enough_is_told(tmp_path: Path) -> None:
    notifier = Notifier("s", command=command(tmp_path / "out"), least="critical")
    for severity in ("info", "warning"):
        notifier.notify(replace(EVENT, severity=severity))
    assert notifier.close(LIMIT_S)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "limit_s", "kind"),
    [
        (f"{sys.executable} -c 'import time; time.sleep(600)'", 0.5, "TimeoutExpired"),
        (f"{sys.executable} -c 'raise SystemExit(3)'", LIMIT_S, "CalledProcessError"),
        ("/nonexistent/program", LIMIT_S, "FileNotFoundError"),
    ],
)
def test_a_command_that_hangs_fails_or_is_not_there_is_counted_and_logged(
    words: str, limit_s: float, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier("s", command=words, limit_s=limit_s)
    notifier.notify(EVENT)
    assert notifier.close(LIMIT_S)
    assert (notifier.told, notifier.failed) == (0, 1)
    assert kind in caplog.text


@contextmanager
def server(
    status: int, gate: threading.Event | None = None, **head: str
) -> Iterator[tuple[str, list[Any]]]:
    """A webhook's address, and what came there; it answers once the gate is open."""
    got: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert gate is None or gate.wait(LIMIT_S)
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            for name, value in head.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    listening = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}/hook?token=secret", got
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def test_a_hook_that_hangs_is_never_waited_for_and_what_waits_is_bounded() -> None:
    gate = threading.Event()
    with server(204, gate) as (url, got):
        notifier = Notifier("s", url=url, limit_s=2 * LIMIT_S)
        for _ in range(150):
            notifier.notify(EVENT)
        dropped = notifier.dropped
        assert dropped in {49, 50}  # 100 wait, and one may be on its way
        assert not notifier.close(0.01)
        assert got == []
        gate.set()  # no thread of this test outlives it
        assert notifier.close(LIMIT_S)
    assert (len(got), notifier.told, notifier.failed) == (150 - dropped, 150 - dropped, 0)


def test_a_webhook_gets_the_event_as_json() -> None:
    with server(204) as (url, got):
        notifier = Notifier("ocean", url=url, limit_s=LIMIT_S)
        notifier.notify(EVENT)
        assert notifier.close(LIMIT_S)
    assert notifier.told == 1
    assert (got[0]["session"], got[0]["rule"], got[0]["step"]) == ("ocean", "loss finite", 35)


def test_a_webhook_that_sends_us_elsewhere_or_refuses_is_a_failure_without_its_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with server(200) as (other, reached), server(302, Location=other) as (url, got):
        notifier = Notifier("s", url=url, limit_s=LIMIT_S)
        notifier.notify(EVENT)
        assert notifier.close(LIMIT_S)
    assert (len(got), reached) == (1, [])
    assert notifier.failed == 1
    assert "HTTPError" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "file:///etc/passwd"}, "https://"),
        ({"url": "ftp://host/x"}, "https://"),
        ({"command": " "}, "empty"),
        ({"command": "'open"}, "cannot be used"),
        ({"command": "tell {detail}"}, "placeholders"),
    ],
)
def test_a_hook_that_cannot_be_used_is_refused_at_once(options: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Notifier("s", **options)
