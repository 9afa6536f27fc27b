"""The emergency log: one JSON file an event, on disk before anything else is asked.

An event is written even when no database answers, and stays readable by a person afterwards:
``<root>/20260102T030405.678901Z-<event id>.json``, moved to ``<root>/shipped/`` once stored.

The files are strict JSON. Non-finite numbers are the strings "NaN", "Infinity" and "-Infinity"; the
fields `value` and `threshold` are numbers or null, so a string there can only mean one of these.
Inside `detail`, which is free JSON as in the database, they stay these strings. Whatever else JSON
cannot hold is written as its text.

Every step survives a kill: a file appears complete or not at all, and one that is shipped twice is
stored once, because its id is the key. What this module did not write is reported, never touched.

An event in a hurry is first appended to a draft, a file without its name that was opened before:
some microseconds, after which it outlives its process, and whoever ships next gives it its name.
`write` then makes it durable. A draft is locked as long as its writer lives.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args
from uuid import UUID, uuid4

from qigstore.errors import SpoolFull, StoreUnavailable
from qigstore.recording.spool.segment import Disk
from qigstore.records import Event, Severity

__all__ = ["EventLog", "LoggedEvent", "Problem"]

_log = logging.getLogger(__name__)

_FORMAT = "qigstore-event-1"
_NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.json")
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{32}\.json")
_TEMPORARY_AGE_S = 3600.0
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_SIZE_MAX = 1 << 20
_TIMES = ("raised_at", "acknowledged_at", "resolved_at")


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One file of the log."""

    path: Path
    session: str
    event: Event
    attempt_id: UUID | None = None
    """The attempt that raised it; tells which number it has when it was not registered then."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that could not be read or stored; it stays where it is."""

    path: Path
    reason: str


class _Draft:
    """A file without its name yet, locked while its writer lives."""

    def __init__(self, root: Path) -> None:
        self.path = root / f".tmp-{uuid4().hex}.json"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(self.path, flags, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def fill(self, data: bytes) -> None:
        """From now on it outlives its process."""
        left = memoryview(data)
        while left:
            left = left[os.write(self._descriptor, left) :]

    def commit(self, path: Path) -> None:
        """Make it durable under its name, as far as the file goes."""
        os.fsync(self._descriptor)
        self.path.replace(path)
        os.close(self._descriptor)

    def discard(self) -> None:
        """Remove it."""
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


class EventLog:
    """The folder of emergency events of one user, shared by all processes.

    Args:
        root: made on the first write, for its owner only.
        kept_max: shipped files that stay; the oldest go first.
        pending_max: files not shipped yet; above that `write` refuses.
    """

    def __init__(self, root: Path, *, kept_max: int = 1000, pending_max: int = 10_000) -> None:
        self.root, self.shipped = root, root / "shipped"
        self._kept_max, self._pending_max = kept_max, pending_max
        self._count: int | None = None
        self._ready: list[_Draft] = []  # at most one, empty; `pop` takes it from any thread
        self._appended: dict[UUID, _Draft] = {}
        self.problems: tuple[Problem, ...] = ()
        """What the last `pending` or `ship` could not read or store."""

    def __repr__(self) -> str:
        return f"EventLog({str(self.root)!r})"

    def write(self, session: str, event: Event, *, attempt_id: UUID | None = None) -> Path:
        """Write one event; once this returns it survives power loss.

        Raises:
            SpoolFull: `pending_max` events wait already.
            OSError: the disk refused.
        """
        if event.id not in self._appended:
            self.append(session, event, attempt_id=attempt_id)
        draft, path = self._appended.pop(event.id), self.root / _name(event)
        try:
            draft.commit(path)
        except OSError:
            draft.discard()
            raise
        Disk().sync_folder(self.root)
        return path

    def append(self, session: str, event: Event, *, attempt_id: UUID | None = None) -> None:
        """Write one event so that it outlives this process; `write` makes it durable.

        Raises:
            SpoolFull: `pending_max` events wait already.
            OSError: the disk refused.
        """
        self._make_folders()
        self._make_room()
        draft = self._ready.pop() if self._ready else _Draft(self.root)
        try:
            draft.fill(_encode(session, event, attempt_id))
        except OSError:
            draft.discard()
            raise
        self._appended[event.id] = draft

    def prepare(self) -> None:
        """Have the next draft open, so that its event waits for nothing.

        Raises:
            OSError: the disk refused.
        """
        self._make_folders()
        self._count_waiting()
        if not self._ready:
            self._ready.append(_Draft(self.root))

    def close(self) -> None:
        """Remove the draft that nothing was written to."""
        while self._ready:
            self._ready.pop().discard()

    def pending(self) -> list[LoggedEvent]:
        """Events that no `ship` has stored yet, oldest first; `problems` has what is unreadable."""
        found, problems = self._read(self.root)
        self.problems = tuple(problems)
        return found

    def read_shipped(self) -> list[LoggedEvent]:
        """The events kept after they were stored, oldest first."""
        return self._read(self.shipped)[0]

    def ship(
        self,
        add: Callable[[Event], object],
        *,
        resolve: Callable[[LoggedEvent], Event | None] | None = None,
    ) -> int:
        """Store what waits and move it to ``shipped/``; the number of events moved.

        Args:
            add: stores one event and is idempotent by its id (`store.events.add`).
            resolve: the event as the database knows it, where session or attempt were not
                registered when it was written; None leaves it for later.

        Raises:
            StoreUnavailable: the database went away; what is left stays pending.
        """
        self._adopt()
        shipped, waiting = 0, self.pending()
        problems = list(self.problems)
        for logged in waiting:
            try:
                event = logged.event if resolve is None else resolve(logged)
                if event is None:
                    continue
                add(event)
            except StoreUnavailable:
                raise
            except Exception as error:
                # One that the database refuses must not keep the others from it.
                problems.append(Problem(logged.path, f"not stored: {error}"))
                _log.error("event %s was not stored: %s", logged.event.id, error)
                continue
            shipped += self._move(logged.path)
        self.problems = tuple(problems)
        if shipped:
            Disk().sync_folder(self.shipped)
            Disk().sync_folder(self.root)
            self._forget_old()
        return shipped

    def _read(self, folder: Path) -> tuple[list[LoggedEvent], list[Problem]]:
        found: list[LoggedEvent] = []
        problems: list[Problem] = []
        for path in _files(folder):
            if path == self.shipped or _TEMPORARY.fullmatch(path.name):
                continue
            try:
                logged = _decode(path)
            except FileNotFoundError:
                continue  # another process has just shipped it
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                problems.append(Problem(path, f"not an event of ours: {error}"))
                _log.warning("%s is not an event of ours: %s", path, error)
                continue
            found.append(logged)
        return found, problems

    def _move(self, path: Path) -> int:
        try:
            path.replace(self.shipped / path.name)
        except FileNotFoundError:
            return 0  # another process stored it as well: the id kept it from counting twice
        return 1

    def _make_folders(self) -> None:
        if self.shipped.is_dir():
            return
        Disk().make_folders(self.root)
        self.shipped.mkdir(mode=0o700, exist_ok=True)

    def _make_room(self) -> None:
        if self._count is None or self._count >= self._pending_max:
            self._count = self._count_waiting()
        if self._count >= self._pending_max:
            raise SpoolFull(self.root, f"{self._count} events wait to be stored")
        self._count += 1

    def _count_waiting(self) -> int:
        self._count = sum(1 for path in _files(self.root) if _NAME.fullmatch(path.name))
        return self._count

    def _forget_old(self) -> None:
        ours = [path for path in _files(self.shipped) if _NAME.fullmatch(path.name)]
        for path in ours[: max(0, len(ours) - self._kept_max)]:
            path.unlink(missing_ok=True)

    def _adopt(self) -> None:
        """Name the events that the dead had only appended; remove what is old and no event."""
        for path in _files(self.root):
            if not _TEMPORARY.fullmatch(path.name):
                continue
            try:
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._adopt_one(path, file.read(_SIZE_MAX + 1))
            except (FileNotFoundError, BlockingIOError):
                continue  # its writer lives, or has just finished

    def _adopt_one(self, path: Path, data: bytes) -> None:
        try:
            event = _event(_record(data))
        except (ValueError, KeyError, TypeError, AttributeError):
            if time.time() - path.stat().st_mtime > _TEMPORARY_AGE_S:
                path.unlink()
            return
        path.replace(self.root / _name(event))
        Disk().sync_folder(self.root)


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())  # the name begins with the time
    except FileNotFoundError:
        return []


def _name(event: Event) -> str:
    return f"{event.raised_at.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}-{event.id}.json"


def _encode(session: str, event: Event, attempt_id: UUID | None) -> bytes:
    fields = {name: getattr(event, name) for name in Event.__dataclass_fields__}
    record = {"format": _FORMAT, "session": session, "attempt_id": attempt_id, **fields}
    data = _dumped(record)
    if len(data) > _SIZE_MAX:
        # Without its detail rather than not at all.
        record["detail"] = {"left_out": f"a detail that made {len(data)} bytes"}
        record["message"] = event.message[:10_000]
        data = _dumped(record)
    return data


def _dumped(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(_plain(record), indent=1, allow_nan=False) + "\n").encode()


def _plain(value: Any) -> Any:
    """The value as strict JSON."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        number = float(value)
        if math.isfinite(number):
            return number
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _decode(path: Path) -> LoggedEvent:
    if not _NAME.fullmatch(path.name):
        raise ValueError("its name is not one of ours")
    with path.open("rb") as file:
        record = _record(file.read(_SIZE_MAX + 1))
    event, attempt = _event(record), record["attempt_id"]
    if path.name != _name(event):
        raise ValueError("its name and its content are of different events")
    return LoggedEvent(
        path, _text(record, "session"), event, None if attempt is None else UUID(attempt)
    )


def _record(data: bytes) -> Mapping[str, Any]:
    if len(data) > _SIZE_MAX:
        raise ValueError(f"it is larger than {_SIZE_MAX} bytes")
    record = json.loads(data)
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise ValueError(f"it is not of format {_FORMAT}")
    return record


def _event(record: Mapping[str, Any]) -> Event:
    if record["severity"] not in get_args(Severity):
        raise ValueError(f"severity {record['severity']!r} is unknown")
    if not isinstance(record["detail"], dict):
        raise ValueError("detail is not a table")
    checkpoint = record["checkpoint_id"]
    times = {name: _time(record[name]) for name in _TIMES}
    raised_at = times["raised_at"]
    if raised_at is None:
        raise ValueError("raised_at is missing")
    event = Event(
        id=UUID(record["id"]),
        session_id=int(record["session_id"]),
        attempt=int(record["attempt"]),
        rank=int(record["rank"]),
        step=None if record["step"] is None else int(record["step"]),
        rule=_text(record, "rule"),
        severity=record["severity"],
        message=_text(record, "message"),
        raised_at=raised_at,
        metric=record["metric"],
        value=_number(record["value"]),
        threshold=_number(record["threshold"]),
        action=record["action"],
        checkpoint_id=None if checkpoint is None else UUID(checkpoint),
        detail=record["detail"],
    )
    return replace(
        event, acknowledged_at=times["acknowledged_at"], resolved_at=times["resolved_at"]
    )


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a text")
    return value


def _time(value: Any) -> datetime | None:
    if value is None:
        return None
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError(f"{value!r} has no time zone")
    return moment


def _number(value: Any) -> float | None:
    if value is None:
        return None
    return _NON_FINITE[value] if isinstance(value, str) else float(value)
