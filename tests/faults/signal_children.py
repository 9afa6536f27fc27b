"""Children that run a script beside a `SignalWatch`, for tests that signal them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from processes import nursery

__all__ = ["Raise", "child", "finish", "run_until_signal", "wait_for", "warm"]

LIMIT_S = 120
ROOT = Path(__file__).parent.parent.parent

PRELUDE = """
import os, signal, sys, threading, time
from qigstore.safety.signals import SignalWatch

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""


Raise = Callable[..., AbstractContextManager["subprocess.Popen[str] | WarmChild"]]
"""`child`, or what `warm` gives: the same, thousands of times."""


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


class WarmChild:
    """A process forked from a warm one, with what is used here of `subprocess.Popen`."""

    def __init__(self, order: Callable[..., int], script: str, arguments: tuple[str, ...]) -> None:
        self._order = order
        (out, told), (err, cried) = os.pipe(), os.pipe()
        here = f"/proc/{os.getpid()}/fd"
        self.pid = order(
            script=PRELUDE + script,
            arguments=arguments,
            out=f"{here}/{told}",
            err=f"{here}/{cried}",
        )
        self._watch = os.pidfd_open(self.pid)
        for end in (told, cried):
            os.close(end)
        self.stdout, self.stderr = os.fdopen(out), os.fdopen(err)
        self.returncode: int | None = None

    def send_signal(self, signum: int) -> None:
        """It is there until it has been waited for, so that the number is its own."""
        if self.returncode is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end, then read what is left."""
        if self.returncode is None:
            if not select.select([self._watch], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a warm child", timeout or 0)
            self.returncode = self._order(wait=self.pid)
        return self.stdout.read(), self.stderr.read()

    def close(self) -> None:
        os.close(self._watch)
        self.stdout.close()
        self.stderr.close()


@contextmanager
def warm(imports: str = "") -> Iterator[Raise]:
    """A function like `child`, whose processes are forked from one that has imported all this."""
    with nursery(Path(__file__).with_name("warm_nursery.py")) as order:
        order(warm=PRELUDE + imports)

        @contextmanager
        def warm_child(script: str, *arguments: str) -> Iterator[WarmChild]:
            process = WarmChild(order, script, arguments)
            try:
                yield process
            finally:
                process.kill()
                process.communicate()
                process.close()

        yield warm_child


def wait_for(process: subprocess.Popen[str] | WarmChild, word: str) -> str:
    """The child's next line; read past Python's buffer, which `communicate` would not see."""
    assert process.stdout is not None
    assert process.stderr is not None
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(process.stdout.fileno(), 1)):
        line += byte
    assert line.startswith(word.encode()), (line, process.stderr.read())
    return line.decode().strip()


def finish(process: subprocess.Popen[str] | WarmChild) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def run_until_signal(signum: int, script: str) -> tuple[int, str, str]:
    with child(script) as process:
        wait_for(process, "ready")
        process.send_signal(signum)
        return finish(process)
