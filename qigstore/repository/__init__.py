"""The repository: everything the store keeps, one noun a file, each method one transaction."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from sqlalchemy import select

from qigstore.database import schema
from qigstore.repository.audit import Audit
from qigstore.repository.basins import Basins
from qigstore.repository.batches import AppendResult, RowGroup, TelemetryBatch
from qigstore.repository.checkpoints import Checkpoints
from qigstore.repository.curves import Curve, Curves
from qigstore.repository.decisions import Decisions
from qigstore.repository.events import Events
from qigstore.repository.exports import Exports
from qigstore.repository.feed import Feed
from qigstore.repository.overview import Overview
from qigstore.repository.sessions import Sessions
from qigstore.repository.stops import Stops
from qigstore.repository.telemetry import RowCount, Telemetry
from qigstore.repository.timelines import Span, Timeline, Timelines
from qigstore.repository.tokens import Tokens
from qigstore.repository.writers import Writers, WriterState

if TYPE_CHECKING:
    from qigstore.database.engine import Database

__all__ = [
    "AppendResult",
    "Curve",
    "RowCount",
    "RowGroup",
    "Span",
    "Store",
    "TelemetryBatch",
    "Timeline",
    "WriterState",
    "open_store",
]


class Store:
    """All repositories on one database; any number of threads may use it.

    Attributes:
        sessions, writers, telemetry, basins, curves, timelines, overview, events, stops,
            checkpoints, decisions, exports, feed, tokens, audit: one repository a noun.
        database: where they keep it.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.sessions = Sessions(database)
        self.writers = Writers(database)
        self.telemetry = Telemetry(database)
        self.basins = Basins(database)
        self.curves = Curves(database)
        self.timelines = Timelines(database)
        self.overview = Overview(database)
        self.events = Events(database)
        self.stops = Stops(database)
        self.checkpoints = Checkpoints(database)
        self.decisions = Decisions(database)
        self.exports = Exports(database)
        self.feed = Feed(database, self.telemetry)
        self.tokens = Tokens(database)
        self.audit = Audit(database)
        self._id: UUID | None = None

    @property
    def id(self) -> UUID:
        """Which store this is: made with the schema, the same from every host and after a move."""
        if self._id is None:
            with self.database.begin() as connection:
                self._id = connection.execute(select(schema.store.c.id)).scalar_one()
        return self._id

    def __repr__(self) -> str:
        return f"Store({self.database.address!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; the embedded server stops if this was its last user."""
        self.database.dispose()


def open_store(**settings: Any) -> Store:
    """Open the store that the settings name: `dsn`, `home` and the others of `qigstore.Settings`.

    Raises:
        ConfigurationError: a setting that cannot be used.
        StoreUnavailable: the database cannot be reached, or the embedded server not started.
        SchemaOutdated: its schema is not this version's.
    """
    from qigstore.database.engine import open_database
    from qigstore.settings import load_settings

    return Store(open_database(load_settings(**settings)))
