"""Export and import: what comes back is what was there, bit for bit, and never twice."""

from __future__ import annotations

import csv
import json
import math
import random
import struct
import sys
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import psycopg
import pytest
from commands import data, environment, process, run
from places import new_database

import qigstore
from qigstore.database.engine import Database
from qigstore.errors import ConfigurationError, InvalidInput, StoreUnavailable
from qigstore.exchange import export_session, import_session
from qigstore.records import Event
from qigstore.repository import Store
from qigstore.repository.batches import STEP_MAX, RowGroup, TelemetryBatch
from qigstore.repository.telemetry import Telemetry
from qigstore.safety import Finite

SUFFIXES = (".jsonl", ".parquet", ".csv")
NASTY = (
    math.nan, math.inf, -math.inf, -0.0, 0.0, 5e-324, -2.2e-308, sys.float_info.max, 0.1, 1 / 3,
    1e-300, 123456789.123456789, 1.7976931348623157e308,
)  # fmt: skip
NAMES = (
    "eigenvalue λ₁", 'quote " comma , semicolon ;', "emoji 🧭", "العربية", "a b", "nan", "%s", "'",
    "=1+1", "\u2028", "x" * 200,
)  # fmt: skip


@pytest.fixture
def elsewhere(server_dsn: str, template: str) -> Iterator[Store]:
    """A second database."""
    with new_database(server_dsn, template) as dsn, Store(Database(dsn)) as other:
        yield other


def bits(value: float) -> bytes:
    return struct.pack(">d", value)


def telemetry_of(store: Store, name: str) -> list[Any]:
    """Every row of a session, each number as its bytes."""
    found = []
    with store.exports.snapshot(name) as snapshot:
        for batch in snapshot.batches():
            for row in batch:
                metrics = {key: bits(value) for key, value in sorted(row.metrics.items())}
                found.append((*row[:6], metrics, row.basin and [bits(p) for p in row.basin]))
    return found


def roots_of(store: Store) -> list[Any]:
    with store.database.begin() as connection:
        query = "SELECT attempt, rank, step, root FROM qigstore.basin ORDER BY 1, 2, 3"
        return [(*row[:3], [bits(x) for x in row[3]]) for row in connection.exec_driver_sql(query)]


def session_of(store: Store, name: str) -> Any:
    with store.exports.snapshot(name) as snapshot:
        return snapshot.session


def group(rng: random.Random, names: tuple[str, ...], seqs: list[int], steps: list[int]) -> Any:
    values = [[rng.choice(NASTY) for _ in names] for _ in seqs]
    basins = [np.array([rng.choice((5e-324, 1e-310, rng.random())) for _ in range(5)])
              for _ in seqs]  # fmt: skip
    return RowGroup(
        names=names,
        seq=np.array(seqs, np.int64),
        step=np.array(steps, np.int64),
        time_ns=np.array([rng.randrange(2**60) for _ in seqs], np.int64),
        values=np.array(values, np.float64).reshape(len(seqs), len(names)),
        regime=np.array([rng.randrange(-1, 4) for _ in seqs], np.int16),
        basins=np.array(basins) if rng.random() < 0.5 else None,
    )


def fill(store: Store, rng: random.Random, name: str = "s") -> None:
    """Attempts, ranks, layouts, gaps and steps of every kind."""
    session = store.sessions.open(name, {"lr": 0.1, "odd": "NaN", "deep": {"Φ": [1, None]}})
    for _ in range(3):
        attempt = store.sessions.open_attempt(
            session.id, uuid4(), host="höst", pid=2**40, config={"seed": 7}
        )
        for rank in (0, 5):
            writer = uuid4()
            epoch = store.writers.register(writer, attempt.id, rank).epoch
            first = 1
            for _ in range(3):
                seqs = sorted(rng.sample(range(first, first + 60), 20))
                steps = [rng.choice((seq, 3 * seq, STEP_MAX - seq)) for seq in seqs]
                names = tuple(rng.sample((*NAMES, "loss", "phi", "kappa_eff"), rng.randrange(8)))
                parts = (group(rng, names, seqs[:10], steps[:10]),
                         group(rng, ("loss",), seqs[10:], steps[10:]))  # fmt: skip
                store.telemetry.append(
                    TelemetryBatch(
                        writer, epoch, session.id, attempt.number, rank, first, seqs[-1], parts
                    )
                )
                first = seqs[-1] + 1
        store.sessions.close_attempt(attempt.id, "aborted", reason="x\ny", exit_status=75)


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


# -- files that are not whole ---------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_file_cut_anywhere_is_refused_and_nothing_is_stored(
    store: Store, elsewhere: Store, tmp_path: Path, rng: random.Random, suffix: str
) -> None:
    fill(store, rng)
    path, cut = tmp_path / f"s{suffix}", tmp_path / f"cut{suffix}"
    export_session(store, "s", path)
    whole = path.read_bytes()
    for _ in range(30):
        cut.write_bytes(whole[: rng.randrange(len(whole) - 1)])
        with pytest.raises(InvalidInput, match="cut"):
            import_session(elsewhere, cut)
    assert elsewhere.sessions.list() == []


TAMPERED: list[tuple[str, dict[str, Any]]] = [
    ("session", {"format": "qigstore-session-9"}),
    ("session", {"name": "a\nb"}),
    ("session", {"created_at": "yesterday"}),
    ("session", {"config": [1]}),
    ("session", {"more": 1}),
    ("session", {"attempts": [{"id": "x"}]}),
    ("session", {"attempts": [{"id": str(uuid4()), "number": 1, "status": "odd"}]}),
    ("session", {"writers": [{"attempt": 9, "rank": 0, "id": str(uuid4())}]}),
    ("row", {"metrics": {"loss": "text"}}),
    ("row", {"metrics": {"loss": True}}),
    ("row", {"metrics": {"": 1.0}}),
    ("row", {"metrics": [1]}),
    ("row", {"regime": "dreadful"}),
    ("row", {"step": -1}),
    ("row", {"seq": 0}),
    ("row", {"rank": 77}),
    ("row", {"recorded_at": "noon"}),
    ("row", {"recorded_at": "2026-01-01T00:00:00"}),
    ("event", {"record": {"id": str(uuid4()), "severity": "dreadful"}}),
    ("event", {"record": {"colour": "red"}}),
    ("event", {"record": None}),
]


def test_what_an_export_never_writes_is_one_clear_error(
    store: Store, elsewhere: Store, tmp_path: Path
) -> None:
    fill(store, random.Random(1))
    session = store.sessions.get("s")
    event = Event(uuid4(), session.id, 1, 0, 3, "rule", "info", "words", datetime.now(UTC))
    store.events.add(event)
    export_session(store, "s", tmp_path / "s.jsonl")
    lines = (tmp_path / "s.jsonl").read_bytes().splitlines(keepends=True)
    for kind, changes in TAMPERED:
        place = next(k for k, line in enumerate(lines) if json.loads(line)["kind"] == kind)
        changed = {**json.loads(lines[place]), **changes}
        bad = [*lines[:place], json.dumps(changed).encode() + b"\n", *lines[place + 1 :]]
        (tmp_path / "bad.jsonl").write_bytes(b"".join(bad))
        with pytest.raises(InvalidInput) as refused:
            import_session(elsewhere, tmp_path / "bad.jsonl")
        print(kind, changes, refused.value)
        if kind == "session":
            assert elsewhere.sessions.list() == []


_HEAD = "session,attempt,rank,step,seq,recorded_at,regime,loss,basin\n"
TABLES = [
    "",
    "a,b\n1,2\n",
    _HEAD + "s,1,0,0,1\n",
    _HEAD + "s,1,0,0,1,2026-01-01T00:00:00+00:00,,zero,\n",
    _HEAD + "s,1,0,0,1,2026-01-01T00:00:00,,1,\n",
    _HEAD + "s,1,0,0,1,2026-01-01T00:00:00+00:00,,1,[1\n",
    _HEAD + "s,1,0,0,1,2026-01-01T00:00:00+00:00,,1,\nt,1,0,0,2,2026-01-01T00:00:00+00:00,,1,\n",
    _HEAD + "s,1,0,0,2,2026-01-01T00:00:00+00:00,,1,\ns,1,0,1,1,2026-01-01T00:00:00+00:00,,1,\n",
]


def test_a_table_that_no_export_wrote_is_one_clear_error(elsewhere: Store, tmp_path: Path) -> None:
    for text in TABLES:
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(InvalidInput, match=r"bad\.csv"):
            import_session(elsewhere, tmp_path / "bad.csv")


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


def test_memory_does_not_grow_with_the_rows(store: Store, elsewhere: Store, tmp_path: Path) -> None:
    session = store.sessions.open("s", {})
    attempt = store.sessions.open_attempt(session.id, uuid4(), host="h", pid=1, config={})
    writer = uuid4()
    epoch = store.writers.register(writer, attempt.id, 0).epoch
    count, peaks = 20_000, []
    for turn in range(4):
        seq = np.arange(turn * count + 1, (turn + 1) * count + 1)
        rows = RowGroup(("loss", "mine"), seq, seq, seq * 1000, np.ones((count, 2)),
                        np.full(count, -1, np.int16))  # fmt: skip
        store.telemetry.append(
            TelemetryBatch(writer, epoch, session.id, 1, 0, int(seq[0]), int(seq[-1]), (rows,))
        )
        if turn in {0, 3}:
            tracemalloc.start()
            export_session(store, "s", tmp_path / "s.jsonl", force=True)
            import_session(elsewhere, tmp_path / "s.jsonl", session=f"turn {turn}")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    print(f"peaks: {peaks[0]} bytes at {count} rows, {peaks[1]} at {4 * count}")
    assert peaks[1] < 1.5 * peaks[0]


# -- with no database in reach --------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_waits_in_spools_is_exported_without_a_database_and_arrives_once(
    home: Path, dsn: str, elsewhere: Store, suffix: str
) -> None:
    nowhere = environment(home, "postgresql://nobody@127.0.0.1:1/none")
    path = str(home / f"s{suffix}")
    basin = np.full(64, 1 / 64)
    for attempt in range(2):
        with qigstore.session("s", mode="offline", home=home, quiet=True,
                              rules=[Finite("loss")]) as run:  # fmt: skip
            for number, value in enumerate(NASTY):
                run.record(number + 10 * attempt, loss=value, basin=basin, **{NAMES[number % 9]: 1})
            run.record(3 + 10 * attempt, loss=1.0)
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
    with qigstore.session("s", mode="offline", home=home, quiet=True) as run:
        for step in range(100):
            run.record(step, loss=1.0)
    env = environment(home, dsn)
    assert data(env, "export", "s", str(home / "s.jsonl"), "--spooled")["rows"] == 100
    assert data(env, "import", str(home / "s.jsonl"))["rows"] == 100
    assert data(env, "spool", "drain")["rows"] == 0
    assert data(env, "spool", "status")["spools"] == []
    assert len(telemetry_of(store, "s")) == 100
    (attempt,) = store.sessions.attempts(store.sessions.get("s").id)
    assert attempt.status == "completed"


# -- the commands ------------------------------------------------------------------------------


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
