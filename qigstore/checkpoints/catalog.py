"""What lies below a root, whatever the database says: sessions, ids, remains, what is not ours."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from qigstore.checkpoints.base import BaseStore
from qigstore.checkpoints.disk import Disk
from qigstore.checkpoints.folders import MARKER, Folders
from qigstore.checkpoints.remote_store import RemoteStore
from qigstore.checkpoints.store import CheckpointStore
from qigstore.errors import CheckpointError, InvalidInput, NotFound
from qigstore.records import Location

__all__ = ["BaseCatalog", "Catalog", "Found", "Quarantined", "catalog_of"]

_DIGITS_MIN, _NAMED_MAX = 4, 5
_HEX = set("0123456789abcdef")
_QUARANTINE = ".quarantine"
_REMAINS = (".tmp-", ".trash-")
_SAID_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint's place: its session by name, its id and its folder."""

    session: str
    id: UUID
    path: Location


@dataclass(frozen=True, slots=True)
class Quarantined:
    """What was put aside, and the reason that was noted beside it."""

    session: str
    path: Location
    id: UUID | None
    reason: str | None


class BaseCatalog(ABC):
    """What lies below a store's root, for reading; nothing is changed."""

    def __init__(self, store: BaseStore) -> None:
        self.store = store

    @abstractmethod
    def sessions(self) -> Mapping[str, Location]:
        """The sessions whose folder carries this store's marker, by name."""

    @abstractmethod
    def strangers(self) -> Sequence[Location]:
        """What lies in the root without a marker of this store: never touched."""

    @abstractmethod
    def remains(self, session: str) -> Sequence[Location]:
        """Unfinished saves and removals of a session; some may be under way right now."""

    @abstractmethod
    def quarantined(self, session: str) -> list[Quarantined]:
        """What was put aside in a session, with the reasons."""

    def find(self, text: str) -> Found:
        """The checkpoint of that id, or whose id alone begins with those hex digits (4 or more).

        Raises:
            InvalidInput: no hex digits, or too few.
            NotFound: there is none, or several begin so; the error names the nearest.
        """
        digits = text.strip().lower().replace("-", "")
        if len(digits) < _DIGITS_MIN or not set(digits) <= _HEX:
            raise InvalidInput("checkpoint id", text, f"{_DIGITS_MIN} or more of its hex digits")
        every = self.every()
        hits = [item for item in every if item.id.hex.startswith(digits)]
        if len(hits) == 1:
            return hits[0]
        if hits:
            named = [str(item.id) for item in hits[:_NAMED_MAX]]
            more = " and more" if len(hits) > _NAMED_MAX else ""
            hint = f"{len(named)} ids{more} begin so; give more digits"
            raise NotFound("checkpoint", text, near=named, hint=hint)
        every.sort(key=lambda item: -_shared(item.id.hex, digits))
        near = [str(item.id) for item in every[:2]]
        raise NotFound("checkpoint", text, near=near, hint=f"Looked below {self.store.root}")

    def every(self) -> list[Found]:
        """Every checkpoint's folder, whole or not, by session and id."""
        return [
            Found(session, key, self.store.locate(session, key))
            for session in sorted(self.sessions())
            for key in sorted(self.store.ids(session))
        ]


class Catalog(BaseCatalog):
    """The folders below a root on a disk."""

    def __init__(self, store: CheckpointStore) -> None:
        super().__init__(store)
        self._root = store.root
        self._folders = Folders(store.root, Disk())

    def sessions(self) -> dict[str, Path]:
        """The sessions whose folder carries this store's marker, by name."""
        return {name: path for path, name in self._marked().items() if name is not None}

    def strangers(self) -> list[Path]:
        """What lies in the root without a marker of this store: never touched."""
        return [path for path, name in self._marked().items() if name is None]

    def remains(self, session: str) -> list[Path]:
        """Unfinished saves and removals of a session; some may be under way right now."""
        return [path for path in self._inside(session) if path.name.startswith(_REMAINS)]

    def quarantined(self, session: str) -> list[Quarantined]:
        """What was put aside in a session, with the reasons."""
        aside = self._folders.of(session) / _QUARANTINE
        found = []
        for path in sorted(aside.iterdir()) if aside.is_dir() else ():
            if path.is_dir() and not path.is_symlink():
                said = _said(path.with_name(f"{path.name}.json"))
                try:
                    key = UUID(str(said.get("id", path.name)))
                except ValueError:
                    key = None
                reason = said.get("reason")
                found.append(Quarantined(session, path, key, reason and str(reason)))
        return found

    def _marked(self) -> dict[Path, str | None]:
        """Each folder or file of the root, and the session that its marker names."""
        if not self._root.is_dir():
            return {}
        found: dict[Path, str | None] = {}
        for path in sorted(self._root.iterdir()):
            if path.name.startswith(MARKER):
                continue
            found[path] = None
            if path.is_dir() and not path.is_symlink():
                found[path] = self._session(path)
        return found

    def _session(self, folder: Path) -> str | None:
        try:
            fields = self._folders.marker(folder)
            ours = str(self._folders.find_id())
        except (CheckpointError, OSError):
            return None  # what cannot be read proves nothing
        name = fields.get("session")
        if fields.get("store") != ours or not isinstance(name, str):
            return None
        return name if self._folders.of(name) == folder else None

    def _inside(self, session: str) -> list[Path]:
        folder = self._folders.of(session)
        return sorted(folder.iterdir()) if folder.is_dir() else []


def catalog_of(store: BaseStore) -> BaseCatalog:
    """The catalog of a store, whatever it is."""
    if isinstance(store, CheckpointStore):
        return Catalog(store)
    from qigstore.checkpoints.remote_catalog import RemoteCatalog

    assert isinstance(store, RemoteStore)
    return RemoteCatalog(store)


def _shared(one: str, other: str) -> int:
    """How many digits two ids have in common from the start."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _said(path: Path) -> dict[str, Any]:
    """What was noted beside a quarantined folder; a note that cannot be read says nothing."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_SAID_BYTES_MAX))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
