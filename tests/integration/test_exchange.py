"""Export and import: what comes back is what was there, bit for bit, and never twice."""

from __future__ import annotations

import csv
import json
import math
import random
import tracemalloc
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import psycopg
import pytest
from exchanged import SUFFIXES, fill, roots_of, session_of, telemetry_of
from places import new_database
from processes import run_python

import qigstore
from qigstore.errors import ConfigurationError, InvalidInput, StoreUnavailable
from qigstore.exchange import export_session, import_session
from qigstore.repository import Store
from qigstore.repository.batches import RowGroup, TelemetryBatch
from qigstore.repository.telemetry import Telemetry
from qigstore.safety import Finite


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_telemetry_comes_back_bit_for_bit(
    store: Store, elsewhere: Store, tmp_path: Path, rng: random.Random, suffix: str
) -> None:
    fill(store, rng)
    path = tmp_path / f"s{suffix}"
    told: list[tuple[int, int]] = []
    report = export_session(store, "s", path, progress=lambda *done: told.append(done))
    before = telemetry_of(store, "s")
    assert report.rows == len(before) == told[-1][0] == told[-1][1] > 100
    done = import_session(elsewhere, path)
    assert (done.rows, done.known_rows) == (len(before), 0)
    assert telemetry_of(elsewhere, "s") == before
    assert roots_of(elsewhere) == roots_of(store)
    assert any(row[2] > 2**61 for row in before)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_rest_of_a_session_comes_back_too(
    store: Store, elsewhere: Store, dsn: str, home: Path, suffix: str
) -> None:
    for until in (25, 40):
        with qigstore.session(
            "s", dsn=dsn, home=home, quiet=True, config={"until": until},
            rules=[Finite("loss", name="loss is finite")],
        ) as opened:  # fmt: skip
            state = opened.recover(default={"step": 0})
            for step in opened.steps(state["step"], until):
                opened.record(step, loss=math.inf if step == 12 else 1.0, phi=0.5, mine=1.0)
                opened.checkpoint({"step": step + 1}, step=step, every=10)
    path = home / f"s{suffix}"
    export_session(store, "s", path)
    import_session(elsewhere, path)
    before, after = session_of(store, "s"), session_of(elsewhere, "s")
    assert after == before
    assert [len(part) > 0 for part in (before.events, before.checkpoints, before.decisions)] == [
        True, True, True
    ]  # fmt: skip
    info = elsewhere.sessions.get("s")
    (event,) = [e for e in elsewhere.events.list(info.id) if e.step == 12]
    assert event.value == math.inf
    ranked = [c.id for c in store.checkpoints.ranked(store.sessions.get("s").id)]
    assert [c.id for c in elsewhere.checkpoints.ranked(info.id)] == ranked


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_imported_again_stores_nothing_twice(
    store: Store, elsewhere: Store, tmp_path: Path, rng: random.Random, suffix: str
) -> None:
    fill(store, rng)
    path = tmp_path / f"s{suffix}"
    rows = export_session(store, "s", path).rows
    import_session(elsewhere, path)
    before = telemetry_of(elsewhere, "s"), session_of(elsewhere, "s")
    again = import_session(elsewhere, path)
    assert (again.rows, again.known_rows, again.records) == (0, rows, 0)
    assert (telemetry_of(elsewhere, "s"), session_of(elsewhere, "s")) == before


def test_where_it_came_from_it_is_all_there_already(
    store: Store, tmp_path: Path, rng: random.Random
) -> None:
    fill(store, rng)
    before = session_of(store, "s")
    rows = export_session(store, "s", tmp_path / "s.jsonl").rows
    done = import_session(store, tmp_path / "s.jsonl")
    assert (done.rows, done.known_rows, done.records) == (0, rows, 0)
    assert session_of(store, "s") == before


def test_an_interrupted_import_goes_on_where_it_was(
    store: Store, elsewhere: Store, tmp_path: Path, rng: random.Random,
) -> None:  # fmt: skip
    fill(store, rng)
    path = tmp_path / "s.jsonl"
    rows = export_session(store, "s", path).rows
    whole, calls = Telemetry.append, 0

    def cut(self: Telemetry, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if rng.random() < 0.3:
            raise StoreUnavailable("nowhere", "before")
        result = whole(self, batch)
        if rng.random() < 0.3:
            raise StoreUnavailable("nowhere", "after")
        return result

    stored = interrupted = 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Telemetry, "append", cut)
        while True:
            try:
                stored = import_session(elsewhere, path).known_rows
                break
            except StoreUnavailable:
                interrupted += 1
    print(f"interrupted {interrupted} times in {calls} calls")
    assert stored <= rows
    assert telemetry_of(elsewhere, "s") == telemetry_of(store, "s")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_under_another_name_it_is_a_session_of_its_own(
    store: Store, tmp_path: Path, rng: random.Random, suffix: str
) -> None:
    fill(store, rng)
    path = tmp_path / f"s{suffix}"
    export_session(store, "s", path)
    done = import_session(store, path, session="copy")
    assert (done.session, done.rows) == ("copy", len(telemetry_of(store, "s")))
    assert telemetry_of(store, "copy") == telemetry_of(store, "s")
    assert import_session(store, path, session="copy").rows == 0
    ids = [{a["id"] for a in session_of(store, name).attempts} for name in ("s", "copy")]
    assert ids[0].isdisjoint(ids[1])


def test_another_session_of_that_name_is_not_mixed_with_it(
    store: Store, elsewhere: Store, tmp_path: Path, rng: random.Random
) -> None:
    fill(store, rng)
    fill(elsewhere, rng)
    before = telemetry_of(elsewhere, "s")
    export_session(store, "s", tmp_path / "s.jsonl")
    with pytest.raises(ConfigurationError, match="--session"):
        import_session(elsewhere, tmp_path / "s.jsonl")
    assert telemetry_of(elsewhere, "s") == before


def test_a_session_without_rows_goes_and_comes(
    store: Store, elsewhere: Store, tmp_path: Path
) -> None:
    store.sessions.open("empty", {"a": 1})
    for suffix in (".jsonl", ".parquet"):
        export_session(store, "empty", tmp_path / f"e{suffix}")
        assert import_session(elsewhere, tmp_path / f"e{suffix}").rows == 0
    assert session_of(elsewhere, "empty") == session_of(store, "empty")
    export_session(store, "empty", tmp_path / "e.csv")
    with pytest.raises(InvalidInput, match="rows of one session"):
        import_session(elsewhere, tmp_path / "e.csv")


def test_a_table_has_named_columns_and_empty_cells(store: Store, dsn: str, home: Path,
                                                   tmp_path: Path) -> None:  # fmt: skip
    with qigstore.session("s", dsn=dsn, home=home, quiet=True) as opened:
        opened.record(0, loss=0.1, mine=math.nan)
        opened.record(1, loss=-0.0)
    export_session(store, "s", tmp_path / "s.csv")
    with (tmp_path / "s.csv").open(newline="") as file:
        head, first, second = csv.reader(file)
    assert head == [
        "session", "attempt", "rank", "step", "seq", "recorded_at", "regime", "loss", "mine",
        "basin",
    ]  # fmt: skip
    assert [first[k] for k in (0, 1, 2, 3, 4, 6, 7, 8, 9)] == [
        "s", "1", "0", "0", "1", "", "0.1", "NaN", ""
    ]  # fmt: skip
    assert second[7:] == ["-0.0", "", ""]


def test_a_failed_export_leaves_no_part_of_a_file(
    store: Store, tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, rng)
    (tmp_path / "s.jsonl").write_text("before")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        export_session(store, "s", tmp_path / "s.jsonl", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["s.jsonl"]
    assert (tmp_path / "s.jsonl").read_text() == "before"


def test_an_export_shows_one_moment_while_the_run_goes_on(
    store: Store, dsn: str, home: Path, tmp_path: Path
) -> None:
    with qigstore.session("s", dsn=dsn, home=home, quiet=True) as opened:
        for step in range(5000):
            opened.record(step, loss=1.0)
        opened.flush()

        def go_on(done: int, _total: int) -> None:
            opened.record(done + 10_000, loss=1.0)
            opened.record(0, loss=2.0)
            opened.flush()

        report = export_session(store, "s", tmp_path / "s.jsonl", progress=go_on)
    lines = (tmp_path / "s.jsonl").read_bytes().splitlines()
    rows = [line for line in map(json.loads, lines) if line["kind"] == "row"]
    assert [row["step"] for row in rows] == list(range(5000))
    assert report.rows == 5000


COUNT = 20_000


def peaks_of(store: Store, elsewhere: Store, path: Path) -> list[int]:
    """The most bytes that an export and an import took, of so many rows and of four times more."""
    session = store.sessions.open("s", {})
    attempt = store.sessions.open_attempt(session.id, uuid4(), host="h", pid=1, config={})
    writer = uuid4()
    epoch = store.writers.register(writer, attempt.id, 0).epoch
    peaks = []
    for turn in range(4):
        seq = np.arange(turn * COUNT + 1, (turn + 1) * COUNT + 1)
        rows = RowGroup(("loss", "mine"), seq, seq, seq * 1000, np.ones((COUNT, 2)),
                        np.full(COUNT, -1, np.int16))  # fmt: skip
        store.telemetry.append(
            TelemetryBatch(writer, epoch, session.id, 1, 0, int(seq[0]), int(seq[-1]), (rows,))
        )
        if turn in {0, 3}:
            tracemalloc.start()
            export_session(store, "s", path, force=True)
            import_session(elsewhere, path, session=f"turn {turn}")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    return peaks


PEAKS = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from test_exchange import Store, peaks_of
from qigstore.database.engine import Database
with Store(Database(sys.argv[3])) as store, Store(Database(sys.argv[4])) as elsewhere:
    print(*peaks_of(store, elsewhere, Path(sys.argv[5])))
"""


@pytest.mark.timeout(900)
def test_memory_does_not_grow_with_the_rows(
    dsn: str, server_dsn: str, template: str, tmp_path: Path
) -> None:
    """In a process of its own, where nobody else takes memory or leaves garbage."""
    here = Path(__file__).parent
    with new_database(server_dsn, template) as other:
        said = run_python(PEAKS, here, here.parent, dsn, other, tmp_path / "s.jsonl", limit_s=800)
    few, many = map(int, said.split())
    print(f"peaks: {few} bytes at {COUNT} rows, {many} at {4 * COUNT}")
    assert many < 1.5 * few


def test_a_repeated_count_survives(store: Store, elsewhere: Store, tmp_path: Path, dsn: str,
                                   home: Path) -> None:  # fmt: skip
    with qigstore.session("s", dsn=dsn, home=home, quiet=True) as opened:
        for step in (0, 1, 1, 5, 3, 0):
            opened.record(step, loss=float(step))
    export_session(store, "s", tmp_path / "s.jsonl")
    import_session(elsewhere, tmp_path / "s.jsonl")
    with psycopg.connect(dsn) as connection:
        (mine,) = connection.execute("SELECT repeated_rows FROM qigstore.writer").fetchall()
    assert mine == (2,)
    assert session_of(elsewhere, "s").writers[0]["repeated_rows"] == 2
