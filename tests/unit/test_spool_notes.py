"""What a spool says of its attempt: read back as written, and worth less than the rows."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qigstore.errors import SpoolError
from qigstore.recording.spool.identity import SpoolIdentity, read_identity
from qigstore.recording.spool.notes import AttemptNotes, read_notes, write_notes
from qigstore.records import AttemptStatus

TIMES = st.datetimes(timezones=st.just(UTC))
NOTES = st.builds(
    AttemptNotes,
    store=st.none() | st.uuids(),
    resumed_from=st.none() | st.uuids(),
    resumed_step=st.none() | st.integers(-1, 2**62),
    status=st.none() | st.sampled_from(get_args(AttemptStatus)),
    reason=st.none() | st.text(),
    exit_status=st.none() | st.integers(0, 255),
    ended_at=st.none() | TIMES,
)


@given(NOTES)
def test_notes_come_back_as_written(notes: AttemptNotes) -> None:
    assert AttemptNotes.from_json(notes.to_json()) == notes


def test_the_last_notes_are_those_that_count(tmp_path: Path) -> None:
    assert read_notes(tmp_path) == AttemptNotes()
    for step in range(3):
        write_notes(tmp_path, AttemptNotes(resumed_step=step))
    assert read_notes(tmp_path).resumed_step == 2
    assert [path.name for path in tmp_path.iterdir()] == ["attempt.json"]


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b"{}", b'{"status": "odd"}', b"\xff", b"1"])
def test_damaged_notes_are_said_and_keep_no_row_from_its_database(
    tmp_path: Path, damaged: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "attempt.json").write_bytes(damaged)
    with caplog.at_level(logging.WARNING, "qigstore"):
        assert read_notes(tmp_path) == AttemptNotes()
    assert "attempt.json" in caplog.text


def test_an_identity_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    told = SpoolIdentity(
        writer=uuid4(), attempt=uuid4(), session="s", rank=3, config={"a": 1}, host="h", pid=1,
        created_at=datetime.now(UTC), number=7, offline=True, address="postgresql://h/d",
    )  # fmt: skip
    (tmp_path / "spool.json").write_bytes(told.to_json())
    assert read_identity(tmp_path) == told
    older = json.loads(told.to_json())
    for name in ("number", "offline", "address"):
        del older[name]
    (tmp_path / "spool.json").write_text(json.dumps(older))
    found = read_identity(tmp_path)
    assert (found.writer, found.number, found.offline, found.address) == (
        told.writer, 0, False, None
    )  # fmt: skip
    assert isinstance(found.attempt, UUID)
    (tmp_path / "spool.json").write_text('{"writer": 1}')
    with pytest.raises(SpoolError, match="nobody knows whose rows"):
        read_identity(tmp_path)
