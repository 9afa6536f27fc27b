"""Pinned or read now: it stays. Two pruners at once, and a reader between them, lose nothing."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from processes import wait_until

from qigstore.checkpoints import CheckpointManager, CheckpointStore, Retention
from qigstore.checkpoints.disk import Disk
from qigstore.checkpoints.format import Manifest
from qigstore.checkpoints.holds import Pins, in_use, removing
from qigstore.checkpoints.pruning import planned, prune
from qigstore.errors import CheckpointCorrupt, CheckpointError, NotFound
from qigstore.recovery import recover


def manager_of(folder: Path, **rule: Any) -> CheckpointManager:
    given = {"keep_newest": 1, "keep_best": 1, "settle_steps": 0} | rule
    return CheckpointManager(
        CheckpointStore(folder), None, session_id=1, session_name="ocean", attempt=1,
        retention=Retention(**given),
    )  # fmt: skip


def save(manager: CheckpointManager, step: int, phi: float | None = None) -> UUID:
    state = {"w": np.full(50_000, step), "step": step}
    return manager.save(state, step=step, phi=phi, wait=True)


@pytest.fixture
def manager(tmp_path: Path) -> CheckpointManager:
    return manager_of(tmp_path, keep_newest=20)


def test_a_pin_is_made_once_and_seen_by_everybody(
    manager: CheckpointManager, tmp_path: Path
) -> None:
    key = save(manager, 1)
    assert manager.pins.pin(key, "for the paper")
    assert not manager.pins.pin(key, "again")
    other = Pins(CheckpointStore(tmp_path).folder_of("ocean"))
    assert other.all()[key]["note"] == "for the paper"
    assert other.unpin(key)
    assert not manager.pins.unpin(key)
    assert manager.pins.all() == {}


def test_what_is_not_there_cannot_be_pinned(manager: CheckpointManager) -> None:
    assert not manager.pins.unpin(uuid4())
    for wanted in (uuid4(), uuid4()):
        with pytest.raises((NotFound, FileNotFoundError)):
            manager.pins.pin(wanted)
        save(manager, 1)


def test_a_pin_that_cannot_be_read_still_pins(manager: CheckpointManager) -> None:
    first = save(manager, 1)
    save(manager, 2, 0.9)
    manager.pins.pin(first)
    (file,) = (manager.store.folder_of("ocean") / ".held").iterdir()
    file.write_bytes(b"\xff{")
    assert first in manager.pins.all()
    manager.retention = Retention(keep_newest=1, keep_best=1, settle_steps=0)
    assert manager.prune() == []


def test_a_stranger_among_the_pins_stops_pruning_by_name(manager: CheckpointManager) -> None:
    keys = [save(manager, step, step / 10) for step in range(3)]
    manager.pins.pin(keys[0])
    (manager.store.folder_of("ocean") / ".held" / "notes.txt").write_text("mine")
    manager.retention = Retention(keep_newest=1, keep_best=1, settle_steps=0)
    with pytest.raises(CheckpointCorrupt, match=r"notes\.txt"):
        prune(manager)
    assert manager.store.ids("ocean") == set(keys)


def test_the_plan_names_every_role(manager: CheckpointManager) -> None:
    keys = [save(manager, step, step / 10) for step in range(5)]
    manager.pins.pin(keys[0])
    manager.protect(keys[1])
    rule = Retention(keep_newest=1, keep_best=2, settle_steps=0)
    roles = {item.step: names for item, names in planned(manager, rule)}
    assert roles[0] == ("pinned",)
    assert roles[1] == ("resumed from",)
    assert roles[2] == ()
    assert roles[3] == ("best",)
    assert set(roles[4]) >= {"newest", "best", "newest healthy"}


def test_what_is_pinned_or_read_is_not_deleted_by_name(manager: CheckpointManager) -> None:
    key = save(manager, 1)
    manager.pins.pin(key)
    with pytest.raises(CheckpointError, match=f"unpin {key}"):
        manager.delete_checkpoint(key)
    manager.pins.unpin(key)
    with (
        in_use(manager.store.locate("ocean", key)),
        pytest.raises(CheckpointError, match="being read"),
    ):
        manager.delete_checkpoint(key)
    assert manager.delete_checkpoint(key)


def test_every_way_to_load_holds_the_folder_meanwhile(tmp_path: Path) -> None:
    free = []

    class Watched(CheckpointStore):
        def load(self, path: Path | str, **options: Any) -> Any:
            with removing(Path(path)) as could:
                free.append(could)
            return super().load(path, **options)

        def verify(self, path: Path | str) -> Manifest:
            with removing(Path(path)) as could:
                free.append(could)
            return super().verify(path)

    manager = manager_of(tmp_path)
    manager.store = Watched(tmp_path)
    key = save(manager, 1, 0.5)
    manager.load(key)
    manager.load_checkpoint(key)
    manager.load_best_checkpoint()
    recover(manager)
    recover(manager, dry_run=True)
    assert free == [False] * 5


def test_who_reads_what_is_being_removed_is_told_so(manager: CheckpointManager) -> None:
    key = save(manager, 1)
    path = manager.store.locate("ocean", key)
    with removing(path) as free:
        assert free
        manager.store.delete(path)
        with pytest.raises(NotFound):
            manager.load(key)


def test_one_that_cannot_be_removed_does_not_keep_the_others(
    manager: CheckpointManager,
) -> None:
    keys = [save(manager, step, step / 10) for step in range(4)]
    (manager.store.locate("ocean", keys[1]) / "mine.txt").write_text("x")
    manager.retention = Retention(keep_newest=1, keep_best=1, settle_steps=0)
    with pytest.raises(CheckpointError, match="not provably"):
        prune(manager)
    assert manager.store.ids("ocean") == {keys[1], keys[3]}


def test_only_one_prunes_at_a_time(manager: CheckpointManager, tmp_path: Path) -> None:
    for step in range(4):
        save(manager, step, step / 10)
    manager.retention = Retention(keep_newest=1, keep_best=1, settle_steps=0)
    with Pins(CheckpointStore(tmp_path).folder_of("ocean")).pruning() as mine:
        assert mine
        assert prune(manager) == ([], [])
    assert len(prune(manager)[0]) == 3


def test_pruning_where_nothing_was_saved_makes_nothing(tmp_path: Path) -> None:
    manager = manager_of(tmp_path / "empty")
    assert prune(manager) == ([], [])
    assert not (tmp_path / "empty").exists()


class NoSync(Disk):
    """A disk that does not wait; what is tested here is not durability."""

    def fsync(self, fd: int) -> None:
        pass

    def fsync_folder(self, path: Path) -> None:
        pass


class Crowd:
    """Threads that work on one session, each with a manager of its own, until told to end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ended = folder, threading.Event()
        self.problems: list[Exception] = []
        self.right = self.gone = 0
        self._threads: list[threading.Thread] = []

    def manager(self) -> CheckpointManager:
        made = manager_of(self.folder)
        made.store = CheckpointStore(self.folder, disk=NoSync())
        return made

    def start(self, work: Callable[[CheckpointManager], object]) -> None:
        def run() -> None:
            mine = self.manager()
            try:
                while not self.ended.is_set():
                    work(mine)
            except Exception as error:
                self.problems.append(error)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def read(self, mine: CheckpointManager) -> None:
        for key in sorted(mine.store.ids("ocean")):
            try:
                state = mine.load(key)
            except NotFound:
                self.gone += 1
            else:
                assert (state["w"] == state["step"]).all()
                self.right += 1

    def end(self) -> None:
        self.ended.set()
        for thread in self._threads:
            thread.join()


def test_two_pruners_and_a_reader_at_once_lose_nothing(tmp_path: Path, rng: random.Random) -> None:
    """Whatever is loaded is right; the best, the newest and the pinned one are there at the end."""
    crowd = Crowd(tmp_path)
    saver = crowd.manager()
    for work in (CheckpointManager.prune, CheckpointManager.prune, crowd.read):
        crowd.start(work)
    steps: dict[UUID, int] = {}
    ranks = rng.sample(range(60), 60)
    pinned = None
    for step, rank in enumerate(ranks):
        key = save(saver, step, rank / 100)
        steps[key] = step
        if pinned is None:
            try:
                saver.pins.pin(key)
            except NotFound:
                continue  # a pruner was faster: the one before it was better
            pinned = step
    wait_until(lambda: crowd.right or crowd.problems, "the reader has loaded one", 60)
    crowd.end()
    assert crowd.problems == []
    saver.prune()
    kept = {steps[key] for key in saver.store.ids("ocean")}
    assert kept == {pinned, ranks.index(59), 59}
    print(f"{crowd.right} loads right, {crowd.gone} were gone")
    assert crowd.right > 0
