"""Disks that differ: past the page cache or through it, short, full, and without relief."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qigstore.checkpoints import CheckpointManager, CheckpointStore, Retention, SaveInfo
from qigstore.checkpoints.disk import PAGE, Disk
from qigstore.checkpoints.format import PAYLOAD
from qigstore.errors import CheckpointError

SIZES = [0, 1, PAGE - 1, PAGE, PAGE + 1, (3 << 20) + 17]


def info(step: int) -> SaveInfo:
    return SaveInfo(session_name="ocean", session_id=1, attempt=1, step=step, phi=0.5)


def state(step: int, size: int = 1000) -> dict[str, Any]:
    return {"w": np.full(size, step % 256, np.uint8), "step": step}


def is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


class Telling(Disk):
    """A disk that keeps how each write went."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[tuple[bool, int]] = []
        self.asked = 0

    def bypass(self, fd: int, wanted: bool) -> bool:
        self.asked += wanted
        return super().bypass(fd, wanted)

    def write(self, fd: int, data: memoryview) -> int:
        self.writes.append((is_direct(fd), len(data)))
        return super().write(fd, data)


class RefusesAtOpen(Telling):
    """As file systems that know of no O_DIRECT do."""

    def bypass(self, fd: int, wanted: bool) -> bool:
        self.asked += wanted
        return not wanted


class RefusesAtWrite(Telling):
    """As disks of larger blocks than a page do."""

    def write(self, fd: int, data: memoryview) -> int:
        if is_direct(fd):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return super().write(fd, data)


def check(folders: CheckpointStore, path: Path, given: dict[str, Any]) -> None:
    found = folders.load(path)
    assert np.array_equal(found["w"], given["w"])
    assert found["step"] == given["step"]
    manifest = folders.verify(path)
    assert (path / PAYLOAD).stat().st_size == manifest.payload.bytes


@pytest.mark.parametrize("size", SIZES)
def test_any_size_is_written_to_its_last_byte_and_no_further(tmp_path: Path, size: int) -> None:
    disk = Telling()
    folders = CheckpointStore(tmp_path, disk=disk, small_bytes=0)
    assert folders.past_cache is None
    # One buffer for all, as training has: what an earlier save left in it is in no later file.
    buffer = folders.stage(state(255, size + 3 * PAGE)).buffer
    staged = folders.stage(state(7, size), reuse=buffer)
    check(folders, folders.commit(staged, info(7)).path, state(7, size))
    if folders.past_cache:  # the file system of this machine takes it
        assert all(length % PAGE == 0 for direct, length in disk.writes if direct)
        assert any(direct for direct, _ in disk.writes)
        assert disk.refusals == {}


def test_a_small_payload_goes_through_the_cache_and_asks_nobody(tmp_path: Path) -> None:
    disk = Telling()
    folders = CheckpointStore(tmp_path, disk=disk)
    check(folders, folders.save(state(7, 70_000), info=info(7)).path, state(7, 70_000))
    assert (disk.asked, folders.past_cache) == (0, None)
    assert not any(direct for direct, _ in disk.writes)


@pytest.mark.parametrize("kind", [RefusesAtOpen, RefusesAtWrite])
def test_a_refusal_is_met_once_and_said(
    tmp_path: Path, kind: type[Telling], caplog: pytest.LogCaptureFixture
) -> None:
    disk = kind()
    folders = CheckpointStore(tmp_path, disk=disk, small_bytes=0)
    with caplog.at_level(logging.INFO, "qigstore.checkpoints.disk"):
        for step in range(3):
            check(folders, folders.save(state(step, 70_000), info=info(step)).path,
                  state(step, 70_000))  # fmt: skip
    assert folders.past_cache is False
    assert disk.asked == 1
    told = [one for one in caplog.records if one.name == "qigstore.checkpoints.disk"]
    assert len(disk.refusals) == len(told) == 1
    assert "refuses O_DIRECT" in told[0].getMessage()
    assert not any(direct for direct, _ in disk.writes)


@pytest.mark.parametrize("take", [PAGE, PAGE + 1, 100_000, (1 << 20) - 512])
def test_short_writes_that_end_between_pages_are_carried_on(tmp_path: Path, take: int) -> None:
    class Short(Telling):
        def write(self, fd: int, data: memoryview) -> int:
            # A kernel stops a direct write between pages only where the disk let it down, so that
            # the short count is made here from a write through the cache.
            if is_direct(fd) and take % PAGE:
                self.bypass(fd, False)
                count = super().write(fd, data[:take])
                self.bypass(fd, True)
                return count
            return super().write(fd, data[:take])

    folders = CheckpointStore(tmp_path, disk=Short(), small_bytes=0)
    check(folders, folders.save(state(9, 3_000_000), info=info(9)).path, state(9, 3_000_000))
    assert folders.past_cache in {False, take % PAGE == 0}


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="no tmpfs at /dev/shm")
def test_a_store_in_memory_works_whatever_it_takes() -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="qigstore-") as folder:
        folders = CheckpointStore(folder, small_bytes=0)
        check(folders, folders.save(state(3, 3_000_000), info=info(3)).path, state(3, 3_000_000))
        assert folders.past_cache is not None
        assert folders.past_cache == (not folders._disk.refusals)


# ---------------------------------------------------------------- full


class FullWhileMany(Disk):
    """A disk that has no room for another checkpoint while so many are there."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.refused = most, 0

    def write(self, fd: int, data: memoryview) -> int:
        folder = Path(f"/proc/self/fd/{fd}").readlink().parent.parent
        if sum(name.name[0] not in ".q" for name in folder.iterdir()) > self.most:
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(fd, data)


def manager(root: Path, disk: Disk, **options: Any) -> CheckpointManager:
    whose = {"session_id": 1, "session_name": "ocean", "attempt": 2}
    few = Retention(keep_newest=1, keep_best=1, settle_steps=0)
    given = whose | {"retention": few} | options
    return CheckpointManager(CheckpointStore(root, disk=disk), None, **given)


def test_a_disk_that_fills_up_amid_a_save_is_pruned_and_tried_once_more(tmp_path: Path) -> None:
    before = CheckpointStore(tmp_path)
    for step in range(4):
        before.save(state(step), info=info(step))
    disk = FullWhileMany(2)
    keeper = manager(tmp_path, disk)
    keeper.save(state(9), step=9, phi=0.5, wait=True)
    keeper.close()
    assert disk.refused == 1
    assert keeper.progress()["failed"] == 0
    left = before.scan("ocean")
    assert 9 in {item.step for item in left}
    assert len(left) < 5
    assert [before.load(item.path)["step"] for item in left] == [item.step for item in left]
    assert not [*before.folder_of("ocean").glob(".tmp-*")]


def test_a_full_disk_without_relief_is_told_and_training_goes_on(tmp_path: Path) -> None:
    before = CheckpointStore(tmp_path)
    before.save(state(0), info=info(0))
    disk = FullWhileMany(0)
    told: list[tuple[int, Exception]] = []
    keeper = manager(tmp_path, disk, on_error=lambda _key, step, error: told.append((step, error)))
    keeper.save(state(1), step=1)
    with pytest.raises(CheckpointError, match=r"step 1.*No space left"):
        keeper.wait()
    assert [step for step, _ in told] == [1]
    cause = told[0][1].__cause__
    assert isinstance(cause, OSError)
    assert cause.errno == errno.ENOSPC
    assert [item.step for item in before.scan("ocean")] == [0]
    assert not [*before.folder_of("ocean").glob(".tmp-*")]
    disk.most = 9  # somebody makes room
    keeper.save(state(2), step=2, wait=True)
    keeper.close()
    assert [item.step for item in before.scan("ocean")][-1] == 2
    assert keeper.progress()["failed"] == 1
