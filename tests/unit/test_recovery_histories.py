"""Any history of saves, crashes, damage, pins, pruning, reading and recovery, against a model."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import hypothesis
import numpy as np
import pytest
from figures import figure, in_parts
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from qigstore.checkpoints import CheckpointManager, CheckpointStore, Retention, SaveInfo
from qigstore.checkpoints.catalog import Catalog
from qigstore.checkpoints.disk import Disk
from qigstore.checkpoints.format import PAYLOAD
from qigstore.checkpoints.holds import in_use
from qigstore.errors import CheckpointCorrupt, CheckpointError, NoHealthyCheckpoint
from qigstore.link import FolderRows
from qigstore.recording.event_log import LoggedEvent
from qigstore.records import AttemptInfo, Decision, Event
from qigstore.recovery import explain, recover

_MEMORY = Path("/dev/shm")
# What is tested here is not durability: a folder in memory, and no waiting.
_PLACE = str(_MEMORY) if os.access(_MEMORY, os.W_OK) else tempfile.gettempdir()
_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_SETTLE, _NEWEST, _BEST, _EMERGENCY, _EVERY = 2, 2, 2, 1, 4
_PHI = st.sampled_from([0.5, 0.7, 0.9]) | st.none() | st.floats()
_KIND = st.sampled_from(["regular"] * 4 + ["emergency"])
_FINITE = st.sampled_from([True, True, True, False])
_SAVES = st.lists(st.tuples(_PHI, _KIND, _FINITE, st.integers(0, 3)), min_size=1, max_size=6)


class Dead(BaseException):
    """The process ends here."""


class Mortal(Disk):
    """A disk that does not wait, and kills the process after so many more changes."""

    def __init__(self) -> None:
        self.left: int | None = None

    def _live(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Dead

    def fsync(self, fd: int) -> None:
        self._live()

    def fsync_folder(self, path: Path) -> None:
        self._live()

    def mkdir(self, path: Path) -> None:
        self._live()
        super().mkdir(path)

    def create(self, path: Path, *, replace: bool = False) -> int:
        self._live()
        return super().create(path, replace=replace)

    def write(self, fd: int, data: memoryview) -> int:
        self._live()
        return super().write(fd, data)

    def rename(self, source: Path, target: Path) -> None:
        self._live()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._live()
        super().unlink(path)

    def rmdir(self, path: Path) -> None:
        self._live()
        super().rmdir(path)


@dataclass(frozen=True)
class Known:
    """A checkpoint of the model."""

    id: UUID
    attempt: int
    step: int
    phi: float | None
    kind: str
    finite: bool
    sound: bool = True

    @property
    def ranks(self) -> bool:
        return self.phi is not None and math.isfinite(self.phi)

    @property
    def age(self) -> tuple[int, int, UUID]:
        return -self.attempt, -self.step, self.id

    @property
    def rank(self) -> tuple[float, int, UUID]:
        assert self.phi is not None
        return -self.phi, -self.step, self.id


class Book:
    """What recovery asks of a repository, kept in memory."""

    def __init__(self) -> None:
        self.tries: dict[int, AttemptInfo] = {}
        self.reached: dict[int, int] = {}
        self.logged: list[LoggedEvent] = []
        self.kept: list[Decision] = []
        self.sessions = self.telemetry = self.events = self.checkpoints = self.decisions = self

    def open(self, number: int) -> None:
        info = AttemptInfo(UUID(int=number), 1, number, "running", "here", 1, _NOW, _NOW)
        self.tries[number] = info

    def alarm(self, number: int, step: int) -> None:
        event = Event(
            UUID(int=len(self.logged)), 1, number, 0, step, "loss", "critical", "", _NOW
        )  # fmt: skip
        self.logged.append(LoggedEvent(Path("/nowhere"), "ocean", event))

    def attempts(self, _session: int) -> list[AttemptInfo]:
        return list(self.tries.values())

    def set_lineage(self, attempt: UUID, source: UUID | None, step: int) -> None:
        old = self.tries[attempt.int]
        self.tries[attempt.int] = replace(old, resumed_from=source, resumed_step=step)

    def progress(self, _session: int) -> dict[int, int]:
        return self.reached

    def list(self, _session: int | None = None, *, limit: int = 0) -> list[Event]:
        return [logged.event for logged in self.logged]

    def mark_verified(self, _checkpoint: UUID) -> None:
        pass

    def add(self, decision: Decision) -> None:
        self.kept.append(decision)


class Histories(RuleBasedStateMachine):
    """The model says what must be there and which one must be chosen after any history."""

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[UUID, Known] = {}
        self.pinned: set[UUID] = set()
        self.sources: set[UUID] = set()
        self.step, self.saves, self.attempt = 0, 0, 0
        self.book = Book()

    @initialize(saves=_SAVES)
    def start(self, saves: list[tuple[Any, ...]]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="qs-", dir=_PLACE))
        self.begin()
        self.save_some(saves)

    def begin(self) -> None:
        """A new attempt: the process before it is gone, with whatever it left half done."""
        self.attempt += 1
        self.sources = set()
        self.disk = Mortal()
        store = CheckpointStore(self.folder, disk=self.disk)
        self.book.open(self.attempt)
        self.manager = CheckpointManager(
            store,
            FolderRows(store, "ocean", lambda: self.book.logged),
            session_id=1,
            session_name="ocean",
            attempt=self.attempt,
            retention=Retention(
                keep_newest=_NEWEST,
                keep_best=_BEST,
                keep_emergency=_EMERGENCY,
                keep_every=_EVERY,
                settle_steps=_SETTLE,
            ),
        )

    def teardown(self) -> None:
        if hasattr(self, "manager"):  # Hypothesis also makes machines that it never starts
            self.manager.close()
            shutil.rmtree(self.folder)

    # -- the deeds ------------------------------------------------------------------------------

    @rule(saves=_SAVES)
    def save_some(self, saves: list[tuple[Any, ...]]) -> None:
        for phi, kind, finite, ahead in saves:
            self.save(phi, kind, finite, ahead)

    @rule(saves=_SAVES, dies=st.integers(0, 12))
    def die_while_saving(self, saves: list[tuple[Any, ...]], dies: int) -> None:
        self.save(*saves[0], dies)

    def save(
        self, phi: float | None, kind: Any, finite: bool, ahead: int, dies: int | None = None
    ) -> None:
        self.step += ahead
        self.saves += 1
        # Ids break ties, so that a history repeats only where they do; their order is not time's.
        key = UUID(int=self.saves * 2_654_435_761 % 2**32)
        info = SaveInfo(
            session_name="ocean", session_id=1, attempt=self.attempt, step=self.step,
            kind=kind, phi=phi, id=key,
        )  # fmt: skip
        state = {"w": np.full(4, 1.0 if finite else math.inf), "step": self.step}
        known = Known(key, self.attempt, self.step, phi, kind, finite)
        self.disk.left = dies
        try:
            self.manager.store.save(state, info=info)
        except Dead:
            self.disk.left = None
            if key in self.manager.store.ids("ocean"):
                self.model[key] = known  # it died after the rename: the checkpoint is whole
            self.begin()
        else:
            self.disk.left = None
            self.model[key] = known

    @rule()
    def crash(self) -> None:
        self.begin()

    @rule(steps=st.integers(1, 2 * _SETTLE))
    def go_on(self, steps: int) -> None:
        self.step += steps
        self.book.reached[self.attempt] = self.step

    @rule()
    def alarm(self) -> None:
        self.book.alarm(self.attempt, self.step)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        known = self.drawn(data)
        path = self.manager.store.locate("ocean", known.id) / PAYLOAD
        if known.sound:
            octets = bytearray(path.read_bytes())
            octets[data.draw(st.integers(0, len(octets) - 1))] ^= 1
            path.write_bytes(octets)
            self.model[known.id] = replace(known, sound=False)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def pin_or_unpin(self, data: st.DataObject) -> None:
        key = self.drawn(data).id
        if key in self.pinned:
            assert self.manager.pins.unpin(key)
            self.pinned.remove(key)
        else:
            assert self.manager.pins.pin(key)
            self.pinned.add(key)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        key = self.drawn(data).id
        if key in self.pinned:
            with pytest.raises(CheckpointError, match="pinned"):
                self.manager.delete_checkpoint(key)
        else:
            assert self.manager.delete_checkpoint(key)
            del self.model[key]

    @rule(data=st.data(), readers=st.integers(0, 2))
    def prune(self, data: st.DataObject, readers: int) -> None:
        """Also while others read some of them: those stay."""
        read = {self.drawn(data).id for _ in range(readers if self.model else 0)}
        with ExitStack() as stack:
            for key in read:
                stack.enter_context(in_use(self.manager.store.locate("ocean", key)))
            self.manager.prune()
        kept = set(self.model)
        if len(self.model) > _NEWEST:
            kept = self.roles() | (read & kept)
        self.model = {key: known for key, known in self.model.items() if key in kept}
        self.pinned &= set(self.model)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        known = self.drawn(data)
        if known.sound:
            state, said = self.manager.load_checkpoint(known.id)
            assert state["step"] == known.step == said["step"]
        else:
            with pytest.raises(CheckpointCorrupt):
                self.manager.load_checkpoint(known.id)

    @rule(policy=st.sampled_from(["best", "newest", "best_recent"]), dry=st.booleans())
    def recover_by(self, policy: str, dry: bool) -> None:
        self.recover(policy, dry=dry)

    def recover(self, policy: str, *, dry: bool) -> None:
        order = self.order(policy)
        sound = [known for known in order if known.sound]
        before = set(self.manager.store.ids("ocean"))
        book: Any = self.book
        options: Any = {"policy": policy, "dry_run": dry, "attempt": book.tries[self.attempt]}
        if not sound and not dry:
            with pytest.raises(NoHealthyCheckpoint) as refused:
                recover(self.manager, book, **options)
            decision = refused.value.decision
            state = None
        else:
            state, decision = recover(self.manager, book, has_default=True, **options)
        told = {c.checkpoint.id for c in decision.candidates}
        tried = {known.id for known in (order[: order.index(sound[0]) + 1] if sound else order)}
        # Of many, those that come after the first twenty are not told of: nobody asks.
        assert tried <= told <= set(self.model)
        assert len(self.model) > 20 or told == set(self.model)
        assert all(c.reason for c in decision.candidates)
        assert (decision.chosen is None) == (not sound)
        if decision.chosen is not None:
            assert decision.chosen.id == sound[0].id
            assert dry or state["step"] == sound[0].step
        assert explain(decision).count("\n") >= len(told)
        if dry:
            assert self.manager.store.ids("ocean") == before
            return
        assert book.kept[-1] == decision
        assert not Catalog(self.manager.store).remains("ocean")
        for key in tried - {known.id for known in sound[:1]}:
            del self.model[key]  # corrupt: put aside
            self.pinned.discard(key)
        if sound:
            self.sources.add(sound[0].id)
            self.step = sound[0].step

    @rule(times=st.integers(2, 4), policy=st.sampled_from(["best", "newest"]))
    def die_after_each_resume(self, times: int, policy: str) -> None:
        for _ in range(times):
            self.begin()
            self.recover(policy, dry=False)

    # -- the model ------------------------------------------------------------------------------

    def drawn(self, data: st.DataObject) -> Known:
        return self.model[data.draw(st.sampled_from(sorted(self.model)))]

    def healthy(self) -> list[Known]:
        every = self.model.values()
        measured = any(known.ranks for known in every)
        return [
            known
            for known in sorted(every, key=lambda known: known.age)
            if known.finite
            and known.kind == "regular"
            and (known.ranks or not measured)
            and not self.condemned(known)
        ]

    def condemned(self, known: Known) -> bool:
        return any(
            event.attempt == known.attempt and 0 <= event.step - known.step <= _SETTLE
            for event in self.book.list()
            if event.step is not None
        )

    def poison(self, known: Known) -> bool:
        """The last three attempts before this one that resumed from it got nowhere."""
        book = self.book
        tries = [n for n, t in book.tries.items() if t.resumed_from == known.id]
        last = [n for n in sorted(tries) if n < self.attempt][-3:]
        reached = [book.reached.get(n, -1) for n in last]
        return len(last) == 3 and max(reached) <= known.step + _SETTLE

    def order(self, policy: str) -> list[Known]:
        newest = [known for known in self.healthy() if not self.poison(known)]
        if policy == "newest" or not all(known.ranks for known in newest):
            return newest
        few = len(newest) if policy == "best" else 5
        return [*sorted(newest[:few], key=lambda known: known.rank), *newest[few:]]

    def roles(self) -> set[UUID]:
        ordered = sorted(self.model.values(), key=lambda known: known.age)
        fit, last = self.healthy(), ordered[0]
        settled = [k for k in fit if k.attempt < last.attempt or k.step + _SETTLE <= last.step]
        every: dict[int, Known] = {}
        for known in sorted(ordered, key=lambda k: (k.step, -k.attempt, k.id)):
            if known.kind == "regular" and known.finite:
                every.setdefault(known.step // _EVERY, known)
        kept = [
            *ordered[:_NEWEST],
            *sorted((k for k in fit if k.ranks), key=lambda known: known.rank)[:_BEST],
            *[known for known in ordered if known.kind == "emergency"][:_EMERGENCY],
            *every.values(),
            *fit[:1],
            *settled[:1],
            *[known for known in fit if known not in settled][-1:],
        ]
        held = self.pinned | self.sources
        return {known.id for known in kept} | (held & set(self.model))

    @invariant()
    def the_folders_hold_what_the_model_holds(self) -> None:
        if hasattr(self, "manager"):
            assert self.manager.store.ids("ocean") == set(self.model)
            assert set(self.manager.pins.all()) >= self.pinned


_OPTIONS = settings(
    stateful_step_count=15,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestHistories = Histories.TestCase
TestHistories.settings = settings(_OPTIONS, max_examples=150)


class Counted(Histories):
    """The same, and how many there were."""

    histories = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).histories += 1


@pytest.mark.long(seconds=250)
@in_parts(10_000)
def test_ten_thousand_histories(seed: int, count: int) -> None:
    wanted, counted = figure(count), type("Counted", (Counted,), {})
    options = settings(_OPTIONS, max_examples=wanted)
    run_state_machine_as_test(hypothesis.seed(seed)(counted), settings=options)
    print(f"{counted.histories} histories: 0 differences")
    assert counted.histories >= wanted
