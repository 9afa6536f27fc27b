"""A session being recorded, its parts in the open: spool, recorder, background writer."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg

from qigstore.errors import NotStored
from qigstore.recording.recorder import Recorder
from qigstore.recording.spool import Spool, SpoolIdentity
from qigstore.recording.writer import Writer
from qigstore.repository import Store


def identity(session: str = "s") -> SpoolIdentity:
    """A writer that nobody knows yet."""
    return SpoolIdentity(
        writer=uuid4(), attempt=uuid4(), session=session, rank=0, config={}, host="here",
        pid=os.getpid(), created_at=datetime.now(UTC),
    )  # fmt: skip


class Line:
    """Registered in the database; `start` a writer on it when the fault is in place."""

    def __init__(self, root: Path, store: Store, name: str = "s", **spool_options: Any) -> None:
        self.root, self.store = root, store
        told = identity(name)
        self.session = store.sessions.open(name, {})
        self.attempt = store.sessions.open_attempt(
            self.session.id, told.attempt, host=told.host, pid=told.pid, config={}
        )
        self.spool = Spool.create(root, told, **spool_options)
        self.recorder: Recorder[Any] = Recorder(self.spool)
        self.epoch = store.writers.register(told.writer, told.attempt, 0).epoch
        self.writer: Writer | None = None

    def start(self, store: Any, **options: Any) -> Writer:
        """Ship through this store."""
        self.writer = Writer(
            store, self.spool, session_id=self.session.id, attempt=self.attempt.number,
            epoch=self.epoch, **{"flush_interval_s": 0.005, **options},
        )  # fmt: skip
        self.writer.start()
        return self.writer

    def close(self, timeout_s: float = 0.5) -> None:
        """Let go; what is left in the spool is said."""
        try:
            if self.writer is not None:
                self.writer.close(timeout_s)
        except NotStored as waiting:
            print(waiting)
        self.spool.close()


def arrivals(dsn: str, session_id: int) -> list[tuple[int, int, float]]:
    """Sequence, step and loss of every stored row of a session, by sequence."""
    query = "SELECT seq, step, loss FROM qigstore.all_telemetry WHERE session_id = %s ORDER BY seq"
    with psycopg.connect(dsn) as connection:
        return list(connection.execute(query, (session_id,)))
