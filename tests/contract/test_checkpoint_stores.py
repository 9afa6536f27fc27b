"""One behaviour of every store of checkpoints: a folder, and by fsspec whatever a URL names.

`QIGSTORE_TEST_REMOTE` names a URL (``s3://bucket/tests``) to run the same on; what is below it then
belongs to these tests.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pytest
from processes import python

from qigstore.checkpoints import (
    CheckpointManager,
    CheckpointStore,
    RemoteStore,
    Retention,
    SaveInfo,
    open_store,
)
from qigstore.checkpoints.base import BaseStore
from qigstore.checkpoints.catalog import catalog_of
from qigstore.checkpoints.format import MANIFEST, PAYLOAD
from qigstore.errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointFormatError,
    CheckpointUnsupported,
    ConfigurationError,
    InvalidInput,
    NotFound,
)
from qigstore.records import Checkpoint, Location, Url, location
from qigstore.recovery import recover
from qigstore.settings import load_settings

SESSION = "océan/7 №1"


def state(step: int) -> dict[str, Any]:
    return {"w": np.full(40, float(step)), "m": {"b": np.arange(5) * step}, "step": step}


def info(step: int, **changes: Any) -> SaveInfo:
    given = {"session_name": SESSION, "session_id": 1, "attempt": 1, "step": step, "phi": 0.5}
    return SaveInfo(**given | changes)


class Objects:
    """The bytes below a root, whatever keeps them."""

    def __init__(self, root: Location) -> None:
        self.root = root
        self._fs, self._at = fsspec.core.url_to_fs(str(root))

    def read(self, place: Location) -> bytes:
        data: bytes = self._fs.cat_file(self._name(place))
        return data

    def write(self, place: Location, data: bytes) -> None:
        self._fs.makedirs(self._name(place).rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(self._name(place), data)

    def remove(self, place: Location) -> None:
        self._fs.rm_file(self._name(place))

    def names(self, place: Location) -> set[str]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(self._name(place))
        except FileNotFoundError:
            return set()
        return {name.rpartition("/")[2] for name in found}

    def clear(self) -> None:
        if self._fs.exists(self._at):
            self._fs.rm(self._at, recursive=True)

    def _name(self, place: Location) -> str:
        return self._at + str(place).removeprefix(str(self.root))


REMOTE = os.environ.get("QIGSTORE_TEST_REMOTE")
KINDS = ["folder", "memory", "file", *(["remote"] if REMOTE else [])]


@pytest.fixture(params=KINDS)
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Location]:
    """An empty place for a store."""
    places = {
        "folder": str(tmp_path / "store"),
        "memory": f"memory://{uuid4()}/store",
        "file": f"file://{tmp_path}/store",
        "remote": f"{REMOTE}/{uuid4()}",
    }
    found = location(places[request.param])
    yield found
    if isinstance(found, Url):
        Objects(found).clear()


@pytest.fixture
def store(root: Location) -> BaseStore:
    return open_store(root)


@pytest.fixture
def objects(root: Location) -> Objects:
    return Objects(root)


@pytest.fixture
def saved(store: BaseStore) -> Checkpoint:
    return store.save(state(7), info=info(7))


def manager_of(store: BaseStore, **rule: Any) -> CheckpointManager:
    rule = {"keep_newest": 1, "keep_best": 1, "settle_steps": 0} | rule
    return CheckpointManager(
        store, None, session_id=1, session_name=SESSION, attempt=1, retention=Retention(**rule)
    )


# -- the five calls ------------------------------------------------------------------------------


def test_what_is_saved_is_found_loaded_verified_and_deleted(store: BaseStore) -> None:
    assert (store.id, store.ids(SESSION), store.scan(SESSION)) == (None, set(), [])
    given = [store.save(state(step), info=info(step, attempt=2 - step % 2)) for step in range(4)]
    again = open_store(store.root)
    assert again.id == store.id is not None
    assert again.ids(SESSION) == {item.id for item in given}
    assert [item.step for item in again.scan(SESSION)] == [1, 3, 0, 2]
    for item in given:
        assert again.record(item.path, session_id=1) == item
        assert again.locate(SESSION, item.id) == item.path
        assert again.has(item.path)
        assert again.verify(item.path).digest == item.digest
        found = again.load(item.path)
        assert found["step"] == item.step
        assert (found["w"] == item.step).all()
        assert found["m"]["b"].tolist() == [n * item.step for n in range(5)]
        found["w"] += 1  # nobody else's memory
    with again.open(given[3].path) as opened:
        assert set(opened) == {"w", "m.b"}
        assert opened["m.b"].tolist() == [0, 3, 6, 9, 12]
    assert again.load(given[2].path, part=("m", "b")).tolist() == [0, 2, 4, 6, 8]
    into = state(0)
    kept = into["w"]
    assert again.load(given[1].path, into=into)["w"] is kept
    assert (kept == 1).all()
    again.delete(given[0].path)
    assert not again.has(given[0].path)
    for deed in (store.load, store.verify, store.record, store.manifest, store.delete):
        with pytest.raises(NotFound):
            deed(given[0].path)
    assert {item.step for item in store.scan(SESSION)} == {1, 2, 3}


def test_an_id_is_never_written_twice_and_names_no_other_place(
    store: BaseStore, saved: Checkpoint
) -> None:
    with pytest.raises(CheckpointError, match="exists already; an id is never written twice"):
        store.save(state(8), info=info(8, id=saved.id))
    assert store.load(saved.path)["step"] == 7
    for name in ("../../x", str(saved.id).upper(), "", str(saved.id)[:-1]):
        with pytest.raises(InvalidInput):
            store.locate(SESSION, name)
    elsewhere = store.root / ".." / store.folder_of(SESSION).name / str(saved.id)
    other = location(str(store.root) + "-other") / store.folder_of(SESSION).name / str(saved.id)
    for path in (elsewhere, other, store.root, store.folder_of(SESSION) / "x" / str(saved.id)):
        with pytest.raises((CheckpointFormatError, InvalidInput)):
            store.load(path)


def test_nothing_but_what_was_saved_is_loaded(
    store: BaseStore, objects: Objects, saved: Checkpoint, rng: random.Random
) -> None:
    other = store.save(state(8), info=info(8))
    for name in (PAYLOAD, MANIFEST):
        place = saved.path / name
        whole = objects.read(place)
        places = rng.sample(range(len(whole)), 120) if REMOTE is None else [5, len(whole) - 5]
        wrong = [whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :] for at in places]
        wrong += [whole[:-1], whole + b"\0", b"", objects.read(other.path / name)]
        for damaged in wrong:
            objects.write(place, damaged)
            for deed in (store.load, store.verify):
                with pytest.raises(CheckpointCorrupt) as refusal:
                    deed(saved.path)
                assert str(refusal.value.path).startswith(str(saved.path))
        objects.write(place, whole)
    assert store.load(saved.path)["step"] == 7
    objects.remove(saved.path / PAYLOAD)
    with pytest.raises(CheckpointCorrupt, match="found nothing"):
        store.load(saved.path)


def test_a_newer_format_and_a_checkpoint_of_another_id_or_session_are_refused(
    store: BaseStore, objects: Objects, saved: Checkpoint
) -> None:
    data = {name: objects.read(saved.path / name) for name in (PAYLOAD, MANIFEST)}
    lake = store.save(state(1), info=info(1, session_name="lake")).path.parent
    for place in (saved.path.parent / str(uuid4()), lake / str(saved.id)):
        for name, content in data.items():
            objects.write(place / name, content)
        with pytest.raises(CheckpointCorrupt):
            store.load(place)
    assert [item.step for item in store.scan("lake")] == [1]
    from blake3 import blake3

    fields = json.loads(data[MANIFEST])["checkpoint"]
    fields["format"]["version"] = 99
    body = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    digest = blake3(body).hexdigest().encode()
    newer = b'{"blake3":"' + digest + b'","checkpoint":' + body + b"}\n"
    objects.write(saved.path / MANIFEST, newer)
    with pytest.raises(CheckpointFormatError, match="format 99"):
        store.load(saved.path)
    assert objects.read(saved.path / MANIFEST) == newer


def test_a_place_of_another_store_is_not_written_into(
    store: BaseStore, objects: Objects, saved: Checkpoint
) -> None:
    marker = store.folder_of(SESSION) / "qigstore.json"
    mine = objects.read(marker)
    objects.write(marker, json.dumps({"store": str(uuid4()), "session": SESSION}).encode())
    with pytest.raises(CheckpointError, match="this store"):
        open_store(store.root).save(state(1), info=info(1))
    for wrong in (b"no JSON", b"", b"[]", b" " * (1 << 17)):
        objects.write(marker, wrong)
        with pytest.raises(CheckpointCorrupt):
            open_store(store.root).save(state(1), info=info(1))
    objects.write(marker, mine)
    assert open_store(store.root).load(saved.path)["step"] == 7


# -- putting away --------------------------------------------------------------------------------


def test_what_is_put_aside_is_seen_no_more_and_never_deleted(
    store: BaseStore, objects: Objects, saved: Checkpoint
) -> None:
    later = store.save(state(8), info=info(8))
    aside = store.quarantine(saved.path, "spoilt: №1")
    assert store.ids(SESSION) == {later.id}
    for deed in (store.load, store.verify, store.delete):
        with pytest.raises(NotFound):
            deed(saved.path)
    assert {PAYLOAD, MANIFEST} <= objects.names(aside)
    (told,) = catalog_of(store).quarantined(SESSION)
    assert (told.id, told.reason) == (saved.id, "spoilt: №1")
    assert store.clean(SESSION) == []
    with pytest.raises(NotFound):
        store.quarantine(store.locate(SESSION, uuid4()), "never was")


def test_what_is_not_provably_ours_is_not_deleted(
    store: BaseStore, objects: Objects, saved: Checkpoint
) -> None:
    objects.write(saved.path / "notes.txt", b"mine")
    with pytest.raises(CheckpointError, match="not provably"):
        store.delete(saved.path)
    assert store.load(saved.path)["step"] == 7
    objects.remove(saved.path / "notes.txt")
    store.delete(saved.path)
    assert objects.names(saved.path) == set()


def test_pins_and_roles_hold_and_the_rest_goes(store: BaseStore) -> None:
    manager = manager_of(store, keep_newest=9)
    keys = [manager.save(state(n), step=n, phi=0.9 - n / 100, wait=True) for n in range(5)]
    pins = store.pins(SESSION)
    assert pins.pin(keys[2], "keep") is True
    assert pins.pin(keys[2]) is False
    with pytest.raises(NotFound):
        pins.pin(uuid4())
    assert {key: said["note"] for key, said in pins.all().items()} == {keys[2]: "keep"}
    tidier = manager_of(open_store(store.root))
    assert set(tidier.prune()) == {keys[1], keys[3]}
    assert tidier.prune() == []
    assert store.ids(SESSION) == {keys[0], keys[2], keys[4]}
    with pytest.raises(CheckpointError, match="pinned"):
        tidier.delete_checkpoint(keys[2])
    assert pins.unpin(keys[2]) is True
    assert pins.unpin(keys[2]) is False
    assert tidier.prune() == [keys[2]]
    assert tidier.delete_checkpoint(keys[4]) is True
    assert tidier.delete_checkpoint(keys[4]) is False
    manager.close()


def test_recovery_puts_the_corrupt_best_aside_and_takes_the_next(
    store: BaseStore, objects: Objects
) -> None:
    manager = manager_of(store, keep_newest=9)
    for n in range(3):
        manager.save(state(n), step=n, phi=0.5 + n / 10, wait=True)
    best = store.scan(SESSION)[-1]
    data = objects.read(best.path / PAYLOAD)
    objects.write(best.path / PAYLOAD, data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    found, decision = recover(manager_of(open_store(store.root)))
    assert (found["step"], decision.chosen and decision.chosen.step) == (1, 1)
    assert "put aside" in decision.candidates[0].reason
    assert best.id not in store.ids(SESSION)
    catalog = catalog_of(store)
    assert [item.id for item in catalog.quarantined(SESSION)] == [best.id]
    assert list(catalog.sessions()) == [SESSION]
    assert len(catalog.every()) == 2
    assert catalog.find(str(decision.chosen and decision.chosen.id)[:12]).session == SESSION
    objects.write(store.root / "stranger" / "x", b"")
    assert [path.name for path in catalog.strangers()] == ["stranger"]
    manager.close()


# -- a save that does not end --------------------------------------------------------------------

CALLS = ("cat_file", "info", "pipe_file", "open", "find", "makedirs", "invalidate_cache")


class Line:
    """A file system whose n-th call fails, before or after it was done; its errors are its own."""

    def __init__(self, fs: Any, n: int, *, after: bool = False) -> None:
        self._fs, self.left, self._after = fs, n, after

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._fs, name)
        if name not in CALLS:
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            strikes = self.left == 0
            if strikes and not self._after:
                raise TimeoutError("no answer")
            found = real(*arguments, **options)
            if strikes and name != "open":
                raise ClientError("no answer")
            return found

        return call


class ClientError(Exception):
    """As the packages of object stores raise them: no OSError."""


@pytest.mark.parametrize("after", [False, True], ids=["not done", "done, and no answer"])
def test_a_call_that_fails_leaves_it_complete_or_absent(tmp_path: Path, after: bool) -> None:
    struck = 0
    for n in range(1, 60):
        store = RemoteStore(f"file://{tmp_path}/{n}")
        store.save(state(0), info=info(0))
        real = store.files.fs
        line = Line(real, n, after=after)
        store.files.fs = line
        saved, refusal = None, None
        try:
            saved = store.save(state(1), info=info(1))
        except CheckpointError as error:
            refusal = error
        if refusal is not None:
            assert "was not saved" in str(refusal)
            assert isinstance(refusal.__cause__, OSError)
            struck += 1
        store.files.fs = real
        survey = store.survey(SESSION)
        steps = [item.step for item in survey.checkpoints]
        assert survey.damaged == ()
        assert steps == ([0] if saved is None else [0, 1])
        for item in survey.checkpoints:
            assert store.load(item.path)["step"] == item.step
        store.clean(SESSION)
        assert catalog_of(store).remains(SESSION) == []
        assert store.load(store.save(state(2), info=info(2)).path)["step"] == 2
        if line.left > 0:
            break
        shutil.rmtree(tmp_path / str(n))
    assert line.left > 0, "a save makes fewer calls than that"
    assert struck > 5


BEGUN = """
import os, signal, sys
import numpy as np
from qigstore.checkpoints import RemoteStore, SaveInfo
store = RemoteStore(sys.argv[1])
real = store.files.put
def put(name, data):
    if name.endswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(name, data)
store.files.put = put
info = SaveInfo(session_name=sys.argv[3], session_id=1, attempt=1, step=1)
store.save({"w": np.ones(9)}, info=info)
"""


@pytest.mark.parametrize("at", ["upload.json", MANIFEST])
def test_an_upload_whose_process_was_killed_is_no_checkpoint_and_is_cleaned(
    tmp_path: Path, at: str
) -> None:
    url = f"file://{tmp_path}/store"
    with python(BEGUN, url, at, SESSION) as child:
        assert child.wait(120) == -signal.SIGKILL
    store = RemoteStore(url)
    assert store.ids(SESSION) == set()
    left = catalog_of(store).remains(SESSION)
    assert len(left) == (at == MANIFEST)
    for url_left in left:
        with pytest.raises(NotFound):
            store.load(url_left)
    assert store.clean(SESSION) == left
    assert catalog_of(store).remains(SESSION) == []


def _changed(**fields: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda claim: json.dumps(claim | fields).encode()


def _aged(claim: dict[str, Any]) -> bytes:
    at = datetime.now(UTC) - timedelta(days=8)
    return json.dumps(claim | {"host": "elsewhere", "at": at.isoformat()}).encode()


CLAIMS: dict[str, tuple[Callable[[dict[str, Any]], bytes], bool]] = {
    "of a dead process here": (_changed(), True),
    "of a living process here": (_changed(pid=os.getppid()), False),
    "of another host": (_changed(host="elsewhere"), False),
    "of another host, a week ago": (_aged, True),
    "of another store": (_changed(store=str(uuid4())), False),
    "of another session": (_changed(session="lake"), False),
    "that nobody can read": (lambda _: b"{", False),
    "without a process": (lambda _: b"{}", False),
}


@pytest.mark.parametrize(("claim", "goes"), CLAIMS.values(), ids=CLAIMS)
def test_only_what_is_ours_and_nobodys_work_is_cleaned(
    claim: Callable[[dict[str, Any]], bytes], goes: bool
) -> None:
    store = RemoteStore(f"memory://{uuid4()}")
    saved = store.save(state(1), info=info(1))
    objects = Objects(store.root)
    dead = python("pass")
    dead.communicate()
    said = json.loads(objects.read(saved.path / "upload.json")) | {"pid": dead.pid}
    objects.remove(saved.path / MANIFEST)
    objects.write(saved.path / "upload.json", claim(said))
    assert store.ids(SESSION) == set()
    assert store.clean(SESSION) == ([saved.path] if goes else [])
    assert objects.names(saved.path) == (set() if goes else {PAYLOAD, "upload.json"})
    fresh = saved.path.parent / str(uuid4())
    objects.write(fresh / "upload.json", json.dumps(said).encode())
    objects.write(fresh / "notes.txt", b"mine")
    assert fresh not in store.clean(SESSION)
    objects.clear()


def test_a_place_that_cannot_be_used_says_why(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="must hold no password"):
        RemoteStore("memory://user:secret@host/x")

    def missing(*_: Any, **__: Any) -> Any:
        raise ImportError("Install s3fs to access S3")

    with monkeypatch.context() as patch:
        patch.setattr(fsspec.core, "url_to_fs", missing)
        with pytest.raises(CheckpointUnsupported, match=r"s3fs.*qigstore\[remote\]"):
            RemoteStore("s3://bucket/x")
    with pytest.raises(ConfigurationError, match="are for a URL"):
        open_store(home, anon=True)
    monkeypatch.setenv("QIGSTORE_CHECKPOINTS", "s3://bucket/checkpoints")
    assert load_settings().checkpoint_root == Url("s3://bucket/checkpoints")
    assert isinstance(open_store(home), CheckpointStore)
