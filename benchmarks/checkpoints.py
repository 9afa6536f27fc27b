"""What a checkpoint costs training, and how fast it is on the disk and back: ratios to a floor.

    python -m benchmarks.checkpoints [--repeats K] [--sizes MB …] [--only NAME …] [--folder DIR]

222 float32 arrays of 500 MB together, and of 5 MB. Every repeat saves and loads with each subject,
one after the other in one process, so that a slow minute of the machine hits all alike; figures
are medians over the repeats, with the least and the most. The floor is one write, fsync, rename
and fsync of the folder of the same bytes, and for loading one read into fresh memory.

*first*: until the first `save` of the program returns, the warm-up. *blocked*: until a later one
does. *durable*: until the bytes are on the disk. *lost*: blocked, and how much slower the steps of
a training loop are until then, by the middle one; *lost_sum*: by all of them, so that single long
stalls count, and bursts of other programs too. *CPU*: of the whole process during a save.
*memory*: how much a save raises the highest resident size of a process of its own.
Loads are measured cold (page cache dropped) and warm; *one* is a single array, cold.
The peers come with `pip install 'qigstore[checkpoint-bench]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from time import perf_counter, process_time
from typing import Any

import numpy as np

from benchmarks.checkpoints_subjects import (
    FLOOR,
    SUBJECTS,
    Arrays,
    Subject,
    arrays_of,
    forget,
)

__all__ = ["main"]

_COUNT = 222
_STEPS = 20
_CHILD_LIMIT_S = 300.0
_COLUMNS = ("first", "blocked", "durable", "lost", "lost_sum", "cpu", "cold", "warm", "one")
_TO_DURABLE = {"first", "blocked", "lost", "lost_sum", "cpu"}
"""Columns that are compared with the floor's *durable*; the floor blocks all that time."""
Measures = dict[str, dict[str, list[float]]]


class Loop:
    """A training loop: a small network on random data, one optimizer step at a time."""

    def __init__(self) -> None:
        try:
            import torch
        except ImportError:
            self.title, self._step = "NumPy (torch is not installed)", self._numpy()
        else:
            self.title, self._step = f"torch {torch.__version__}", self._torch(torch)

    @staticmethod
    def _torch(torch: Any) -> Any:
        model = torch.nn.Sequential(
            torch.nn.Linear(256, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 256)
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        data = torch.randn(256, 256)

        def step() -> None:
            optimizer.zero_grad()
            (model(data) - data).pow(2).mean().backward()
            optimizer.step()

        return step

    @staticmethod
    def _numpy() -> Any:
        rng = np.random.default_rng(0)
        data = rng.standard_normal((256, 256), dtype=np.float32)
        weights = rng.standard_normal((256, 256), dtype=np.float32) / 16

        def step() -> None:
            error = data @ weights - data
            weights[...] -= 1e-3 * (data.T @ error) / len(data)

        return step

    def steps(self, count: int) -> float:
        """Seconds that so many steps take."""
        began = perf_counter()
        for _ in range(count):
            self._step()
        return perf_counter() - began

    def lost(self, subject: Subject) -> dict[str, float]:
        """Seconds that a save takes from the loop.

        What `begin` blocks, and for each step until the save is durable how much longer than those
        before and after it the middle one took (`lost`), or all of them together (`lost_sum`).
        """
        usual = [self.steps(1) for _ in range(_STEPS)]
        began = perf_counter()
        begun = subject.begin()
        blocked = perf_counter() - began
        waiter = Thread(target=subject.finish, args=(begun,))
        waiter.start()
        during = []
        while waiter.is_alive():
            during.append(self.steps(1))
        usual += [self.steps(1) for _ in range(_STEPS)]
        least, count = statistics.median(usual), len(during)
        slower = statistics.median(during) - least if during else 0.0
        return {"lost": blocked + count * slower, "lost_sum": blocked + sum(during) - count * least}


class Bench:
    """Measures the subjects of one size in turn."""

    def __init__(self, root: Path, megabytes: float, only: Sequence[str]) -> None:
        self.root, self.megabytes = root, megabytes
        self.absent: dict[str, str] = {}
        self.measures: Measures = {}
        self.loop = Loop()
        arrays: Arrays = arrays_of(megabytes, _COUNT)
        self.subjects: dict[str, Subject] = {}
        for name, kind in SUBJECTS.items():
            reason = kind.missing()
            if reason:
                self.absent[name] = reason
            elif not only or name in {*only, FLOOR}:
                self.subjects[name] = kind(arrays, root / name)

    def round(self, *, keep: bool) -> None:
        """Save and load once with each; `keep` what was measured, or only warm up."""
        for name, subject in [*self.subjects.items()]:
            print(f"… {self.megabytes:g} MB {name}", file=sys.stderr, flush=True)
            try:
                if not keep:
                    subject.prepare()
                found = self._one(subject) | self._training(subject)
            except Exception as error:
                self.absent[name] = f"failed here: {error!r:.150}"
                del self.subjects[name]
                continue
            columns = self.measures.setdefault(name, {})
            for column, value in found.items() if keep else [("first", found["blocked"])]:
                columns.setdefault(column, []).append(value)

    def _one(self, subject: Subject) -> dict[str, float]:
        subject.fresh()
        os.sync()
        cpu, began = process_time(), perf_counter()
        begun = subject.begin()
        blocked = perf_counter() - began
        subject.finish(begun)
        found = {"blocked": blocked, "durable": perf_counter() - began, "cpu": process_time() - cpu}
        loads = {"cold": subject.load, "warm": subject.load, "one": subject.load_one}
        for column, load in loads.items():
            if column == "warm":
                for path in subject.folder.rglob("*"):  # into the cache, whatever went past it
                    if path.is_file():
                        path.read_bytes()
            else:
                forget(subject.folder)
            began = perf_counter()
            try:
                kept = load()
            except NotImplementedError:
                continue
            found[column] = perf_counter() - began
            del kept
        return found

    def _training(self, subject: Subject) -> dict[str, float]:
        subject.fresh()
        os.sync()
        return self.loop.lost(subject)


def memory_of(name: str, megabytes: float, root: Path) -> float | str:
    """MB by which a second save raises a process's highest resident size over its arrays'."""
    command = [sys.executable, "-m", "benchmarks.checkpoints", "--child", name, str(megabytes)]
    try:
        done = subprocess.run(
            [*command, "--folder", str(root)],
            capture_output=True, text=True, check=False, timeout=_CHILD_LIMIT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"over {_CHILD_LIMIT_S:g} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no message"])[-1][:150]
    return float(done.stdout.split()[-1])


def _highest_kb() -> int:
    """Highest resident size of this process (`ru_maxrss` would count its parent's, too)."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0])


def child(name: str, megabytes: float, root: Path) -> None:
    """Save in this process and print what that added to its highest resident size, in MB."""
    for size, count in ((0.1, 2), (megabytes, _COUNT)):  # the small one loads the libraries
        subject = SUBJECTS[name](arrays_of(size, count), root / f"{name}-{size:g}-alone")
        subject.fresh()
        before = _highest_kb()
        subject.finish(subject.begin())
        after = _highest_kb()
        subject.close()
    print((after - before) * 1024 / 1e6)


# -- the report ------------------------------------------------------------------------------


def _cell(values: list[float] | None) -> str:
    if not values:
        return f"{'–':>24}"
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{f'{middle:.3f} ({low:.3f}-{high:.3f})':>24}"


def _ratio(ours: list[float] | None, floor: list[float] | None) -> str:
    if not ours or not floor:
        return f"{'–':>24}"
    ratios = [a / b for a, b in zip(ours, floor, strict=False)]
    middle = statistics.median(ratios)
    return f"{f'{middle:.2f}x ({min(ratios):.2f}-{max(ratios):.2f})':>24}"


def report(measures: Measures, memory: dict[str, float | str]) -> Iterator[str]:
    """The figures as text: seconds, then ratios to the floor."""
    head = "".join(f"{column:>24}" for column in _COLUMNS)
    yield f"{'seconds':32}{head}{'memory MB':>12}  a load verifies"
    for name, columns in measures.items():
        more = memory.get(name)
        extra = f"{more:>12.0f}" if isinstance(more, float) else f"{'–':>12}"
        cells = "".join(_cell(columns.get(column)) for column in _COLUMNS)
        yield f"{SUBJECTS[name].title:32}{cells}{extra}  {SUBJECTS[name].verifies}"
    yield f"\n{'to the floor, repeat by repeat':32}{head}"
    floor = measures.get(FLOOR, {})
    for name, columns in measures.items():
        cells = "".join(
            _ratio(columns.get(column), floor.get("durable" if column in _TO_DURABLE else column))
            for column in _COLUMNS
        )
        yield f"{SUBJECTS[name].title:32}{cells}"
    yield f"({', '.join(sorted(_TO_DURABLE))}: to the floor's durable)"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=float, nargs="*", default=(5.0, 500.0), metavar="MB")
    parser.add_argument("--only", nargs="*", default=(), choices=[*SUBJECTS], metavar="NAME")
    parser.add_argument("--folder", type=Path, help="where to save (default: the temporary folder)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("NAME", "MB"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        child(given.child[0], float(given.child[1]), given.folder)
        return
    told: dict[str, Any] = {}
    for megabytes in given.sizes:
        with tempfile.TemporaryDirectory(prefix="qs-checkpoints-", dir=given.folder) as folder:
            bench = Bench(Path(folder), megabytes, given.only)
            for number in range(given.repeats + 1):
                bench.round(keep=number > 0)
            memory = {
                name: memory_of(name, megabytes, Path(folder)) for name in bench.measures
            }  # fmt: skip
            for subject in bench.subjects.values():
                subject.close()
        print(f"\n{megabytes:g} MB in {_COUNT} arrays, {given.repeats} repeats, {bench.loop.title}")
        for line in report(bench.measures, memory):
            print(line)
        failed = {name: found for name, found in memory.items() if isinstance(found, str)}
        for name, reason in {**failed, **bench.absent}.items():
            print(f"NOT MEASURED: {SUBJECTS[name].title}: {reason}")
        told[f"{megabytes:g}"] = {"seconds": bench.measures, "memory": memory}
    if given.json:
        given.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
