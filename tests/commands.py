"""Runs `qigstore` commands, in this process or in one of their own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from places import CONNECT_S, STATEMENT_S

from qigstore.cli import main


def environment(home: Path, dsn: str | None = None, **more: str) -> dict[str, str]:
    """An environment with this data folder and database, and else the patience of a busy machine.

    Nobody's verdict is to hang on how long a server is kept waiting by other tests.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("QIGSTORE_", "PG"))}
    named = {
        "QIGSTORE_CONNECT_TIMEOUT_S": str(CONNECT_S),
        "QIGSTORE_STATEMENT_TIMEOUT_S": str(STATEMENT_S),
    }
    named |= {} if dsn is None else {"QIGSTORE_DSN": dsn}
    return {**kept, "QIGSTORE_HOME": str(home), "COLUMNS": "80", **named, **more}


def process(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """A command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "qigstore", *words],
        check=False,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def run(env: dict[str, str], *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The same in this process, which saves the second that a start costs."""
    out, err, before = io.StringIO(), io.StringIO(), dict(os.environ)
    typed, sys.stdin = sys.stdin, io.StringIO(stdin)
    os.environ.clear()
    os.environ.update(env)
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main(words)
    finally:
        sys.stdin = typed
        os.environ.clear()
        os.environ.update(before)
    status = ended.value.code or 0
    assert isinstance(status, int)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def data(env: dict[str, str], *words: str, stdin: str | None = None) -> Any:
    """What a command prints with `--json`."""

    def refuse(constant: str) -> Any:
        pytest.fail(f"{constant} is not JSON")

    done = run(env, *words, "--json", stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout, parse_constant=refuse)
