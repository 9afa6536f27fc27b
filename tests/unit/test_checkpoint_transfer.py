"""A copy of a checkpoint is whole or not there, whichever call to the disk fails."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qigstore.checkpoints import CheckpointStore, SaveInfo
from qigstore.checkpoints.disk import Disk
from qigstore.checkpoints.format import MANIFEST, PAYLOAD
from qigstore.checkpoints.transfer import export, restore_into
from qigstore.errors import CheckpointCorrupt, CheckpointError, NotFound

CHANGES = ("mkdir", "create", "write", "fsync", "fsync_folder", "rename")


class Failing(Disk):
    """Refuses one call, the one of that number; counts them all."""

    def __init__(self, number: int) -> None:
        self.number, self.calls = number, 0

    def __getattribute__(self, name: str) -> Any:
        if name in CHANGES:
            self.calls += 1
            if self.calls == self.number:
                raise OSError(errno.EIO, "injected", name)
        return super().__getattribute__(name)


def quiet(_done: int, _of: int) -> None:
    pass


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    store = CheckpointStore(tmp_path / "here")
    info = SaveInfo(session_name="ocean", session_id=1, attempt=1, step=7)
    return store.save({"w": np.arange(9.0)}, info=info).path


def folder(saved: Path, disk: Disk, there: Path) -> Path:
    export(saved, there / "out", progress=quiet, disk=disk)
    return there / "out"


def file(saved: Path, disk: Disk, there: Path) -> Path:
    export(saved, there / "out.safetensors", progress=quiet, disk=disk)
    return there / "out.safetensors"


def root(saved: Path, disk: Disk, there: Path) -> Path:
    return restore_into(saved, CheckpointStore(there / "root"), progress=quiet, disk=disk)


@pytest.mark.parametrize("copy", [folder, file, root])
def test_a_disk_that_fails_leaves_no_copy_or_a_whole_one(
    saved: Path, tmp_path: Path, copy: Callable[[Path, Disk, Path], Path]
) -> None:
    there, number = tmp_path / "there", 0
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    while True:
        number += 1
        there.mkdir()
        disk = Failing(number)
        try:
            made = copy(saved, disk, there)
        except OSError:
            names = {path.name for path in there.rglob("*")}
            assert not [name for name in names if name.startswith((".tmp-", ".out"))]
            whole = [path for path in there.rglob("*") if path.name in {saved.name, "out"}]
            for path in whole:  # only the folder's own fsync came after it
                assert sorted(f.name for f in path.iterdir()) == [MANIFEST, PAYLOAD]
        else:
            assert made.exists()
            assert disk.calls < number
            break
        finally:
            assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
        there.rename(tmp_path / f"failed {number}")
    assert number > 4
    print(f"{number - 1} calls failed, one after the other")


def test_what_stands_there_is_not_replaced(saved: Path, tmp_path: Path) -> None:
    for name in ("out", "out.safetensors"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(CheckpointError, match="there already"):
            export(saved, tmp_path / name, progress=quiet)
        assert (tmp_path / name).read_text() == "mine"
    with pytest.raises(CheckpointError, match="there already"):
        restore_into(saved, CheckpointStore(tmp_path / "here"), progress=quiet)


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "link", "gone"])
def test_damage_is_not_copied(saved: Path, tmp_path: Path, damage: str) -> None:
    payload = saved / PAYLOAD
    octets = payload.read_bytes()
    payload.unlink()
    if damage == "link":
        (tmp_path / "other").write_bytes(octets)
        payload.symlink_to(tmp_path / "other")
    elif damage != "gone":
        changed = {"flip": bytes([octets[0]]) + octets[1:-1] + b"x", "cut": octets[:-1],
                   "grow": octets + b"x"}  # fmt: skip
        payload.write_bytes(changed[damage])
    store = CheckpointStore(tmp_path / "root")
    with pytest.raises(CheckpointCorrupt):
        export(saved, tmp_path / "out", progress=quiet)
    with pytest.raises(CheckpointCorrupt):
        restore_into(saved, store, progress=quiet)
    assert not (tmp_path / "out").exists()
    assert store.scan("ocean") == []


def test_a_folder_that_is_no_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        export(tmp_path / "nowhere", tmp_path / "out", progress=quiet)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointCorrupt, match=MANIFEST):
        export(tmp_path / "empty", tmp_path / "out", progress=quiet)
