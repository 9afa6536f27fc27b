"""Raises recording children and kills them: a warm process that forks one for each order.

Orders come as JSON lines on stdin, the answer to each goes to stdout: how many `record()` calls
had returned in the child when SIGKILL hit it. The child counts in memory that it shares with us.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from qigstore.database.engine import Database
from qigstore.recording.drain import drain_leftovers
from qigstore.recording.recorder import Recorder
from qigstore.recording.spool import Spool, SpoolIdentity
from qigstore.recording.writer import Writer
from qigstore.repository import Store


def record_for_ever(order: dict[str, Any], counter: memoryview) -> None:
    told = SpoolIdentity(
        writer=UUID(order["writer"]), attempt=UUID(order["attempt"]), session=order["session"],
        rank=0, config={}, host="nursery", pid=os.getpid(), created_at=datetime.now(UTC),
    )  # fmt: skip
    spool = Spool.create(Path(order["root"]), told, segment_bytes=1 << 16)
    recorder: Recorder[Any] = Recorder(spool)
    if order["mode"] == "ship":
        store = Store(Database(order["dsn"]))
        session = store.sessions.open(told.session, {})
        attempt = store.sessions.open_attempt(
            session.id, told.attempt, host=told.host, pid=told.pid, config={}
        )
        state = store.writers.register(told.writer, told.attempt, 0)
        Writer(
            store, spool, session_id=session.id, attempt=attempt.number, epoch=state.epoch,
            flush_interval_s=0.001, batch_rows_max=500,
        ).start()  # fmt: skip
    seq = 0
    while True:
        seq += 1
        metrics = {"loss": seq * 0.5} if seq % 5 else {"loss": seq * 0.5, "phi": 0.5}
        recorder.record(3 * seq, metrics)
        counter[0] = seq
        if seq >= order["rows_max"]:
            time.sleep(3600)


def drain(order: dict[str, Any], counter: memoryview) -> None:
    with Store(Database(order["dsn"])) as store:
        counter[0] = sum(report.rows for report in drain_leftovers(Path(order["root"]), store))


def has_ended(child: int) -> bool:
    """Whether it did so by itself; it stays to be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def raise_and_kill(order: dict[str, Any]) -> int:
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    counter = memoryview(shared).cast("Q")
    child = os.fork()
    if child == 0:
        try:
            (drain if order["mode"] == "drain" else record_for_ever)(order, counter)
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr, flush=True)
            os._exit(99)
        os._exit(0)
    while counter[0] < order["rows_min"] and not has_ended(child):
        time.sleep(0.0002)
    time.sleep(order["delay_s"])
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) not in {-signal.SIGKILL, 0}:
        raise SystemExit("a child died by itself")
    return int(counter[0])


def main() -> None:
    logging.disable()
    print("ready", flush=True)
    for line in sys.stdin:
        print(raise_and_kill(json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
