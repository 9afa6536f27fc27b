"""The training processes the demo starts: watched, killed on purpose, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Child", "Interrupts", "Processes", "Terminated"]

_GRACE_S = 15.0
_LINES_KEPT = 200


class Terminated(SystemExit):
    """SIGTERM reached the demo; the process ends with status 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Interrupts:
    """SIGINT and SIGTERM as exceptions, at once, or after a block that must not be torn.

    Python's own KeyboardInterrupt may strike between a process's start and our knowing of it.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._held = 0
        self.pending: int | None = None

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        self.pending = number
        if not self._held:
            self._raise()

    def _raise(self) -> None:
        number, self.pending = self.pending, None
        if number == signal.SIGTERM:
            raise Terminated
        if number == signal.SIGINT:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the block end before an interrupt is raised."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if not self._held:
            self._raise()


class Child:
    """One training process and what it says on stderr."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.arguments = tuple(arguments)
        self.lines: deque[str] = deque(maxlen=_LINES_KEPT)
        # A group of its own: Ctrl-C on the terminal reaches the demo, which ends it in order. Its
        # output is a pipe of ours: should we be killed, it ends at the next line it writes.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qigstore.demo.train", *arguments],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                self.lines.append(line.rstrip())

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status; −n: killed by signal n; None: it runs."""
        return self._process.poll()

    def send(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.status is None:
            self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end; its exit status."""
        status = self._process.wait()
        self._reader.join(5.0)
        return status

    def wait_at_most(self, limit_s: float) -> int | None:
        """The same, or None where it still runs after that time."""
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        return self.wait()

    def ended(self) -> str:
        """How it ended and the last line it wrote, for an error message."""
        status = self.status
        how = f"signal {-status}" if status is not None and status < 0 else f"status {status}"
        words = next((line for line in reversed(self.lines) if line.strip()), "it said nothing")
        return f"{how if status is not None else 'no end'}: {words}"


class Processes:
    """Every child of one demo; leaving the block ends and reaps what still runs."""

    def __init__(self, interrupts: Interrupts, ledgers: Path) -> None:
        self._interrupts = interrupts
        self._ledgers = ledgers
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._interrupts.held():
            self.end()
            # The first interrupt brought us here; one more has only hurried it.
            self._interrupts.pending = None

    def start(self, arguments: Sequence[str]) -> Child:
        """Start the training script."""
        # One thread: two cores carry two trainings and the server, and sums come out the same.
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        with self._interrupts.held():
            child = Child(arguments, environment)
            self._children.append(child)
        return child

    def ledger(self, session: str) -> Path:
        """The file in which a session's processes count what they recorded."""
        return self._ledgers / f"{session}.ledger"

    def end(self) -> None:
        """Ask what still runs to save and leave, then insist; all is reaped at the return."""
        running = [child for child in self._children if child.status is None]
        for child in running:
            child.send(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_S
        for child in running:
            while child.status is None:
                if time.monotonic() > deadline or self._interrupts.pending is not None:
                    child.send(signal.SIGKILL)
                time.sleep(0.02)
            child.wait()
