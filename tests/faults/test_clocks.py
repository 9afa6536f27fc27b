"""Clock jumps change labels, never order or loss (R14)."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from figures import figure
from line import Line

from qigstore.recording.recorder import Recorder
from qigstore.recording.spool import spool as spool_module
from qigstore.repository import Store

HOUR_NS = 3_600 * 10**9
ENDS_OF_SUMMER_NS = (1_793_494_800 * 10**9, 1_774_746_000 * 10**9)
"""When the clocks of Berlin go back in 2026, and when they go forward."""
STRANGE_NS = (0, 1, (1 << 31) * 10**9, (1 << 32) * 10**9, 4_102_444_800 * 10**9)
"""The epoch, the end of 32-bit time, signed and unsigned, and the year 2100."""

ORDERED = """
SELECT seq, step, (extract(epoch FROM recorded_at) * 1000000)::bigint
FROM qigstore.all_telemetry WHERE session_id = %s ORDER BY seq
"""


class Clock:
    """Runs, and jumps: an hour either way, over a change of summer time, to somewhere strange."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self.now_ns = rng, 1_790_000_000 * 10**9
        self.jumps = 0

    def __call__(self) -> int:
        """The time, a little later than the last time, unless it jumped."""
        self.now_ns += self._rng.randrange(10**7)
        if self._rng.random() < 0.02:
            self.jumps += 1
            self.now_ns = self._rng.choice(
                [
                    self.now_ns + HOUR_NS, self.now_ns - HOUR_NS,
                    self._rng.choice(ENDS_OF_SUMMER_NS) + self._rng.randrange(-(10**9), 10**9),
                    self._rng.choice(STRANGE_NS),
                ]
            )  # fmt: skip
            self.now_ns = max(self.now_ns, 0)
        return self.now_ns


@pytest.fixture(autouse=True)
def _in_berlin() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Europe/Berlin"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def record(rows: int, line: Line, dsn: str, clock: Clock, patch: pytest.MonkeyPatch) -> None:
    labels = []

    def told() -> int:
        labels.append(clock())
        return labels[-1]

    patch.setattr(spool_module, "time_ns", told)
    # The compiled way asks the kernel itself, whose clock no test can move.
    patch.setattr(Recorder, "record", Recorder._record_slowly)
    writer = line.start(line.store)
    for step in range(rows):
        line.recorder.record(step, {"loss": 1.0})
    writer.flush(120)
    line.close(60)
    with psycopg.connect(dsn) as connection:
        found = list(connection.execute(ORDERED, (line.session.id,)))
    print(f"{rows} rows, {clock.jumps} jumps of the clock: {rows - len(found)} lost")
    assert clock.jumps > rows / 100
    assert found == [(k + 1, k, labels[k] // 1000) for k in range(rows)]


def test_a_clock_that_jumps_changes_labels_only(
    tmp_path: Path, dsn: str, store: Store, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(tmp_path, store, segment_bytes=1 << 16)
    record(10_000, line, dsn, Clock(rng), monkeypatch)


@pytest.mark.long(seconds=60)
def test_a_clock_that_jumps_ten_thousand_times_changes_labels_only(
    tmp_path: Path, dsn: str, store: Store, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(tmp_path, store)
    record(figure(500_000), line, dsn, Clock(rng), monkeypatch)
