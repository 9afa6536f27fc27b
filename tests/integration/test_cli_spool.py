"""`qigstore spool`: what waits is listed, shipped once, and explained where it cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import data, environment, process, run

import qigstore
from qigstore.cli.progress import Progress
from qigstore.database.engine import Database
from qigstore.repository import Store


def record(home: Path, name: str = "s", rows: int = 10, **more: Any) -> Path:
    """Rows of an offline run; its spool."""
    settings = {"mode": "offline", "quiet": True, "home": home, **more}
    with qigstore.session(name, **settings) as opened:
        for step in range(rows):
            opened.record(step, loss=float(step))
    return opened_spool(home, name)


def opened_spool(home: Path, name: str) -> Path:
    (spool,) = (
        path.parent
        for path in (home / "spool").glob("*/*/spool.json")
        if json.loads(path.read_text())["session"] == name
    )
    return spool


def steps(dsn: str, name: str) -> list[int]:
    with Store(Database(dsn)) as store:
        return [row.step for row in store.telemetry.rows(store.sessions.get(name).id)]


def test_status_needs_no_database_and_names_rows_owner_and_place(home: Path) -> None:
    nowhere = environment(home, "postgresql://nobody@127.0.0.1:1/none")
    assert run(nowhere, "spool", "status").returncode == 0
    assert data(nowhere, "spool", "status")["spools"] == []
    spool = record(home)
    with qigstore.session("alive", mode="offline", quiet=True, home=home) as alive:
        alive.record(0, loss=1.0)
        found = data(nowhere, "spool", "status")
        table = run(nowhere, "spool", "status").stdout
    by_name = {item["session"]: item for item in found["spools"]}
    mine = by_name["s"]
    assert (mine["rows"], mine["gap_rows"], mine["rank"], mine["held"]) == (10, 0, 0, False)
    assert (mine["place"], mine["waits_for"], mine["ended"]) == ("offline", None, "completed")
    assert mine["spool"] == str(spool)
    assert mine["bytes"] > 0
    assert "process " in mine["owner"]
    assert (by_name["alive"]["held"], by_name["alive"]["rows"]) == (True, None)
    assert str(spool) in table
    assert (found["quarantine"], found["events"]) == ([], 0)
    assert not (home / "postgres").exists()


def test_drain_stores_each_row_once_and_says_so(home: Path, dsn: str) -> None:
    env = environment(home, dsn)
    spool = record(home)
    done = data(env, "spool", "drain")
    assert done["rows"] == 10
    (report,) = done["spools"]
    assert (report["session"], report["settled"], report["error"]) == ("s", True, None)
    assert not spool.exists()
    assert steps(dsn, "s") == list(range(10))
    again = run(env, "spool", "drain")
    assert (again.returncode, again.stdout) == (0, "")
    assert "nothing was left" in again.stderr
    record(home, "t", rows=3)
    table = run(env, "spool", "drain")
    assert "stored" in table.stdout
    assert steps(dsn, "t") == [0, 1, 2]


def test_drain_takes_one_session_and_races_no_living_one(home: Path, dsn: str) -> None:
    env = environment(home, dsn)
    record(home, "s")
    record(home, "t")
    with qigstore.session("alive", mode="offline", quiet=True, home=home) as alive:
        alive.record(0, loss=1.0)
        only = data(env, "spool", "drain", "--session", "t")
        assert [report["session"] for report in only["spools"]] == ["t"]
        rest = data(env, "spool", "drain")
        alive.record(1, loss=1.0)
    told = {report["session"]: report for report in rest["spools"]}
    assert told["s"]["settled"]
    assert (told["alive"]["busy"], told["alive"]["settled"]) == (True, False)
    assert data(env, "spool", "drain")["rows"] == 2


def test_what_waits_for_another_address_is_left_unless_asked_for(home: Path, dsn: str) -> None:
    env = environment(home, dsn)
    record(home, dsn="postgresql://me:s3cret@elsewhere.invalid/x")
    found = data(env, "spool", "status")["spools"][0]
    assert found["waits_for"] == "postgresql://me:***@elsewhere.invalid:5432/x"
    left = run(env, "spool", "drain")
    assert left.returncode == 0
    assert "it waits for postgresql://me:***@elsewhere" in left.stdout
    assert data(env, "spool", "drain", "--anywhere")["rows"] == 10
    assert steps(dsn, "s") == list(range(10))


def test_a_spool_without_a_readable_name_is_explained_and_kept(home: Path, dsn: str) -> None:
    env = environment(home, dsn)
    spool = record(home)
    (spool / "spool.json").write_text("{")
    status = run(env, "spool", "status")
    assert status.returncode == 0
    assert "nobody knows whose rows" in status.stdout
    done = run(env, "spool", "drain")
    assert done.returncode == 1
    assert "nobody knows whose rows" in done.stdout
    assert spool.exists()
    failed = run(env, "spool", "drain", "--json")
    assert failed.returncode == 1
    assert json.loads(failed.stdout)["spools"][0]["settled"] is False


def test_damaged_rows_and_refused_ones_are_counted(home: Path, dsn: str) -> None:
    env = environment(home, dsn)
    spool = record(home, rows=100)
    (segment,) = spool.glob("*.seg")
    content = bytearray(segment.read_bytes())
    used = len(content.rstrip(b"\0"))
    content[used // 2] ^= 0xFF
    segment.write_bytes(content)
    found = data(env, "spool", "status")["spools"][0]
    assert (found["rows"], found["gap_rows"]) == (99, 1)
    (spool.parent / "quarantine-x.jsonl").write_text('\n{"seq": 1}\n\n{"seq": 2}\n{"se')
    assert [file["rows"] for file in data(env, "spool", "status")["quarantine"]] == [2]
    report = data(env, "spool", "drain")["spools"][0]
    assert (report["rows"], report["gap_rows"]) == (99, 1)
    assert len(steps(dsn, "s")) == 99


def test_drain_without_a_database_is_status_3_and_keeps_everything(home: Path) -> None:
    spool = record(home)
    done = process(environment(home, "postgresql://nobody@127.0.0.1:1/none"), "spool", "drain")
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert spool.exists()


def test_two_drains_at_once_store_each_row_once(home: Path, dsn: str) -> None:
    names = [f"s{number}" for number in range(4)]
    for name in names:
        record(home, name, rows=500)
    words = [sys.executable, "-m", "qigstore", "spool", "drain", "--json"]
    both = [
        subprocess.Popen(words, env=environment(home, dsn), stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    told = [json.loads(child.communicate(timeout=120)[0]) for child in both]
    assert sum(item["rows"] for item in told) == 2000
    for name in names:
        assert steps(dsn, name) == list(range(500))


def test_progress_is_said_for_long_work_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("qigstore.cli.progress.monotonic", lambda: now)
    with Progress("export") as progress:
        progress(10, 200_000)
        assert capsys.readouterr().err == ""
        now = 11.0
        progress(50_000, 200_000)
        progress(50_001, 200_000)
        assert capsys.readouterr().err == "export: 50,000 of 200,000 (25%) rows\n"
