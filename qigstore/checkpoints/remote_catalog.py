"""What lies below a URL, whatever the database says: sessions, ids, remains, what is not ours."""

from __future__ import annotations

import json
from typing import Any

from qigstore.checkpoints.catalog import BaseCatalog, Quarantined
from qigstore.checkpoints.folders import MARKER, session_folder
from qigstore.checkpoints.format import MANIFEST
from qigstore.checkpoints.remote_store import QUARANTINE, RemoteStore
from qigstore.errors import CheckpointCorrupt
from qigstore.records import Url

__all__ = ["RemoteCatalog"]


class RemoteCatalog(BaseCatalog):
    """The objects below a URL."""

    def __init__(self, store: RemoteStore) -> None:
        super().__init__(store)
        self._remote = store

    def sessions(self) -> dict[str, Url]:
        """The sessions whose folder carries this store's marker, by name."""
        return {name: url for url, name in self._marked().items() if name is not None}

    def strangers(self) -> list[Url]:
        """What lies in the root without a marker of this store: never touched."""
        return [url for url, name in self._marked().items() if name is None]

    def remains(self, session: str) -> list[Url]:
        """Uploads and removals of a session that did not end, or are under way."""
        listed = self._remote.listed(session).items()
        keys = [key for key, names in listed if MANIFEST not in names]
        return [self._remote.locate(session, key) for key in sorted(keys)]

    def quarantined(self, session: str) -> list[Quarantined]:
        """What was put aside in a session, with the reasons."""
        found = []
        for key, names in sorted(self._remote.listed(session).items()):
            if QUARANTINE in names:
                url = self._remote.locate(session, key)
                reason = self._fields(url / QUARANTINE).get("reason")
                found.append(Quarantined(session, url, key, reason and str(reason)))
        return found

    def _marked(self) -> dict[Url, str | None]:
        """Each folder or object of the root, and the session that its marker names."""
        ours, found = str(self._remote.id), {}
        for name in sorted({name.partition("/")[0] for name in self._remote.files.names("")}):
            if name.startswith(MARKER):
                continue
            fields = self._fields(self._remote.root / name / MARKER)
            session = fields.get("session")
            known = isinstance(session, str) and session_folder(session) == name
            good = known and fields.get("store") == ours
            found[self._remote.root / name] = session if good else None
        return found

    def _fields(self, url: Url) -> dict[str, Any]:
        """The fields of a small object; what cannot be read says, and proves, nothing."""
        name = url.removeprefix(f"{self._remote.root}/")
        try:
            fields = json.loads(self._remote.files.small(name))
        except (CheckpointCorrupt, OSError, ValueError):
            return {}
        return fields if isinstance(fields, dict) else {}
