"""The REST endpoints: each answers what the store says, and one documented answer to bad input."""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from rest import PROBLEM, Rest

from qigstore import query
from qigstore.checkpoints import CheckpointStore, open_store, transfer
from qigstore.checkpoints.info import SaveInfo
from qigstore.encoding import as_json
from qigstore.records import location


def strict(answer: Any) -> Any:
    """The answer's JSON, which has no bare NaN in it."""

    def refuse(word: str) -> Any:
        pytest.fail(f"{word} is not JSON")

    assert answer.headers["content-type"] == "application/json"
    return json.loads(answer.text, parse_constant=refuse)


def problem(answer: Any, status: int, kind: str) -> dict[str, Any]:
    assert answer.status_code == status, (str(answer.url)[:200], answer.text)
    assert answer.headers["content-type"] == PROBLEM
    document: dict[str, Any] = answer.json()
    assert document["type"] == f"urn:qigstore:problem:{kind}"
    assert document["status"] == status
    return document


def test_each_answer_is_what_the_store_says(rest: Rest) -> None:
    rest.fill()
    store, name, at = rest.store, "ocean-7", "/v1/sessions/ocean-7"
    info = store.sessions.get(name)
    asked = {
        at: query.statistics(store, name),
        f"{at}/latest": query.latest(store, [name]).rows[0],
        f"{at}/curve?metric=phi&points=7": query.curve(store, name, "phi", points=7),
        f"{at}/curve?metric=mine&by=relative&start=3&stop=9&attempt=1": query.curve(
            store, name, "mine", by="relative", start=3, stop=9, attempt=1
        ),
        f"{at}/curve?metric=loss&merged=true": query.curve(store, name, "loss", rank=None),
        f"{at}/trajectory?points=5&dimensions=3": query.trajectory(
            store, name, points=5, dimensions=3
        ),
        f"{at}/regimes": query.regime_shares(store, name),
        f"{at}/rows?limit=4&start=2": query.rows(store, name, limit=4, start=2),
        f"/v1/compare?session={name}&metric=loss": query.compare(store, [name], "loss"),
        "/v1/latest": query.latest(store).rows,
        f"{at}/events": store.events.list(info.id),
        f"{at}/attempts": store.sessions.attempts(info.id),
    }
    for path, expected in asked.items():
        assert strict(rest.get(path)) == as_json(expected), path


def test_pages_bring_every_row_once(rest: Rest) -> None:
    rest.fill(steps=23)
    after, steps = "", []
    while after is not None:
        page = strict(rest.get(f"/v1/sessions/ocean-7/rows?limit=5{after and f'&after={after}'}"))
        steps += [row["step"] for row in page["rows"]]
        after = page["next"]
    assert steps == list(range(23))
    problem(rest.get("/v1/sessions/ocean-7/rows?after=nonsense"), 422, "invalid-input")


def test_numbers_that_json_lacks_have_names_both_ways(rest: Rest) -> None:
    claimed = rest.claim("odd")
    values = {"a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 1, "e": -0.0, "f": 5e-324}
    assert rest.record(claimed, [{"step": 0, "metrics": values}]).json()["rows"] == 1
    (row,) = query.rows(rest.store, "odd").rows
    assert math.isnan(row.metrics["a"])
    assert (row.metrics["b"], row.metrics["c"]) == (math.inf, -math.inf)
    told = strict(rest.get("/v1/sessions/odd/latest"))["row"]["metrics"]
    assert told == {**values, "d": 1.0}
    curve = strict(rest.get("/v1/sessions/odd/curve?metric=a"))
    assert (curve["low"], curve["nans"]) == (["NaN"], [1])


def test_json_that_is_none_is_refused(rest: Rest) -> None:
    headers = {"Content-Type": "application/json"}
    words = ["NaN", "Infinity", "-Infinity", "[" * 100_000, "1" * 5000, "{", "", "\xff", "1e999"]
    texts = [f'{{"basin": [0.5, {word}]}}' for word in words]
    for text in [*texts, '{"basin": [0.5, 0.5], "k": 1e999}', "", "[]", "null"]:
        answer = rest.post("/v1/nearest", headers=headers, content=text.encode("latin-1"))
        problem(answer, 422, "invalid-input")


BAD = (
    ("/v1/sessions/ocean-8", 404, "not-found"),
    ("/v1/sessions/ocean-8/curve?metric=loss", 404, "not-found"),
    ("/v1/sessions/ocean-8/checkpoints", 404, "not-found"),
    ("/v1/sessions/ocean-8/recover", 404, "not-found"),
    ("/v1/latest?session=ocean-7&session=ocean-8", 404, "not-found"),
    ("/v1/compare?session=ocean-8&metric=loss", 404, "not-found"),
    ("/v1/sessions/ocean-7/curve?metric=nothing", 404, "not-found"),
    ("/v1/sessions/ocean-7/curve", 422, "invalid-input"),
    ("/v1/sessions/ocean-7/curve?metric=", 422, "invalid-input"),
    ("/v1/sessions/ocean-7/curve?metric=a%00b", 422, "invalid-input"),
    ("/v1/sessions/ocean-7/curve?metric=loss&start=9&stop=3", 422, "invalid-input"),
    ("/v1/sessions/ocean-7/curve?metric=loss&start=-1", 422, "invalid-input"),
    ("/v1/sessions/ocean-7/curve?metric=loss&stop=99999999999999999999", 422, "invalid-input"),
    ("/v1/sessions/ocean-7/curve?metric=loss&points=1000000000", 422, "invalid-input"),
    ("/v1/sessions/ocean-7/curve?metric=loss&points=0", 422, "invalid-input"),
    ("/v1/sessions/ocean-7/curve?metric=loss&points=NaN", 422, "invalid-input"),
    ("/v1/sessions/ocean-7/curve?metric=loss&by=moon", 422, "invalid-input"),
    ("/v1/sessions/ocean-7/trajectory?start=9&stop=3", 422, "invalid-input"),
    ("/v1/sessions/ocean-7/trajectory?dimensions=4", 422, "invalid-input"),
    ("/v1/sessions/ocean-7/rows?start=9&stop=3", 422, "invalid-input"),
    ("/v1/sessions/ocean-7/rows?limit=1000000000", 422, "invalid-input"),
    ("/v1/sessions/ocean-7/regimes?start=9&stop=3", 422, "invalid-input"),
    ("/v1/sessions/ocean-7/events?severity=loud", 422, "invalid-input"),
    (f"/v1/sessions/ocean-7/events/{uuid4()}", 404, "not-found"),
    ("/v1/sessions/ocean-7/events/12", 422, "invalid-input"),
    (f"/v1/sessions/ocean-7/checkpoints/{uuid4()}", 404, "not-found"),
    ("/v1/sessions/ocean-7/checkpoints/..%2F..%2Fetc%2Fpasswd", 422, "invalid-input"),
    ("/v1/sessions/ocean-7/checkpoints/..%2f..%2fx/download", 422, "invalid-input"),
    ("/v1/sessions?limit=1000000000", 422, "invalid-input"),
    ("/v1/sessions/%00", 422, "invalid-input"),
    ("/v1/sessions/" + "x" * 300, 422, "invalid-input"),
    ("/v1/compare?metric=loss", 422, "invalid-input"),
    ("/v1/compare?metric=loss&session=ocean-7&session=ocean-7", 422, "invalid-input"),
    ("/v1/audit?before=-1", 422, "invalid-input"),
    ("/v1/sessions?limits=3", 422, "invalid-input"),
    ("/v1/sessions/ocean-7/curve?metric=loss&point=3", 422, "invalid-input"),
    ("/v1/health?x=", 422, "invalid-input"),
    ("/v1/nothing", 404, "not-found"),
    ("/v1/sessions/", 404, "not-found"),
    ("/", 404, "not-found"),
)


def test_bad_input_has_one_answer(rest: Rest) -> None:
    rest.fill(steps=3)
    for path, status, kind in BAD:
        problem(rest.get(path), status, kind)


def test_the_nearest_name_is_told(rest: Rest) -> None:
    rest.fill(steps=1)
    found = problem(rest.get("/v1/sessions/ocean-8"), 404, "not-found")
    assert found["near"] == ["ocean-7"]


def test_what_has_not_changed_is_not_sent_again(rest: Rest) -> None:
    filled = rest.fill()
    paths = ["/v1/sessions", "/v1/sessions/ocean-7/curve?metric=loss", "/openapi.json", "/docs",
             f"/v1/sessions/ocean-7/checkpoints/{filled.checkpoints[0]}",
             f"/v1/sessions/ocean-7/checkpoints/{filled.checkpoints[0]}/download"]  # fmt: skip
    for path in paths:
        tag = rest.get(path).headers["etag"]
        for known in (tag, f'"x", {tag}', f"W/{tag}", "*"):
            again = rest.get(path, headers={"If-None-Match": known})
            assert (again.status_code, again.content) == (304, b""), path
            assert again.headers["etag"] == tag
        assert rest.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    curve = paths[1]
    before = rest.get(curve).headers["etag"]
    rest.record(filled.claimed, [{"step": 30, "metrics": {"loss": 3.0}}], first_seq=21)
    assert rest.get(curve, headers={"If-None-Match": before}).status_code == 200


def test_an_event_is_acknowledged_once(rest: Rest) -> None:
    filled = rest.fill()
    path = f"/v1/sessions/ocean-7/events/{filled.event}"
    assert strict(rest.get(path))["acknowledged_at"] is None
    first = strict(rest.post(f"{path}/ack"))
    assert first["acknowledged_at"] is not None
    assert strict(rest.post(f"{path}/ack")) == first == strict(rest.get(path))
    assert strict(rest.get("/v1/sessions/ocean-7/events?still_open=true")) == []


def test_checkpoints_are_told_without_their_place(rest: Rest) -> None:
    filled = rest.fill()
    at = "/v1/sessions/ocean-7/checkpoints"
    listed = strict(rest.get(at))
    assert [item["step"] for item in listed] == [12, 9, 5]
    best = strict(rest.get(f"{at}/best"))
    assert (best["checkpoint"]["id"], best["healthy"]) == (str(filled.checkpoints[1]), True)
    assert strict(rest.get(f"{at}/{filled.checkpoints[1]}")) == best["checkpoint"]
    decided = strict(rest.get("/v1/sessions/ocean-7/recover"))
    assert decided["chosen"]["id"] == str(filled.checkpoints[1])
    assert len(decided["candidates"]) == 3
    told = json.dumps([listed, best, decided])
    assert str(rest.config.settings.home) not in told
    rest.claim("empty")
    problem(rest.get("/v1/sessions/empty/checkpoints/best"), 404, "not-found")
    nothing = strict(rest.get("/v1/sessions/empty/recover"))
    assert (nothing["chosen"], nothing["candidates"]) == (None, [])


def test_a_download_is_a_checkpoint_that_restores(rest: Rest, tmp_path: Path) -> None:
    filled = rest.fill()
    key = filled.checkpoints[1]
    answer = rest.get(f"/v1/sessions/ocean-7/checkpoints/{key}/download")
    assert answer.headers["content-type"] == "application/x-tar"
    assert int(answer.headers["content-length"]) == len(answer.content)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        tar.extractall(tmp_path, filter="data")
    elsewhere = CheckpointStore(tmp_path / "elsewhere")
    there = transfer.restore_into(tmp_path / str(key), elsewhere, progress=lambda _a, _b: None)
    ours = CheckpointStore(rest.config.settings.checkpoint_root)
    assert (elsewhere.load(there)["w"] == ours.load(filled.folders[1])["w"]).all()


def test_a_large_checkpoint_has_the_length_it_says(rest: Rest, tmp_path: Path) -> None:
    """Sizes around a block of the tar, and around the pieces it is sent in."""
    from qigstore.checkpoints.archive import archive

    folders = CheckpointStore(tmp_path)
    for size in (0, 1, 500, 512, 513, (1 << 20) - 1, 1 << 20, 3 << 20):
        info = SaveInfo(session_name="s", session_id=1, attempt=1, step=size)
        saved = folders.save({"b": bytes(size)}, info=info)
        whole = archive(folders, saved.path)
        data = b"".join(whole.pieces)
        assert len(data) == whole.size
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for name in ("manifest.json", "state.safetensors"):
                member = tar.extractfile(f"{saved.id}/{name}")
                assert member is not None
                assert member.read() == (saved.path / name).read_bytes()


def test_damage_is_told_and_nothing_of_it_is_sent(rest: Rest) -> None:
    filled = rest.fill()
    path = f"/v1/sessions/ocean-7/checkpoints/{filled.checkpoints[1]}"
    assert strict(rest.post(f"{path}/verify"))["sound"] is True
    assert strict(rest.get(path))["verified_at"] is not None
    payload = filled.folders[1] / "state.safetensors"
    data = bytearray(payload.read_bytes())
    data[-1] ^= 1
    payload.write_bytes(data)
    told = strict(rest.post(f"{path}/verify"))
    assert told["sound"] is False
    assert "BLAKE3" in told["problem"]
    assert str(rest.config.settings.home) not in told["problem"]
    payload.write_bytes(data[:-1])
    assert "size" in problem(rest.get(f"{path}/download"), 409, "checkpoint-damaged")["detail"]
    refused = strict(rest.get("/v1/sessions/ocean-7/recover"))
    assert refused["chosen"]["step"] == 5
    assert (filled.folders[1]).is_dir(), "a dry run moves nothing"


def test_checkpoints_in_an_object_store_are_verified_and_not_sent(
    rest: Rest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = rest.fill()
    url = location(f"file://{tmp_path}/far")
    monkeypatch.setattr(type(rest.config.settings), "checkpoint_root", url)
    store = open_store(url)
    told = SaveInfo(session_name="ocean-7", session_id=1, attempt=1, step=9, phi=0.7)
    saved = store.save({"w": np.arange(5.0)}, info=told)
    rest.store.checkpoints.add(saved)
    path = f"/v1/sessions/ocean-7/checkpoints/{saved.id}"
    assert strict(rest.post(f"{path}/verify"))["sound"] is True
    problem(rest.get(f"{path}/download"), 409, "checkpoint-elsewhere")
    gone = f"/v1/sessions/ocean-7/checkpoints/{filled.checkpoints[0]}/verify"
    assert strict(rest.post(gone))["sound"] is False


def test_nothing_outside_the_root_is_sent(rest: Rest, tmp_path: Path) -> None:
    filled = rest.fill()
    path = f"/v1/sessions/ocean-7/checkpoints/{filled.checkpoints[1]}/download"
    moved = tmp_path / "moved"
    filled.folders[1].rename(moved)
    filled.folders[1].symlink_to(moved)
    problem(rest.get(path), 409, "checkpoint-damaged")
    filled.folders[1].unlink()
    problem(rest.get(path), 404, "not-found")
    moved.rename(filled.folders[1])
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    payload = filled.folders[1] / "state.safetensors"
    payload.unlink()
    payload.symlink_to(secret)
    answer = rest.get(path)
    problem(answer, 409, "checkpoint-damaged")
    assert "hunter2" not in answer.text


def test_few_read_whole_checkpoints_at_a_time(rest: Rest) -> None:
    filled = rest.fill()
    readers = rest.app.state.wiring.readers
    for _ in range(rest.config.readers_max):
        assert readers.acquire(blocking=False)
    path = f"/v1/sessions/ocean-7/checkpoints/{filled.checkpoints[0]}/verify"
    answer = rest.post(path)
    problem(answer, 429, "too-many-requests")
    assert int(answer.headers["retry-after"]) >= 1
    problem(rest.get("/v1/sessions/ocean-7/recover"), 429, "too-many-requests")
    readers.release()
    assert rest.post(path).status_code == 200


SAMPLE = re.compile(
    r'^[a-z_]+(\{[a-z_]+="(?:[^"\\\n]|\\["\\n])*"(?:,[a-z_]+="(?:[^"\\\n]|\\["\\n])*")*\})? '
    r"(?:NaN|[+-]Inf|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)$"
)


def test_figures_are_prometheus_text(rest: Rest) -> None:
    odd = 'a"b\\c'
    claimed = rest.claim(odd.replace('"', "%22").replace("\\", "%5C"))
    claimed["session"] = "a%22b%5Cc"
    rest.record(claimed, [{"step": 4, "metrics": {"loss": "NaN", "phi": 0.5, "mine": 1}}])
    rest.ask("BREW", "/v1/sessions")
    rest.get("/v1/sessions?token=1")
    answer = rest.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.text.endswith("\n")
    families: set[str] = set()
    for line in answer.text.splitlines():
        if line.startswith("# TYPE "):
            name = line.split()[2]
            assert name not in families, "a family comes once"
            families.add(name)
        elif not line.startswith("# HELP "):
            assert SAMPLE.fullmatch(line), line
            assert line.split("{")[0].split()[0] in families
    assert 'qigstore_session_metric{session="a\\"b\\\\c",metric="loss"} NaN' in answer.text
    assert 'qigstore_session_last_step{session="a\\"b\\\\c"} 4.0' in answer.text
    assert 'qigstore_http_refusals_total{why="token-in-url"} 1' in answer.text
    assert 'method="OTHER"' in answer.text
    assert "BREW" not in answer.text
    assert 'metric="mine"' not in answer.text
