"""A run with threads that forks, spawns and keeps recording; told what to do by its arguments.

`fork_nursery.py COUNT SEED DSN`: opens a session, records from two threads, and raises COUNT
children from the main thread and another, in every way there is. Each child does to the run
whatever a data loader might; the run goes on. Prints what became of them all, as JSON.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import multiprocessing.util
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from typing import Any

import qigstore
from qigstore.repository import open_store

LIMIT_S = 60.0
FOREIGN = -1.0
"""The loss of every row that a child records: none may arrive."""

run: qigstore.Run | None = None


def meddle() -> None:
    """What a child does to the run that it has inherited (or not: spawn, forkserver)."""
    if run is None:
        return
    for step in range(10):
        run.record(1_000_000 + step, loss=FOREIGN)
        run.record(1_000_000 + step, loss=FOREIGN, phi=FOREIGN)
    assert run.health is not None
    run.flush(timeout_s=5, durable=True)


def fork_and_leave(way: str) -> int:
    """A plain fork that ends by `os._exit`, by the end of the interpreter, or with a close."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(LIMIT_S))
        meddle()
        if way == "close":
            assert run is not None
            run.close()
        status = 0
    finally:
        if way == "exit" and threading.current_thread() is threading.main_thread():
            # In a plain fork it would take the exit statuses of the parent's children.
            atexit.unregister(multiprocessing.util._exit_function)
            raise SystemExit(status)  # out of the run's block, and every handler there is
        os._exit(status)


def reap(child: int) -> str:
    """How it ended; one that does not end is killed, and that is said."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return "done" if code == 0 else f"exit status {code}"
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


def raise_process(method: str) -> str:
    """A child by way of multiprocessing."""
    process: Any = multiprocessing.get_context(method).Process(target=meddle)
    process.start()
    process.join(LIMIT_S)
    if process.is_alive():
        process.kill()
        return "hangs"
    return "done" if process.exitcode == 0 else f"exit status {process.exitcode}"


def parent(count: int, seed: int, told: Counter[str], stop: threading.Event) -> None:
    rng = random.Random(seed)
    slow, ways = ["spawn", "forkserver"], ["_exit", "exit", "close", "multiprocessing"]
    chosen = slow * max(1, count // 50)
    for way in chosen + rng.choices(ways, k=count - len(chosen)):
        try:
            if way in {"_exit", "exit", "close"}:
                told[f"{way}: {reap(fork_and_leave(way))}"] += 1
            else:
                told[f"{way}: {raise_process(way.replace('multiprocessing', 'fork'))}"] += 1
        except Exception as error:
            told[f"{way}: {error!r}"] += 1
    stop.set()


def main(count: int, seed: int, dsn: str) -> None:
    global run
    warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: a fork beside threads
    told: Counter[str] = Counter()
    steps = [0, 0]
    with qigstore.session(
        "forks", dsn=dsn, quiet=True, segment_bytes=1 << 16, heartbeat_interval_s=0.05, rules=[]
    ) as run:
        over = [threading.Event(), threading.Event()]

        def train(k: int) -> None:
            while not all(event.is_set() for event in over):
                run.record(2 * steps[k] + k, loss=steps[k] * 0.5)
                steps[k] += 1
                time.sleep(0.0005)

        threads = [threading.Thread(target=train, args=(k,)) for k in range(2)]
        threads.append(threading.Thread(target=parent, args=(count // 2, seed, told, over[1])))
        for thread in threads:
            thread.start()
        parent(count // 2, seed + 1, told, over[0])
        for thread in threads:
            thread.join()
        with open_store(dsn=dsn) as store:
            (attempt,) = store.sessions.attempts(store.sessions.get("forks").id)
    print(json.dumps({"children": told, "steps": steps, "status": attempt.status}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
