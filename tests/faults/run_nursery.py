"""Raises children that record a session with `qigstore.session`, each told by a line on stdin.

The answer to an order is the child's process id. What the child did stands in a small file that the
order names, eight bytes a number: rows recorded, rows recorded once it was shut out.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import qigstore

STATEMENT_TIMEOUT_S = 9
"""The server ends a transaction that was stopped in the middle after a third of it."""


def counters(path: Path) -> memoryview:
    """The two numbers, shared by whoever maps the file."""
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), mmap.PAGESIZE)).cast("Q")


def record_until_shut_out(order: dict[str, Any]) -> None:
    told = counters(Path(order["counters"]))
    run = qigstore.session(
        order["session"], dsn=order["dsn"], quiet=True, flush_interval_s=0.001, batch_rows_max=500,
        segment_bytes=1 << 16, statement_timeout_s=STATEMENT_TIMEOUT_S,
    ).open()  # fmt: skip
    step = 0
    while told[1] < order["rows_after"]:
        health = run.health
        assert health is not None  # asked before the row, which may be the last one before a stop
        run.record(step, loss=1.0)
        step += 1
        told[0] = step
        told[1] += health.stale


def main() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: a fork beside threads
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies: whoever ordered it watches it
    from qigstore import opening, recovery  # noqa: F401 (a child should not have to load them)

    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                record_until_shut_out(order)
            except BaseException as error:
                print(f"child: {error!r}", file=sys.stderr, flush=True)
                os._exit(99)
            os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    main()
