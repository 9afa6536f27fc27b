"""Copies elsewhere come back verified, or not at all; without a manifest there is no copy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pytest

from qigstore.checkpoints import CheckpointStore, RemoteCopies, SaveInfo
from qigstore.checkpoints.format import MANIFEST, PAYLOAD
from qigstore.errors import CheckpointCorrupt, CheckpointError, CheckpointUnsupported, NotFound
from qigstore.records import Checkpoint


def info(step: int) -> SaveInfo:
    return SaveInfo(session_name="ocean", session_id=1, attempt=1, step=step, phi=0.5)


def save(store: CheckpointStore, step: int) -> Checkpoint:
    return store.save(
        {"w": np.full(3_000_000, step % 256, np.uint8), "step": step}, info=info(step)
    )


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "here")


@pytest.fixture(params=["memory", "file"])
def copies(
    store: CheckpointStore, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[RemoteCopies]:
    where = {"memory": f"memory://{uuid4()}", "file": f"file://{tmp_path / 'there'}"}
    yield RemoteCopies(store, where[request.param])
    fsspec.filesystem("memory").store.clear()


def elsewhere(copies: RemoteCopies, tmp_path: Path) -> RemoteCopies:
    """The same copies, seen by an empty store of another machine."""
    return RemoteCopies(CheckpointStore(tmp_path / "another machine"), copies.url)


def test_a_copy_comes_back_on_another_machine_as_its_own(
    store: CheckpointStore, copies: RemoteCopies, tmp_path: Path
) -> None:
    saved = [save(store, step) for step in range(3)]
    assert copies.ids("ocean") == set()
    for item in saved:
        copies.push(item.path)
    copies.push(saved[0].path)  # again: stays as it is
    other = elsewhere(copies, tmp_path)
    assert other.ids("ocean") == {item.id for item in saved}
    assert [item.step for item in other.manifests("ocean")] == [0, 1, 2]
    found = other.pull("ocean", saved[2].id)
    assert (found.id, found.digest, found.phi) == (saved[2].id, saved[2].digest, 0.5)
    assert other.store.load(found.path)["step"] == 2
    assert other.store.id == store.id
    other.store.delete(found.path)  # it is that store's own
    other.pull("ocean", saved[2].id)
    with pytest.raises(CheckpointError, match="exists already"):
        other.pull("ocean", saved[2].id)


@pytest.mark.parametrize("name", [PAYLOAD, MANIFEST])
def test_a_damaged_copy_is_refused_and_leaves_nothing(
    store: CheckpointStore, copies: RemoteCopies, tmp_path: Path, name: str
) -> None:
    saved = save(store, 1)
    place = copies.push(saved.path)
    whole = copies._files.cat_file(f"{place}/{name}")
    other = elsewhere(copies, tmp_path)
    for damaged in (whole[:-1], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], b""):
        copies._files.pipe_file(f"{place}/{name}", damaged)
        with pytest.raises(CheckpointCorrupt):
            other.pull("ocean", saved.id)
        assert other.store.scan("ocean") == []
        folder = other.store.folder_of("ocean")
        assert not folder.exists() or not [*folder.glob(".tmp-*")]
    copies._files.pipe_file(f"{place}/{name}", whole)
    assert other.store.load(other.pull("ocean", saved.id).path)["step"] == 1


def test_without_its_manifest_a_copy_is_none(
    store: CheckpointStore, copies: RemoteCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save(store, 1)
    real = copies._files.put_file

    def broken(source: str, target: str) -> None:
        if target.endswith(MANIFEST):
            raise ConnectionError("gone")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(copies._files, "put_file", broken)
        with pytest.raises(ConnectionError):
            copies.push(saved.path)
    assert copies.ids("ocean") == set()
    with pytest.raises(NotFound, match="There is no"):
        copies.pull("ocean", saved.id)
    copies.push(saved.path)
    assert copies.ids("ocean") == {saved.id}


def test_a_payload_that_arrives_short_is_said(
    store: CheckpointStore, copies: RemoteCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save(store, 1)
    monkeypatch.setattr(
        copies._files, "put_file",
        lambda source, target: copies._files.pipe_file(target, Path(source).read_bytes()[:-1]),
    )  # fmt: skip
    with pytest.raises(CheckpointError, match=r"expected \d+ bytes, found \d+.*push it again"):
        copies.push(saved.path)
    assert copies.ids("ocean") == set()


def test_a_damaged_checkpoint_is_not_copied(store: CheckpointStore, copies: RemoteCopies) -> None:
    saved = save(store, 1)
    data = bytearray((saved.path / PAYLOAD).read_bytes())
    data[-1] ^= 1
    (saved.path / PAYLOAD).write_bytes(data)
    with pytest.raises(CheckpointCorrupt):
        copies.push(saved.path)
    assert copies.ids("ocean") == set()


def test_copies_of_another_store_are_neither_mixed_in_nor_deleted(
    store: CheckpointStore, copies: RemoteCopies, tmp_path: Path
) -> None:
    saved = save(store, 1)
    copies.push(saved.path)
    other = elsewhere(copies, tmp_path)
    save(other.store, 5)
    for deed in (other.pull, other.delete):
        with pytest.raises(CheckpointError, match="is of store"):
            deed("ocean", saved.id)
    assert [item.step for item in other.store.scan("ocean")] == [5]
    copies.delete("ocean", saved.id)
    assert copies.ids("ocean") == set()
    with pytest.raises(NotFound):
        copies.delete("ocean", saved.id)


def test_a_protocol_without_its_package_is_said(store: CheckpointStore) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise ImportError("Install s3fs to access S3")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fsspec.core, "url_to_fs", missing)
        with pytest.raises(CheckpointUnsupported, match=r"s3fs.*qigstore\[remote\]"):
            RemoteCopies(store, "s3://bucket/x")
