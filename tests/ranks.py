"""Real ranks for tests: processes of one gloo group, each running a function of a scenario file.

One process imports torch and forks the ranks, so that a start costs one import. It ends when all
have; a rank that stopped itself is killed once the others are done.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
LIMIT_S = 600


@dataclass(frozen=True)
class Ended:
    """How a rank ended: its exit status, and what it returned or raised."""

    status: int
    returned: Any = None
    raised: str | None = None
    text: str = ""


def run_ranks(scenario: str, size: int, folder: Path, **options: Any) -> list[Ended]:
    """Run ``module:function`` on so many ranks and return how each ended."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("ended-*.json"):
        old.unlink()
    command = [sys.executable, "-W", "error", __file__, scenario, str(size), str(folder)]
    done = subprocess.run(
        [*command, json.dumps(options)],
        cwd=TESTS.parent, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    statuses = json.loads(done.stdout.splitlines()[-1])
    ended = []
    for rank, status in enumerate(statuses):
        path = folder / f"ended-{rank}.json"
        told = json.loads(path.read_text()) if path.exists() else {}
        ended.append(Ended(status, **told))
    print(done.stderr, file=sys.stderr)
    return ended


def returned(ended: list[Ended]) -> list[Any]:
    """What all ranks returned; fails where one raised or died."""
    for rank, one in enumerate(ended):
        assert one.status == 0, f"rank {rank}: {one}"
        assert one.raised is None, f"rank {rank}: {one.raised}: {one.text}"
    return [one.returned for one in ended]


def _rank(scenario: str, rank: int, size: int, folder: Path, options: dict[str, Any]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting-{os.getppid()}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    module, name = scenario.split(":")
    told: dict[str, Any]
    try:
        told = {"returned": getattr(importlib.import_module(module), name)(folder, **options)}
    except Exception as error:
        traceback.print_exc()
        told = {"raised": type(error).__name__, "text": str(error)}
    (folder / f"ended-{rank}.json").write_text(json.dumps(told))
    os._exit(0)  # group and threads of one that failed are not waited for


def _main(scenario: str, size: int, folder: Path, options: dict[str, Any]) -> None:
    sys.path.insert(0, str(TESTS))
    importlib.import_module(scenario.split(":", maxsplit=1)[0])
    living: dict[int, int] = {}
    for rank in range(size):
        pid = os.fork()
        if not pid:
            try:
                _rank(scenario, rank, size, folder, options)
            finally:
                traceback.print_exc()
                os._exit(3)
        living[pid] = rank
    statuses = [0] * size
    end = time.monotonic() + LIMIT_S - 20
    while living:
        for pid in list(living):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                statuses[living.pop(pid)] = os.waitstatus_to_exitcode(status)
        states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                  for pid in living]  # fmt: skip
        if living and (set(states) <= {"T"} or time.monotonic() > end):
            for pid in living:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    print(json.dumps(statuses))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
