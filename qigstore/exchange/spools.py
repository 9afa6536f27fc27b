"""A session as its spools hold it: an export with no database in reach.

It has what no database has heard of yet: rows (every record, also those that a later one of their
step replaced), attempts and events. A living process's rows are in it as far as they go.
Imported, and the spools shipped too, each row is stored once: the writers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from qigkernels.regimes import NO_REGIME, Regime
from qigstore.errors import NotFound
from qigstore.leftovers import OFFLINE
from qigstore.recording.event_log import EventLog
from qigstore.recording.spool.identity import SpoolIdentity, read_identity
from qigstore.recording.spool.leftover import LeftOver, spool_folders
from qigstore.recording.spool.notes import read_notes
from qigstore.recording.spool.reader import Rows, SpoolReader
from qigstore.records import STANDARD_METRICS
from qigstore.repository.exports import ExportedRow, ExportedSession, plain_record

if TYPE_CHECKING:
    from qigstore.settings import Settings

__all__ = ["SpoolSnapshot"]

_ROWS_AT_ONCE = 2_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SpoolSnapshot:
    """What lies in the offline spools of one session; see `repository.exports.Snapshot`.

    Raises:
        NotFound: no spool is of that session.
        SpoolError: nobody can tell whose a spool is.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        told = [(read_identity(f), f) for f in spool_folders(settings.spool_root / OFFLINE)]
        mine = sorted(
            (pair for pair in told if pair[0].session == name),
            key=lambda pair: (pair[0].number, pair[0].created_at),
        )
        if not mine:
            near = sorted({identity.session for identity, _ in told})
            raise NotFound("waiting session", name, near=near, hint="See `qigstore spool status`")
        self._numbers: dict[UUID, int] = {}
        for identity, _ in mine:
            # Two hosts may have guessed the same number.
            free = max([0, *self._numbers.values()]) + 1
            self._numbers.setdefault(identity.attempt, max(free, identity.number))
        self._spools = mine
        names: dict[str, None] = {}
        self.rows = 0
        for _, rows in self._groups():
            names |= dict.fromkeys(rows.names)
            self.rows += len(rows.seq)
        self.standard = tuple(metric for metric in STANDARD_METRICS if metric in names)
        custom = [metric for metric in names if metric not in self.standard]
        self.session = self._session(settings, custom)

    def _session(self, settings: Settings, custom: list[str]) -> ExportedSession:
        first = self._spools[0][0]
        log = EventLog(settings.event_root / OFFLINE)
        events = [
            plain_record({**asdict(logged.event), "attempt": self._numbers[logged.attempt_id]})
            for logged in log.pending()
            if logged.attempt_id is not None and logged.attempt_id in self._numbers
        ]
        return ExportedSession(
            name=first.session,
            config=first.config,
            created_at=min(i.created_at for i, _ in self._spools).astimezone(UTC).isoformat(),
            metrics=custom,
            attempts=[self._attempt(identity, folder) for identity, folder in self._spools],
            writers=[
                {"attempt": self._numbers[i.attempt], "rank": i.rank, "id": str(i.writer),
                 "repeated_rows": 0}
                for i, _ in self._spools
            ],
            events=events,
        )  # fmt: skip

    def _attempt(self, identity: SpoolIdentity, folder: Path) -> dict[str, Any]:
        notes = read_notes(folder)
        return plain_record({
            "id": identity.attempt,
            "number": self._numbers[identity.attempt],
            "status": notes.status or "lost",
            "host": identity.host,
            "pid": identity.pid,
            "config": identity.config,
            "started_at": identity.created_at,
            "heartbeat_at": notes.ended_at or identity.created_at,
            "ended_at": notes.ended_at,
            "resumed_from": notes.resumed_from,
            "resumed_step": notes.resumed_step,
            "reason": notes.reason,
            "exit_status": notes.exit_status,
        })  # fmt: skip

    def _groups(self) -> Iterator[tuple[SpoolIdentity, Rows]]:
        for identity, folder in self._spools:
            reader = SpoolReader(LeftOver(folder, identity.writer), identity.writer)
            while (take := reader.take(_ROWS_AT_ONCE)) is not None:
                for rows in take.groups:
                    yield identity, rows

    def batches(self) -> Iterator[list[ExportedRow]]:
        """Rows by attempt and sequence, some at a time."""
        for identity, folder in self._spools:
            reader = SpoolReader(LeftOver(folder, identity.writer), identity.writer)
            key = (self._numbers[identity.attempt], identity.rank)
            while (take := reader.take(_ROWS_AT_ONCE)) is not None:
                batch = [row for rows in take.groups for row in _rows(key, rows)]
                yield sorted(batch, key=lambda row: row.seq)


def _rows(key: tuple[int, int], rows: Rows) -> Iterator[ExportedRow]:
    for place, values in enumerate(rows.values.tolist()):
        code = int(rows.regime[place])
        metrics: Mapping[str, float] = dict(zip(rows.names, values, strict=True))
        yield ExportedRow(
            *key,
            step=int(rows.step[place]),
            seq=int(rows.seq[place]),
            recorded_at=_EPOCH + timedelta(microseconds=int(rows.time_ns[place]) // 1000),
            regime=None if code == NO_REGIME else Regime.from_code(code).value,
            metrics=metrics,
            basin=None if rows.basins is None else rows.basins[place].tolist(),
        )
