"""What several ranks save together is one checkpoint like any other, for any number of ranks."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from commands import data, environment
from processes import REPOSITORY
from ranks import Ended, returned, run_ranks

from qigstore.checkpoints import CheckpointManager, CheckpointStore, RemoteCopies, RemoteStore
from qigstore.checkpoints.format import MANIFEST, shard_name
from qigstore.checkpoints.transfer import export, restore_into
from qigstore.errors import CheckpointCorrupt, CheckpointError
from qigstore.repository import Store

torch = pytest.importorskip("torch", reason="torch is an extra (qigstore[torch])")
SIZE = 4
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which four ranks saved three checkpoints."""
    folder = tmp_path_factory.mktemp("ranks")
    ids = returned(run_ranks("sharded_scenarios:save_three", SIZE, folder))
    assert ids == [ids[0]] * SIZE
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def manager_of(folder: Path) -> CheckpointManager:
    store = CheckpointStore(folder / "store")
    return CheckpointManager(store, None, session_id=1, session_name="ocean", attempt=1)


def expected(seed: int) -> dict[str, Any]:
    from sharded_scenarios import whole

    numbers = whole(seed)
    told = {
        name: (torch.view_as_real(t) if t.is_complex() else t).tolist()
        for name, t in numbers.items()
    }
    rest = {"numpy": [n * seed for n in range(4)], "blob": 2000, "text": "é"}
    return {**told, "tied": told["row"], **rest, "step": seed, "n": seed}


def spoil(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_the_files_are_a_checkpoint_like_any_other(folder: Path, tmp_path: Path) -> None:
    manager = manager_of(folder)
    store = manager.store
    first, second, third = store.scan("ocean")
    assert [item.weights_finite for item in (first, second, third)] == [True, True, False]
    healthy = {item.checkpoint.step: item.healthy for item in manager.candidates()}
    assert healthy == {0: True, 1: True, 2: False}
    files = {path.name for path in first.path.iterdir()}
    assert files == {MANIFEST, *(shard_name(rank) for rank in range(SIZE))}
    assert first.bytes == sum(path.stat().st_size for path in first.path.iterdir())
    manifest = store.verify(second.path)
    loader = pytest.importorskip("safetensors.torch")
    stored = {}
    for name in files - {MANIFEST}:  # any reader of the format opens each
        stored |= dict.fromkeys(loader.load_file(first.path / name), name)
    assert stored == {name: info.file for name, info in manifest.tensors.items()}
    whole = store.load(second.path)  # one process, no ranks
    assert torch.equal(whole["tensors"]["row"], torch.tensor(expected(1)["row"]))
    assert whole["tensors"]["row"] is whole["tensors"]["tied"]
    assert (whole["step"], whole["numpy"].tolist()) == (1, [0, 1, 2, 3])
    part = store.load(second.path, part=("tensors", "complex"))
    assert torch.view_as_real(part).tolist() == expected(1)["complex"]
    out = tmp_path / "out"
    export(second.path, out, progress=lambda *_: None)
    with pytest.raises(CheckpointError, match="4 files; export it to a folder"):
        export(second.path, tmp_path / "x.safetensors", progress=lambda *_: None)
    there = restore_into(out, CheckpointStore(tmp_path / "other"), progress=lambda *_: None)
    assert CheckpointStore(tmp_path / "other").load(there)["step"] == 1
    url = f"memory://{second.id}"
    copies = RemoteCopies(store, url)
    copies.push(second.path)
    assert RemoteStore(url).load(RemoteStore(url).locate("ocean", second.id))["step"] == 1
    assert RemoteCopies(CheckpointStore(tmp_path / "back"), url).pull("ocean", second.id).step == 1
    assert manager.remove(second.id, "done")
    assert {item.step for item in store.scan("ocean")} == {0, 2}


@pytest.mark.parametrize("ranks", [4, 2, 1])
def test_any_number_of_ranks_loads_it(folder: Path, ranks: int) -> None:
    for rank, found in enumerate(returned(run_ranks("sharded_scenarios:load_best", ranks, folder))):
        assert found["step"] == 1  # step 2 has the higher Φ, and NaN
        assert found["in place"]
        assert found["state"] == expected(1)
        assert found["own"] == ([rank, [*range(rank + 1)]] if ranks == SIZE else None)


def test_ranks_go_on_from_what_one_process_saved(tmp_path: Path) -> None:
    from sharded_scenarios import whole

    tensors = whole(3)
    extra = {"numpy": np.arange(4) * 3, "text": "é", "blob": bytes(2000), "n": 3}
    manager = manager_of(tmp_path)
    given = {"tensors": {**tensors, "tied": tensors["row"]}, "step": 3, **extra}
    manager.save(given, step=3, phi=0.9, wait=True)
    manager.close()
    for found in returned(run_ranks("sharded_scenarios:load_best", 2, tmp_path)):
        assert (found["step"], found["own"]) == (3, None)
        assert found["state"] == expected(3)


def test_a_flipped_bit_in_any_shard_sends_all_ranks_to_the_next_best(folder: Path) -> None:
    manager = manager_of(folder)
    best = manager.store.scan("ocean")[1]
    for rank in range(SIZE):
        shard = best.path / shard_name(rank)
        whole = shard.read_bytes()
        spoil(shard, -1)
        with pytest.raises(CheckpointCorrupt, match=shard_name(rank)):
            manager.store.verify(best.path)
        with pytest.raises(CheckpointCorrupt, match=shard_name(rank)):
            manager.store.load(best.path)
        shard.write_bytes(whole)
    spoil(best.path / shard_name(2), -1)
    for found in returned(run_ranks("sharded_scenarios:load_best", 2, folder)):
        assert found["step"] == 0
        assert found["state"] == expected(0)
    aside = best.path.parent / ".quarantine" / f"{best.id}.json"
    assert shard_name(2) in aside.read_text()
    assert {item.step for item in manager.store.scan("ocean")} == {0, 2}


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.long)])
def test_every_flipped_byte_cut_and_swap_is_refused(
    folder: Path, every: int, rng: random.Random
) -> None:
    store = CheckpointStore(folder / "store")
    first, second, _ = store.scan("ocean")
    for name in (MANIFEST, *(shard_name(rank) for rank in range(SIZE))):
        path = second.path / name
        whole = path.read_bytes()
        for place in range(rng.randrange(every), len(whole), every):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
            with pytest.raises(CheckpointCorrupt):
                store.verify(second.path)
        for length in (0, 7, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointCorrupt) as refusal:
                store.load(second.path)
            assert refusal.value.path == path
        shutil.copy(first.path / name, path)
        with pytest.raises(CheckpointCorrupt):
            store.load(second.path)
        path.unlink()
        with pytest.raises(CheckpointCorrupt, match="found nothing"):
            store.load(second.path)
        path.write_bytes(whole)
    assert store.load(second.path)["step"] == 1


LOSSES = {
    "a follower, before it writes": {"lost": 1, "call": "create", "sign": "SIGKILL"},
    "a follower, before its fsync": {"lost": 1, "call": "fsync", "sign": "SIGKILL"},
    "the leader, before the rename": {"lost": 0, "call": "rename", "sign": "SIGKILL"},
    "the leader, after the rename": {"lost": 0, "call": "rename", "sign": "SIGKILL", "after": True},
    "one that does not answer": {"lost": 1, "call": "fsync", "sign": "SIGSTOP", "limit_s": 3},
}


@pytest.mark.parametrize("how", LOSSES.values(), ids=LOSSES)
def test_a_rank_that_is_lost_leaves_what_was_there(tmp_path: Path, how: dict[str, Any]) -> None:
    ended = run_ranks("sharded_scenarios:lose_one", 3, tmp_path, **how)
    assert [one.status for one in ended].count(-9) == 1
    check_what_is_left(tmp_path, ended, [[0, 1] if how.get("after") else [0]])


@pytest.mark.long
@pytest.mark.parametrize("lost", [0, 1], ids=["the leader", "a follower"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_rank_killed_at_every_call_leaves_what_was_there(
    tmp_path: Path, lost: int, after: bool
) -> None:
    for n in range(1, 100):
        folder = tmp_path / str(n)
        how = {"lost": lost, "call": str(n), "sign": "SIGKILL", "after": after}
        ended = run_ranks("sharded_scenarios:lose_one", 2, folder, **how)
        if all(one.status == 0 for one in ended):
            assert [one.returned for one in ended] == [[["nothing", ""]]] * 2
            assert n > 4
            print(f"{n - 1} calls of rank {lost}, killed at each: 0 lost")
            return
        check_what_is_left(folder, ended, [[0], [0, 1]])
    pytest.fail("a save makes fewer calls than that")


def check_what_is_left(folder: Path, ended: list[Ended], allowed: list[list[int]]) -> None:
    """Whoever lived was told; what was committed is whole, and the rest goes."""
    for one in ended:
        if one.status == 0 and one.returned != [["nothing", ""]]:
            first, second = one.returned
            assert first[0] == second[0] == "RankError", one
            assert "Start the run again" in first[1]
    store = CheckpointStore(folder / "store")
    survey = store.survey("ocean")
    assert survey.damaged == ()
    assert [item.step for item in survey.checkpoints] in allowed
    for item in survey.checkpoints:
        assert store.load(item.path)["step"] == item.step
    store.clean("ocean")
    assert {path.name[0] for path in store.folder_of("ocean").iterdir()} & {"."} == set()


def test_what_is_refused_is_said_on_every_rank_and_nobody_is_lost(tmp_path: Path) -> None:
    one, other = returned(run_ranks("sharded_scenarios:go_wrong", 2, tmp_path))
    words = {
        "a set on one rank": "rank 1: state['x']: builtins.set cannot be saved",
        "other structures": "the ranks differ in structure: 'x' is float32 (2,) on rank 0 and "
        "float32 (3,) on rank 1",
        "other steps": "the ranks differ in step: 1, 2",
        "partial sums": "a DTensor of partial sums cannot be saved",
        "a name of ours": "arrays of the same name",
        "a full disk on one rank": "rank 1: [Errno 28] No space left",
    }
    for name, text in words.items():
        for said in (one[name], other[name]):
            assert said[0] == "CheckpointError", (name, said)
            assert text in said[1], (name, said)
    assert one["again"] == other["again"]
    for name, text in {
        "another shape": "'tensors.plain': shape: expected (2, 4), found (2, 3)",
        "another dtype": "'tensors.plain': dtype: expected float32, found int64",
        "more": "'tensors.plaim': not in the checkpoint; nearest: 'tensors.plain'",
        "fewer": "'tensors.plain': in the checkpoint only",
    }.items():
        for kind, said, untouched in (one[name], other[name]):
            assert (kind, untouched) == ("CheckpointMismatch", True)
            assert text in said
    assert "no checkpoint named" in one["no such"][1]
    assert one["stops"] == other["stops"] == [[False, False], [True, False], [False, True]]
    assert one["closed"][0] == "RankError"
    store = CheckpointStore(tmp_path / "store")
    assert [item.step for item in store.scan("ocean")] == [0, 3, 4]
    assert store.record(store.locate("ocean", UUID(one["again"]))).step == 3


def test_a_training_that_lost_a_rank_goes_on_as_if_nothing_had_been(
    home: Path, dsn: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QIGSTORE_DSN", dsn)
    scenario, env = "sharded_scenarios:train", environment(home, dsn)
    undisturbed = returned(run_ranks(scenario, 2, tmp_path, stop=12, name="calm"))
    first, dead = run_ranks(scenario, 2, tmp_path, stop=12, dies_at=9)
    assert dead.status == -9
    assert first.raised == "RuntimeError", first  # torch's, in the training's own collective
    again = returned(run_ranks(scenario, 2, tmp_path, stop=12))
    for rank, found in enumerate(again):
        assert found["start"] == 8
        assert found["losses"] == undisturbed[rank]["losses"][8:]
    # The rows, and the commands on them, know no difference.
    listed = data(env, "checkpoints", "list", "ocean")
    assert [item["step"] for item in listed] == [11, 7, 3]
    assert {item["status"] for item in listed} == {"committed"}
    assert all(item["healthy"] for item in listed)
    checked = data(env, "checkpoints", "verify", "--session", "ocean")
    assert [item["sound"] for item in checked] == [True] * 3
    shown = data(env, "checkpoints", "show", listed[0]["id"])
    assert (shown["parent"], shown["attempt"]) == (listed[1]["id"], 2)
    assert shown["metadata"]["ranks"] == 2
    assert [a.resumed_step for a in store.sessions.attempts(shown["session_id"])] == [-1, 7]
    rule = ("--keep-newest", "1", "--keep-best", "1")
    pruned = data(env, "checkpoints", "prune", "ocean", *rule)
    left = {item["step"] for item in data(env, "checkpoints", "list", "ocean")}
    assert left == {item["step"] for item in pruned if item["fate"] != "removed"}
    assert data(env, "checkpoints", "doctor") == []
    # One process, and no ranks at all.
    alone = returned(run_ranks(scenario, 1, tmp_path, stop=13))
    assert (alone[0]["start"], len(alone[0]["losses"])) == (12, 1)


def test_the_example_runs_under_torchrun_and_goes_on_with_another_number_of_ranks(
    home: Path, dsn: str, tmp_path: Path
) -> None:
    env = environment(home, dsn, OMP_NUM_THREADS="1", TMPDIR=str(tmp_path))
    for ranks, steps, began in ((2, 40, 0), (1, 45, 40)):
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
             str(ranks), str(REPOSITORY / "examples" / "sharded.py")],
            env=env | {"STEPS": str(steps)}, capture_output=True, text=True, timeout=600,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"began at step {began}, accuracy 0." in done.stdout
