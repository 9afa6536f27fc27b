"""The memory of a save: taken before the first one, once, and never from under one in flight."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import run_python

import qigstore
from qigstore.checkpoints import CheckpointManager, CheckpointStore, SaveInfo
from qigstore.checkpoints.disk import Disk
from qigstore.checkpoints.payload import size_of, stage
from qigstore.errors import CheckpointError

BYTES = 64 << 20
MARGIN = 8 << 20
"""What else a process may take meanwhile."""

STATES: dict[str, Any] = {
    "empty": {},
    "scalars": {"step": 3, "name": "ocean", "lr": 1e-3, "big": 2**70, "nan": float("nan")},
    "arrays": {"w": np.zeros((7, 3)), "b": np.zeros(0), "c": np.zeros(3, complex)},
    "strings": OrderedDict(s=np.array(["a", "bcd"]), blob=b"x" * 5000),
    "shared": [shared := np.ones(100), shared, shared[10:20]],
}


class Gated(Disk):
    """A disk whose fsyncs wait at a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.reached = threading.Event(), threading.Event()

    def fsync(self, fd: int) -> None:
        self.reached.set()
        assert self.gate.wait(60)
        super().fsync(fd)


def manager(root: Path, disk: Disk | None = None) -> CheckpointManager:
    store = CheckpointStore(root, disk=disk)
    return CheckpointManager(store, None, session_id=1, session_name="ocean", attempt=1)


def large(value: float) -> dict[str, Any]:
    return {"w": np.full(BYTES // 8, value)}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_the_size_told_beforehand_is_the_size_that_staging_takes(state: Any) -> None:
    assert size_of(state) == stage(state).size


def test_the_size_of_tensors_is_told_without_their_numbers() -> None:
    torch = pytest.importorskip("torch")
    state = {"w": torch.zeros(5, 7), "half": torch.zeros(9, dtype=torch.bfloat16),
             "conj": torch.zeros(6, dtype=torch.complex64).conj()}  # fmt: skip
    assert size_of(state) == stage(state).size


FIRST_SAVE = """
import sys, threading
from pathlib import Path
import numpy as np
from qigstore.checkpoints import CheckpointManager, CheckpointStore
root, size, wait = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "now"
def manager(root):
    store = CheckpointStore(root)
    return CheckpointManager(store, None, session_id=1, session_name="ocean", attempt=1)
def say_memory():
    for thread in threading.enumerate():
        if thread.name == "qigstore-buffer":
            thread.join()
    status = Path("/proc/self/status").read_text()
    held = (int(status.split(name)[1].split()[0]) for name in ("VmRSS:", "VmSwap:"))
    print(sum(held) * 1024)
small = manager(root / "small")
small.save({"w": np.zeros(8)}, step=0)  # whatever a process takes once
small.close()
state, keeper = {"w": np.full(size // 8, 1.0)}, manager(root / "large")
say_memory()
keeper.prepare(state, wait=wait)
say_memory()
keeper.save(state, step=1)
say_memory()
keeper.prepare({"w": np.full(size // 8, 1.0)}, wait=False)  # it has its memory: nothing happens
say_memory()
keeper.close()
"""


@pytest.mark.parametrize("wait", ["now", "behind"])
def test_the_first_save_takes_no_memory_that_was_prepared(tmp_path: Path, wait: str) -> None:
    """In a process of its own: no other test's memory comes or goes there meanwhile."""
    told = run_python(FIRST_SAVE, tmp_path, BYTES, wait).split()
    before, prepared, saved, again = map(int, told)
    assert prepared >= before + BYTES - MARGIN
    assert saved <= prepared + MARGIN
    assert again <= prepared + MARGIN
    assert again <= before + BYTES + 2 * MARGIN
    store = CheckpointStore(tmp_path / "large")
    assert (store.load(store.scan("ocean")[0].path)["w"] == 1.0).all()


@pytest.mark.parametrize("wait", [True, False], ids=["now", "behind"])
def test_preparing_amid_a_save_leaves_what_it_writes_alone(tmp_path: Path, wait: bool) -> None:
    first = SaveInfo(session_name="ocean", session_id=1, attempt=1, step=0)
    CheckpointStore(tmp_path).save({"w": 0}, info=first)
    disk = Gated()
    keeper = manager(tmp_path, disk)
    key = keeper.save(large(7.0), step=1)
    assert disk.reached.wait(60)
    keeper.prepare(large(9.0), wait=wait)
    disk.gate.set()
    keeper.wait()
    assert (keeper.load(key)["w"] == 7.0).all()
    keeper.close()


def test_a_state_that_cannot_be_saved_is_refused_when_it_is_first_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QIGSTORE_HOME", str(tmp_path))
    with (
        qigstore.session("ocean", mode="offline", rules=()) as run,
        pytest.raises(CheckpointError, match=r"state\['seen'\].*builtins.set.*sorted"),
    ):
        run.checkpoint({"seen": {1, 2}}, step=0, every=1000)


def test_a_closed_manager_prepares_nothing(tmp_path: Path) -> None:
    keeper = manager(tmp_path)
    keeper.close()
    with pytest.raises(CheckpointError, match="closed"):
        keeper.prepare(large(1.0))
    with pytest.raises(CheckpointError, match="closed"):
        keeper.prepare(large(1.0), wait=False)
