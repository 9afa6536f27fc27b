"""The spool alone: what goes in comes out, bounded, exact, and only by its owner."""

from __future__ import annotations

import errno
import math
import os
import random
import resource
import struct
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from qigstore.errors import SpoolBusy, SpoolFull
from qigstore.recording.spool import Spool, SpoolIdentity
from qigstore.recording.spool.identity import acquire_lock, read_identity
from qigstore.recording.spool.leftover import LeftOver, remove_folder, spool_folders
from qigstore.recording.spool.reader import Source, SpoolReader
from qigstore.recording.spool.segment import Disk

_KERNEL = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


def identity() -> SpoolIdentity:
    return SpoolIdentity(
        writer=uuid4(), attempt=uuid4(), session="s", rank=0, config={"lr": 0.1},
        host="here", pid=os.getpid(), created_at=datetime.now(UTC),
    )  # fmt: skip


def append(spool: Spool, step: int, **metrics: float) -> bool:
    layout = spool.layout(tuple(metrics))
    with spool.lock:
        return spool.append(layout, step, -1, tuple(metrics.values()))


def read_all(source: Source, spool: Spool, rows_max: int = 1000) -> dict[int, tuple[int, dict]]:
    """Sequence → (step, metrics), and each sequence only once."""
    reader = SpoolReader(source, spool.identity.writer)
    found: dict[int, tuple[int, dict]] = {}
    while (take := reader.take(rows_max)) is not None:
        for rows in take.groups:
            for i, seq in enumerate(rows.seq.tolist()):
                assert seq not in found
                row = dict(zip(rows.names, rows.values[i].tolist(), strict=True))
                found[seq] = (int(rows.step[i]), row)
    return found


def test_rows_come_back_exactly_and_in_order(tmp_path: Path, rng: random.Random) -> None:
    spool = Spool.create(tmp_path, identity(), segment_bytes=1 << 16)
    written = {}
    names = ["loss", "phi", "a/b", "Φ ünï", "x" * 200]
    for seq in range(1, 5001):
        row = {
            name: rng.choice([rng.random(), math.inf, -math.inf, -0.0, 5e-324, 1e308])
            for name in rng.sample(names, rng.randint(0, len(names)))
        }
        step = rng.randrange(2**62)
        assert append(spool, step, **row)
        written[seq] = (step, row)
    assert len(spool.spans()) > 5
    assert read_all(spool, spool, rng.randint(1, 6000)) == written
    spool.close()
    assert read_all(LeftOver(spool.folder, spool.identity.writer), spool) == written


def test_nan_and_basins_and_regimes_come_back(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, identity())
    layout = spool.layout(("loss",), 3)
    with spool.lock:
        for regime in (-1, 0, 3):
            spool.append(layout, regime + 1, regime, (math.nan, 0.5, 0.25, 0.25))
    take = SpoolReader(spool, spool.identity.writer).take(10)
    assert take is not None
    (rows,) = take.groups
    assert rows.regime.tolist() == [-1, 0, 3]
    assert np.isnan(rows.values).all()
    assert rows.basins is not None
    assert rows.basins.tolist() == [[0.5, 0.25, 0.25]] * 3


def test_a_row_that_cannot_be_packed_leaves_nothing_behind(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, identity())
    wide, narrow = spool.layout(tuple("abcdefgh")), spool.layout(("a",))
    with spool.lock:
        assert spool.append(narrow, 1, -1, (1.0,))
        with pytest.raises(struct.error):
            spool.append(wide, 2, -1, (*range(7), "text"))  # type: ignore[arg-type]
        assert spool.append(narrow, 3, -1, (3.0,))
    assert read_all(spool, spool) == {1: (1, {"a": 1.0}), 2: (3, {"a": 3.0})}
    spool.close()
    reader = SpoolReader(LeftOver(spool.folder, spool.identity.writer), spool.identity.writer)
    take = reader.take(10)
    assert take is not None
    assert (take.count, take.gap) == (2, 0)


def test_what_a_living_spool_reads_back_from_its_disk_is_checked(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, identity(), segment_bytes=8192)
    while len(spool.spans()) < 2:
        append(spool, spool.seq, loss=1.0)
    first = spool.spans()[0][0]
    assert spool.mine(first)
    spool.sync()
    assert not spool.mine(first)
    assert spool.mine(spool.spans()[1][0])
    path = spool.folder / f"{first:08d}.seg"
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(struct.pack("<d", 1.0))] ^= 1
    path.write_bytes(damaged)
    take = SpoolReader(spool, spool.identity.writer).take(1 << 20)
    assert take is not None
    assert (take.gap, take.last_seq) == (1, spool.seq)


def test_a_row_is_whole_before_its_one_word_makes_it_valid(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, identity())
    append(spool, 1, loss=1.0)
    left_over = LeftOver(spool.folder, spool.identity.writer)
    seen = []

    class Watched:
        """Reads as another process would, right before and right after the store."""

        def __init__(self, words: memoryview) -> None:
            self.words = words

        def __setitem__(self, place: int, word: int) -> None:
            before = read_all(left_over, spool)
            self.words[place] = word
            seen.append((before, read_all(left_over, spool)))

    spool.words = Watched(spool.words)  # type: ignore[assignment]
    append(spool, 2, loss=2.0)
    first, second = {1: (1, {"loss": 1.0})}, {2: (2, {"loss": 2.0})}
    assert seen == [(first, first | second)]


@pytest.mark.skipif(_KERNEL < (5, 14), reason="the kernel does not know MADV_POPULATE_WRITE")
def test_rows_after_a_sync_find_their_pages_ready(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, identity())

    def faults(rows: int) -> int:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        for step in range(rows):
            append(spool, step, **row)
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

    row = dict.fromkeys("abcdefghijklmnopqrst", 1.0)

    def ready(prepare: Callable[[], object]) -> bool:
        """Whether it is so once: the kernel may take pages back, to write or to move them."""
        for _ in range(10):
            prepare()
            if faults(300) < 4:
                return True
        return False

    faults(2000)  # the interpreter's own memory
    assert faults(300) > 12  # 60,000 bytes, in pages of one fault each
    assert ready(spool.sync)
    faults(1_000)  # past all that was made ready
    assert faults(300) > 12
    assert ready(spool.prepare)


def test_a_reader_goes_on_where_it_was_and_can_go_back(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, identity(), segment_bytes=1 << 16)
    reader = SpoolReader(spool, spool.identity.writer)
    assert reader.take(10) is None
    for step in range(3000):
        append(spool, step, loss=float(step))
    seen = 0
    while (take := reader.take(700)) is not None:
        assert take.first_seq == seen + 1
        seen = take.last_seq
    assert seen == 3000
    append(spool, 3000, loss=0.0)
    take = reader.take(700)
    assert take is not None
    assert (take.first_seq, take.last_seq) == (3001, 3001)
    reader.rewind(1500)
    take = reader.take(10)
    assert take is not None
    assert take.first_seq == 1501
    assert take.groups[0].step[0] == 1500


def test_segments_are_released_only_when_everything_in_them_is_stored(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, identity(), segment_bytes=1 << 16)
    for step in range(5000):
        append(spool, step, loss=float(step))
    spans = spool.spans()
    second = spans[1][1]
    spool.release(second - 2)
    assert spool.spans() == spans
    spool.release(second - 1)
    assert spool.spans() == spans[1:]
    spool.release(5000)
    assert len(spool.spans()) == 1
    assert len(list(spool.folder.glob("*.seg"))) == 1
    spool.remove()
    assert not spool.folder.exists()


def test_a_full_spool_drops_and_counts_and_recovers(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, identity(), segment_bytes=1 << 16, bytes_max=1 << 18)
    kept = sum(append(spool, step, loss=1.0) for step in range(20_000))
    assert 0 < kept < 20_000
    assert spool.dropped == 20_000 - kept
    assert spool.seq == kept
    assert sum(path.stat().st_size for path in spool.folder.glob("*.seg")) <= 1 << 18
    spool.release(kept)
    assert append(spool, 20_000, loss=2.0)
    assert max(read_all(spool, spool).items()) == (kept + 1, (20_000, {"loss": 2.0}))


class FailingDisk(Disk):
    """A disk that can be told to refuse."""

    def __init__(self) -> None:
        self.full = self.broken = False
        self.synced: list[int] = []

    def allocate(self, path: Path, size: int) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().allocate(path, size)

    def sync(self, descriptor: int) -> None:
        self.synced.append(os.fstat(descriptor).st_ino)
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync(descriptor)


def test_a_full_disk_is_an_error_before_the_first_row_and_a_count_after(tmp_path: Path) -> None:
    disk = FailingDisk()
    disk.full = True
    with pytest.raises(SpoolFull, match="No space"):
        Spool.create(tmp_path, identity(), disk=disk)
    assert list(tmp_path.iterdir()) == []
    disk.full = False
    spool = Spool.create(tmp_path, identity(), segment_bytes=1 << 16, disk=disk)
    disk.full = True
    kept = sum(append(spool, step, loss=1.0) for step in range(5000))
    assert spool.dropped == 5000 - kept > 0
    disk.full = False
    spool.release(0)
    spool._retry_at = 0.0
    assert append(spool, 5000, loss=1.0)
    assert len(read_all(spool, spool)) == kept + 1


def test_a_failed_sync_is_never_asked_again_of_the_same_file(tmp_path: Path) -> None:
    disk = FailingDisk()
    spool = Spool.create(tmp_path, identity(), disk=disk)
    append(spool, 1, loss=1.0)
    first = (spool.folder / "00000001.seg").stat().st_ino
    disk.broken = True
    with pytest.raises(OSError, match="Input/output"):
        spool.sync()
    append(spool, 2, loss=2.0)
    disk.broken = False
    disk.synced.clear()
    spool.sync()
    assert first not in disk.synced
    assert (spool.folder / "00000001.seg").stat().st_ino != first
    whole = {1: (1, {"loss": 1.0}), 2: (2, {"loss": 2.0})}
    assert read_all(spool, spool) == whole
    spool.close()
    assert read_all(LeftOver(spool.folder, spool.identity.writer), spool) == whole


def test_the_segment_prepared_ahead_is_the_next_one(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, identity(), segment_bytes=1 << 16)
    while 2 * spool.at < 1 << 16:
        append(spool, 1, loss=1.0)
    spool.prepare()
    files = {path.name for path in spool.folder.glob("*.seg")}
    assert len(files) == 2
    while len(spool.spans()) == 1:
        append(spool, 1, loss=1.0)
    assert {path.name for path in spool.folder.glob("*.seg")} == files
    spool.sync()
    assert len(read_all(spool, spool)) == spool.seq


def test_threads_share_one_sequence(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, identity(), segment_bytes=1 << 16)

    def work(start: int) -> None:
        for step in range(start, start + 1000):
            append(spool, step, **{f"metric {step % 3}": float(step)})

    threads = [threading.Thread(target=work, args=(1000 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_all(spool, spool)
    assert sorted(found) == list(range(1, 4001))
    assert sorted(step for step, _ in found.values()) == list(range(4000))
    assert all(row == {f"metric {step % 3}": float(step)} for step, row in found.values())


def test_the_lock_says_who_lives(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, identity())
    assert spool_folders(tmp_path) == [spool.folder]
    with pytest.raises(SpoolBusy, match=f"process {os.getpid()} on here"):
        acquire_lock(spool.folder)
    assert read_identity(spool.folder) == spool.identity
    spool.close()
    os.close(acquire_lock(spool.folder))
    remove_folder(spool.folder)
    assert spool_folders(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        acquire_lock(spool.folder)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # 3.12: a fork beside threads
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # JAX's, where its tests ran before
def test_a_forked_child_has_nothing_of_the_spool(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, identity())
    append(spool, 1, loss=1.0)
    alive, let_go = os.pipe()
    done, tell = os.pipe()
    child = os.fork()
    if child == 0:
        kept = append(spool, 2, loss=2.0)
        spool.sync()
        spool.close()
        spool.remove()
        os.close(let_go)
        os.write(tell, b"!")
        os.read(alive, 1)  # outlives the parent's lock, as a data loader's worker may
        os._exit(0 if (kept, spool.dropped) == (False, 1) else 1)
    os.close(alive)
    assert os.read(done, 1) == b"!"
    append(spool, 3, loss=3.0)
    whole = {1: (1, {"loss": 1.0}), 2: (3, {"loss": 3.0})}
    assert read_all(spool, spool) == whole
    spool.close()
    os.close(acquire_lock(spool.folder))  # free, although the child lives
    os.close(let_go)
    assert os.waitpid(child, 0)[1] == 0
    assert read_all(LeftOver(spool.folder, spool.identity.writer), spool) == whole


def test_a_row_recorded_by_an_interruption_of_the_row_comes_after_it(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, identity())
    layout = spool.layout(("loss",))

    class Interrupting:
        def __float__(self) -> float:
            with spool.lock:
                spool.append(layout, 2, -1, (2.0,))
            return 1.0

    with spool.lock:
        spool.append(layout, 1, -1, (Interrupting(),))  # type: ignore[arg-type]
    assert read_all(spool, spool) == {1: (1, {"loss": 1.0}), 2: (2, {"loss": 2.0})}


def test_two_spools_of_one_writer_do_not_harm_each_other(tmp_path: Path) -> None:
    told = identity()
    spool = Spool.create(tmp_path, told)
    append(spool, 1, loss=1.0)
    with pytest.raises(SpoolFull):
        Spool.create(tmp_path, told)
    assert read_all(spool, spool) == {1: (1, {"loss": 1.0})}
    assert [path.name for path in tmp_path.iterdir()] == [str(told.writer)]


def test_a_failed_sync_without_room_to_rewrite_is_not_asked_again(tmp_path: Path) -> None:
    disk = FailingDisk()
    spool = Spool.create(tmp_path, identity(), disk=disk)
    append(spool, 1, loss=1.0)
    disk.broken = disk.full = True
    for _ in range(2):
        with pytest.raises(OSError, match="no room to rewrite"):
            spool.sync()
    assert len(disk.synced) == 2  # spool.json, and the segment once
    disk.broken = disk.full = False
    append(spool, 2, loss=2.0)
    spool.sync()
    assert read_all(spool, spool) == {1: (1, {"loss": 1.0}), 2: (2, {"loss": 2.0})}


class SlowDisk(Disk):
    """Syncs files only once it may; `waiting` while somebody waits for that."""

    def __init__(self) -> None:
        self.waiting, self.may = threading.Event(), threading.Event()

    def sync(self, descriptor: int) -> None:
        self.waiting.set()
        assert self.may.wait(60)
        super().sync(descriptor)


@pytest.mark.parametrize("leave", ["close", "remove"])
def test_nobody_but_who_syncs_waits_for_a_slow_disk(tmp_path: Path, leave: str) -> None:
    disk = SlowDisk()
    disk.may.set()
    spool = Spool.create(tmp_path, identity(), segment_bytes=8192, disk=disk)
    rows = 0
    while len(spool.spans()) < 4:
        append(spool, rows := rows + 1, loss=rows)
    disk.may.clear()
    disk.waiting.clear()
    failed: list[BaseException] = []

    def sync() -> None:
        try:
            spool.sync()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=sync)
    thread.start()
    assert disk.waiting.wait(60)
    assert read_all(spool, spool) == {k: (k, {"loss": k}) for k in range(1, rows + 1)}
    (_, second, _), (_, third, _) = spool.spans()[1:3]
    spool.release(third - 1)  # the one that is being synced, too
    assert next(first for _, first, _ in spool.spans()) == third > second
    append(spool, rows + 1, loss=0)
    spool.prepare()
    # Memory of full segments is given back all the same, and they are read as before.
    number = spool.spans()[0][0]
    assert not spool.mine(number)
    assert spool.mine(spool.spans()[-1][0])
    assert third in read_all(spool, spool)
    getattr(spool, leave)()
    disk.may.set()
    thread.join(60)
    assert not failed
    assert spool.folder.exists() == (leave == "close")
