"""Reading back: whole, a part, one array, into what exists; past the page cache and through it."""

from __future__ import annotations

import errno
import os
import random
import re
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qigstore.checkpoints import (
    CheckpointManager,
    CheckpointStore,
    OpenCheckpoint,
    SaveInfo,
    random_states,
    set_random_states,
)
from qigstore.checkpoints import reading as under_test
from qigstore.checkpoints.format import PAYLOAD
from qigstore.errors import CheckpointCorrupt, CheckpointError, CheckpointMismatch

SIZES = (3, 4096, 1 << 20, (3 << 20) + 5, 0, 7, 9 << 20, 1 << 16)
"""Bytes of arrays: several runs, one larger than a run, pieces that end between pages."""


def info() -> SaveInfo:
    return SaveInfo(session_name="ocean", session_id=1, attempt=1, step=1)


@pytest.fixture
def folders(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path)


@pytest.fixture
def arrays(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {f"a{i}": rng.integers(0, 256, size, np.uint8) for i, size in enumerate(SIZES)}


@pytest.fixture
def saved(folders: CheckpointStore, arrays: dict[str, Any]) -> Path:
    return folders.save({"model": arrays, "tail": [1, {"x": np.arange(5)}]}, info=info()).path


def in_cache(path: Path, *, there: bool) -> None:
    """Have a file's pages in the page cache, or not."""
    with path.open("rb") as file:
        if there:
            file.read()
        else:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def same(found: Any, arrays: dict[str, Any]) -> bool:
    return list(found) == list(arrays) and all(
        np.array_equal(found[name], array) for name, array in arrays.items()
    )


@pytest.mark.parametrize("there", [True, False], ids=["cached", "not cached"])
@pytest.mark.parametrize("verify", [True, False])
def test_many_runs_come_back_whole(
    folders: CheckpointStore, saved: Path, arrays: dict[str, Any], there: bool, verify: bool
) -> None:
    in_cache(saved / PAYLOAD, there=there)
    found = folders.load(saved, verify=verify)
    assert same(found["model"], arrays)
    assert found["tail"][1]["x"].tolist() == [0, 1, 2, 3, 4]
    for array in found["model"].values():
        array[...] = 0  # memory of its own, which may be changed
    assert same(folders.load(saved)["model"], arrays)
    assert folders.verify(saved).id == folders.manifest(saved).id


@pytest.mark.parametrize("take", [1 << 12, (1 << 12) + 1, (1 << 20) - 512])
def test_short_reads_are_carried_on(
    folders: CheckpointStore, saved: Path, arrays: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch, take: int,
) -> None:  # fmt: skip
    real, calls = os.preadv, []

    def short(fd: int, buffers: Any, offset: int, *flags: int) -> int:
        calls.append(len(buffers[0]))
        return real(fd, [memoryview(buffers[0])[:take]], offset, *flags)

    monkeypatch.setattr(under_test.os, "preadv", short)
    for there in (True, False):
        in_cache(saved / PAYLOAD, there=there)
        assert same(folders.load(saved)["model"], arrays)
    assert max(calls) > take


def test_a_disk_that_refuses_direct_reads_is_read_through_the_cache(
    folders: CheckpointStore, saved: Path, arrays: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = os.preadv, []

    def picky(fd: int, buffers: Any, offset: int, *flags: int) -> int:
        if under_test.fcntl.fcntl(fd, under_test.fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(offset)
            raise OSError(errno.EINVAL, "blocks of another size")
        return real(fd, buffers, offset, *flags)

    in_cache(saved / PAYLOAD, there=False)
    monkeypatch.setattr(under_test.os, "preadv", picky)
    assert same(folders.load(saved)["model"], arrays)
    assert len(refused) <= under_test._READERS


def test_an_error_of_a_read_is_not_swallowed(
    folders: CheckpointStore, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def broken(fd: int, buffers: Any, offset: int, *flags: int) -> int:
        if offset > 5 << 20:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, buffers, offset, *flags)

    monkeypatch.setattr(under_test.os, "preadv", broken)
    with pytest.raises(OSError, match="Input/output"):
        folders.load(saved)


def test_a_file_that_shrinks_while_it_is_read_is_refused(
    folders: CheckpointStore, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def shrunk(fd: int, buffers: Any, offset: int, *flags: int) -> int:
        return 0 if offset > 5 << 20 else real(fd, buffers, offset, *flags)

    monkeypatch.setattr(under_test.os, "preadv", shrunk)
    with pytest.raises(CheckpointCorrupt, match=r"length: expected \d+ more bytes, found 0"):
        folders.load(saved)


def test_a_flipped_byte_of_any_run_is_refused_whoever_asks(
    folders: CheckpointStore, saved: Path, arrays: dict[str, Any], rng: random.Random
) -> None:
    path = saved / PAYLOAD
    size, header = path.stat().st_size, 8 + int.from_bytes(path.read_bytes()[:8], "little")
    with path.open("r+b") as file:
        for place in sorted({size - 1, *(rng.randrange(header, size) for _ in range(20))}):
            file.seek(place)
            (old,) = file.read(1)
            file.seek(place)
            file.write(bytes([old ^ (1 << rng.randrange(8))]))
            file.flush()
            with pytest.raises(CheckpointCorrupt):
                folders.load(saved)
            with pytest.raises(CheckpointCorrupt):
                folders.verify(saved)
            with folders.open(saved) as opened:
                assert [refuses(opened, name) for name in opened].count(True) == 1
            file.seek(place)
            file.write(bytes([old]))
            file.flush()
    assert same(folders.load(saved)["model"], arrays)


def refuses(opened: OpenCheckpoint, name: str) -> bool:
    try:
        opened[name]
    except CheckpointCorrupt:
        return True
    return False


# ---------------------------------------------------------------- one array, a part


def test_one_array_is_read_and_no_other(
    folders: CheckpointStore, saved: Path, arrays: dict[str, Any]
) -> None:
    path = saved / PAYLOAD
    data = bytearray(path.read_bytes())
    with folders.open(saved) as opened:
        assert len(opened) == len(SIZES) + 1
        assert set(opened) == {*(f"model.{name}" for name in arrays), "tail.1.x"}
        last = [*opened][-1]
        data[-1] ^= 1
        path.write_bytes(data)
        for name in opened:
            if name != last:
                assert np.array_equal(opened[name], folders_value(arrays, name))
        with pytest.raises(CheckpointCorrupt, match=re.escape(repr(last))):
            opened[last]
        with pytest.raises(KeyError, match=r"model\.a00.*nearest: .*model\.a0"):
            opened["model.a00"]
        assert "model.a1" in opened
        assert last in opened
        assert "model.a00" not in opened
        assert opened.manifest.step == 1


def folders_value(arrays: dict[str, Any], name: str) -> Any:
    return np.arange(5) if name == "tail.1.x" else arrays[name.removeprefix("model.")]


def test_a_part_is_read_alone(
    folders: CheckpointStore, saved: Path, arrays: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    real = under_test.allocate

    def counting(size: int, **options: Any) -> Any:
        taken.append(size)
        return real(size, **options)

    monkeypatch.setattr(under_test, "allocate", counting)
    assert folders.load(saved, part=("tail", 1))["x"].tolist() == [0, 1, 2, 3, 4]
    assert sum(taken) < 8192
    assert same(folders.load(saved, part=["model"]), arrays)
    assert folders.load(saved, part=("tail", 0)) == 1
    assert np.array_equal(folders.load(saved, part=("model", "a3")), arrays["a3"])


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (("modle",), r"state\['modle'\]: state has no 'modle'; nearest: 'model'"),
        (("tail", 2), r"state\['tail'\]\[2\]"),
        (("tail", 0, "x"), r"state\['tail'\]\[0\]\['x'\]"),
    ],
    ids=str,
)
def test_a_part_that_is_not_there_is_named(
    folders: CheckpointStore, saved: Path, part: Any, said: str
) -> None:
    with pytest.raises(CheckpointMismatch, match=said) as refused:
        folders.load(saved, part=part)
    assert not isinstance(refused.value, CheckpointCorrupt)


def test_sharing_across_parts_is_kept(folders: CheckpointStore) -> None:
    tied, both = np.arange(6.0), [np.ones(2)]
    state = {"a": {"w": tied, "c": both}, "b": {"w": tied, "c": both}, "z": np.zeros(3)}
    path = folders.save(state, info=info()).path
    found = folders.load(path, part=("b",))
    assert found["w"].tolist() == tied.tolist()
    assert found["c"][0].tolist() == [1, 1]


# ---------------------------------------------------------------- into what exists


def model() -> OrderedDict[str, Any]:
    return OrderedDict(
        [("encoder.weight", np.zeros((4, 3), np.float32)), ("encoder.bias", np.zeros(4))]
    )


def test_into_fills_in_place_and_returns_it(folders: CheckpointStore) -> None:
    given = {"model": model(), "step": 7, "history": (np.ones(2), 3)}
    given["model"]["encoder.weight"][:] = 5
    path = folders.save(given, info=info()).path
    into = {"model": model(), "step": 0, "history": (np.zeros(2), 0)}
    weight, past = into["model"]["encoder.weight"], into["history"][0]
    assert folders.load(path, into=into) is into
    assert into["step"] == 7
    assert into["history"][1] == 3
    assert (weight == 5).all()
    assert past.tolist() == [1, 1]
    part = model()
    assert folders.load(path, part=("model",), into=part) is part
    assert (part["encoder.weight"] == 5).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder.weigth": None}, r"state\['encoder.weigth'\]: not in the checkpoint; nearest: "
         r"'encoder.weight'"),
        ({"encoder.bias": np.zeros(5)}, r"state\['encoder.bias'\]: shape: expected \(5,\), found "
         r"\(4,\)"),
        ({"encoder.bias": np.zeros(4, np.float32)}, "dtype: expected float32, found float64"),
        ({"encoder.bias": [0.0]}, r"expected a list \(list\), found an array"),
        ({"encoder.bias": np.broadcast_to(0.0, 4)}, "read-only"),
    ],
    ids=["name", "shape", "dtype", "kind", "read-only"],
)  # fmt: skip
def test_what_does_not_fit_is_named_and_nothing_is_changed(
    folders: CheckpointStore, change: dict[str, Any], said: str
) -> None:
    given = model()
    given["encoder.weight"][:] = 5
    path = folders.save(given, info=info()).path
    into = model() | change
    weight = into["encoder.weight"]
    with pytest.raises(CheckpointMismatch, match=said) as refused:
        folders.load(path, into=into)
    assert (weight == 0).all()
    assert refused.value.differences
    assert folders.verify(path)


def test_what_is_left_over_is_named_too(folders: CheckpointStore) -> None:
    path = folders.save(model(), info=info()).path
    into = model()
    del into["encoder.bias"]
    with pytest.raises(CheckpointMismatch, match=r"\['encoder.bias'\]: in the checkpoint only"):
        folders.load(path, into=into)


def test_a_corrupt_one_changes_nothing_of_what_exists(folders: CheckpointStore) -> None:
    given = model()
    given["encoder.weight"][:] = 5
    path = folders.save(given, info=info()).path
    data = bytearray((path / PAYLOAD).read_bytes())
    data[-1] ^= 1
    (path / PAYLOAD).write_bytes(data)
    into = model()
    with pytest.raises(CheckpointCorrupt):
        folders.load(path, into=into)
    assert all((array == 0).all() for array in into.values())


def test_a_manager_loads_parts_and_prepares_its_memory(tmp_path: Path) -> None:
    keeper = CheckpointManager(
        CheckpointStore(tmp_path), None, session_id=1, session_name="ocean", attempt=1
    )
    given = {"model": model(), "step": 3}
    keeper.prepare(given)
    prepared = keeper._buffer
    key = keeper.save(given, step=3, wait=True)
    assert keeper._buffer is prepared is not None
    into = model()
    into["encoder.bias"][:] = 9
    assert keeper.load(key, part=("model",), into=into) is into
    assert (into["encoder.bias"] == 0).all()
    assert keeper.progress()["past_cache"] is None  # none was large
    keeper.close()
    with pytest.raises(CheckpointError, match="closed"):
        keeper.prepare(given)


# ---------------------------------------------------------------- random states, loader positions


def test_global_random_states_and_a_loader_position_go_on(
    folders: CheckpointStore, seed: int
) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    loader = {"epoch": 3, "batch": 17, "order": np.arange(10)[::-1], "shards": ["a", "b"]}
    path = folders.save({"random": random_states(), "loader": loader}, info=info()).path
    expected = random.random(), np.random.rand()  # noqa: NPY002
    found = folders.load(path)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    set_random_states(found["random"])
    assert (random.random(), np.random.rand()) == expected  # noqa: NPY002
    assert found["loader"]["order"].tolist() == loader["order"].tolist()
    assert {**found["loader"], "order": 0} == {**loader, "order": 0}


def test_random_states_of_more_devices_than_there_are_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra (qigstore[torch])")
    states = random_states() | {"cuda": [torch.get_rng_state()] * 64}
    with pytest.raises(CheckpointError, match="of 64 CUDA devices, here are"):
        set_random_states(states)
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(CheckpointError, match="import torch"):
        set_random_states(states)
