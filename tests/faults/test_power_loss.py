"""Power loss (R2): rows older than 1 s survive it, and rows before `flush(durable=True)`.

Each history runs the writer's own disk loop on a clock of ours, on a disk that forgets any subset
of what was not fsynced, and ends at a random moment: between two rows or inside any sync.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import sys
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from figures import figure
from forgetful_disk import ForgetfulDisk, PowerLoss, restore
from line import identity

from qigstore.errors import NotStored
from qigstore.recording import disk_keeper
from qigstore.recording import writer as writer_module
from qigstore.recording.disk_keeper import DiskKeeper
from qigstore.recording.event_log import EventLog
from qigstore.recording.spool import Spool
from qigstore.recording.spool.leftover import LeftOver, spool_folders
from qigstore.recording.spool.quarantine import Quarantine
from qigstore.recording.spool.reader import Rows, SpoolReader
from qigstore.recording.writer import Writer
from qigstore.records import Event

LIMIT_S = 1.0
SYNC_S = 0.04
"""How long one sync takes at most here; a round of the loop makes a handful of them."""


class History:
    """One life of a recording process, up to the power loss.

    Attributes:
        rows: by sequence, the moment `record()` returned and the row.
        flushed: last sequence before the last `flush(durable=True)` that returned.
        acked: what the database has, so that the spool need not keep it.
    """

    def __init__(self, base: Path, rng: random.Random, patch: pytest.MonkeyPatch) -> None:
        self.rng, self.now, self.end = rng, 100.0, 100.0 + 10 ** rng.uniform(-1, 0.8)
        self.rows: dict[int, tuple[float, int, dict[str, float]]] = {}
        self.flushed = self.acked = 0
        self.rate = 10 ** rng.uniform(0.5, 2.8)
        self.broken_at = rng.randrange(60)
        self.root = base / "home" / "spool" / "store"
        self.told = identity()
        self.spool: Spool | None = None
        self.disk = ForgetfulDisk(base, rng, self.around_sync)
        self.disk.install(patch)
        for module in (writer_module, disk_keeper):
            patch.setattr(module, "monotonic", lambda: self.now)

    def live(self) -> None:
        """Record until the power goes."""
        self.spool = Spool.create(self.root, self.told, segment_bytes=1 << 13)
        writer = Writer(None, self.spool, session_id=1, attempt=1, epoch=1)  # type: ignore[arg-type]
        self.writer = writer
        DiskKeeper(self.spool, self).run()  # type: ignore[arg-type]

    def wait(self, timeout_s: float) -> bool:
        """The loop's pause: training goes on meanwhile."""
        self.pass_time(timeout_s)
        chance = self.rng.random()
        assert self.spool is not None
        if chance < 0.05:
            before = self.spool.seq
            with suppress(NotStored):  # there is no database here
                self.writer.flush(0, durable=True)
            self.flushed = before
        elif chance < 0.15:
            self.acked = self.rng.randint(self.acked, self.spool.seq)
            self.spool.release(self.acked)
        elif chance < 0.4:
            self.disk.write_back()
        return False

    def around_sync(self, what: str) -> None:
        """A sync takes time, fails once, and may be the last thing that happens."""
        if what == "file" and self.disk.syncs >= self.broken_at and self.spool is not None:
            self.broken_at = sys.maxsize
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.pass_time(self.rng.uniform(0, SYNC_S / 2))

    def pass_time(self, seconds: float) -> None:
        """Record at the history's rate; the power goes at its end, wherever that is."""
        until = self.now + seconds
        while self.now < until:
            if self.now >= self.end:
                self.disk.power_off()
            step = self.rng.expovariate(self.rate)
            self.now += step
            if self.now < until and self.spool is not None:
                self.record()
        self.now = until

    def record(self) -> None:
        spool = self.spool
        assert spool is not None
        names = self.rng.choice([("loss",), ("loss", "phi"), ("a", "b", "loss")])
        values = tuple(self.rng.random() for _ in names)
        step = len(self.rows)
        layout = spool.layout(names)
        with spool.lock:
            assert spool.append(layout, step, -1, values)
        self.rows[spool.seq] = (self.now, step, dict(zip(names, values, strict=True)))

    def promised(self) -> set[int]:
        """Sequences that must be there: in the spool or in the database."""
        old = {seq for seq, (at, _, _) in self.rows.items() if at < self.now - LIMIT_S}
        return {seq for seq in old | set(range(1, self.flushed + 1)) if seq > self.acked}


def found_in(root: Path, history: History) -> dict[int, tuple[int, dict[str, float]]]:
    """What the next process would ship."""
    found = {}
    for folder in spool_folders(root):
        writer = history.told.writer
        reader = SpoolReader(LeftOver(folder, writer), writer, history.acked)
        while (take := reader.take(1000)) is not None:
            for rows in take.groups:
                for i, seq in enumerate(rows.seq.tolist()):
                    assert seq not in found
                    metrics = dict(zip(rows.names, rows.values[i].tolist(), strict=True))
                    found[seq] = (int(rows.step[i]), metrics)
    return found


def survive(base: Path, rng: random.Random) -> tuple[int, int, int]:
    """One history: rows promised, rows found, rows promised and lost."""
    base.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        history = History(base, rng, patch)
        with pytest.raises(PowerLoss):
            history.live()
    if history.spool is not None:
        history.spool.close()
    history.disk.close()
    assert history.disk.left is not None
    after = base.with_name("after")
    restore(history.disk.left, after)
    found = found_in(after / "home" / "spool" / "store", history)
    for seq, row in found.items():
        assert row == history.rows[seq][1:], f"row {seq} is not what was recorded"
    promised = history.promised()
    shutil.rmtree(base)
    shutil.rmtree(after)
    return len(promised), len(found), len(promised - found.keys())


def histories(count: int, root: Path, rng: random.Random) -> None:
    logging.getLogger("qigstore").setLevel(logging.CRITICAL)
    promised = found = lost = 0
    try:
        for number in range(count):
            own = rng.getrandbits(32)
            counts = survive(root / f"{number}", random.Random(own))
            promised, found, lost = (
                a + b for a, b in zip((promised, found, lost), counts, strict=True)
            )
            assert not lost, f"history {number} (seed {own}) lost {lost} promised rows"
    finally:
        logging.getLogger("qigstore").setLevel(logging.NOTSET)
        print(f"{count} histories: {promised} rows promised, {found} found, {lost} lost")
    assert promised > 5 * count, "the power went too early to mean anything"


def test_five_hundred_power_losses_lose_no_promised_row(tmp_path: Path, rng: random.Random) -> None:
    histories(500, tmp_path, rng)


@pytest.mark.long(seconds=150)
def test_five_thousand_power_losses_lose_no_promised_row(
    tmp_path: Path, rng: random.Random
) -> None:
    histories(figure(5000), tmp_path, rng)


def event() -> Event:
    """An emergency of this moment."""
    return Event(
        uuid4(), session_id=1, attempt=1, rank=0, step=1, rule="r", severity="critical",
        message="m", raised_at=datetime.now(UTC),
    )  # fmt: skip


def row(seq: int) -> Rows:
    """One row, as the database refuses it."""
    one = np.array([seq])
    values = np.array([[seq * 0.5]])
    return Rows(("loss",), one, one, one, values, np.array([-1], np.int16), None)


def write_for_ever(home: Path, events: set[str], rows: set[str]) -> None:
    """Events and quarantined rows, each told once it was written."""
    log = EventLog(home / "events" / "store")
    with closing(Spool.create(home / "spool" / "store", identity())) as spool:
        quarantine = Quarantine(spool.folder.parent, spool.identity.writer)
        while True:
            raised = event()
            log.write("s", raised)
            events.add(str(raised.id))
            quarantine.add(row(len(rows) + 1), "refused")
            rows.add(str(len(rows) + 1))


def write_until_the_power_goes(base: Path, rng: random.Random) -> tuple[set[str], set[str], Path]:
    """Events and quarantined rows that were written, and the home that the power loss left."""
    base.mkdir()
    events: set[str] = set()
    rows: set[str] = set()
    last = rng.randrange(60)

    def around_sync(_: str) -> None:
        if disk.syncs >= last and rng.random() < 0.3:
            disk.power_off()

    disk = ForgetfulDisk(base, rng, around_sync)
    with pytest.MonkeyPatch.context() as patch:
        disk.install(patch)
        with pytest.raises(PowerLoss):
            write_for_ever(base / "home", events, rows)
    disk.close()
    assert disk.left is not None
    restore(disk.left, base.with_name("after"))
    return events, rows, base.with_name("after") / "home"


def test_an_event_or_a_quarantined_row_that_was_written_survives(
    tmp_path: Path, rng: random.Random
) -> None:
    written = 0
    for number in range(60):
        events, rows, home = write_until_the_power_goes(tmp_path / f"{number}", rng)
        log = EventLog(home / "events" / "store")
        assert events <= {str(logged.event.id) for logged in log.pending()}
        assert log.problems == ()
        kept = [p.read_text() for p in (home / "spool" / "store").glob("quarantine-*.jsonl")]
        assert rows <= {text.split(",")[0] for text in "".join(kept).split('{"seq": ')}
        written += len(events) + len(rows)
        shutil.rmtree(home.parent)
    print(f"60 power losses: {written} events and quarantined rows written, 0 lost")
    assert written > 200
