"""Memory and disk are bounded through a long outage at 10 kHz (R15)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from figures import figure

PROGRAM = Path(__file__).with_name("outage.py")
RATE = 10_000
GROWTH_MB_MAX = 32.0


def outage(rows: int, rate: int, bytes_max: int, folder: Path, dsn: str) -> None:
    arguments = [str(argument) for argument in (rows, rate, bytes_max, folder, dsn)]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    most, before, after = told["most"], told["before"], told["after"]
    growth = {name: most[name] - before[name] for name in before}
    print(
        f"{rows} rows in {most['seconds']:.0f} s without a database: resident memory grew by "
        f"{growth['VmRSS']:.1f} MB (its own {growth['RssAnon']:.1f} MB), the spool to "
        f"{most['disk'] / 2**20:.1f} of {bytes_max / 2**20:.0f} MB; {told['kept']} rows kept, "
        f"{told['dropped']} dropped and counted; stored within {told['catch_up_s']:.0f} s of its "
        f"return, with {after['VmRSS'] - before['VmRSS']:.1f} MB more than before"
    )
    assert told["kept"] + told["dropped"] == rows
    assert told["dropped"] > 0, "the spool was never full"
    assert growth["VmRSS"] <= GROWTH_MB_MAX
    assert most["disk"] <= bytes_max + (1 << 16)  # its name and its lock
    assert told["stored_meanwhile"] == 0
    assert told["stored"] == told["kept"]
    with psycopg.connect(dsn) as connection:
        counted = connection.execute(
            "SELECT count(*), max(seq) FROM qigstore.all_telemetry"
        ).fetchone()
    assert counted == (told["kept"] + 20_000, told["kept"] + 20_000)


def test_an_outage_of_seconds_fills_the_spool_and_not_the_memory(tmp_path: Path, dsn: str) -> None:
    outage(60_000, RATE, 8 << 20, tmp_path / "spool", dsn)


@pytest.mark.long(seconds=660)
def test_an_outage_of_ten_minutes_fills_the_spool_and_not_the_memory(
    tmp_path: Path, dsn: str
) -> None:
    outage(figure(6_000_000), RATE, figure(1 << 30), tmp_path / "spool", dsn)


@pytest.mark.long(seconds=1500)
def test_the_rows_of_an_hour_without_a_database_fill_the_spool_and_not_the_memory(
    tmp_path: Path, dsn: str
) -> None:
    outage(figure(36_000_000), 0, figure(1 << 30), tmp_path / "spool", dsn)
