"""A process that records through a long outage and watches its own memory and disk.

`outage.py ROWS RATE BYTES_MAX FOLDER DSN`: the database is up, goes away for ROWS rows at RATE rows
a second (0: as fast as it goes), and comes back. Prints what was seen, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from line import Line
from proxy import HEALTHY, Fault, Proxy

from qigstore.database.engine import Database
from qigstore.repository import Store

NAMES = [f"m{k}" for k in range(20)]
CHUNK = 200


def memory_mb() -> dict[str, float]:
    """Resident memory: all of it, and what is the process's own."""
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(told[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon")}


def disk_bytes(folder: Path) -> int:
    """What the spool takes on the disk; a segment may go while it is looked at."""
    found = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            found += path.stat().st_blocks * 512
    return found


def record(line: Line, rows: int, rate: float) -> dict[str, float]:
    """Rows at a rate; the most memory and disk there was."""
    most: dict[str, float] = {}
    began, start = time.monotonic(), line.spool.seq + line.spool.dropped
    for done in range(0, rows, CHUNK):
        for step in range(start + done, start + min(done + CHUNK, rows)):
            line.recorder.record(step, dict.fromkeys(NAMES, step + 0.5))
        if done % (10 * CHUNK) == 0:
            seen = memory_mb() | {"disk": disk_bytes(line.spool.folder)}
            most = {name: max(value, most.get(name, 0)) for name, value in seen.items()}
        if rate:
            time.sleep(max(began + (done + CHUNK) / rate - time.monotonic(), 0))
    return most | {"seconds": time.monotonic() - began}


def main(rows: int, rate: float, bytes_max: int, folder: str, dsn: str) -> None:
    told: dict[str, Any] = {}
    with Store(Database(dsn)) as store, Proxy(dsn) as proxy:
        line = Line(Path(folder), store, bytes_max=bytes_max)
        writer = line.start(Store(Database(proxy.dsn)))
        record(line, 20_000, 10_000)
        writer.flush(60)
        proxy.plan = lambda: Fault("refuse")
        proxy.cut_all()
        told["before"] = memory_mb()
        told["most"] = record(line, rows, rate)
        told["stored_meanwhile"] = writer.health.stored_rows - 20_000
        told["kept"], told["dropped"] = line.spool.seq - 20_000, writer.health.dropped_rows
        began = time.monotonic()
        proxy.plan = lambda: HEALTHY
        writer.flush(3600)
        told["catch_up_s"] = time.monotonic() - began
        told["after"] = memory_mb() | {"disk": disk_bytes(line.spool.folder)}
        told["stored"] = writer.health.stored_rows - 20_000
        line.close(60)
    print(json.dumps(told))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
