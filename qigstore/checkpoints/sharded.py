"""Checkpoints that all ranks of a training save together, each its part, and load together.

Rank 0 leads: it opens the folder, and when every rank has written, fsynced and hashed its file it
writes the manifest last and commits, as for any other checkpoint. The others do as it says. What
one waits for another has a limit; where a rank is lost nothing is committed, and every other one
gets an error. Loading needs not as many ranks as saved.

::

    with run.sharded() as sharded:                       # on every rank
        state = sharded.recover(into=state)              # plain tensors and DTensors, filled
        for step in range(state["step"], 10_000):
            ...
            sharded.checkpoint(state, step=step, every=500)
            if sharded.should_stop:
                break
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from mmap import mmap
from operator import index
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast
from uuid import UUID

from blake3 import blake3

from qigstore.checkpoints.arrays import torch_leaf
from qigstore.checkpoints.base import BaseStore
from qigstore.checkpoints.dcp import Chunks, load_chunks, save_chunks
from qigstore.checkpoints.disk import Disk
from qigstore.checkpoints.folders import parse_id
from qigstore.checkpoints.format import (
    FileInfo,
    Manifest,
    shard_name,
)
from qigstore.checkpoints.info import SaveInfo
from qigstore.checkpoints.json_text import canonical_json
from qigstore.checkpoints.opened import OpenCheckpoint
from qigstore.checkpoints.payload import SMALL_BYTES, Beside, stage_flat, write_payload
from qigstore.checkpoints.portions import (
    differences,
    disagreement,
    flatten_portions,
    outside,
    portions,
    structure,
)
from qigstore.checkpoints.ranks import Ranks
from qigstore.checkpoints.shard_files import (
    Ready,
    add_leaves,
    bytes_of,
    contents_of_ranks,
    share_of,
)
from qigstore.checkpoints.store import CheckpointStore
from qigstore.checkpoints.stores import open_store
from qigstore.checkpoints.tree import FlatState, Reference, flatten, rebuild, references, restore
from qigstore.checkpoints.verdicts import KNOWN, raise_worst, verdict
from qigstore.errors import (
    CheckpointError,
    CheckpointMismatch,
    CheckpointUnsupported,
    NotFound,
)
from qigstore.records import Checkpoint, Location, location

__all__ = ["Commit", "Leader", "Loader", "ShardedCheckpoints"]

Commit = Callable[[SaveInfo], Checkpoint]
Loader = Callable[[Location], Any]
T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Leader:
    """What rank 0 brings along.

    Attributes:
        store: where checkpoints lie; the folder is the same for every rank.
        save: commit by this, with what else is known of that step.
        recover: choose a checkpoint and load it by this; its step, None where none was chosen.
        due: whether that step is to be saved, and whether the run is to stop.
    """

    store: BaseStore
    save: Callable[[Commit, int], object]
    recover: Callable[[Loader], int | None]
    due: Callable[[int, int], tuple[bool, bool]]


class ShardedCheckpoints:
    """Every rank makes one, and calls its methods in the same order; rank 0 gives the `leader`.

    Without one nothing is to be recorded: then `checkpoint` and `recover` do nothing.

    Attributes:
        should_stop: whether rank 0's run is to stop, as of the last `checkpoint`.
        own: what this rank had saved as its own, as of the last load; None where another number of
            ranks had saved.
        resumed_step: step of the checkpoint that `recover` took; None where it took none.
    """

    def __init__(
        self,
        leader: Leader | None,
        *,
        limit_s: float = 600.0,
        disk: Disk | None = None,
        small_bytes: int = SMALL_BYTES,
    ) -> None:
        self._ranks = Ranks(limit_s)
        self._leader, self._disk, self._small_bytes = leader, disk or Disk(), small_bytes
        self._buffer: mmap | None = None
        self.should_stop = False
        self.own: Any = None
        self.resumed_step: int | None = None
        self._idle = not self._ranks.tell(leader is not None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the other ranks and of the buffer; safe to repeat."""
        self._ranks.close()
        self._buffer = None

    # ------------------------------------------------------------ saving

    def checkpoint(self, state: Any, *, step: int, every: int = 1, own: Any = None) -> bool:
        """Save after each `every` steps, and where rank 0's run asks for it.

        Returns:
            Whether this call saved, the same on every rank; `should_stop` is set as well.

        Raises:
            CheckpointError, RankError: as for `save`.
        """
        if self._idle:
            return False
        with self._or_close():
            said = self._leading.due(step, every) if self._leads else (False, False)
            due, self.should_stop = self._ranks.tell_flags(said)
        if due:
            self.save(state, step=step, own=own)
        return due

    def save(self, state: Any, *, step: int, own: Any = None) -> UUID:
        """Save together; when this returns it is committed, on the disk, on every rank.

        Args:
            state: a tree as for `run.checkpoint`, of one structure on all ranks; what is no tensor
                is taken from rank 0, and so is a plain tensor that all have.
            step: the same on all ranks.
            own: what only this rank has, such as `random_states()`.

        Raises:
            CheckpointError: it was not saved, said on every rank; earlier ones are as they were.
            RankError: a rank is gone, or was late.
        """
        self._check_busy()
        with self._or_close():
            ready = self._agreed(state, own, index(step))
            return self._lead(ready, step) if self._leads else self._follow(ready)

    def _agreed(self, state: Any, own: Any, step: int) -> Ready:
        """The state taken apart, once no rank has a reason against."""
        ready, told = None, {"problem": "", "step": step, "structure": ""}
        try:
            named = {f"rank{self._ranks.rank}": own}
            ready = Ready(flatten_portions(state), flatten(named))
            told["structure"] = blake3(canonical_json(structure(ready.flat))).hexdigest()
        except CheckpointError as error:
            told["problem"] = str(error)
        everyone = self._ranks.gather(told)
        problems = [f"rank {n}: {one['problem']}" for n, one in enumerate(everyone)
                    if one["problem"]]  # fmt: skip
        if not problems and len({one["step"] for one in everyone}) > 1:
            said = ", ".join(str(one["step"]) for one in everyone)
            problems.append(f"the ranks differ in step: {said}")
        elif ready and not problems and len({one["structure"] for one in everyone}) > 1:
            said = disagreement(self._ranks.gather(structure(ready.flat)))  # long: only now
            problems.append(f"the ranks differ in structure: {said}")
        if problems or ready is None:
            raise CheckpointError(f"step {step} was not saved: {'; '.join(problems)}")
        return ready

    def _lead(self, ready: Ready, step: int) -> UUID:
        leader = self._leading

        def write(store: CheckpointStore, info: SaveInfo, fresh: Path) -> Manifest:
            self._ranks.tell({"folder": str(fresh)})
            contents = contents_of_ranks(ready, self._write(ready, fresh), fresh)
            told = replace(info, metadata={**info.metadata, "ranks": self._ranks.size})
            return store.finish(fresh, told, contents)

        saved: Checkpoint | None = None

        def commit(info: SaveInfo) -> Checkpoint:
            nonlocal saved
            size, store = bytes_of(ready, self._ranks.size), leader.store
            if not isinstance(store, CheckpointStore):
                raise CheckpointUnsupported(
                    f"several ranks save into a folder that all of them see, not into {store.root}"
                )
            saved = store.commit_by(info, size, partial(write, store, info))
            return saved

        try:
            leader.save(commit, step)
            if saved is None:
                raise CheckpointError(f"step {step} was not saved: rank 0's run did not commit it")
        except CheckpointError as error:
            self._ranks.tell({"error": str(error)})
            raise
        self._ranks.tell({"saved": str(saved.id)})
        return saved.id

    def _follow(self, ready: Ready) -> UUID:
        while True:
            said = self._ranks.tell()
            if "folder" in said:
                with _rank_0_decides():
                    self._write(ready, Path(said["folder"]))
            elif "saved" in said:
                return UUID(said["saved"])
            else:
                raise CheckpointError(said["error"])

    def _write(self, ready: Ready, folder: Path) -> list[Any]:
        """Write this rank's file while the others write theirs; rank 0 gets all their reports."""
        put = partial(self._put, ready, folder)
        with self._ranks.together() as group:
            return save_chunks(portions(ready.flat), group, put)

    def _put(self, ready: Ready, folder: Path, chunks: Chunks) -> dict[str, Any]:
        """Write, fsync and hash this rank's file; what rank 0 must know of it."""
        rank = self._ranks.rank
        leaves = {key: torch_leaf(data, (key,))[0] for key, (_, _, data) in chunks.items()}
        for more in (outside(ready.flat) if rank == 0 else {}, ready.own.leaves):
            add_leaves(leaves, more)
        staged = stage_flat(FlatState(None, leaves), self._buffer)
        self._buffer = staged.buffer
        small = staged.size < self._small_bytes
        beside = Beside(staged.hashed, here=small)
        try:
            file = folder / shard_name(rank)
            write_payload(self._disk, file, staged, beside, small=small)
        except OSError as error:
            hint = "" if folder.is_dir() else "; all ranks must see one folder of checkpoints"
            return {"errno": error.errno or 0, "error": f"rank {rank}: {error}{hint}"}
        found = beside.result()
        return {
            "file": FileInfo(staged.size, found.root),
            "tensors": found.tensors,
            "chunks": {key: (name, offsets) for key, (name, offsets, _) in chunks.items()},
            "not_finite": found.not_finite,
            "own": ready.own.skeleton,
        }

    # ------------------------------------------------------------ loading

    def recover(self, into: Any) -> Any:
        """Fill `into` from the checkpoint that rank 0's run chooses; it is verified first.

        A corrupt one is put aside, and the next one taken, on all ranks alike.

        Args:
            into: a state such as is saved, its tensors and DTensors in place.

        Returns:
            The state: the tensors of `into`, filled, and all else from the checkpoint; `into` as it
            is where there is no checkpoint to go on from.

        Raises:
            CheckpointMismatch: one is good, and `into` does not fit it.
            CheckpointError: rank 0 could not choose, said on every rank.
            RankError: a rank is gone, or was late.
        """
        if self._idle:
            return into
        with self._or_close():
            flat = self._together(lambda: flatten_portions(into))
            state = self._choose(flat) if self._leads else self._choose_with(flat)
            return into if state is None else state

    def load(self, checkpoint_id: UUID | str, *, into: Any, session: str) -> Any:
        """Fill `into` from one checkpoint; verified first, by all ranks together.

        Raises:
            NotFound, CheckpointCorrupt, CheckpointFormatError, CheckpointMismatch: on every rank.
            RankError: a rank is gone, or was late.
        """
        self._check_busy()
        key = parse_id(checkpoint_id)
        with self._or_close():
            flat = self._together(lambda: flatten_portions(into))
            path = str(self._leading.store.locate(session, key)) if self._leads else None
            return self._load(location(self._ranks.tell(path)), flat)

    def _choose(self, flat: FlatState) -> Any:
        state: Any = None
        unfit: list[CheckpointMismatch] = []

        def load(path: Location) -> None:
            nonlocal state
            self._ranks.tell({"load": str(path)})
            try:
                state = self._load(path, flat)
            except CheckpointMismatch as error:
                unfit.append(error)
                raise

        try:
            self.resumed_step = self._leading.recover(load)
            if unfit:
                raise unfit[0]  # the program's error: to start afresh would hide it
        except CheckpointError as error:
            self._ranks.tell({"error": str(error)})
            raise
        self._ranks.tell({"step": self.resumed_step})
        return state

    def _choose_with(self, flat: FlatState) -> Any:
        state = None
        while True:
            said = self._ranks.tell()
            if "load" in said:
                state = None
                with _rank_0_decides():
                    state = self._load(location(said["load"]), flat)
            elif "step" in said:
                self.resumed_step = said["step"]
                return state
            else:
                raise CheckpointError(said["error"])

    def _load(self, path: Location, flat: FlatState) -> Any:
        """Verify together, then fill together: no rank goes on where another cannot."""
        store = open_store(path.parent.parent)
        with ExitStack() as stack:
            opened = self._together(lambda: stack.enter_context(store.open(path)))
            saved = self._together(lambda: self._fitting(opened, flat))
            with self._ranks.together() as group:
                load_chunks(portions(flat), group, opened, saved)
            return self._together(lambda: self._restored(opened, flat))

    def _fitting(self, opened: OpenCheckpoint, flat: FlatState) -> dict[str, Reference]:
        """The tensors that it holds, if they are those of `flat`; a share of its bytes verified."""
        opened.check(share_of(opened, self._ranks.rank, self._ranks.size))
        saved = {r.name: r for r in references(opened.outline()) if "tensor" in r.node}
        if found := list(differences(flat, opened.manifest, saved)):
            raise CheckpointMismatch("the checkpoint does not fit", found)
        return saved

    def _restored(self, opened: OpenCheckpoint, flat: FlatState) -> Any:
        manifest, mine = opened.manifest, portions(flat)

        def leaf(found: Reference) -> Any:
            if found.name in mine:
                return mine[found.name].tensor
            return found.restore(opened.stored({found.name})[found.name])

        ranks = manifest.sharding.ranks if manifest.sharding is not None else ()
        self.own = None
        if len(ranks) == self._ranks.size:
            skeleton = ranks[self._ranks.rank]
            names: set[str] = set()
            rebuild(skeleton, lambda found: names.add(found.name))
            self.own = restore(skeleton, opened.stored(names))[f"rank{self._ranks.rank}"]
        return rebuild(manifest.skeleton, leaf)

    # ------------------------------------------------------------ the ranks

    def _together(self, deed: Callable[[], T]) -> T:
        """Do it on every rank; where it fails on one, all raise that error."""
        found, error = None, None
        try:
            found = deed()
        except KNOWN as problem:
            error = problem
        raise_worst(self._ranks.gather(verdict(error)))
        return cast("T", found)

    def _check_busy(self) -> None:
        if self._idle:
            raise CheckpointError("rank 0 has no run that records, so there is no place to save in")

    @property
    def _leads(self) -> bool:
        return self._ranks.rank == 0

    @property
    def _leading(self) -> Leader:
        assert self._leader is not None
        return self._leader

    @contextmanager
    def _or_close(self) -> Iterator[None]:
        """Whoever leaves in the middle says so, by closing: nobody waits for it."""
        try:
            yield
        except (CheckpointError, NotFound):
            raise  # known to all of them
        except BaseException:
            self._ranks.close()
            raise


@contextmanager
def _rank_0_decides() -> Iterator[None]:
    """What went wrong in a step that all did together: rank 0 saw it, and says what comes next."""
    try:
        yield
    except (CheckpointError, NotFound) as error:
        _log.info("told to rank 0: %s", error)
