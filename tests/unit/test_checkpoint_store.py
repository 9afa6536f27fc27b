"""A checkpoint on disk is whole and ours, or it is refused; nothing outside the root is touched."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
import safetensors.numpy
from blake3 import blake3

from qigstore.checkpoints import CheckpointStore, SaveInfo
from qigstore.checkpoints.disk import Disk
from qigstore.checkpoints.format import MANIFEST, PAYLOAD
from qigstore.checkpoints.json_text import canonical_json
from qigstore.errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointFormatError,
    InvalidInput,
    NotFound,
)
from qigstore.records import Checkpoint

STATE = {"w": np.arange(6, dtype=np.float32), "step": 7, "mask": np.array([True, False, True])}


def info(step: int = 7, **changes: Any) -> SaveInfo:
    values: dict[str, Any] = {"session_name": "ocean", "session_id": 1, "attempt": 1, "step": step}
    return SaveInfo(**values | changes)


@pytest.fixture
def folders(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


@pytest.fixture
def saved(folders: CheckpointStore) -> Checkpoint:
    return folders.save(STATE, info=info(phi=0.8, kappa_eff=64.0, regime="geometric"))


def rewrite(path: Path, change: dict[str, Any]) -> None:
    """Write a manifest anew with other fields and a right digest of its own."""
    fields = json.loads(path.read_bytes())["checkpoint"] | change
    body = canonical_json(fields)
    digest = blake3(body).hexdigest().encode()
    path.write_bytes(b'{"blake3":"' + digest + b'","checkpoint":' + body + b"}\n")


def test_the_record_says_what_the_folder_holds(folders: CheckpointStore, saved: Checkpoint) -> None:
    assert folders.scan("ocean", session_id=1) == [saved]
    assert (saved.phi, saved.kappa_eff, saved.regime) == (0.8, 64.0, "geometric")
    assert saved.bytes == sum(f.stat().st_size for f in saved.path.iterdir())
    assert sorted(f.name for f in saved.path.iterdir()) == [MANIFEST, PAYLOAD]
    assert folders.verify(saved.path).digest == saved.digest


def test_the_library_of_the_format_reads_the_payload(
    folders: CheckpointStore, saved: Checkpoint
) -> None:
    found = safetensors.numpy.load_file(saved.path / PAYLOAD)
    assert found["w"].tolist() == STATE["w"].tolist()  # type: ignore[attr-defined]
    assert found["mask"].tolist() == [True, False, True]
    empty = folders.save({"nothing": 1}, info=info())
    assert safetensors.numpy.load_file(empty.path / PAYLOAD) == {}
    assert folders.load(empty.path) == {"nothing": 1}


def test_arrays_are_aligned_to_their_item_size(folders: CheckpointStore) -> None:
    state = [np.ones(3, dtype) for dtype in ("?", "f8", "u1", "f4", "f2", "c16", "i1")]
    path = folders.save(state, info=info()).path / PAYLOAD
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    widths = {"BOOL": 1, "U8": 1, "I8": 1, "F16": 2, "F32": 4, "F64": 8}
    header = json.loads(data[8:start])
    assert start % 8 == 0
    assert all(
        (start + entry["data_offsets"][0]) % widths[entry["dtype"]] == 0
        for name, entry in header.items()
        if name != "__metadata__"
    )


@pytest.mark.parametrize("name", [PAYLOAD, MANIFEST])
def test_every_flipped_byte_is_refused(
    folders: CheckpointStore, saved: Checkpoint, name: str
) -> None:
    path = saved.path / name
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (1, 128):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            with pytest.raises(CheckpointCorrupt):
                folders.load(saved.path)
            with pytest.raises(CheckpointCorrupt):
                folders.verify(saved.path)
    path.write_bytes(whole)
    assert folders.load(saved.path)["step"] == 7


@pytest.mark.parametrize("name", [PAYLOAD, MANIFEST])
def test_every_truncation_and_any_tail_is_refused(
    folders: CheckpointStore, saved: Checkpoint, name: str
) -> None:
    path = saved.path / name
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointCorrupt) as refused:
            folders.load(saved.path)
        assert refused.value.path == path
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointCorrupt):
        folders.load(saved.path)
    path.unlink()
    with pytest.raises(CheckpointCorrupt, match="found nothing"):
        folders.load(saved.path)


def test_what_differs_is_named_with_both_values(
    folders: CheckpointStore, saved: Checkpoint
) -> None:
    path = saved.path / PAYLOAD
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointCorrupt) as refused:
        folders.load(saved.path)
    assert refused.value.path == path
    assert "'mask'" in str(refused.value)
    assert refused.value.expected != refused.value.found
    # Asked not to verify, the caller gets what is there.
    assert folders.load(saved.path, verify=False)["step"] == 7


@pytest.mark.parametrize("name", [PAYLOAD, MANIFEST])
def test_files_swapped_between_checkpoints_are_refused(
    folders: CheckpointStore, saved: Checkpoint, name: str
) -> None:
    other = folders.save(STATE | {"w": np.ones(6, np.float32)}, info=info(8))
    shutil.copy(other.path / name, saved.path / name)
    with pytest.raises(CheckpointCorrupt):
        folders.load(saved.path)


def test_a_whole_folder_under_another_id_or_session_is_refused(
    folders: CheckpointStore, saved: Checkpoint
) -> None:
    elsewhere = folders.save(STATE, info=info(session_name="lake")).path.parent
    for target in (saved.path.parent / str(uuid4()), elsewhere / str(saved.id)):
        shutil.copytree(saved.path, target)
        with pytest.raises(CheckpointCorrupt):
            folders.load(target)


@pytest.mark.parametrize("name", [PAYLOAD, MANIFEST])
def test_a_link_in_place_of_a_file_is_refused(
    folders: CheckpointStore, saved: Checkpoint, tmp_path: Path, name: str
) -> None:
    path = saved.path / name
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(CheckpointCorrupt, match="link"):
        folders.load(saved.path)


@pytest.mark.parametrize("name", [PAYLOAD, MANIFEST])
def test_a_pipe_or_folder_in_place_of_a_file_is_refused(
    folders: CheckpointStore, saved: Checkpoint, name: str
) -> None:
    path = saved.path / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointCorrupt, match="regular file"):
        folders.load(saved.path)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointCorrupt, match="regular file"):
        folders.load(saved.path)


def test_a_link_in_place_of_a_folder_is_refused(
    folders: CheckpointStore, saved: Checkpoint, tmp_path: Path
) -> None:
    saved.path.rename(tmp_path / "moved")
    saved.path.symlink_to(tmp_path / "moved")
    with pytest.raises(CheckpointFormatError, match="link"):
        folders.load(saved.path)
    saved.path.unlink()
    (tmp_path / "moved").rename(saved.path)
    session = saved.path.parent
    session.rename(tmp_path / "session")
    session.symlink_to(tmp_path / "session")
    with pytest.raises(CheckpointFormatError, match="link"):
        folders.load(saved.path)


def test_paths_outside_the_root_are_refused(
    folders: CheckpointStore, saved: Checkpoint, tmp_path: Path
) -> None:
    outside = tmp_path / "outside" / str(saved.id)
    shutil.copytree(saved.path, outside)
    session = saved.path.parent
    for path in (outside, session / ".." / session.name / saved.path.name, tmp_path / "x" / "y"):
        for deed in (folders.load, folders.delete, lambda p: folders.quarantine(p, "test")):
            with pytest.raises((CheckpointFormatError, InvalidInput)):
                deed(path)
    for name in ("../../etc", "..", "", "x", str(saved.id).upper(), f"{{{saved.id}}}"):
        with pytest.raises(InvalidInput):
            folders.locate("ocean", name)
    assert outside.exists()
    assert saved.path.exists()


ODD_NAMES = ["..", "../../etc/passwd", "/", "\0", "a" * 200, "Ωκεανός", "\ud800"]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_any_session_name_has_a_folder_of_its_own_below_the_root(
    folders: CheckpointStore, name: str
) -> None:
    folder = folders.folder_of(name)
    assert folder.parent == folders.root
    assert folder.name.replace("-", "").replace("_", "").isalnum()
    assert folder != folders.folder_of(name + " ")
    assert folders.load(folders.save(STATE, info=info(session_name=name)).path)["step"] == 7


def test_a_newer_format_is_refused_by_name_and_left_alone(
    folders: CheckpointStore, saved: Checkpoint
) -> None:
    rewrite(saved.path / MANIFEST, {"format": {"name": "qigstore-checkpoint", "version": 4}})
    with pytest.raises(CheckpointFormatError, match=r"format 4; this .* reads 2 and 3"):
        folders.load(saved.path)
    assert not isinstance(folders.survey("ocean").damaged[0][1], CheckpointCorrupt)


@pytest.mark.parametrize(
    "change",
    [
        {"format": {"name": "something-else", "version": 2}},
        {"format": {"name": "qigstore-checkpoint", "version": 3}},
        {"format": {"name": "qigstore-checkpoint", "version": 2.0}},
        {"format": 3},
        {"step": -1},
        {"step": True},
        {"kind": "strange"},
        {"created_at": "2026-01-01T00:00:00"},
        {"id": "../../x"},
        {"session": "lake"},
        {"session": 5},
        {"tensors": {}},
        {"tensors": []},
        {"tensors": {"w": {"dtype": "F32", "shape": [2**62, 2**62], "blake3": "0" * 64}}},
        {"tensors": {"w": {"dtype": "OBJECT", "shape": [6], "blake3": "0" * 64}}},
        {"tensors": {"w": {"dtype": "F32", "shape": [1] * 65, "blake3": "0" * 64}}},
        {"files": {"../../etc/passwd": {"bytes": 1, "blake3": "0" * 64}}},
        {"files": {PAYLOAD: {"bytes": 2**70, "blake3": "0" * 64}}},
        {"files": {PAYLOAD: {"bytes": 2**60, "blake3": "0" * 64}}},
        {"skeleton": {"array": "absent"}},
        {"skeleton": {"scalar": "AAAA", "dtype": "O"}},
        {"phi": "high"},
    ],
    ids=lambda change: canonical_json(change).decode()[:60],
)
def test_a_manifest_that_lies_with_a_right_digest_is_refused(
    folders: CheckpointStore, saved: Checkpoint, change: dict[str, Any]
) -> None:
    rewrite(saved.path / MANIFEST, change)
    with pytest.raises((CheckpointCorrupt, CheckpointFormatError)):
        folders.load(saved.path)


@pytest.mark.skipif(find_spec("torch") is not None, reason="is about machines without torch")
def test_tensors_without_torch_are_an_error_that_condemns_no_file(
    folders: CheckpointStore, saved: Checkpoint
) -> None:
    node = {"tensor": "w", "dtype": "float32", "grad": False, "parameter": False}
    rewrite(saved.path / MANIFEST, {"skeleton": node})
    with pytest.raises(CheckpointError, match="torch is not installed") as refused:
        folders.load(saved.path)
    assert not isinstance(refused.value, CheckpointCorrupt)
    assert folders.verify(saved.path).id == saved.id


def test_a_header_that_lies_is_refused_before_anything_is_allocated(
    folders: CheckpointStore, saved: Checkpoint
) -> None:
    path = saved.path / PAYLOAD
    data = path.read_bytes()
    lie = data.replace(b'"shape":[6]', b'"shape":[3]')
    assert lie != data
    path.write_bytes(lie)
    digest = {"bytes": len(lie), "blake3": blake3(lie).hexdigest()}
    rewrite(saved.path / MANIFEST, {"files": {PAYLOAD: digest}})
    for verify in (True, False):
        with pytest.raises(CheckpointCorrupt, match="header"):
            folders.load(saved.path, verify=verify)


def test_a_huge_claim_is_refused_by_the_size_of_the_file(
    folders: CheckpointStore, saved: Checkpoint
) -> None:
    tensors = {"w": {"dtype": "F64", "shape": [2**50], "blake3": "0" * 64}}
    rewrite(saved.path / MANIFEST, {"tensors": tensors})
    with pytest.raises(CheckpointCorrupt, match="size of its arrays"):
        folders.load(saved.path, verify=False)


def test_an_id_is_never_written_twice(folders: CheckpointStore, saved: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="never written twice"):
        folders.save({"other": 1}, info=info(id=saved.id))
    assert folders.load(saved.path)["step"] == 7


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    class Full(Disk):
        def free_bytes(self, path: Path) -> int:
            return 1 << 20

    folders = CheckpointStore(tmp_path, disk=Full())
    with pytest.raises(CheckpointError, match="are free"):
        folders.save(STATE, info=info())
    assert list(folders.folder_of("ocean").glob("*/*")) == []


def test_a_folder_of_somebody_else_is_neither_used_nor_cleaned(folders: CheckpointStore) -> None:
    folders.save(STATE, info=info(session_name="lake"))
    theirs = folders.folder_of("ocean")
    (theirs / f".tmp-{uuid4()}").mkdir(parents=True)
    (theirs / "important").write_text("keep me")
    with pytest.raises(CheckpointError, match="is not the folder of session 'ocean'"):
        folders.save(STATE, info=info())
    assert folders.clean("ocean") == []
    assert len(list(theirs.iterdir())) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"store": 5}', '{"store": "x"}'])
def test_a_damaged_marker_is_reported_and_never_written_over(
    folders: CheckpointStore, saved: Checkpoint, text: str
) -> None:
    marker = folders.root / "qigstore.json"
    marker.write_text(text)
    fresh = CheckpointStore(folders.root)
    with pytest.raises(CheckpointCorrupt, match=re.escape(str(marker))):
        fresh.save(STATE, info=info())
    assert fresh.clean("ocean") == []
    assert marker.read_text() == text
    assert fresh.load(saved.path)["step"] == 7


def test_cleaning_takes_dead_saves_only(folders: CheckpointStore, saved: Checkpoint) -> None:
    session = saved.path.parent
    dead, live, strange = (session / f".tmp-{UUID(int=n)}" for n in range(3))
    for folder in (dead, live, strange):
        folder.mkdir()
        (folder / PAYLOAD).write_bytes(b"half")
    (strange / "thesis.tex").write_text("keep me")
    (session / ".tmp-link").symlink_to(saved.path)
    lock = Disk().try_lock(live)
    assert lock is not None
    try:
        assert folders.clean("ocean") == [dead]
    finally:
        Disk().unlock(lock)
    assert not dead.exists()
    assert live.exists()
    assert (strange / "thesis.tex").exists()
    assert folders.clean("ocean") == [live]
    assert folders.load(saved.path)["step"] == 7


def test_what_a_save_leaves_unfinished_is_no_checkpoint(
    folders: CheckpointStore, saved: Checkpoint
) -> None:
    shutil.copytree(saved.path, saved.path.parent / f".tmp-{uuid4()}")
    (saved.path.parent / str(uuid4())).mkdir()
    survey = folders.survey("ocean")
    assert [item.id for item in survey.checkpoints] == [saved.id]
    assert len(survey.damaged) == 1


def test_quarantine_moves_and_says_why(folders: CheckpointStore, saved: Checkpoint) -> None:
    aside = folders.quarantine(saved.path, "a bit flipped")
    assert not saved.path.exists()
    assert (aside / PAYLOAD).exists()
    reason = json.loads(aside.with_name(aside.name + ".json").read_text())
    assert reason["reason"] == "a bit flipped"
    assert folders.scan("ocean") == []
    with pytest.raises(NotFound):
        folders.load(saved.path)
    shutil.copytree(aside, saved.path)  # put back by hand, and bad again
    assert folders.quarantine(saved.path, "again") != aside


def test_deleting_asks_for_proof_that_it_is_ours(
    folders: CheckpointStore, saved: Checkpoint
) -> None:
    (saved.path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not provably"):
        folders.delete(saved.path)
    (saved.path / "notes.txt").unlink()
    rewrite(saved.path / MANIFEST, {"store": str(uuid4())})
    with pytest.raises(CheckpointError, match="not provably"):
        folders.delete(saved.path)
    assert saved.path.exists()


def test_deleting_leaves_nothing_behind(folders: CheckpointStore, saved: Checkpoint) -> None:
    folders.delete(saved.path)
    assert [f.name for f in saved.path.parent.iterdir()] == ["qigstore.json"]
    with pytest.raises(NotFound):
        folders.delete(saved.path)


def test_a_store_that_moves_keeps_its_checkpoints(
    folders: CheckpointStore, saved: Checkpoint, tmp_path: Path
) -> None:
    folders.root.rename(tmp_path / "elsewhere")
    moved = CheckpointStore(tmp_path / "elsewhere")
    assert moved.load(moved.locate("ocean", saved.id))["step"] == 7
    moved.delete(moved.locate("ocean", saved.id))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_kept_in_the_manifest_and_never_rank(
    folders: CheckpointStore, value: float
) -> None:
    found = folders.save(
        {"w": np.array([1.0, value]), "n": np.array([1])},
        info=info(phi=value, kappa_eff=value, metadata={"loss": value}),
    )
    manifest = folders.manifest(found.path)
    assert (found.phi, found.kappa_eff, found.weights_finite) == (None, None, False)
    assert math.isnan(value) == math.isnan(manifest.phi or 0.0)
    assert manifest.not_finite == ("w",)
    json.loads((found.path / MANIFEST).read_text(), parse_constant=pytest.fail)
    words = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    assert found.metadata == {"loss": words[str(value)]}


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8", "c16", "g", ">f4"])
def test_one_value_that_is_not_finite_is_found_in_any_float_dtype(
    folders: CheckpointStore, dtype: str
) -> None:
    array = np.zeros(100_001, dtype)
    assert folders.save({"a": array}, info=info()).weights_finite
    array[-1] = np.nan
    assert not folders.save({"a": array}, info=info()).weights_finite


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1},
        {"step": 1.5},
        {"step": True},
        {"step": 2**63},
        {"attempt": -1},
        {"kind": "other"},
        {"phi": "high"},
        {"session_name": ""},
    ],
    ids=str,
)
def test_input_that_cannot_be_is_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(change))):
        info(**change)


NO_JSON = [{1: 2}, "a\0b", "\ud800", object(), 2**64, {"x": {1, 2}}]


@pytest.mark.parametrize("value", NO_JSON, ids=["key", "nul", "surrogate", "object", "big", "set"])
def test_metadata_that_is_no_json_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"metadata\['k'\]"):
        info(metadata={"k": value})


def test_numpy_steps_and_metadata_become_plain(folders: CheckpointStore) -> None:
    given = info(np.int64(3), metadata={"a": np.arange(2), "b": np.float32(0.5)}, phi=np.float32(1))
    found = folders.save(STATE, info=given)
    assert (found.step, found.metadata, found.phi) == (3, {"a": [0, 1], "b": 0.5}, 1.0)


def test_reading_a_store_that_is_not_there_makes_nothing(tmp_path: Path) -> None:
    folders = CheckpointStore(tmp_path / "absent")
    assert folders.scan("ocean") == []
    assert folders.clean("ocean") == []
    with pytest.raises(NotFound):
        folders.load(folders.locate("ocean", uuid4()))
    assert list(tmp_path.iterdir()) == []
