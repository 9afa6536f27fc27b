"""What `benchmarks.recording` measures of ours, and the floors: the least that any way can cost.

A subject is opened, given rows and closed in a process of its own, so that the threads that one
leaves behind do not cost the next one anything.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias
from uuid import uuid4
from zlib import crc32

from qigstore.records import STANDARD_METRICS

if TYPE_CHECKING:
    import psycopg

    from qigstore.recording.spool import Spool
    from qigstore.repository import Store

__all__ = [
    "FLOORS",
    "NAMES",
    "OURS",
    "Log",
    "Place",
    "Subject",
    "new_spool",
    "one_number",
    "open_store",
    "rows",
]

Log: TypeAlias = Callable[[int, dict[str, float]], object]
NAMES = (*STANDARD_METRICS[:10], *(f"custom_{i}" for i in range(10)))


def rows(count: int) -> list[dict[str, float]]:
    """Rows of 20 metrics, half of them standard ones."""
    rng = random.Random(1)
    return [{name: rng.random() for name in NAMES} for _ in range(count)]


@dataclass(frozen=True)
class Place:
    """Where a subject may write: its folder, the server that all share, a name of its own."""

    folder: Path
    dsn: str
    name: str


class Subject(ABC):
    """One way to log a step.

    Attributes:
        needs: modules; without them it cannot run here.
        hot_calls, paced_calls, bulk_rows, watched: how much of each measure it is given; 0: none.
        keeps: whether anything is looked for after SIGKILL.
    """

    title: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    hot_calls: ClassVar[int] = 5_000
    paced_calls: ClassVar[int] = 1_000
    bulk_rows: ClassVar[int] = 20_000
    watched: ClassVar[int] = 10
    keeps: ClassVar[bool] = True

    def __init__(self, place: Place) -> None:
        self.place = place

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot run here."""
        gone = [name for name in cls.needs if find_spec(name) is None]
        if not gone:
            return None
        return f"{', '.join(gone)} not installed; pip install 'qigstore[bench]'"

    @abstractmethod
    def open(self) -> Log:
        """Begin; the call that logs a step."""

    @abstractmethod
    def settle(self) -> None:
        """Return once another process can read all that was logged."""

    @abstractmethod
    def close(self) -> None:
        """End in good order."""

    def progress(self) -> int:
        """A number that grows when another process can read one more step."""
        return 0

    def bytes_used(self) -> int:
        """Bytes that what was logged takes, readable and settled."""
        return 0

    def left(self) -> int:
        """Steps that can be read after the process was killed; asked of another process."""
        return 0


# -- ours ------------------------------------------------------------------------------------


def one_number(connection: psycopg.Connection[Any], query: str, *given: Any) -> int:
    """The one number that a query tells; 0 for NULL."""
    row = connection.execute(query, given).fetchone()
    return int(row[0] or 0) if row else 0


def open_store(dsn: str) -> Store:
    """The repository behind a DSN."""
    from qigstore.database.engine import Database
    from qigstore.repository import Store

    return Store(Database(dsn))


class _Ours(Subject):
    """Rows that end up in PostgreSQL under a session of the place's name."""

    _WRITER = (
        "(SELECT w.number FROM qigstore.writer w JOIN qigstore.attempt a ON a.id = w.attempt_id "
        "JOIN qigstore.session s ON s.id = a.session_id WHERE s.name = %s)"
    )

    def _watch(self) -> None:
        import psycopg

        self.reader = psycopg.connect(self.place.dsn, autocommit=True)
        self._before = self._schema_bytes()

    def _schema_bytes(self) -> int:
        tables = (
            "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c "
            "JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = 'qigstore' AND c.relkind = 'r'"
        )
        return one_number(self.reader, tables)

    def progress(self) -> int:
        query = f"SELECT max(step) FROM qigstore.telemetry WHERE writer = {self._WRITER}"
        return one_number(self.reader, query, self.place.name)

    def bytes_used(self) -> int:
        """By how much everything in the schema has grown, indexes and curves included."""
        return self._schema_bytes() - self._before

    def left(self) -> int:
        import psycopg

        from qigstore.recording.drain import drain_leftovers

        with open_store(self.place.dsn) as store:
            # A row is left whether it was stored already or waits in the spool.
            (report,) = drain_leftovers(self.place.folder / "spool" / str(store.id), store)
            assert report.error is None, report.error
        query = f"SELECT count(*) FROM qigstore.telemetry WHERE writer = {self._WRITER}"
        with psycopg.connect(self.place.dsn) as connection:
            return one_number(connection, query, self.place.name)


class RunRecord(_Ours):
    """The whole of it, as a training loop calls it: default rules, spool, writer."""

    title = "run.record(step, row), default rules"
    hot_calls = 20_000
    bulk_rows = 100_000

    def open(self) -> Log:
        import qigstore

        self._watch()
        self.run = qigstore.session(
            self.place.name, dsn=self.place.dsn, home=self.place.folder, quiet=True
        ).open()
        return self.run.record

    def settle(self) -> None:
        self.run.flush(timeout_s=300)

    def close(self) -> None:
        self.run.close()
        self.reader.close()


class RunKeywords(RunRecord):
    """The same, called with keywords."""

    title = "run.record(step, **row), default rules"
    bulk_rows = watched = 0
    keeps = False

    def open(self) -> Log:
        super().open()
        record = self.run.record
        return lambda step, row: record(step, **row)


class RunBasin(RunKeywords):
    """The same with a basin, from which distance, step length and curvature are computed."""

    title = "run.record(step, row) with a 64-D basin"
    hot_calls = 5_000

    def open(self) -> Log:
        import numpy as np

        super().open()
        record = self.run.record
        basins = np.random.default_rng(1).dirichlet(np.ones(64), 256)
        return lambda step, row: record(step, row, basin=basins[step % 256])


class RecorderAlone(_Ours):
    """The recorder with no rules, given the row as a mapping; its spool is shipped behind it."""

    title = "Recorder.record(step, row), no rules"
    hot_calls = 20_000
    bulk_rows = 100_000
    keeps = False

    def open(self) -> Log:
        from qigstore.recording.recorder import Recorder
        from qigstore.recording.writer import Writer

        self._watch()
        self.spool = new_spool(self.place)
        self.store = open_store(self.place.dsn)
        told = self.spool.identity
        session = self.store.sessions.open(told.session, {})
        attempt = self.store.sessions.open_attempt(
            session.id, told.attempt, host=told.host, pid=told.pid, config={}
        )
        epoch = self.store.writers.register(told.writer, told.attempt, 0).epoch
        self.writer = Writer(
            self.store, self.spool, session_id=session.id, attempt=attempt.number, epoch=epoch
        )
        self.writer.start()
        recorder: Recorder[Any] = Recorder(self.spool)
        return recorder.record

    def settle(self) -> None:
        self.writer.flush(300)

    def close(self) -> None:
        self.writer.close(120)
        self.store.close()
        self.reader.close()


def new_spool(place: Place) -> Spool:
    """A spool of its own in the place's folder."""
    from qigstore.recording.spool import Spool, SpoolIdentity

    told = SpoolIdentity(
        writer=uuid4(),
        attempt=uuid4(),
        session=place.name,
        rank=0,
        config={},
        host="bench",
        pid=os.getpid(),
        created_at=datetime.now(UTC),
    )
    return Spool.create(place.folder / "spool", told)


# -- floors of one call ----------------------------------------------------------------------

_FRAME = struct.Struct("@IIHBbIQqq20d")
_FILE_BYTES = 64 << 20


class _Floor(Subject):
    """Costs of a call only: nothing is shipped, and nothing looked for."""

    hot_calls = 20_000
    bulk_rows = watched = 0
    keeps = False

    def _make_file(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self.file = os.open(self.place.folder / "frames", flags, 0o600)
        os.posix_fallocate(self.file, 0, _FILE_BYTES)
        self.at = 0

    def settle(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        os.close(self.file)

    def _next(self) -> int:
        at, self.at = self.at, (self.at + _FRAME.size) % (_FILE_BYTES - _FRAME.size)
        return at


class EmptyFunction(_Floor):
    """What Python takes to hand 20 keywords to a function that does nothing."""

    title = "floor: an empty function(step, **row)"

    def open(self) -> Log:
        self._make_file()
        return lambda step, row: _nothing(step, **row)


def _nothing(step: int, /, **metrics: float) -> None:
    pass


class MappedFrame(_Floor):
    """The frame of one row by `struct` and `crc32` into a mapped file: no checks, no lock."""

    title = "floor: frame and CRC into a mapping"

    def open(self) -> Log:
        self._make_file()
        self.map = mmap.mmap(self.file, _FILE_BYTES)
        self.view = memoryview(self.map)
        self.words = self.view.cast("I")
        return self._log

    def _log(self, step: int, row: dict[str, float], /) -> object:
        at = self._next()
        _FRAME.pack_into(self.map, at, 1, 0, 25, 1, -1, 1, step, step, time_ns(), *row.values())
        self.words[(at >> 2) + 1] = crc32(self.view[at + 8 : at + _FRAME.size])
        return None


class WrittenFrame(_Floor):
    """The same frame by one `pwrite` a row: the other way without a buffer in the process."""

    title = "floor: frame and CRC by one pwrite a row"

    def open(self) -> Log:
        self._make_file()
        return self._log

    def _log(self, step: int, row: dict[str, float], /) -> object:
        at = self._next()
        body = _FRAME.pack(1, 0, 25, 1, -1, 1, step, step, time_ns(), *row.values())
        head = struct.pack("@II", 1, crc32(memoryview(body)[8:]))
        return os.pwritev(self.file, (head, memoryview(body)[8:]), at)


OURS: Sequence[type[Subject]] = (RunRecord, RunKeywords, RunBasin, RecorderAlone)
FLOORS: Sequence[type[Subject]] = (EmptyFunction, MappedFrame, WrittenFrame)
