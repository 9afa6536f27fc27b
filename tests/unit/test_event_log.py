"""The emergency log: complete or absent, shipped once, strict JSON, and nothing foreign touched."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from figures import figure

from qigstore.errors import SpoolFull, StoreUnavailable
from qigstore.recording.event_log import EventLog, LoggedEvent
from qigstore.records import Event

START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def event(number: int = 0, **changes: Any) -> Event:
    fields: dict[str, Any] = {
        "id": uuid4(), "session_id": 7, "attempt": 2, "rank": 0, "step": number, "rule": "r",
        "severity": "critical", "message": f"number {number}",
        "raised_at": START + timedelta(seconds=number),
    }  # fmt: skip
    return Event(**(fields | changes))


class Table:
    """What the database does: a row an id, and it can be away."""

    def __init__(self) -> None:
        self.rows: dict[UUID, Event] = {}
        self.away = False
        self.calls = 0

    def add(self, event: Event) -> bool:
        self.calls += 1
        if self.away:
            raise StoreUnavailable("nowhere", "connection refused")
        return self.rows.setdefault(event.id, event) is event


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path / "events")


def test_what_is_written_is_read_back_equal(log: EventLog) -> None:
    attempt = uuid4()
    full = event(
        3, metric="φ", value=0.25, threshold=0.5, action="abort", checkpoint_id=uuid4(),
        detail={"a": [1, {"b": None}], "ü": "x\n"}, acknowledged_at=START, resolved_at=START,
    )  # fmt: skip
    path = log.write("ocean/7 \u2028", full, attempt_id=attempt)
    assert log.pending() == [LoggedEvent(path, "ocean/7 \u2028", full, attempt)]
    assert log.problems == ()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_file_is_strict_json_and_a_value_that_is_not_finite_comes_back(
    log: EventLog, value: float
) -> None:
    path = log.write("s", event(value=value, threshold=value, detail={"seen": [value]}))

    def refuse(text: str) -> float:
        raise AssertionError(f"{text} is not JSON")

    written = json.loads(path.read_text(), parse_constant=refuse)
    assert written["value"] in ("NaN", "Infinity", "-Infinity")
    assert written["detail"]["seen"] == [written["value"]]
    back = log.pending()[0].event
    assert back.value is not None
    assert back.threshold is not None
    assert str(back.value) == str(back.threshold) == str(value)


def test_a_detail_that_json_cannot_hold_never_stops_the_event(log: EventLog) -> None:
    odd = {"when": START, "path": Path("/x"), "set": {1}, 5: b"raw", "self": object}
    log.write("s", event(detail=odd))
    log.write("s", event(1, detail={"huge": "x" * 3_000_000}, message="y" * 100_000))
    first, second = (logged.event for logged in log.pending())
    assert first.detail["when"] == START.isoformat()
    assert "left_out" in second.detail
    assert log.problems == ()


def test_times_of_another_zone_keep_their_moment(log: EventLog) -> None:
    moment = START.astimezone(timezone(timedelta(hours=-5)))
    log.write("s", event(raised_at=moment))
    assert log.pending()[0].event.raised_at == START


def test_events_wait_in_the_order_in_which_they_were_raised(
    log: EventLog, rng: random.Random
) -> None:
    numbers = list(range(20))
    rng.shuffle(numbers)
    for number in numbers:
        log.write("s", event(number))
    assert [logged.event.step for logged in log.pending()] == list(range(20))


def test_shipping_stores_each_event_once_and_keeps_the_file(log: EventLog) -> None:
    table = Table()
    sent = [event(n) for n in range(3)]
    for one in sent:
        log.write("s", one)
    assert log.ship(table.add) == 3
    assert log.ship(table.add) == 0
    assert list(table.rows.values()) == sent
    assert log.pending() == []
    assert [logged.event for logged in log.read_shipped()] == sent


def test_an_event_that_the_database_has_already_is_only_moved(log: EventLog) -> None:
    table, one = Table(), event()
    table.add(one)
    log.write("s", one)
    assert log.ship(table.add) == 1
    assert len(table.rows) == 1


def test_nothing_is_lost_while_the_database_is_away(log: EventLog) -> None:
    table = Table()
    table.away = True
    for n in range(3):
        log.write("s", event(n))
    with pytest.raises(StoreUnavailable):
        log.ship(table.add)
    assert table.calls == 1
    assert len(log.pending()) == 3
    table.away = False
    assert log.ship(table.add) == 3


def test_one_event_that_the_database_refuses_does_not_hold_up_the_rest(log: EventLog) -> None:
    table = Table()
    paths = [log.write("s", event(n)) for n in range(3)]

    def add(one: Event) -> bool:
        if one.step == 1:
            raise ValueError("no such session")
        return table.add(one)

    assert log.ship(add) == 2
    assert [(p.path, "no such session" in p.reason) for p in log.problems] == [(paths[1], True)]
    assert [logged.path for logged in log.pending()] == [paths[1]]


def test_an_event_written_before_its_session_was_registered_is_resolved_later(
    log: EventLog,
) -> None:
    from dataclasses import replace

    table, known = Table(), {"ready": 42}
    log.write("ready", event(0, session_id=-1))
    log.write("unknown", event(1, session_id=-1))

    def resolve(logged: LoggedEvent) -> Event | None:
        number = known.get(logged.session)
        return None if number is None else replace(logged.event, session_id=number)

    assert log.ship(table.add, resolve=resolve) == 1
    assert [one.session_id for one in table.rows.values()] == [42]
    assert [logged.session for logged in log.pending()] == ["unknown"]


def test_foreign_and_damaged_files_are_reported_and_left_alone(
    log: EventLog, rng: random.Random
) -> None:
    good = log.write("s", event())
    whole = good.read_bytes()
    (log.root / "notes.txt").write_text("mine")
    (log.root / "folder").mkdir()
    (log.root / ".tmp-mine").write_text("also mine")
    for number in range(40):
        name = good.name.replace(good.name[-17:-5], f"{number:012x}")
        cut = whole[: rng.randrange(len(whole) - 2)]
        (log.root / name).write_bytes(cut if number % 2 else rng.randbytes(300))
    (log.root / good.name.replace("2026", "2027")).write_bytes(whole)  # not its own name
    before = sorted(log.root.iterdir())
    assert [logged.path for logged in log.pending()] == [good]
    assert len(log.problems) == 44
    table = Table()
    assert log.ship(table.add) == 1
    assert len(log.problems) == 44
    assert sorted(log.root.iterdir()) == [path for path in before if path != good]


@pytest.mark.parametrize(
    ("field", "value"),
    [("severity", "fatal"), ("detail", []), ("raised_at", None), ("raised_at", "2026-01-02T03:04"),
     ("value", "many"), ("id", "x"), ("rule", 3), ("format", "qigstore-event-9"), ("step", {})],
)  # fmt: skip
def test_a_file_with_a_field_that_cannot_be_is_reported(
    log: EventLog, field: str, value: object
) -> None:
    path = log.write("s", event())
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert log.pending() == []
    assert [problem.path for problem in log.problems] == [path]


def test_the_number_of_kept_files_is_bounded_and_the_newest_stay(tmp_path: Path) -> None:
    log, table = EventLog(tmp_path / "events", kept_max=3), Table()
    for n in range(5):
        log.write("s", event(n))
    (log.shipped / "notes.txt").write_text("mine")
    assert log.ship(table.add) == 5
    assert [logged.event.step for logged in log.read_shipped()] == [2, 3, 4]
    assert (log.shipped / "notes.txt").exists()


def test_the_number_of_waiting_events_is_bounded_and_shipping_makes_room(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events", pending_max=3)
    for n in range(3):
        log.write("s", event(n))
    with pytest.raises(SpoolFull, match="3 events wait"):
        log.write("s", event(4))
    log.ship(Table().add)
    log.write("s", event(5))
    assert len(log.pending()) == 1


def test_only_its_owner_may_read_the_log(log: EventLog) -> None:
    path = log.write("s", event())
    assert path.stat().st_mode & 0o777 == 0o600
    assert log.root.stat().st_mode & 0o777 == 0o700


def test_what_a_killed_write_left_is_swept_when_it_is_old(log: EventLog) -> None:
    log.write("s", event())
    fresh, old = (log.root / f".tmp-{letter * 32}.json" for letter in "ab")
    for path in (fresh, old):
        path.write_text("{")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    log.ship(Table().add)
    assert fresh.exists()
    assert not old.exists()


def test_a_folder_that_is_not_there_holds_no_events(log: EventLog) -> None:
    assert log.pending() == []
    assert log.ship(Table().add) == 0
    assert not log.root.exists()


def test_two_processes_that_ship_at_once_store_each_event_once(log: EventLog) -> None:
    for n in range(200):
        log.write("s", event(n))
    lock, rows, moved = threading.Lock(), {}, []

    def add(one: Event) -> bool:
        with lock:
            return rows.setdefault(one.id, one) is one

    threads = [
        threading.Thread(target=lambda: moved.append(EventLog(log.root).ship(add)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows) == 200
    assert sum(moved) == 200
    assert log.pending() == []


WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4
from qigstore.recording.event_log import EventLog
from qigstore.records import Event
log = EventLog(Path(sys.argv[1]))
table = Path(sys.argv[1]).parent / "table"
table.mkdir(exist_ok=True)
def add(event):
    (table / str(event.id)).touch()
print("ready", flush=True)
n = 0
while True:
    one = Event(id=uuid4(), session_id=1, attempt=1, rank=0, step=n, rule="r", severity="info",
                message="m" * 2000, raised_at=datetime.now(UTC))
    log.write("s", one)
    print(one.id, flush=True)
    n += 1
    if n % 3 == 0:
        log.ship(add)
"""


def kills(root: Path, count: int, rng: random.Random) -> None:
    returned: list[str] = []
    for number in range(count):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if number % 4 == 0:  # on a slow disk the others may all die before their first event
            returned.append(process.stdout.readline().strip())
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        lines = process.communicate()[0].splitlines(keepends=True)
        returned += [line.strip() for line in lines if line.endswith("\n")]
    log = EventLog(root)
    table = {path.name for path in (root.parent / "table").iterdir()}
    waiting = {str(logged.event.id) for logged in log.pending()}
    assert log.problems == ()
    assert set(returned) <= table | waiting
    log.ship(lambda one: table.add(str(one.id)))
    assert set(returned) <= table
    assert log.pending() == []
    print(f"{count} kills, {len(returned)} events")
    assert returned


def test_a_kill_at_any_moment_loses_no_event_that_was_written(
    tmp_path: Path, rng: random.Random
) -> None:
    kills(tmp_path / "events", 20, rng)


@pytest.mark.long(seconds=200)
def test_1_000_kills_lose_no_event_that_was_written(tmp_path: Path, rng: random.Random) -> None:
    kills(tmp_path / "events", figure(1000), rng)


def test_a_disk_that_refuses_says_so_and_leaves_nothing_behind(log: EventLog) -> None:
    log.write("s", event())
    script = """
import resource, signal, sys
from pathlib import Path
from datetime import UTC, datetime
from uuid import uuid4
from qigstore.recording.event_log import EventLog
from qigstore.records import Event
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    EventLog(Path(sys.argv[1])).write("s", Event(id=uuid4(), session_id=1, attempt=1, rank=0,
        step=1, rule="r", severity="info", message="m" * 500, raised_at=datetime.now(UTC)))
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(log.root)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "File too large\n"
    assert len(list(log.root.glob("*.json"))) == 1
    assert list(log.root.glob(".tmp-*")) == []


APPENDER = """
import os, signal, sys
from pathlib import Path
from datetime import UTC, datetime
from uuid import uuid4
from qigstore.recording.event_log import EventLog
from qigstore.records import Event
log = EventLog(Path(sys.argv[1]))
log.prepare()
one = Event(id=uuid4(), session_id=1, attempt=1, rank=0, step=1, rule="SIGTERM",
            severity="warning", message="m", raised_at=datetime.now(UTC))
log.append("s", one)
print(one.id, flush=True)
sys.stdin.read()
"""


def test_an_event_that_was_only_appended_is_shipped_once_its_writer_is_dead(
    log: EventLog,
) -> None:
    table = Table()
    with subprocess.Popen(
        [sys.executable, "-c", APPENDER, str(log.root)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        told = process.stdout.readline().strip()
        assert log.ship(table.add) == 0  # it lives, and will do so itself
        process.kill()
        process.wait()
        assert log.ship(table.add) == 1
    assert [str(key) for key in table.rows] == [told]
    assert list(log.root.glob(".tmp-*")) == []


def test_an_appended_event_is_written_under_its_name(log: EventLog) -> None:
    log.prepare()
    (draft,) = log.root.glob(".tmp-*")
    one = event()
    log.append("s", one)
    assert list(log.root.glob(".tmp-*")) == [draft]
    assert log.pending() == []
    path = log.write("s", one)
    assert not draft.exists()
    (logged,) = log.pending()
    assert (logged.path, logged.event) == (path, one)


def test_a_closed_log_leaves_no_draft(log: EventLog) -> None:
    log.prepare()
    log.prepare()
    assert len(list(log.root.glob(".tmp-*"))) == 1
    log.close()
    log.close()
    assert list(log.root.glob(".tmp-*")) == []
    log.write("s", event())
    assert len(log.pending()) == 1
