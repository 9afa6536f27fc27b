"""Real disks without room (R6): a tiny tmpfs, a file-size limit, a read-only folder."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from figures import figure
from line import Line, arrivals
from places import short_folder
from processes import run_python, wait_until
from proxy import HEALTHY, Fault, Proxy

from qigstore.database.engine import Database
from qigstore.repository import Store


@contextmanager
def tmpfs(folder: Path, size_k: int) -> Iterator[Path]:
    """A file system of its own, this small."""
    folder.mkdir()
    what = ["mount", "-t", "tmpfs", "-o", f"size={size_k}k", "tmpfs", str(folder)]
    subprocess.run(what, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill_and_free(disk: Path, rounds: int, dsn: str, store: Store) -> None:
    """Full, then room, then full again, while the database is away; then it comes back."""
    line = Line(disk / "spool", store, segment_bytes=1 << 16)
    offered = 0
    with Proxy(dsn, lambda: Fault("refuse")) as proxy:
        through = Store(Database(proxy.dsn))
        writer = line.start(through)
        for _ in range(rounds):
            before = writer.health.dropped_rows
            while writer.health.dropped_rows < before + 2000:
                line.recorder.record(offered, {"loss": offered * 0.5})
                offered += 1
            assert writer.health.dropped_rows + line.spool.seq == offered
            # Room for one segment more: found by itself, by a row of its own accord.
            size_k = os.statvfs(disk).f_blocks * os.statvfs(disk).f_frsize // 1024 + 100
            subprocess.run(["mount", "-o", f"remount,size={size_k}k", str(disk)], check=True)
            kept = line.spool.seq

            def recorded(kept: int = kept) -> bool:
                nonlocal offered
                line.recorder.record(offered, {"loss": offered * 0.5})
                offered += 1
                return line.spool.seq > kept

            wait_until(recorded, "rows are recorded again")
        proxy.plan = lambda: HEALTHY
        writer.flush(60)
        dropped, kept = writer.health.dropped_rows, line.spool.seq
        # What was stored made room: nothing is dropped any more.
        for _ in range(1000):
            line.recorder.record(offered, {"loss": offered * 0.5})
            offered += 1
        writer.flush(60)
        health = writer.health
        line.close(60)
        through.close()
    found = arrivals(dsn, line.session.id)
    print(f"{rounds} times full: {offered} rows offered, {len(found)} stored, {dropped} dropped")
    assert (health.dropped_rows, health.gap_rows, health.refused_rows) == (dropped, 0, 0)
    assert len(found) == offered - dropped == kept + 1000
    assert [seq for seq, _, _ in found] == list(range(1, len(found) + 1))
    assert all(loss == step * 0.5 for _, step, loss in found)


needs_mount = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a tmpfs")


@needs_mount
def test_a_tiny_disk_drops_and_counts_and_recovers(tmp_path: Path, dsn: str, store: Store) -> None:
    with tmpfs(tmp_path / "disk", 400) as disk:
        fill_and_free(disk, 3, dsn, store)


@needs_mount
@pytest.mark.long
def test_a_tiny_disk_a_hundred_times_full(tmp_path: Path, dsn: str, store: Store) -> None:
    with tmpfs(tmp_path / "disk", 400) as disk:
        fill_and_free(disk, figure(100), dsn, store)


WITHOUT_ROOM = """
import os, resource, sys, time
sys.path.insert(0, "tests/faults")
from pathlib import Path
from line import identity
from qigstore.recording.spool import Spool
from qigstore.recording.spool.leftover import LeftOver
from qigstore.recording.spool.reader import SpoolReader

root, how = Path(sys.argv[1]), sys.argv[2]
if os.geteuid() == 0:
    os.seteuid(65534)  # root writes anywhere
spool = Spool.create(root / "spool", identity(), segment_bytes=1 << 13)
layout = spool.layout(("loss",))
kept = {}

def record(count):
    for _ in range(count):
        step = len(kept) + spool.dropped
        with spool.lock:
            if spool.append(layout, step, -1, (step * 0.5,)):
                kept[spool.seq] = step

def close_the_door(closed):
    if how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096 if closed else -1, -1))
    else:
        spool.folder.chmod(0o500 if closed else 0o700)

record(500)
for _ in range(5):
    close_the_door(True)
    record(1000)
    spool.prepare()
    spool.sync()
    close_the_door(False)
    before, end = len(kept), time.monotonic() + 60
    while len(kept) == before:
        assert time.monotonic() < end, "it did not recover"
        record(1)
        time.sleep(0.005)
    record(500)
assert spool.dropped + len(kept) == max(kept.values()) + 1, (spool.dropped, len(kept))
spool.close()
reader = SpoolReader(LeftOver(spool.folder, spool.identity.writer), spool.identity.writer)
found = {}
while (take := reader.take(1000)) is not None:
    assert take.gap == 0
    for rows in take.groups:
        found |= dict(zip(rows.seq.tolist(), rows.step.tolist()))
assert found == kept, (len(found), len(kept))
assert spool.dropped > 1000
print(len(kept), spool.dropped)
"""


@pytest.mark.parametrize("how", ["limit", "read-only"])
def test_without_room_rows_are_dropped_and_counted_until_there_is(how: str) -> None:
    with short_folder() as folder:
        folder.chmod(0o777)
        kept, dropped = run_python(WITHOUT_ROOM, folder, how).split()
    print(f"{how}: {kept} kept, {dropped} dropped and counted, 0 corrupt")
