"""What a checkpoint of several ranks costs, against torch's own distributed one and a floor.

    python -m benchmarks.sharded [--ranks N] [--megabytes MB] [--repeats K] [--folder DIR]

Real processes of one gloo group, each with its part of 24 DTensors. Every repeat saves and loads
with each subject, one after the other, between barriers, so that a slow minute of the machine hits
all alike; ratios are of medians, with the least and the most of the repeats. The floor is each
rank's bytes written to a file of its own and fsynced, and for loading read into fresh memory. Ours
hashes every byte, commits in one step and verifies what it loads; torch's fsyncs its files too, and
verifies nothing. *step*: what the question "save? stop?" costs at a step that does not save, beside
an all-reduce of one number.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from qigstore.checkpoints import CheckpointManager, CheckpointStore, Retention

_TENSORS = 24


def main(arguments: list[str] | None = None) -> None:
    """Fork the ranks; rank 0 prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        pids = []
        for rank in range(asked.ranks):
            pid = os.fork()
            if not pid:
                try:
                    _rank(rank, asked, Path(folder))
                    sys.stdout.flush()
                    os._exit(0)
                finally:
                    os._exit(1)
            pids.append(pid)
        failed = [pid for pid in pids if os.waitpid(pid, 0)[1]]
    if failed:
        raise SystemExit(f"{len(failed)} ranks failed")


def _rank(rank: int, asked: argparse.Namespace, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=asked.ranks)
    subjects = _Subjects(rank, asked, folder)
    times: dict[str, list[float]] = {}
    for repeat in range(asked.repeats + 1):
        for name, deed in subjects.deeds().items():
            dist.barrier()
            start = perf_counter()
            deed()
            dist.barrier()
            if repeat:  # the first one touches memory and folders for the first time
                times.setdefault(name, []).append(perf_counter() - start)
    if rank == 0:
        _report(asked, times)
    dist.destroy_process_group()


class _Subjects:
    def __init__(self, rank: int, asked: argparse.Namespace, folder: Path) -> None:
        import torch
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Shard

        from qigstore.checkpoints.sharded import Leader, ShardedCheckpoints

        mesh = init_device_mesh("cpu", (asked.ranks,))
        rows = max(int(asked.megabytes * 1e6 / 4 / 1024 / _TENSORS / asked.ranks), 1)
        self.state: dict[str, Any] = {
            f"layer.{n}": DTensor.from_local(torch.randn(rows, 1024), mesh, [Shard(0)])
            for n in range(_TENSORS)
        }
        self.folder, self.rank, self.step = folder, rank, 0
        store = CheckpointStore(folder / "ours")
        rule = Retention(keep_newest=1, keep_best=1, settle_steps=0)
        self.manager = CheckpointManager(
            store, None, session_id=1, session_name="bench", attempt=1, retention=rule
        )

        def newest(load: Callable[[Any], Any]) -> int:
            best = store.scan("bench")[-1]
            load(best.path)
            return best.step

        leader = Leader(
            store,
            lambda commit, step: self.manager.save_by(commit, step=step),
            newest,
            lambda _step, _every: (False, False),
        )
        self.ours = ShardedCheckpoints(leader if rank == 0 else None)

    def deeds(self) -> dict[str, Callable[[], object]]:
        return {
            "floor save": self._floor_save,
            "ours save": self._ours_save,
            "torch save": self._torch_save,
            "floor load": self._floor_load,
            "ours load": lambda: self.ours.recover(self.state),
            "torch load": self._torch_load,
            "ours step": self._questions,
            "torch step": self._all_reduces,
        }

    def _ours_save(self) -> None:
        self.step += 1
        self.ours.save(self.state, step=self.step)

    def _floor_save(self) -> None:
        with (self.folder / f"floor-{self.rank}").open("wb") as file:
            for tensor in self.state.values():
                file.write(memoryview(tensor.to_local().numpy()).cast("B"))
            file.flush()
            os.fsync(file.fileno())

    def _floor_load(self) -> None:
        (self.folder / f"floor-{self.rank}").read_bytes()

    def _torch_save(self) -> None:
        import torch.distributed.checkpoint as dcp

        place = self.folder / f"torch-{self.step}"  # it warns when it is to overwrite
        writer = dcp.FileSystemWriter(place, sync_files=True)
        dcp.save(self.state, storage_writer=writer)

    def _torch_load(self) -> None:
        import torch.distributed.checkpoint as dcp

        dcp.load(
            self.state, storage_reader=dcp.FileSystemReader(self.folder / f"torch-{self.step}")
        )

    def _questions(self) -> None:
        for step in range(100):
            self.ours.checkpoint(self.state, step=step, every=1000)

    def _all_reduces(self) -> None:
        import torch
        import torch.distributed as dist

        number = torch.zeros(1)
        for _ in range(100):
            dist.all_reduce(number)


def _report(asked: argparse.Namespace, times: dict[str, list[float]]) -> None:
    print(f"{asked.ranks} ranks, {asked.megabytes:g} MB together, {asked.repeats} repeats")
    for what, against in (("save", "floor"), ("load", "floor"), ("step", "torch")):
        for subject in ("ours", "torch"):
            if subject == against:
                continue
            pairs = zip(times[f"{subject} {what}"], times[f"{against} {what}"], strict=True)
            ratios = sorted(mine / floor for mine, floor in pairs)
            spread = f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"  {what}: {subject} / {against} {statistics.median(ratios):.2f} {spread}")
    print(f"  step: ours {statistics.median(times['ours step']) * 1e4:.0f} µs")


if __name__ == "__main__":
    main()
