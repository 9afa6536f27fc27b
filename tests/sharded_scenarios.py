"""What ranks do in the tests of sharded checkpoints; each function runs on all of them at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from qigstore.checkpoints import (
    CheckpointManager,
    CheckpointStore,
    random_states,
    set_random_states,
)
from qigstore.checkpoints.disk import Disk
from qigstore.checkpoints.sharded import Commit, Leader, Loader, ShardedCheckpoints
from qigstore.errors import CheckpointError, RankError
from qigstore.recovery import recover

PLACES = {
    "row": [Shard(0)],
    "column": [Shard(1)],
    "copy": [Replicate()],
    "one row": [Shard(0)],  # of these, all ranks but one have nothing
    "another row": [Shard(0)],
}


def mesh() -> Any:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def whole(seed: int) -> dict[str, Any]:
    """The numbers of a state, as one process would have them."""
    make = torch.Generator().manual_seed(seed)
    rows = torch.randn(7, 5, generator=make)
    return {
        "row": rows,
        "column": rows.bfloat16(),
        "copy": torch.randn(3, 2, generator=make, dtype=torch.float64),
        "one row": rows[:1] + 1,
        "another row": rows[:1] + 2,
        "complex": torch.complex(rows, -rows),
        "plain": torch.arange(6).reshape(2, 3) + seed,
        "empty": torch.zeros(0, 4),
        "number": torch.tensor(float(seed)),
        "flags": torch.arange(9) % 2 == 0,
    }


def state(seed: int, on: Any, *, fill: Any = None) -> dict[str, Any]:
    """The same, divided among the ranks; `fill` instead of its numbers."""
    numbers = whole(seed)
    if fill is not None:
        numbers = {name: torch.full_like(t, fill) for name, t in numbers.items()}
    places = PLACES | {"complex": [Shard(0)]}
    tensors = {
        name: distribute_tensor(t, on, places[name]) if name in places else t
        for name, t in numbers.items()
    }
    tensors["tied"] = tensors["row"]
    extra = {"numpy": np.arange(4) * seed, "text": "é", "blob": bytes(2000), "n": seed}
    return {"tensors": tensors, "step": seed, **extra}


def as_lists(found: dict[str, Any]) -> dict[str, Any]:
    """A state's numbers, gathered, so that JSON holds them."""
    told: dict[str, Any] = {}
    for name, tensor in found["tensors"].items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        told[name] = torch.view_as_real(full).tolist() if full.is_complex() else full.tolist()
    rest = {"numpy": found["numpy"].tolist(), "blob": len(found["blob"])}
    return {**told, **rest, "text": found["text"], "step": found["step"], "n": found["n"]}


def opened(
    folder: Path, *, disk: Disk | None = None, limit_s: float = 120, leading: Disk | None = None
) -> tuple[ShardedCheckpoints, CheckpointManager]:
    """The ranks' checkpoints below a folder, led by rank 0 without a run."""
    store = CheckpointStore(folder / "store", disk=leading)
    manager = CheckpointManager(store, None, session_id=1, session_name="ocean", attempt=1)

    def save(commit: Commit, step: int) -> object:
        return manager.save_by(commit, step=step, phi=0.5 + step / 100)

    def choose(load: Loader) -> int | None:
        chosen = recover(manager, None, has_default=True, load=load)[1].chosen
        return None if chosen is None else chosen.step

    def due(step: int, every: int) -> tuple[bool, bool]:
        return (step + 1) % every == 0, step >= 5

    leader = Leader(store, save, choose, due) if dist.get_rank() == 0 else None
    return ShardedCheckpoints(leader, limit_s=limit_s, disk=disk), manager


def refused(deed: Callable[[], object]) -> list[str]:
    """The error that a deed raises."""
    try:
        deed()
    except (CheckpointError, RankError) as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def save_three(folder: Path) -> Any:
    """Two sound checkpoints, and one with NaN in a chunk of the last rank alone."""
    on, rank = mesh(), dist.get_rank()
    sharded, manager = opened(folder)
    with sharded:
        ids = []
        for seed in range(3):
            given = state(seed, on)
            if seed == 2 and rank == dist.get_world_size() - 1:
                given["tensors"]["row"].to_local()[0, 0] = float("nan")
            own = {"rank": rank, "rng": torch.arange(rank + 1)}
            ids.append(str(sharded.save(given, step=seed, own=own)))
            given["tensors"]["row"].to_local().zero_()  # training goes on
    manager.close()
    return ids


def load_best(folder: Path) -> Any:
    """Recover into a state of other numbers; what is in it then, and this rank's own."""
    sharded, _ = opened(folder)
    with sharded:
        given = state(7, mesh(), fill=9)
        found = sharded.recover(given)
        same = found["tensors"]["row"] is given["tensors"]["row"] is found["tensors"]["tied"]
        own = sharded.own
        return {
            "step": sharded.resumed_step,
            "in place": same,
            "state": as_lists(found),
            "own": own and [own["rank"], own["rng"].tolist()],
        }


CALLS = (
    "mkdir", "create", "write", "bypass", "begin_writing", "truncate", "fsync", "close",
    "fsync_folder", "rename", "listdir", "free_bytes", "try_lock", "unlock",
)  # fmt: skip


class Deadly(Disk):
    """A disk at one call of which, once armed, this process does something for the last time.

    `call` is a call's name, or the number of one among all of them.
    """

    def __init__(self, call: str, deed: Callable[[], None], *, after: bool = False) -> None:
        super().__init__()
        self.armed, self._left = False, int(call) if call.isdigit() else 1
        self._deed, self._after = deed, after
        for name in CALLS if call.isdigit() else (call,):
            setattr(self, name, self._watched(getattr(self, name)))

    def _watched(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            self._left -= self.armed
            strikes = self.armed and self._left == 0
            if strikes and not self._after:
                self._deed()
            found = real(*arguments, **options)
            if strikes:
                self._deed()
            return found

        return watched


def lose_one(
    folder: Path, *, lost: int, call: str, sign: str, after: bool = False, limit_s: float = 120
) -> Any:
    """Save once; then one rank kills (or stops) itself in the middle of the second save."""
    rank = dist.get_rank()

    def deed() -> None:
        os.kill(os.getpid(), getattr(signal, sign))

    mine = Deadly(call, deed, after=after) if rank == lost else None
    leading = mine if rank == 0 else None
    on = mesh()
    given = [state(seed, on) for seed in range(2)]
    sharded, _ = opened(folder, disk=mine, limit_s=limit_s, leading=leading)
    sharded.save(given[0], step=0)
    if mine is not None:
        mine.armed = True
    told = [refused(lambda: sharded.save(given[1], step=1))]
    if told[0][0] != "nothing":
        told.append(refused(lambda: sharded.save(given[1], step=1)))
    return told


class Full(Disk):
    """A disk that is full while it is told so."""

    full = False

    def write(self, fd: int, data: memoryview) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(fd, data)


def go_wrong(folder: Path) -> Any:
    """Everything that is refused without losing anybody; at the end all is as it was."""
    on, rank = mesh(), dist.get_rank()
    disk = Full()
    sharded, manager = opened(folder, disk=disk)
    told: dict[str, Any] = {}
    good = state(0, on)
    saved = sharded.save(good, step=0)

    def wrong(name: str, given: Any, step: int = 1, own: Any = None) -> None:
        told[name] = refused(lambda: sharded.save(given, step=step, own=own))

    wrong("a set on one rank", {**good, "x": {1} if rank == 1 else 1})
    wrong("other structures", {**good, "x": torch.zeros(2 + rank)})
    wrong("other steps", good, step=1 + rank)
    partial_sums = DTensor.from_local(torch.ones(2), on, [Partial()])
    wrong("partial sums", {**good, "x": partial_sums})
    named = {"a": torch.ones(1)}
    wrong("a name of ours", {"rank0": named, "rank1": named}, own={"a": torch.ones(2)})
    disk.full = rank == 1
    wrong("a full disk on one rank", good)
    if rank == 0:  # what can be removed makes room: then it is tried again
        dead = manager.store.folder_of("ocean") / f".tmp-{uuid4()}"
        dead.mkdir()
        (dead / "shard-00001.safetensors").write_bytes(b"half")
        manager.store.clean = _making_room(manager.store, folder)  # type: ignore[method-assign]
    disk.full = False
    disk.write = _full_until(folder / "room", disk.write, rank)  # type: ignore[method-assign]
    told["again"] = str(sharded.save(good, step=3))

    def into(change: dict[str, Any]) -> Any:
        other = state(4, on, fill=3)
        other["tensors"] |= change
        for name in [name for name, value in change.items() if value is None]:
            del other["tensors"][name]
        said = refused(lambda: sharded.load(saved, into=other, session="ocean"))
        copy = other["tensors"]["copy"]
        return [*said, bool((copy.to_local() == 3).all())]

    told["another shape"] = into({"plain": torch.zeros(2, 4, dtype=torch.int64)})
    told["another dtype"] = into({"plain": torch.zeros(2, 3)})
    told["more"] = into({"plaim": torch.zeros(2)})
    told["fewer"] = into({"plain": None})
    told["no such"] = refused(lambda: _none(sharded, on))
    told["stops"] = []
    for step in (3, 4, 5):
        due = sharded.checkpoint(good, step=step, every=5)
        told["stops"].append([due, sharded.should_stop])
    sharded.close()
    told["closed"] = refused(lambda: sharded.save(good, step=9))
    return told


def _none(sharded: ShardedCheckpoints, on: Any) -> None:
    try:
        sharded.load("00000000-0000-4000-8000-000000000000", into=state(0, on), session="ocean")
    except LookupError as error:
        raise CheckpointError(str(error)) from error


def _making_room(store: CheckpointStore, folder: Path) -> Callable[[str], list[Path]]:
    real = store.clean

    def clean(session: str) -> list[Path]:
        (folder / "room").touch()
        return real(session)

    return clean


def _full_until(room: Path, real: Callable[..., int], rank: int) -> Callable[..., int]:
    def write(fd: int, data: memoryview) -> int:
        if rank == 1 and not room.exists():
            raise OSError(28, "No space left on device")
        return real(fd, data)

    return write


def train(folder: Path, *, stop: int, dies_at: int = -1, name: str = "ocean") -> Any:
    """FSDP2 on handwritten digits under a real run; the loss of each step, and where it began."""
    import qigstore

    rank = dist.get_rank()
    mode = "online" if rank == 0 else "off"
    with qigstore.session(name, mode=mode, quiet=True) as run, run.sharded() as sharded:
        model, optimizer, take = _training(rank)
        into = {"parts": _parts(model, optimizer), "step": 0, "seed": 3}
        found = sharded.recover(into)
        set_state_dict(
            model, optimizer,
            model_state_dict=found["parts"][0], optim_state_dict=found["parts"][1],
        )  # fmt: skip
        if sharded.own is not None:
            set_random_states(sharded.own)
        losses = []
        for step in range(found["step"], stop):
            if step == dies_at and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            loss = take()
            run.record(step, loss=loss, phi=0.7 + step / 1000)
            losses.append(loss)
            given = {"parts": _parts(model, optimizer), "step": step + 1, "seed": 3}
            sharded.checkpoint(given, step=step, every=4, own=random_states())
            if sharded.should_stop:
                break
        return {"start": found["step"], "losses": losses}


def _training(rank: int) -> tuple[Any, Any, Callable[[], float]]:
    data, target = load_digits(return_X_y=True)
    pixels, labels = torch.tensor(data, dtype=torch.float32) / 16, torch.tensor(target)
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 33), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(33, 10)
    )
    for layer in (model[0], model[3], model):
        fully_shard(layer, mesh=mesh())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(100 + rank)  # each rank sees other digits, and drops other neurons

    def take() -> float:
        chosen = torch.randint(len(pixels), (16,))
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(pixels[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return model, optimizer, take


def _parts(model: Any, optimizer: Any) -> list[Any]:
    return list(get_state_dict(model, optimizer))
