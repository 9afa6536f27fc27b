"""`qigstore export` and `qigstore import`, with a database and from the spools without one."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import data, environment, process, run
from exchanged import NAMES, NASTY, SUFFIXES, fill, session_of, telemetry_of

import qigstore
from qigstore.database.engine import Database
from qigstore.exchange import import_session
from qigstore.repository import Store
from qigstore.safety import Finite


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_waits_in_spools_is_exported_without_a_database_and_arrives_once(
    home: Path, dsn: str, elsewhere: Store, suffix: str
) -> None:
    nowhere = environment(home, "postgresql://nobody@127.0.0.1:1/none")
    path = str(home / f"s{suffix}")
    basin = np.full(64, 1 / 64)
    for attempt in range(2):
        with qigstore.session("s", mode="offline", home=home, quiet=True,
                              rules=[Finite("loss")]) as opened:  # fmt: skip
            for number, value in enumerate(NASTY):
                opened.record(
                    number + 10 * attempt, loss=value, basin=basin, **{NAMES[number % 9]: 1}
                )
            opened.record(3 + 10 * attempt, loss=1.0)
    told = data(nowhere, "export", "s", path, "--spooled")
    assert (told["rows"], told["attempts"]) == (2 * len(NASTY) + 2, 2)
    missing = process(nowhere, "export", "t", str(home / "t.jsonl"), "--spooled")
    assert missing.returncode == 5
    imported = import_session(elsewhere, Path(path))
    assert imported.rows == told["rows"]
    assert data(environment(home, dsn), "spool", "drain")["rows"] == told["rows"]
    with Store(Database(dsn)) as drained:
        assert telemetry_of(elsewhere, "s") == telemetry_of(drained, "s")
        if suffix == ".jsonl":
            events = [session_of(each, "s").events for each in (elsewhere, drained)]
            assert events[0] == events[1] != []
            attempts = [
                [(a["id"], a["number"], a["status"]) for a in session_of(each, "s").attempts]
                for each in (elsewhere, drained)
            ]
            assert attempts[0] == attempts[1]


def test_a_spool_that_was_exported_and_imported_is_shipped_as_what_it_is(
    home: Path, dsn: str, store: Store
) -> None:
    with qigstore.session("s", mode="offline", home=home, quiet=True) as opened:
        for step in range(100):
            opened.record(step, loss=1.0)
    env = environment(home, dsn)
    assert data(env, "export", "s", str(home / "s.jsonl"), "--spooled")["rows"] == 100
    assert data(env, "import", str(home / "s.jsonl"))["rows"] == 100
    assert data(env, "spool", "drain")["rows"] == 0
    assert data(env, "spool", "status")["spools"] == []
    assert len(telemetry_of(store, "s")) == 100
    (attempt,) = store.sessions.attempts(store.sessions.get("s").id)
    assert attempt.status == "completed"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_export_and_import_as_commands(
    store: Store, dsn: str, home: Path, rng: random.Random, suffix: str
) -> None:
    fill(store, rng, "ocean 7")
    env, path = environment(home, dsn), str(home / f"x{suffix}")
    told = data(env, "export", "ocean 7", path)
    assert (told["path"], told["session"], told["rows"]) == (
        path, "ocean 7", len(telemetry_of(store, "ocean 7"))
    )  # fmt: skip
    assert told["bytes"] == Path(path).stat().st_size
    refused = run(env, "export", "ocean 7", path)
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    words = run(env, "export", "ocean 7", path, "--force")
    assert words.returncode == 0
    assert "rows of 3 attempts" in words.stdout
    done = data(env, "import", path, "--session", "copy")
    assert (done["session"], done["rows"], done["known_rows"]) == ("copy", told["rows"], 0)
    again = run(env, "import", path, "--session", "copy")
    assert (again.returncode, again.stderr) == (0, "")
    assert "nothing was stored" in again.stdout


def test_the_statuses_of_export_and_import(home: Path, dsn: str, tmp_path: Path) -> None:
    env = environment(home, dsn)
    assert run(env, "export", "nobody", str(tmp_path / "x.jsonl")).returncode == 5
    assert list(tmp_path.iterdir()) == []
    unknown = run(env, "export", "nobody", str(tmp_path / "x.xlsx"))
    assert unknown.returncode == 2
    assert ".jsonl, .parquet or .csv" in unknown.stderr
    missing = run(env, "import", str(tmp_path / "x.jsonl"))
    assert missing.returncode == 1
    assert "No such file" in missing.stderr
    (tmp_path / "x.jsonl").write_text("nonsense")
    damaged = run(env, "import", str(tmp_path / "x.jsonl"))
    assert damaged.returncode == 2
    assert damaged.stderr.count("\n") == 1
    nowhere = environment(home, "postgresql://nobody@127.0.0.1:1/none")
    assert process(nowhere, "export", "s", str(tmp_path / "y.jsonl")).returncode == 3


def test_parquet_without_pyarrow_says_what_to_install(
    home: Path, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "qigstore.exchange.parquet", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = run(environment(home, dsn), "export", "s", str(tmp_path / "x.parquet"))
    assert done.returncode == 2
    assert "qigstore[parquet]" in done.stderr
