"""Files that no export wrote, or not to the end: refused, with the place and the reason."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from exchanged import fill

from qigstore.errors import InvalidInput
from qigstore.exchange import export_session, import_session
from qigstore.records import Event
from qigstore.repository import Store


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
