"""For tests that start, kill and count processes: who runs in a folder, and children that hold."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
HOLD = """
import sys
from pathlib import Path
from qigstore.database.embedded import EmbeddedServer
server = EmbeddedServer.start(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()
server.close()
"""


def processes_in(folder: Path) -> dict[int, str]:
    """Living processes, zombies left out, that were started for `folder` or work in it."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            inside = (entry / "cwd").readlink().is_relative_to(folder)
            if command and (inside or str(folder) in command):
                found[int(entry.name)] = command
    return found


def servers_in(folder: Path) -> dict[int, str]:
    """The same without our own children: keepers and PostgreSQL."""
    signs = ("embedded_keeper", "/bin/postgres ", "/bin/initdb ", "postgres: ")
    found = processes_in(folder)
    return {pid: what for pid, what in found.items() if any(sign in what for sign in signs)}


def wait_until(condition: Callable[[], object], what: str, limit_s: float = 60) -> None:
    """Wait for something that happens by itself; fails with `what` where it never does."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"not within {limit_s:g} s: {what}"
        time.sleep(0.01)


def state_of(pid: int) -> str:
    """Letter of a process's state (R, S, D, T, Z), or `-` where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # gone before, or while it was read
        return "-"


def python(
    code: str, *arguments: object, before: Sequence[str] = (), **options: object
) -> subprocess.Popen[str]:
    """Start Python on `code`, behind another command such as `setpriv` where one is given."""
    return subprocess.Popen(
        [*before, sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run_python(
    code: str, *arguments: object, before: Sequence[str] = (), limit_s: float = 120
) -> str:
    """Run it to its end and return what it printed; fails with what it said where it failed."""
    with python(code, *arguments, before=before) as child:
        out, err = child.communicate(timeout=limit_s)
    assert child.returncode == 0, err
    return out


@contextlib.contextmanager
def holder(root: Path, code: str = HOLD) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the server of `root`; killed at the end if it still lives."""
    with python(code, root) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n", child.communicate()
            yield child
        finally:
            child.kill()


@contextlib.contextmanager
def nursery(script: Path) -> Iterator[Callable[..., int]]:
    """A function that gives one order, as keywords, to a script that raises children.

    The script says `ready`, reads orders as lines of JSON, and answers each with a number.
    """
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout
        assert stdout.readline() == "ready\n"

        def order(**what: object) -> int:
            stdin.write(json.dumps(what) + "\n")
            stdin.flush()
            return int(stdout.readline())

        try:
            yield order
        finally:
            stdin.close()
            process.wait(60)


def kill(*pids: int) -> None:
    """SIGKILL; one that has gone meanwhile is fine."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
