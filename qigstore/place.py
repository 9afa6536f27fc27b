"""The checkpoints as seen from outside a run: the folders, and the database where one answers.

The folders are the truth and the rows an index to them, so that most of it goes on without the
database.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from qigstore.errors import NotFound

if TYPE_CHECKING:
    from qigstore.checkpoints import CheckpointManager, Retention
    from qigstore.checkpoints.base import BaseStore
    from qigstore.checkpoints.catalog import BaseCatalog, Found
    from qigstore.records import Candidate, Checkpoint
    from qigstore.repository import Store
    from qigstore.settings import Settings

__all__ = ["Place", "folders_only"]


@dataclass(frozen=True)
class Place:
    """The settings' folders of checkpoints, and their store: None where no database answers."""

    settings: Settings
    folders: BaseStore
    catalog: BaseCatalog
    store: Store | None

    def session(self, name: str) -> tuple[int, int]:
        """A session's id in the database (0 without one) and the number of its newest attempt.

        Raises:
            NotFound: neither the database nor the folders know it; the nearest are named.
        """
        if self.store is not None:
            found = self.store.sessions.get(name)
            return found.id, found.attempts
        from qigstore.repository.texts import near

        known = sorted(self.catalog.sessions())
        if name not in known:
            hint = f"Looked below {self.folders.root}; the database is away"
            raise NotFound("session", name, near=near(name, known), hint=hint)
        return 0, max((item.attempt for item in self.folders.scan(name)), default=0)

    def manager(self, name: str, retention: Retention | None = None) -> CheckpointManager:
        """The manager of a session's checkpoints, judged as its runs judge them.

        Raises:
            NotFound: there is no such session.
        """
        from qigstore.checkpoints import CheckpointManager, Retention
        from qigstore.link import FolderRows, logged_events

        session_id, attempt = self.session(name)
        rows: Any = FolderRows(self.folders, name, partial(logged_events, self.settings, name))
        manager = CheckpointManager(
            self.folders,
            rows if self.store is None else self.store.checkpoints,
            session_id=session_id,
            session_name=name,
            attempt=attempt,
            retention=retention or Retention(settle_steps=self.settings.settle_steps),
            phi_floor=self.settings.phi_floor,
        )
        if self.store is not None:
            for source in [a.resumed_from for a in self.store.sessions.attempts(session_id)][-1:]:
                if source is not None:
                    manager.protect(source)
        return manager

    def health(self, name: str) -> list[Candidate]:
        """The candidates of recovery, in the order in which it would try them."""
        manager = self.manager(name)
        try:
            return manager.candidates(limit=100_000)
        finally:
            manager.close()

    def get(self, text: str) -> tuple[str, Checkpoint]:
        """A checkpoint by the start of its id, and the name of its session: its row, else its
        folder.

        Raises:
            NotFound: neither is there, or several begin so.
        """
        if self.store is not None:
            try:
                found = self.store.checkpoints.get(text)
            except NotFound:
                if not self.catalog.sessions():
                    raise
            else:
                return self.store.sessions.by_id(found.session_id).name, found
        place = self.catalog.find(text)
        return place.session, self.folders.record(place.path)

    def found(self, text: str) -> Found:
        """A checkpoint's folder by the start of its id.

        Raises:
            NotFound: no folder of that id lies here; the error says whether a row knows of one.
        """
        try:
            return self.catalog.find(text)
        except NotFound as error:
            if self.store is None or "more digits" in str(error):
                raise
            row = self.store.checkpoints.get(text)
            where = f"The database says that it is {row.status} and lies in {row.path}"
            raise NotFound("checkpoint's folder", row.id, hint=where) from error


def folders_only(settings: Settings | None = None) -> Place:
    """The folders alone; asks no database."""
    from qigstore.checkpoints import open_store
    from qigstore.checkpoints.catalog import catalog_of
    from qigstore.settings import load_settings

    settings = settings or load_settings()
    folders = open_store(settings.checkpoint_root)
    return Place(settings, folders, catalog_of(folders), None)
