"""SIGKILL at any moment: every row whose `record()` returned arrives, exactly once (R1).

The moments are random: while the spool is made, in `record()`, at the change of a segment, while a
batch is on its way to PostgreSQL, and while another process drains what a dead one left.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from time import monotonic
from uuid import UUID, uuid4

import psycopg
import pytest
from figures import figure, in_parts
from processes import nursery

from qigstore.recording.drain import drain_leftovers
from qigstore.repository import Store

NURSERY = Path(__file__).with_name("recorder_nursery.py")
DELAY_S = {"record": 0.03, "ship": 0.25, "drain": 0.1}
ROUND, ROWS_MAX = 50, 4000

ARRIVED = """
SELECT a.id, count(*), count(DISTINCT t.seq), min(t.seq), max(t.seq),
       bool_and(t.step = 3 * t.seq AND t.loss = t.seq * 0.5 AND (t.phi IS NULL) = (t.seq % 5 <> 0))
FROM qigstore.all_telemetry t
JOIN qigstore.attempt a ON a.session_id = t.session_id AND a.number = t.attempt
GROUP BY a.id
"""


def arrived(dsn: str) -> dict[UUID, int]:
    """Rows of each attempt, after checking that they are 1…n, once each and with their values."""
    found = {}
    with psycopg.connect(dsn) as connection:
        for attempt, rows, different, first, last, right in connection.execute(ARRIVED):
            assert (rows, different, first) == (last, last, 1), f"{attempt}: holes or doubles"
            assert right, f"{attempt}: wrong values"
            found[attempt] = rows
    return found


def kill(kills: int, root: Path, dsn: str, store: Store, rng: random.Random) -> None:
    returned: dict[UUID, int] = {}
    kinds: Counter[str] = Counter()
    began = monotonic()
    with nursery(NURSERY) as order:
        while sum(kinds.values()) < kills:
            for _ in range(min(ROUND, kills - sum(kinds.values()))):
                mode = rng.choices(["record", "ship", "drain"], [6, 2, 1])[0]
                attempt = uuid4()
                # Half of them may be killed before anything is recorded; the others get to a row
                # on a machine of any speed.
                rows_min = rng.choice([0, rng.randint(1, ROWS_MAX)]) if mode != "drain" else 0
                count = order(
                    mode=mode, root=str(root), dsn=dsn, session="kills", attempt=str(attempt),
                    writer=str(uuid4()), delay_s=rng.uniform(0, DELAY_S[mode]), rows_max=ROWS_MAX,
                    rows_min=rows_min,
                )  # fmt: skip
                kinds[mode] += 1
                if mode != "drain":
                    returned[attempt] = count
            for report in drain_leftovers(root, store):
                assert (report.busy, report.error, report.gap_rows) == (False, None, 0), report
    found = arrived(dsn)
    lost = sum(max(count - found.get(attempt, 0), 0) for attempt, count in returned.items())
    # One row may be complete in the spool although its record() had not returned yet.
    invented = sum(max(found.get(a, 0) - count - 1, 0) for a, count in returned.items())
    print(
        f"{sum(kinds.values())} kills {dict(kinds)} in {monotonic() - began:.0f} s: "
        f"{sum(returned.values())} rows returned, {sum(found.values())} arrived, {lost} lost, "
        f"{invented} too many"
    )
    assert (lost, invented) == (0, 0)
    assert found.keys() <= returned.keys()
    assert sum(returned.values()) > 10 * kills, "the kills came too early to mean anything"
    left = [path for path in root.iterdir() if not path.name.startswith(".new-")]
    assert left == []


@pytest.mark.timeout(1200)
def test_no_row_is_lost_or_doubled_by_sigkill(
    tmp_path: Path, dsn: str, store: Store, rng: random.Random
) -> None:
    kill(200, tmp_path, dsn, store, rng)


@pytest.mark.long(seconds=350)
@in_parts(10_000)
def test_no_row_is_lost_or_doubled_by_ten_thousand_sigkills(
    tmp_path: Path, dsn: str, store: Store, rng: random.Random, count: int
) -> None:
    kill(figure(count), tmp_path, dsn, store, rng)
