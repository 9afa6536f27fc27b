"""A checkpoint is complete or absent, and the earlier ones stay: at every call and system call."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qigstore.checkpoints import CheckpointManager, CheckpointStore, SaveInfo
from qigstore.checkpoints.disk import Disk
from qigstore.errors import CheckpointError

REPOSITORY = Path(__file__).resolve().parent.parent.parent
CALLS = (
    "mkdir", "create", "bypass", "write", "begin_writing", "truncate", "fsync", "close",
    "fsync_folder", "rename",
    "unlink", "rmdir", "listdir", "free_bytes", "try_lock", "unlock",
)  # fmt: skip
GIVES_BACK = {"close", "unlock"}  # the kernel has done it even where it reports an error
KILLED = 77


class Watched(Disk):
    """A disk that counts its calls and does `deed` at the n-th."""

    def __init__(self, n: int = 0, deed: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.n, self.deed, self.count = n, deed, 0


def _watched(name: str) -> Callable[..., Any]:
    real = getattr(Disk, name)

    def call(self: Watched, *args: Any, **options: Any) -> Any:
        self.count += 1
        strike = self.deed if self.count == self.n else None
        if strike is not None and name not in GIVES_BACK:
            strike()
        found = real(self, *args, **options)
        if strike is not None and name in GIVES_BACK:
            strike()
        return found

    return call


for _name in CALLS:
    setattr(Watched, _name, _watched(_name))


def state(step: int) -> dict[str, Any]:
    return {"w": np.full(1000, float(step)), "step": step}


def info(step: int) -> SaveInfo:
    return SaveInfo(session_name="ocean", session_id=1, attempt=1, step=step, phi=0.5)


def raising(number: int) -> Callable[[], None]:
    def deed() -> None:
        raise OSError(number, os.strerror(number))

    return deed


def check(root: Path, *, earlier: bool) -> set[int]:
    """What is there is whole, the earlier one is among it, and the store goes on working."""
    folders = CheckpointStore(root)
    found = folders.survey("ocean")
    assert found.damaged == ()
    steps = {item.step for item in found.checkpoints}
    for item in found.checkpoints:
        loaded = folders.load(item.path)
        assert loaded["step"] == item.step
        assert (loaded["w"] == item.step).all()
    assert not earlier or 0 in steps
    folders.clean("ocean")
    after = folders.save(state(99), info=info(99))
    assert folders.load(after.path)["step"] == 99
    left = [name.name for name in folders.folder_of("ocean").iterdir() if name.name[0] == "."]
    assert left == []
    return steps


WAYS = {"through the cache": 1 << 20, "past the cache": 0}
"""Sizes from which a payload goes past the page cache: the states here go either way."""


def calls_of_a_save(root: Path, *, earlier: bool, small_bytes: int) -> int:
    if earlier:
        CheckpointStore(root).save(state(0), info=info(0))
    disk = Watched()
    CheckpointStore(root, disk=disk, small_bytes=small_bytes).save(state(1), info=info(1))
    return disk.count


@pytest.mark.parametrize("small_bytes", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("earlier", [False, True], ids=["first save", "later save"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_an_error_at_every_call_leaves_it_complete_or_absent(
    tmp_path: Path, number: int, earlier: bool, small_bytes: int
) -> None:
    total = calls_of_a_save(tmp_path / "count", earlier=earlier, small_bytes=small_bytes)
    assert total > 15
    for n in range(1, total + 1):
        root = tmp_path / str(n)
        if earlier:
            CheckpointStore(root).save(state(0), info=info(0))
        disk = Watched(n, raising(number))
        with pytest.raises(CheckpointError) as refusal:
            CheckpointStore(root, disk=disk, small_bytes=small_bytes).save(state(1), info=info(1))
        assert isinstance(refusal.value.__cause__, OSError)
        assert refusal.value.__cause__.errno == number
        check(root, earlier=earlier)
        shutil.rmtree(root)


@pytest.mark.parametrize("take", [1, 7, 4096])
def test_short_writes_are_carried_on(tmp_path: Path, take: int) -> None:
    class Short(Disk):
        def write(self, fd: int, data: memoryview) -> int:
            return super().write(fd, data[:take])

    folders = CheckpointStore(tmp_path, disk=Short())
    saved = folders.save({"w": np.arange(500.0)}, info=info(1))
    assert folders.load(saved.path)["w"].tolist() == list(range(500))


def killed_at(root: Path, n: int, small_bytes: int) -> int:
    """The exit status of a fork that dies at its n-th call of a save."""
    pid = os.fork()
    if pid == 0:
        try:
            disk = Watched(n, lambda: os._exit(KILLED))
            CheckpointStore(root, disk=disk, small_bytes=small_bytes).save(state(1), info=info(1))
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# In an interpreter of its own, which has one thread: a fork of this one would have copied locks and
# pools of threads that it does not have.
DEATHS = """
import json, sys
sys.path.insert(0, "tests/faults")
from pathlib import Path
from test_checkpoint_faults import CheckpointStore, info, killed_at, state
folder, total, earlier = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"
small_bytes = int(sys.argv[4])
found = []
for n in range(1, total + 1):
    root = folder / str(n)
    if earlier:
        CheckpointStore(root).save(state(0), info=info(0))
    found.append(killed_at(root, n, small_bytes))
print(json.dumps(found))
"""


def deaths(folder: Path, total: int, *, earlier: bool, small_bytes: int) -> list[int]:
    """Exit statuses of saves that die at their first, second, ... call; each in its own root."""
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            DEATHS,
            *map(str, (folder, total, earlier, small_bytes)),
        ],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(done.stdout.splitlines()[-1])
    return found


SAVE = """
import os, sys
sys.path.insert(0, "tests/faults")
from pathlib import Path
from test_checkpoint_faults import CheckpointStore, info, state
store = CheckpointStore(Path(sys.argv[1]), small_bytes=0)
info, state = info(1), state(1)
os.chdir("/")
store.save(state, info=info)
os.chdir("/")
"""


def child(root: Path, *, before: tuple[str, ...] = ()) -> int:
    # No byte code: the first process to write it would make calls that the next ones do not.
    same = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*before, sys.executable, "-c", SAVE, str(root)],
        cwd=REPOSITORY,
        env=os.environ | same,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode in {0, 1, -signal.SIGKILL, 128 + signal.SIGKILL}, done.stderr
    return done.returncode


@pytest.mark.parametrize("small_bytes", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("earlier", [False, True], ids=["first save", "later save"])
def test_death_at_every_call_leaves_it_complete_or_absent(
    tmp_path: Path, earlier: bool, small_bytes: int
) -> None:
    total = calls_of_a_save(tmp_path / "count", earlier=earlier, small_bytes=small_bytes)
    found = deaths(tmp_path, total, earlier=earlier, small_bytes=small_bytes)
    assert found == [KILLED] * total
    seen = set()
    for n in range(1, total + 1):
        seen |= check(tmp_path / str(n), earlier=earlier)
    # Absent before the rename, complete after it.
    assert seen == ({0, 1} if earlier else {1})


# ---------------------------------------------------------------- every system call

STRACE = shutil.which("strace")
MARK = "chdir("
HARMLESS = {"chdir", "exit_group", "exit", "restart_syscall", "wait4"}
OF_FILES = {
    "openat", "write", "fsync", "rename", "mkdir", "unlink", "rmdir", "flock", "statfs", "close",
    "newfstatat", "lstat", "fstat", "getdents64", "lseek", "read", "fcntl", "ftruncate",
}  # fmt: skip


def system_calls(root: Path, log: Path) -> list[tuple[str, int]]:
    """Name and place (counted from the start of the process) of each call of one save."""
    assert child(root, before=("strace", "-f", "-o", str(log))) == 0
    lines = log.read_text().splitlines()
    main = lines[0].split()[0]
    counts: dict[str, int] = {}
    found, inside = [], 0
    for line in lines:
        match = re.match(rf"{main} +([a-z0-9_]+)\(", line)
        if not match:
            continue
        name = match[1]
        counts[name] = counts.get(name, 0) + 1
        if name + "(" == MARK:
            inside += 1
        elif inside == 1 and name not in HARMLESS:
            found.append((name, counts[name]))
    assert inside == 2
    return found


def strike(
    tmp_path: Path, places: list[tuple[str, int]], deed: str
) -> tuple[list[tuple[str, int]], set[int]]:
    """Repeat a later save with one system call struck each time; which were, and the steps."""
    struck, seen = [], set()
    for place, (name, n) in enumerate(places):
        root = tmp_path / f"{place}"
        CheckpointStore(root).save(state(0), info=info(0))
        inject = f"inject={name}:{deed}:when={n}"
        log = tmp_path / "log"
        status = child(root, before=("strace", "-f", "-o", str(log), "-e", inject))
        if status in {-signal.SIGKILL, 128 + signal.SIGKILL} or "(INJECTED)" in log.read_text():
            struck.append((name, n))
        seen |= check(root, earlier=True)
        shutil.rmtree(root)
    return struck, seen


@pytest.fixture
def places(tmp_path: Path) -> list[tuple[str, int]]:
    CheckpointStore(tmp_path / "count").save(state(0), info=info(0))
    found = system_calls(tmp_path / "count", tmp_path / "log")
    names = {name for name, _ in found}
    assert {"fsync", "rename", "mkdir", "write", "openat", "flock"} <= names
    return found


@pytest.mark.long(seconds=60)
@pytest.mark.timeout(1800)
@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_kill_at_every_system_call_leaves_it_complete_or_absent(
    tmp_path: Path, places: list[tuple[str, int]]
) -> None:
    struck, seen = strike(tmp_path, places, "signal=KILL")
    print(f"killed at {len(struck)} of {len(places)} system calls")
    # How often memory is mapped and threads wait differs from run to run; what files see does not.
    missed = set(places) - set(struck)
    assert not {name for name, _ in missed} & OF_FILES
    assert seen == {0, 1}


@pytest.mark.long(seconds=60)
@pytest.mark.timeout(1800)
@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
@pytest.mark.parametrize("number", ["EIO", "ENOSPC"])
def test_an_error_of_every_system_call_leaves_it_complete_or_absent(
    tmp_path: Path, places: list[tuple[str, int]], number: str
) -> None:
    of_files = [place for place in places if place[0] in OF_FILES]
    struck, seen = strike(tmp_path, of_files, f"error={number}")
    print(f"{number} at {len(struck)} of {len(of_files)} system calls")
    assert struck == of_files
    assert 0 in seen


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_kill_at_some_system_calls_leaves_it_complete_or_absent(
    tmp_path: Path, places: list[tuple[str, int]]
) -> None:
    telling = [place for place in places if place[0] in {"fsync", "rename", "mkdir"}]
    struck, seen = strike(tmp_path, telling, "signal=KILL")
    assert struck == telling
    assert seen == {0, 1}


# ---------------------------------------------------------------- behind training's back


def manager(root: Path, disk: Disk | None = None, **options: Any) -> CheckpointManager:
    folders = CheckpointStore(root, disk=disk)
    whose = {"session_id": 1, "session_name": "ocean", "attempt": 1}
    return CheckpointManager(folders, None, **whose | options)


@pytest.mark.parametrize("at_once", [False, True], ids=["any time", "before the save returns"])
def test_an_error_behind_is_told_at_the_next_save_which_is_taken_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    start = threading.Thread.start

    def start_and_end(thread: threading.Thread) -> None:
        start(thread)
        if at_once and thread.name == "qigstore-checkpoint":
            thread.join()

    monkeypatch.setattr(threading.Thread, "start", start_and_end)
    keeper = manager(tmp_path, Watched(5, raising(errno.EIO)))
    keeper.save(state(1), step=1)
    with pytest.raises(CheckpointError, match=r"step 1: .*Input/output error"):
        keeper.save(state(2), step=2)
    keeper.close()
    assert [item.step for item in keeper.store.scan("ocean")] == [2]
    stats = keeper.get_stats()
    assert (stats["saved"], stats["failed"]) == (1, 1)
    assert "step 1" in stats["last_error"]


def test_on_error_is_told_at_once_and_save_stays_quiet(tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    keeper = manager(
        tmp_path,
        Watched(5, raising(errno.EIO)),
        on_error=lambda key, step, error: told.append((step, str(error))),
    )
    keeper.save(state(1), step=1)
    keeper.save(state(2), step=2)
    with pytest.raises(CheckpointError, match="step 1"):
        keeper.wait()
    keeper.close()
    assert [step for step, _ in told] == [1]
    assert "not saved" in told[0][1]


def test_a_full_disk_is_cleaned_of_dead_saves_and_tried_once_more(tmp_path: Path) -> None:
    class FullUntilCleaned(Disk):
        def free_bytes(self, path: Path) -> int:
            return 0 if list(path.glob(".tmp-*")) else super().free_bytes(path)

    folders = CheckpointStore(tmp_path)
    folders.save(state(0), info=info(0))
    dead = folders.folder_of("ocean") / ".tmp-00000000-0000-0000-0000-000000000001"
    dead.mkdir()
    (dead / "state.safetensors").write_bytes(b"half a save")
    keeper = manager(tmp_path, FullUntilCleaned())
    keeper.save(state(1), step=1, wait=True)
    keeper.close()
    assert [item.step for item in folders.scan("ocean")] == [0, 1]
    assert not dead.exists()


def test_a_save_waits_for_the_one_before_up_to_its_limit(tmp_path: Path) -> None:
    gate = threading.Event()

    class Stuck(Disk):
        def fsync(self, fd: int) -> None:
            gate.wait(60)
            super().fsync(fd)

    CheckpointStore(tmp_path).save(state(0), info=info(0))
    keeper = manager(tmp_path, Stuck(), save_wait_s=0.05)
    keeper.save(state(1), step=1)
    with pytest.raises(CheckpointError, match=r"step 1 is still being written .* step 2 was not"):
        keeper.save(state(2), step=2)
    with pytest.raises(CheckpointError, match="still being written"):
        keeper.wait(0.05)
    gate.set()
    keeper.close()
    assert [item.step for item in keeper.store.scan("ocean")] == [0, 1]


def test_an_interpreter_that_ends_without_close_finishes_its_save(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from qigstore.checkpoints import CheckpointManager, CheckpointStore\n"
        "m = CheckpointManager(CheckpointStore(sys.argv[1]), None, session_id=1,"
        " session_name='ocean', attempt=1)\n"
        "m.save({'w': np.ones(1_000_000), 'step': 5}, step=5)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    folders = CheckpointStore(tmp_path)
    (saved,) = folders.scan("ocean")
    assert folders.load(saved.path)["step"] == 5
