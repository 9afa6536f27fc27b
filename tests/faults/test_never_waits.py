"""Training never waits for the database (R5): up, slow, down, deaf.

The figures are printed, not judged: how long a call takes depends on the machine. Judged is what
cannot depend on it: no call takes as long as the database would make it wait, and nothing that
`record()` needs is held while the writer talks.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from figures import figure
from line import Line, arrivals
from processes import wait_until
from proxy import HEALTHY, Fault, Proxy

from qigstore.database.engine import Database
from qigstore.errors import StoreUnavailable
from qigstore.repository import Store

DATABASES = {
    "up": HEALTHY,
    "slow": Fault(delay_s=0.05),
    "down": Fault("refuse"),
    "deaf": Fault("deaf", "before commit", 0),
}
ANSWER_LIMIT_S = 30
"""So long would a call take that waits for a deaf database."""
WAITED_S = 20.0
"""And so long takes none that does not wait, on a machine that stood still for a while."""
PACE_S = 0.002


def latencies(line: Line, count: int, pace_s: float) -> np.ndarray[Any, Any]:
    """Nanoseconds that each call took."""
    took = np.empty(count)
    for step in range(count):
        metrics = {f"m{k}": step + k / 20 for k in range(20)}
        began = time.perf_counter_ns()
        line.recorder.record(step, metrics)
        took[step] = time.perf_counter_ns() - began
        if pace_s:
            time.sleep(pace_s)
    return took


def told(name: str, took: np.ndarray[Any, Any]) -> str:
    median, high, higher = np.quantile(took, [0.5, 0.99, 0.999]) / 1000
    return (
        f"{name:>12}: {len(took)} calls, median {median:.1f} µs, p99 {high:.1f} µs, "
        f"p99.9 {higher:.1f} µs, longest {took.max() / 1e6:.2f} ms"
    )


def measure(hot: int, paced: int, root: Path, dsn: str, store: Store) -> None:
    for name, fault in DATABASES.items():
        line = Line(root, store, name)
        with Proxy(dsn, lambda fault=fault: fault) as proxy:
            limits = {"statement_timeout_s": ANSWER_LIMIT_S, "connect_timeout_s": ANSWER_LIMIT_S}
            through = Store(Database(proxy.dsn, **limits))
            writer = line.start(through, flush_interval_s=0.1)
            if name == "deaf":
                line.recorder.record(0, {"loss": 0.0})
                wait_until(lambda proxy=proxy: proxy.cuts, "it is deaf")
            slow_ones = []
            for count, pace_s in ((hot, 0.0), (paced, PACE_S)):
                took = latencies(line, count, pace_s)
                print(told(f"{name}, {'paced' if pace_s else 'hot'}", took))
                slow_ones += [ns / 1e9 for ns in took if ns > WAITED_S * 1e9]
            health = writer.health
            if name in {"up", "slow"}:
                writer.flush(600)  # the slow one takes in 4,000 rows a second
        assert slow_ones == [], f"{name}: calls took {slow_ones} s"
        assert health.dropped_rows == 0
        assert name in {"up", "slow"} or health.stored_rows == 0
        line.close(0)
        through.close()


def test_no_call_waits_for_the_database(tmp_path: Path, dsn: str, store: Store) -> None:
    measure(10_000, 500, tmp_path, dsn, store)


@pytest.mark.long(seconds=300)
@pytest.mark.alone
def test_no_call_waits_for_the_database_for_minutes(tmp_path: Path, dsn: str, store: Store) -> None:
    measure(figure(1_000_000), figure(30_000), tmp_path, dsn, store)


class Stuck:
    """A store whose every call hangs until it is let go."""

    def __init__(self) -> None:
        self.asked, self.let_go = threading.Event(), threading.Event()
        self.writers = SimpleNamespace(settle=self._hang)
        self.telemetry = SimpleNamespace(append=self._hang)

    def _hang(self, *_: object, **__: object) -> None:
        self.asked.set()
        self.let_go.wait()
        raise StoreUnavailable("nowhere", "it was stuck")


def test_nothing_that_record_needs_is_held_while_the_writer_talks(
    tmp_path: Path, dsn: str, store: Store
) -> None:
    line, stuck = Line(tmp_path, store, segment_bytes=1 << 16), Stuck()
    writer = line.start(stuck)
    line.recorder.record(0, {"loss": 0.0})
    assert stuck.asked.wait(60)

    def train() -> None:
        for step in range(1, 20_000):  # a dozen segments, with names that come and go
            line.recorder.record(step, {"loss": 1.0} if step % 7 else {"loss": 1.0, "phi": 0.5})

    training = threading.Thread(target=train, daemon=True)
    training.start()
    training.join(60)
    hangs = training.is_alive()
    line.spool.sync()
    assert not stuck.let_go.is_set()
    stuck.let_go.set()
    assert not hangs, "record() waits for a lock that the writer holds while it talks"
    assert (line.spool.seq, writer.health.stored_rows) == (20_000, 0)
    line.close(0)
    assert arrivals(dsn, line.session.id) == []
