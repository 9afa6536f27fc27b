"""Children that run a script beside a `SignalWatch`, for tests that signal them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["child", "finish", "run_until_signal", "wait_for"]

LIMIT_S = 120
ROOT = Path(__file__).parent.parent.parent

PRELUDE = """
import os, signal, sys, threading, time
from qigstore.safety.signals import SignalWatch

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""


@contextmanager
def child(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A child that runs the script; killed where the test has not seen it end."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], word: str) -> str:
    """The child's next line; read past Python's buffer, which `communicate` would not see."""
    assert process.stdout is not None
    assert process.stderr is not None
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(process.stdout.fileno(), 1)):
        line += byte
    assert line.startswith(word.encode()), (line, process.stderr.read())
    return line.decode().strip()


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def run_until_signal(signum: int, script: str) -> tuple[int, str, str]:
    with child(script) as process:
        wait_for(process, "ready")
        process.send_signal(signum)
        return finish(process)
