"""`python -m benchmarks.ranks`: what it costs that ranks agree before each step. Needs PyTorch.

Real processes over gloo on this machine, one exchange before each step, beside the training's own
gradient exchange: the same all-reduce over a small network's 2,410 gradients. Medians over the
steps of rank 0, in turns; processor time is that of the training's thread.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

__all__ = ["main"]


def _timed(call: Callable[[], object], into: list[tuple[float, float]]) -> None:
    wall, busy = time.perf_counter(), time.thread_time()
    call()
    into.append((time.perf_counter() - wall, time.thread_time() - busy))


def _train(steps: int) -> None:
    import torch
    import torch.distributed as dist

    from qigstore.integrations.torch import ranks

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    together = ranks()
    gradients = torch.zeros(2410)
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    for _ in range(steps):
        _timed(lambda: together.most(0, lambda: True), ours)
        _timed(lambda: dist.all_reduce(gradients), theirs)
    if dist.get_rank() == 0:
        for name, found in (("agreeing", ours), ("gradients", theirs)):
            wall, busy = (statistics.median(column) * 1e6 for column in zip(*found, strict=True))
            print(f"{dist.get_world_size():>6}  {name:<12}{wall:>10.0f}{busy:>14.0f}", flush=True)


def main() -> None:
    """Print a row a size and kind of exchange."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        _train(options.steps)
        return
    print(f"{options.steps} steps, medians in microseconds")
    print(f"{'ranks':>6}  {'exchange':<12}{'until done':>10}{'of processor':>14}")
    for size in (2, 4):
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            port = held.getsockname()[1]
        command = [sys.executable, "-m", "benchmarks.ranks", "--train", f"--steps={options.steps}"]
        meeting = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes = [
            subprocess.Popen(command, env={**os.environ, **meeting, "RANK": str(rank)})
            for rank in range(size)
        ]
        statuses = [process.wait() for process in processes]
        if any(statuses):
            sys.exit("a rank failed")


if __name__ == "__main__":
    main()
