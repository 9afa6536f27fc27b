"""One subject of `benchmarks.recording`, measured in this process: `<what> <class> <folder>`.

The server's DSN comes by the environment, so that no list of processes shows its password; the
figures go into `<folder>/told.json`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter, perf_counter_ns, sleep
from typing import Any

from benchmarks.recording_peers import PEERS
from benchmarks.recording_subjects import FLOORS, OURS, Log, Place, Subject, rows

__all__ = ["DSN_VARIABLE", "KILLED_CALLS", "PACE_S", "SEEN_LIMIT_S", "SUBJECTS", "TOLD"]

SUBJECTS = {kind.__name__: kind for kind in (*OURS, *PEERS, *FLOORS)}
DSN_VARIABLE = "QIGSTORE_BENCH_SERVER"
TOLD = "told.json"
PACE_S = 0.002
KILLED_CALLS = 330
SEEN_LIMIT_S = 2.0
_WARM_CALLS = 50


def cost_of(log: Log, data: Sequence[dict[str, float]], *, pace_s: float, first: int) -> Any:
    """Nanoseconds of one call: mean, median, and the quantiles that so many calls can tell."""
    taken = []
    for step, row in enumerate(data, first):
        if pace_s:
            sleep(pace_s)
        began = perf_counter_ns()
        log(step, row)
        taken.append(perf_counter_ns() - began)
    taken.sort()
    told: dict[str, float] = {"mean": sum(taken) / len(taken)}
    for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999)):
        if len(taken) * (1.0 - share) >= 1.0:
            told[name] = taken[int(share * (len(taken) - 1))]
    return told


def seen_after(subject: Subject, log: Log, row: dict[str, float], step: int) -> float:
    """Seconds from a call until another connection (or the file) shows its step."""
    before = subject.progress()
    began = perf_counter()
    log(step, row)
    while subject.progress() <= before:
        if perf_counter() - began > SEEN_LIMIT_S:
            break
        sleep(0.001)
    return perf_counter() - began


def measure(subject: Subject) -> dict[str, Any]:
    """Everything that can be measured of a subject while it lives."""
    kind = type(subject)
    data = rows(max(kind.hot_calls, kind.paced_calls, kind.bulk_rows, _WARM_CALLS))
    log = subject.open()
    step = 0
    told: dict[str, Any] = {}
    with closing(subject):
        cost_of(log, data[:_WARM_CALLS], pace_s=0, first=step)
        step += _WARM_CALLS
        told["hot"] = cost_of(log, data[: kind.hot_calls], pace_s=0, first=step)
        step += kind.hot_calls
        told["paced"] = cost_of(log, data[: kind.paced_calls], pace_s=PACE_S, first=step)
        step += kind.paced_calls
        if kind.watched:
            told["seen_s"] = []
        for i in range(kind.watched):
            sleep(0.05 + 0.037 * i % 0.1)
            told["seen_s"].append(seen_after(subject, log, data[i], step))
            step += 1
        if kind.bulk_rows:
            began = perf_counter()
            for number, row in enumerate(data[: kind.bulk_rows], step):
                log(number, row)
            subject.settle()
            told["steps_s"] = kind.bulk_rows / (perf_counter() - began)
            step += kind.bulk_rows
            told["bytes"] = subject.bytes_used() / step
    return told


def die(subject: Subject) -> None:
    """Log at the pace of a training loop; SIGKILL as soon as the last call has returned."""
    data = rows(KILLED_CALLS)
    log = subject.open()
    for step, row in enumerate(data):
        sleep(PACE_S)
        log(step, row)
    os.kill(os.getpid(), signal.SIGKILL)


def main(arguments: Sequence[str]) -> None:
    """Do one thing to one subject."""
    what, name, folder = arguments
    for noisy in ("httpx", "mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    place = Place(Path(folder), os.environ[DSN_VARIABLE], Path(folder).name)
    subject = SUBJECTS[name](place)
    if what == "die":
        die(subject)
    told = {"left": subject.left()} if what == "left" else measure(subject)
    (place.folder / TOLD).write_text(json.dumps(told))
    # Some peers wait at exit for a server that is not there.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
