"""Who owns a spool: the lock held for life, and the identity by which others ship it later."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from qigstore.errors import SpoolBusy, SpoolError

__all__ = ["IDENTITY_FILE", "LOCK_FILE", "SpoolIdentity", "acquire_lock", "read_identity"]

LOCK_FILE = "owner.lock"
IDENTITY_FILE = "spool.json"


@dataclass(frozen=True, slots=True)
class SpoolIdentity:
    """Enough to register everything in a database later, without the process that recorded.

    Attributes:
        number: of the attempt, as far as the process knew (0: it did not).
        heartbeat_limit_s: how long it may be silent before it counts as lost.
        offline: no database had been reached when it was made.
        address: the database it waits for; None: any (then `offline`), or that of its folder.
    """

    writer: UUID
    attempt: UUID
    session: str
    rank: int
    config: Mapping[str, Any]
    host: str
    pid: int
    created_at: datetime
    number: int = 0
    heartbeat_limit_s: float = 30.0
    offline: bool = False
    address: str | None = None

    def to_json(self) -> bytes:
        """As the file `spool.json`."""
        told = {name: getattr(self, name) for name in self.__slots__}
        told |= {name: str(told[name]) for name in ("writer", "attempt")}
        told["config"] = dict(self.config)
        told["created_at"] = self.created_at.isoformat()
        return json.dumps(told, indent=1, default=str).encode()

    @classmethod
    def from_json(cls, data: bytes) -> SpoolIdentity:
        """Read `spool.json`.

        Raises:
            ValueError, KeyError, TypeError: it is not one.
        """
        told = json.loads(data)
        return cls(
            writer=UUID(told["writer"]),
            attempt=UUID(told["attempt"]),
            session=str(told["session"]),
            rank=int(told["rank"]),
            config=dict(told["config"]),
            host=str(told["host"]),
            pid=int(told["pid"]),
            created_at=datetime.fromisoformat(told["created_at"]),
            number=int(told.get("number", 0)),
            heartbeat_limit_s=float(told.get("heartbeat_limit_s", 30.0)),
            offline=bool(told.get("offline", False)),
            address=told.get("address"),
        )


def read_identity(folder: Path) -> SpoolIdentity:
    """The identity of the spool in `folder`.

    Raises:
        SpoolError: it is missing or cannot be read; the rows stay where they are.
    """
    try:
        return SpoolIdentity.from_json((folder / IDENTITY_FILE).read_bytes())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpoolError(
            f"{folder / IDENTITY_FILE} cannot be read ({error!r}), so nobody knows whose rows "
            "these are. The spool is left as it is."
        ) from error


def acquire_lock(folder: Path, *, create: bool = False) -> int:
    """Take the spool's lock for as long as the descriptor is open; the death of a process frees it.

    Raises:
        FileNotFoundError: there is no spool (any more).
        SpoolBusy: a living process holds it.
    """
    path = folder / LOCK_FILE
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink == 0:
            # Its last owner removed the folder between our open and our lock.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    except BlockingIOError:
        os.close(descriptor)
        raise SpoolBusy(folder, _owner(folder)) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _owner(folder: Path) -> str:
    try:
        identity = read_identity(folder)
    except SpoolError:
        return "an unknown process"
    return f"process {identity.pid} on {identity.host}"
