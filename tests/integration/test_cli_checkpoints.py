"""The commands on checkpoints: what they say, what they change, what they refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
import safetensors.numpy
from commands import data, environment, run

from qigstore.checkpoints import CheckpointManager, CheckpointStore, Retention, keeper
from qigstore.checkpoints.format import MANIFEST, PAYLOAD
from qigstore.checkpoints.holds import in_use
from qigstore.records import Event
from qigstore.repository import Store

NAME = "ocean 7"
NOWHERE = "postgresql://nobody@127.0.0.1:1/none"


class World:
    """A session with checkpoints of steps 10 to 50, and the ways to break it."""

    def __init__(self, home: Path, dsn: str, store: Store) -> None:
        self.home, self.store = home, store
        self.env, self.away = environment(home, dsn), environment(home, NOWHERE)
        self.root = home / "checkpoints"
        self.info = store.sessions.open(NAME, {})
        store.sessions.open_attempt(self.info.id, uuid4(), host="here", pid=1, config={})
        self.manager = CheckpointManager(
            CheckpointStore(self.root), store.checkpoints, session_id=self.info.id,
            session_name=NAME, attempt=1, retention=Retention(keep_newest=20),
        )  # fmt: skip
        self.ids = {step: self.save(step, 0.5 + step / 100) for step in (10, 20, 30, 40, 50)}

    def save(self, step: int, phi: float | None, **more: Any) -> UUID:
        state = {"w": np.full(6, step, np.float32), "same": np.arange(3), "step": step}
        return self.manager.save(state, step=step, phi=phi, wait=True, **more)

    def path(self, step: int) -> Path:
        return self.manager.store.locate(NAME, self.ids[step])

    def spoil(self, step: int, name: str = PAYLOAD) -> None:
        file = self.path(step) / name
        octets = bytearray(file.read_bytes())
        octets[-3] ^= 1
        file.write_bytes(octets)

    def remove_row(self, step: int) -> None:
        with self.store.database.raw() as connection:
            connection.execute("DELETE FROM qigstore.checkpoint WHERE id = %s", (self.ids[step],))


@pytest.fixture
def world(home: Path, dsn: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(keeper, "_ROW_WAIT_S", 120.0)  # a row follows at once, or the disk is slow
    made = World(home, dsn, store)
    yield made
    made.manager.close()


# -- a session for the README ------------------------------------------------------------------


def test_a_corrupt_best_checkpoint_is_explained_and_the_second_taken(world: World) -> None:
    world.spoil(50)
    before = sorted(world.root.rglob("*"))
    told = run(world.env, "recover", NAME, "--dry-run")
    assert told.returncode == 0, told.stderr
    print(told.stdout)
    lines = told.stdout.splitlines()
    assert lines[0] == f"recovery (best): resume from step 40, checkpoint {world.ids[40]}"
    assert lines[2].split()[:4] == ["chosen", str(world.ids[40])[:8], "1", "40"]
    assert "highest Φ (Φ 0.9000) of 5 healthy ones, after 1 that could not be loaded" in lines[2]
    assert lines[3].split()[:4] == ["refused", str(world.ids[50])[:8], "1", "50"]
    for word in ("newest, highest Φ, but corrupt, to be put aside", "BLAKE3", "expected", "found"):
        assert word in lines[3]
    assert sorted(world.root.rglob("*")) == before
    assert world.store.decisions.list(world.info.id) == []
    done = run(world.env, "recover", NAME)
    assert done.returncode == 0, done.stderr
    assert "start your training again" in done.stdout
    assert not world.path(50).exists()
    assert world.store.checkpoints.get(world.ids[50]).status == "quarantined"
    assert world.store.checkpoints.get(world.ids[40]).verified_at is not None
    again = data(world.env, "recover", NAME, "--dry-run")
    assert again["chosen"]["id"] == str(world.ids[40])


def test_each_policy_takes_its_own(world: World) -> None:
    world.ids[60] = world.save(60, 0.1)
    chosen = {
        policy: data(world.env, "recover", NAME, "--dry-run", "--policy", policy)["chosen"]["step"]
        for policy in ("best", "newest", "best_recent")
    }
    assert chosen == {"best": 50, "newest": 60, "best_recent": 50}


def test_without_the_database_the_folders_answer_and_say_so(world: World) -> None:
    event = Event(
        uuid4(), world.info.id, 1, 0, 45, "loss", "critical", "loss is NaN", datetime.now(UTC)
    )
    assert world.store.events.add(event)  # only the database knows of it
    world.spoil(50)
    key = str(world.ids[40])
    for words in (
        ("checkpoints", "list", NAME),
        ("checkpoints", "show", key[:13]),
        ("recover", NAME, "--dry-run"),
        ("checkpoints", "verify", key),
        ("checkpoints", "doctor", NAME),
    ):
        done = run(world.away, *words, "--json")
        assert done.returncode in {0, 7}, (words, done.stderr)
        assert "127.0.0.1:1" in done.stderr.splitlines()[0]
        assert key in done.stdout or words[1] == "doctor"
        json.loads(done.stdout)
    refused = run(world.away, "checkpoints", "prune", NAME)
    assert refused.returncode == 3
    assert "nobody knows who is healthy" in refused.stderr
    unknown = run(world.away, "checkpoints", "list", "ocean 8")
    assert unknown.returncode == 5
    assert NAME in unknown.stderr


# -- finding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("show",), ("pin",), ("unpin",), ("verify",)])
def test_an_unknown_or_ambiguous_id_names_the_nearest(world: World, words: tuple[str]) -> None:
    twins = [UUID(int=(0xABCD << 112) + n) for n in (1, 2)]
    for n, twin in enumerate(twins):
        world.save(60 + n, 0.2, checkpoint_id=twin)
    done = run(world.env, "checkpoints", *words, "abcd")
    assert done.returncode == 5
    assert all(str(twin) in done.stderr for twin in twins)
    assert "give more digits" in done.stderr
    unknown = run(world.env, "checkpoints", *words, str(UUID(int=(0xABCD << 112) + 9)))
    assert unknown.returncode == 5
    assert str(twins[1]) in unknown.stderr
    assert run(world.env, "checkpoints", *words, "ab").returncode in {2, 5}


def test_list_and_show_tell_of_pins(world: World) -> None:
    key = str(world.ids[20])
    assert run(world.env, "checkpoints", "pin", key[:8], "--note", "the paper's").returncode == 0
    assert "already" in run(world.env, "checkpoints", "pin", key).stdout
    listed = data(world.env, "checkpoints", "list", NAME)
    assert {c["step"]: c["pinned"] for c in listed} == {s: s == 20 for s in world.ids}
    assert "the paper's" in run(world.env, "checkpoints", "show", key).stdout
    assert run(world.env, "checkpoints", "unpin", key).returncode == 0
    assert "was not pinned" in run(world.env, "checkpoints", "unpin", key).stdout


def test_verify_names_the_file_and_is_status_7(world: World) -> None:
    assert all(item["sound"] for item in data(world.env, "checkpoints", "verify"))
    world.spoil(30)
    done = run(world.env, "checkpoints", "verify", "--session", NAME, "--json")
    assert done.returncode == 7
    told = {item["step"]: item for item in json.loads(done.stdout)}
    assert [step for step, item in told.items() if item["sound"]] != []
    (bad,) = [item for item in told.values() if not item["sound"]]
    assert bad["id"] == str(world.ids[30])
    assert PAYLOAD in bad["problem"]
    assert world.path(30).exists()
    alone = run(world.env, "checkpoints", "verify", str(world.ids[40]))
    assert alone.returncode == 0


# -- pruning -----------------------------------------------------------------------------------


def test_prune_says_who_keeps_what_and_removes_the_rest(world: World) -> None:
    run(world.env, "checkpoints", "pin", str(world.ids[10]))
    options = ("--keep-newest", "1", "--keep-best", "1")
    world.env |= {"QIGSTORE_SETTLE_STEPS": "0"}
    plan = data(world.env, "checkpoints", "prune", NAME, *options, "--dry-run")
    assert {c["step"]: c["fate"] for c in plan} == {
        50: "kept", 40: "would go", 30: "would go", 20: "would go", 10: "kept"
    }  # fmt: skip
    assert plan[-1]["roles"] == ["pinned"]
    assert all(world.path(step).exists() for step in world.ids)
    with in_use(world.path(30)):
        done = data(world.env, "checkpoints", "prune", NAME, *options)
    assert {c["step"]: c["fate"] for c in done} == {
        50: "kept", 40: "removed", 30: "in use", 20: "removed", 10: "kept"
    }  # fmt: skip
    assert [step for step in world.ids if world.path(step).exists()] == [10, 30, 50]
    assert world.store.checkpoints.get(world.ids[40]).status == "deleted"
    table = run(world.env, "checkpoints", "prune", NAME, *options)
    assert "newest, best" in table.stdout


# -- copies ------------------------------------------------------------------------------------


def test_an_exported_file_is_read_by_the_library_of_its_format(
    world: World, tmp_path: Path
) -> None:
    target = tmp_path / "out.safetensors"
    told = data(world.env, "checkpoints", "export", str(world.ids[40]), str(target))
    assert told["step"] == 40
    assert safetensors.numpy.load_file(target)["w"].tolist() == [40.0] * 6
    again = run(world.env, "checkpoints", "export", str(world.ids[40]), str(target))
    assert again.returncode == 1
    assert "there already" in again.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.safetensors"]


def test_a_damaged_checkpoint_is_not_exported_and_nothing_is_left(
    world: World, tmp_path: Path
) -> None:
    world.spoil(40)
    for target in (tmp_path / "out", tmp_path / "out.safetensors"):
        done = run(world.env, "checkpoints", "export", str(world.ids[40]), str(target))
        assert done.returncode == 7
        assert "BLAKE3" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_exported_folder_comes_back_on_another_machine(
    world: World, tmp_path: Path, elsewhere: Store
) -> None:
    out = tmp_path / "out"
    assert run(world.env, "checkpoints", "export", str(world.ids[40]), str(out)).returncode == 0
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST, PAYLOAD]
    dsn = elsewhere.database.engine.url  # the second machine's database is reached by its own DSN
    assert dsn is not None
    there = environment(tmp_path / "there", NOWHERE)
    told = data(there, "checkpoints", "restore", str(out))
    assert (told["id"], told["step"], told["phi"]) == (str(world.ids[40]), 40, 0.9)
    root = CheckpointStore(tmp_path / "there" / "checkpoints")
    (found,) = root.scan(NAME)
    assert root.load(found.path)["w"].tolist() == [40.0] * 6
    assert (
        found.metadata["restored_from"]["digest"]
        == world.manager.store.record(world.path(40)).digest
    )
    assert run(there, "checkpoints", "restore", str(out)).returncode == 1
    root.delete(found.path)  # it is provably that store's own now
    octets = bytearray((out / PAYLOAD).read_bytes())
    octets[-1] ^= 1
    (out / PAYLOAD).write_bytes(octets)
    assert run(there, "checkpoints", "restore", str(out)).returncode == 7
    assert root.scan(NAME) == []


def test_restore_into_a_named_root_by_id(world: World, tmp_path: Path) -> None:
    key = str(world.ids[40])
    here = run(world.env, "checkpoints", "restore", key)
    assert here.returncode == 2
    assert "lies already" in here.stderr
    done = run(world.env, "checkpoints", "restore", key[:8], "--to", str(tmp_path / "root"))
    assert done.returncode == 0, done.stderr
    assert CheckpointStore(tmp_path / "root").scan(NAME)[0].id == world.ids[40]


def test_diff_says_which_arrays_differ_and_by_how_much(world: World) -> None:
    one, two = str(world.ids[40]), str(world.ids[50])
    found = data(world.env, "checkpoints", "diff", one, two)
    assert not found["same"]
    assert found["fields"]["phi"] == {"first": 0.9, "second": 1.0}
    (array,) = found["tensors"]
    assert (array["name"], array["kind"]) == ("w", "values")
    assert (array["largest"], array["differing"]) == (10.0, 6)
    table = run(world.env, "checkpoints", "diff", one, two)
    assert "1 of 2 arrays are equal" in table.stdout
    assert data(world.env, "checkpoints", "diff", one, one)["same"]
    short = data(world.env, "checkpoints", "diff", one, two, "--no-values", "--all")["tensors"]
    assert {t["name"]: (t["kind"], t["largest"]) for t in short} == {
        "same": ("equal", None), "w": ("values", None)
    }  # fmt: skip


def test_diff_names_what_only_one_has_and_refuses_damaged_numbers(world: World) -> None:
    world.manager.save({"w": np.zeros((2, 3)), "new": np.ones(2)}, step=60, wait=True)
    other = str(world.manager.store.scan(NAME)[-1].id)
    found = data(world.env, "checkpoints", "diff", str(world.ids[50]), other)
    assert {t["name"]: t["kind"] for t in found["tensors"]} == {
        "w": "dtype or shape", "new": "only second", "same": "only first"
    }  # fmt: skip
    assert "structure" in found["fields"]
    world.spoil(50)
    done = run(world.env, "checkpoints", "diff", str(world.ids[40]), str(world.ids[50]))
    assert done.returncode == 7
    assert "BLAKE3 of array 'w'" in done.stderr


# -- the doctor --------------------------------------------------------------------------------


def found(world: World, *words: str, env: dict[str, str] | None = None) -> dict[str, list[Any]]:
    done = run(env or world.env, "checkpoints", "doctor", *words, "--json")
    told: dict[str, list[Any]] = {}
    for item in json.loads(done.stdout):
        told.setdefault(item["what"], []).append(item)
    mended = all(i["fate"] != "to mend" for items in told.values() for i in items)
    assert (done.returncode == 0) == mended, done.stderr
    return told


def test_the_doctor_finds_nothing_where_nothing_is(world: World) -> None:
    done = run(world.env, "checkpoints", "doctor")
    assert (done.returncode, done.stdout) == (0, "")
    assert "nothing is left over" in done.stderr


def test_the_doctor_rebuilds_rows_and_marks_what_is_gone(world: World) -> None:
    world.remove_row(10)
    world.store.checkpoints.set_status(world.ids[20], "deleted", "by mistake")
    for file in world.path(30).iterdir():
        file.unlink()
    world.path(30).rmdir()
    told = found(world)
    assert {item["id"] for item in told["row"]} == {str(world.ids[10]), str(world.ids[20])}
    assert [item["id"] for item in told["folder"]] == [str(world.ids[30])]
    found(world, "--fix")
    assert found(world) == {}
    rows = {row.step: row for row in world.store.checkpoints.list(world.info.id)}
    assert {step: row.status for step, row in rows.items()} == {
        10: "committed", 20: "committed", 30: "deleted", 40: "committed", 50: "committed"
    }  # fmt: skip
    assert rows[10] == world.manager.store.record(world.path(10), session_id=world.info.id)


def test_the_doctor_rebuilds_a_lost_database(
    world: World, elsewhere: Store, server_dsn: str
) -> None:
    with world.store.database.raw() as connection:
        connection.execute("DELETE FROM qigstore.session")
    told = found(world, "--fix")
    assert len(told["row"]) == 5
    assert data(world.env, "recover", NAME, "--dry-run")["chosen"]["step"] == 50


def test_the_doctor_puts_damage_aside_and_removes_only_what_is_provably_ours(
    world: World,
) -> None:
    world.spoil(50)
    world.spoil(40, MANIFEST)
    folder = world.path(10).parent
    for name, content in ((f".tmp-{uuid4()}", PAYLOAD), (f".tmp-{uuid4()}", "mine.txt")):
        (folder / name).mkdir()
        (folder / name / content).write_text("x")
    stranger = world.root / "somebody-elses"
    stranger.mkdir()
    (stranger / "file").write_text("x")
    assert [i["id"] for i in found(world)["damaged"]] == [str(world.ids[40])]
    deep = found(world, "--deep")
    assert {i["id"] for i in deep["damaged"]} == {str(world.ids[40]), str(world.ids[50])}
    assert len(deep["unfinished"]) == 2
    assert deep["not ours"][0]["fate"] == "for information"
    after = found(world, "--deep", "--fix")
    assert sorted(i["fate"] for i in after["unfinished"]) == [
        "removed",
        "stays: locked, or in doubt",
    ]
    assert (stranger / "file").exists()
    assert [p.name for p in folder.glob(".tmp-*/*")] == ["mine.txt"]
    assert not world.path(50).exists()
    statuses = {r.step: r.status for r in world.store.checkpoints.list(world.info.id)}
    assert (statuses[40], statuses[50]) == ("quarantined", "quarantined")
    last = found(world)
    assert {i["id"] for i in last["put aside"]} == {str(world.ids[40]), str(world.ids[50])}
    assert last["put aside"][0]["detail"]


def test_the_doctor_takes_away_a_pin_of_nothing_and_names_a_stranger(world: World) -> None:
    run(world.env, "checkpoints", "pin", str(world.ids[10]))
    run(world.env, "checkpoints", "pin", str(world.ids[20]))
    world.manager.store.delete(world.path(10))
    world.store.checkpoints.set_status(world.ids[10], "deleted", "by hand")
    assert [i["id"] for i in found(world)["pin"]] == [str(world.ids[10])]
    assert found(world, "--fix")["pin"][0]["fate"] == "unpinned"
    assert set(world.manager.pins.all()) == {world.ids[20]}
    (world.path(20).parent / ".held" / "notes.txt").write_text("mine")
    (stranger,) = found(world, "--fix")["not ours"]
    assert "notes.txt" in stranger["detail"]


def test_rows_whose_folder_is_on_another_machine_are_left_alone(
    world: World, tmp_path: Path
) -> None:
    theirs = CheckpointManager(
        CheckpointStore(tmp_path / "theirs"), world.store.checkpoints,
        session_id=world.info.id, session_name=NAME, attempt=1,
    )  # fmt: skip
    away = theirs.save({"w": np.ones(2)}, step=90, phi=0.1, wait=True)
    told = found(world, "--fix")
    assert [i["id"] for i in told["elsewhere"]] == [str(away)]
    assert world.store.checkpoints.get(away).status == "committed"
    done = run(world.env, "checkpoints", "verify", str(away))
    assert done.returncode == 5
    assert str(tmp_path / "theirs") in done.stderr
