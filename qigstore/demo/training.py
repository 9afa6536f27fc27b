"""The demo's session as processes: begin a life of it, follow it, know what it counted itself."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from qigstore.demo.ledger import Noted, count_recorded, read_ledger
from qigstore.demo.plan import DemoFailed, Plan
from qigstore.demo.processes import Child, Processes
from qigstore.demo.questions import Questions
from qigstore.demo.screen import Screen
from qigstore.errors import EXIT_EMERGENCY, StoreError

__all__ = ["Training", "Watch"]

_POLL_S, _ASK_EVERY_S, _STALL_S, _PATIENCE_S = 0.01, 0.1, 90.0, 30.0
_UNAVAILABLE = 3


class Watch:
    """Asks the store now and then how the session stands, without anyone waiting for the answer."""

    def __init__(self, ask: Questions) -> None:
        self.latest: dict[str, Any] | None = {}
        """None while the database does not answer."""
        self._ask = ask
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(_ASK_EVERY_S):
            # What the server refuses while it stops is an answer as good as none.
            with contextlib.suppress(StoreError):
                self.latest = self._ask.now()

    def close(self) -> None:
        """Stop asking."""
        self._stop.set()
        self._thread.join(10.0)

    @property
    def rows(self) -> int:
        """Rows of the session that SQL has seen so far."""
        return int((self.latest or {}).get("rows") or 0)

    def words(self, recorded: int) -> str:
        """How the session stands, for a line of progress."""
        now = self.latest
        if now is None:
            return f"{recorded:,} recorded; the database is away, rows wait in the spool"
        if now.get("loss") is None:
            return f"{recorded:,} recorded"
        phi = "" if now["phi"] is None else f"  Φ {now['phi']:.2f}"
        return f"loss {now['loss']:.3f}{phi}  {recorded:,} recorded, {now['rows']:,} stored"


class Training:
    """The lives of one session, each a process started with the same words."""

    def __init__(self, plan: Plan, screen: Screen, processes: Processes, watch: Watch) -> None:
        self._plan, self._screen, self.watch = plan, screen, watch
        self._processes = processes
        self._ledger = processes.ledger(plan.session)

    def start_undisturbed(self) -> Child:
        """Start the other session, in which nothing happens."""
        session = self._plan.control
        return self._processes.start(self._plan.arguments(session, self._processes.ledger(session)))

    def await_undisturbed(self, child: Child) -> None:
        """Wait for its end; where it found no database, start it once more.

        Raises:
            DemoFailed: it failed.
        """
        status = child.wait_at_most(_STALL_S)
        if status == _UNAVAILABLE:
            child = self.start_undisturbed()
            status = child.wait_at_most(_STALL_S)
        if status != 0:
            raise DemoFailed(f"the undisturbed run ended with {child.ended()}")

    def begin(self) -> Child:
        """Start the training (again); return when it has recorded its first row.

        Raises:
            DemoFailed: it ended before that; for want of a database only after some patience.
        """
        deadline, told = time.monotonic() + _PATIENCE_S, False
        before = count_recorded(self._ledger)[0]
        while True:
            child = self._processes.start(self._plan.arguments(self._plan.session, self._ledger))
            try:
                self._follow(child, lambda recorded: recorded > before, shown=False)
                return child
            except DemoFailed as failed:
                if failed.exit_status != _UNAVAILABLE or time.monotonic() > deadline:
                    raise
            if not told:
                self._screen.note("The database does not answer: no start without it. Waiting.")
                told = True
            time.sleep(1.0)

    def follow_until(self, child: Child, reached: Callable[[int], bool]) -> None:
        """Follow a training until so many rows are recorded.

        Raises:
            DemoFailed: it ended before that.
        """
        self._follow(child, reached)

    def follow_to_the_end(self, child: Child) -> int:
        """Follow a training until it ends: its exit status, 0 or 75.

        Raises:
            DemoFailed: it ended in any other way.
        """
        try:
            self._follow(child, lambda _: False)
        except DemoFailed:
            if child.status not in {0, EXIT_EMERGENCY}:
                raise
        return child.wait()

    def noted(self, life: int) -> Noted:
        """What the script counted in its first, second or third life; empty where it had none."""
        lives = sorted(read_ledger(self._ledger).items())
        return lives[life - 1][1] if life <= len(lives) else Noted()

    def attempt(self, life: int) -> int:
        """The number of the attempt that this life was: more than `life` after a failed start."""
        lives = sorted(read_ledger(self._ledger))
        return lives[life - 1] if life <= len(lives) else 0

    def _follow(self, child: Child, reached: Callable[[int], bool], *, shown: bool = True) -> None:
        with self._screen.progress(self._plan.steps) as progress:
            changed, before = time.monotonic(), -1
            while True:
                # The status first: what is recorded after it was read is counted below.
                status = child.status
                recorded, step = count_recorded(self._ledger)
                if reached(recorded):
                    return
                if status is not None:
                    raise _died(child)
                if recorded != before:
                    before, changed = recorded, time.monotonic()
                elif time.monotonic() - changed > _STALL_S:
                    raise DemoFailed(f"the training process {child.pid} makes no progress")
                if shown:
                    progress.show(step + 1, self.watch.words(recorded))
                time.sleep(_POLL_S)


def _died(child: Child) -> DemoFailed:
    status = child.wait()
    known = 2 <= status <= 6  # the same kinds of errors as the command line's own
    return DemoFailed(f"the training process ended with {child.ended()}", status if known else 1)
