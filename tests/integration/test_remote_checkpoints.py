"""A run whose checkpoints lie at a URL: saved, killed, recovered, and seen by the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from commands import data, environment, run

import qigstore
from qigstore.checkpoints import RemoteStore, SaveInfo, open_store
from qigstore.checkpoints.format import PAYLOAD
from qigstore.checkpoints.remote_files import RemoteFiles
from qigstore.errors import CheckpointError, ConfigurationError
from qigstore.records import Url, location
from qigstore.repository import Store

FRESH = {"step": 0, "w": np.zeros(8)}


def train(url: str, stop: int) -> int:
    """Record and save; the step it began at."""
    with qigstore.session("ocean", checkpoints=url, settle_steps=0, quiet=True) as opened:
        state = opened.recover(default=FRESH)
        begun = int(state["step"])
        for step in opened.steps(begun, stop):
            state = {"step": step + 1, "w": state["w"] + 1}
            opened.record(step, loss=1 / (step + 1), phi=0.5 + step / 100)
            opened.checkpoint(state, step=step, every=5)
        assert (state["w"] == state["step"]).all()
    return begun


def test_a_run_saves_to_a_url_and_goes_on_from_there(
    home: Path, dsn: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QIGSTORE_DSN", dsn)
    url = f"file://{tmp_path}/elsewhere"
    assert train(url, 20) == 0
    assert train(url, 30) == 20
    assert not (home / "checkpoints").exists()
    env = environment(home, dsn, QIGSTORE_CHECKPOINTS=url)
    rows = data(env, "checkpoints", "list", "ocean")
    assert [row["step"] for row in rows] == [29, 24, 19]
    assert all(row["healthy"] and row["path"].startswith(url + "/ocean-") for row in rows)
    shown = data(env, "checkpoints", "show", rows[0]["id"])
    assert (shown["path"], shown["parent"]) == (rows[0]["path"], rows[1]["id"])
    assert [row["sound"] for row in data(env, "checkpoints", "verify")] == [True] * 3
    assert data(env, "checkpoints", "doctor") == []
    assert data(env, "checkpoints", "pin", rows[1]["id"][:8])["pinned"] is True
    kept = {"--keep-newest": "1", "--keep-best": "1"}
    plan = data(env, "checkpoints", "prune", "ocean", *(w for pair in kept.items() for w in pair))
    fates = {item["step"]: item["fate"] for item in plan}
    assert fates[24] == fates[29] != "removed"
    assert data(env, "checkpoints", "unpin", rows[1]["id"])["pinned"] is False
    # The best one is spoilt: the commands and the next run see it.
    place = RemoteStore(url)
    best = place.scan("ocean")[-1]
    octets = bytearray(place.files.read(f"{best.path.parent.name}/{best.id}/{PAYLOAD}"))
    octets[-1] ^= 1
    place.files.put(f"{best.path.parent.name}/{best.id}/{PAYLOAD}", bytes(octets))
    assert run(env, "checkpoints", "verify", "--session", "ocean").returncode == 7
    told = run(env, "recover", "ocean", "--dry-run")
    assert "corrupt, to be put aside: state.safetensors" in told.stdout
    assert train(url, 31) == 25
    statuses = {row["step"]: row["status"] for row in data(env, "checkpoints", "list", "ocean")}
    assert statuses[29] == "quarantined"
    (found,) = [i for i in data(env, "checkpoints", "doctor") if i["what"] == "put aside"]
    assert (found["id"], found["fate"]) == (str(best.id), "for information")
    for words in (("export", str(rows[1]["id"]), str(tmp_path / "out")), ("diff", *_two(rows))):
        refused = run(env, "checkpoints", *words)
        assert refused.returncode != 0
        assert "object store" in refused.stderr or "not both on a disk" in refused.stderr


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_run_does_not_start_afresh_because_its_checkpoints_are_out_of_reach(
    home: Path, dsn: str, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("QIGSTORE_DSN", dsn)
    url = f"memory://{home.name}"
    assert train(url, 5) == 0

    def away(_files: RemoteFiles, name: str) -> list[str]:
        raise OSError(f"{url}/{name}: no route to host")

    monkeypatch.setattr(RemoteFiles, "names", away)
    with (
        pytest.raises((ConfigurationError, OSError), match="no route to host"),
        qigstore.session("ocean", checkpoints=url, mode=mode, quiet=True) as opened,
    ):
        opened.recover(default=FRESH)
    monkeypatch.undo()
    fsspec.filesystem("memory").store.clear()


def test_a_save_that_cannot_be_uploaded_is_an_event_and_training_goes_on(
    home: Path, dsn: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QIGSTORE_DSN", dsn)
    url = f"memory://{home.name}"
    real = RemoteFiles.write

    def away(files: RemoteFiles, name: str, pieces: Any) -> None:
        raise OSError(f"{url}/{name}: no route to host")

    with qigstore.session("ocean", checkpoints=url, settle_steps=0, quiet=True) as opened:
        for step in opened.steps(0, 12):
            monkeypatch.setattr(RemoteFiles, "write", away if step < 8 else real)
            opened.record(step, loss=0.1)
            opened.checkpoint({"step": step, "w": np.ones(4)}, step=step, every=4)
            if step == 7:
                with pytest.raises(CheckpointError, match="no route to host"):
                    opened.wait()
    session = store.sessions.get("ocean")
    events = store.events.list(session.id)
    assert [(e.rule, e.step) for e in events] == [("checkpoint save", 7), ("checkpoint save", 3)]
    assert "no route to host" in events[0].message
    assert [item.step for item in store.checkpoints.list(session.id)] == [11]
    fsspec.filesystem("memory").store.clear()


def _two(rows: list[dict[str, Any]]) -> list[str]:
    return [rows[1]["id"], rows[1]["id"]]


def test_a_candidate_at_a_url_is_where_its_row_says(store: Store, tmp_path: Path) -> None:
    session = store.sessions.open("far", {})
    told = SaveInfo(session_name="far", session_id=session.id, attempt=1, step=3)
    saved = open_store(location(f"file://{tmp_path}/far")).save({"w": 1}, info=told)
    store.checkpoints.add(saved)
    (found,) = store.checkpoints.candidates(session.id, settle_steps=0)
    assert found.checkpoint == store.checkpoints.get(saved.id)
    assert isinstance(found.checkpoint.path, Url)
    assert found.checkpoint.path == saved.path
