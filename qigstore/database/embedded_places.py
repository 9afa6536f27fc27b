"""Where the embedded server's files are; makes the folders and the password, starts nothing.

::

    <root>/            0700
    ├── data/          the cluster; data.new while it is being made
    ├── run/           the Unix socket; a short folder below /tmp where <root> is too long for one
    ├── pgpass         0600, libpq's password file, made once
    ├── server.log     what the server says
    └── lease, start.lock, keeper.lock     see embedded_keeper.py
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import NamedTuple

from qigstore.errors import EmbeddedServerError

__all__ = ["USER", "Places", "failure"]

USER = "qigstore"
_SOCKET_NAME = "/.s.PGSQL.65535"
_SOCKET_BYTES_MAX = 106
_SHORT = Path("/tmp")  # noqa: S108 - deterministic for every process of the user; see _private


def failure(root: Path, reason: str, hint: str) -> EmbeddedServerError:
    """An error about the embedded server of this folder."""
    return EmbeddedServerError(f"the embedded server in {root}", reason, hint=hint)


def _private(folder: Path, root: Path) -> Path:
    """Make a folder that only we can enter, or refuse one that somebody else prepared."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise failure(
            root,
            f"its socket folder {folder} cannot be made: {error}",
            "Use a shorter QIGSTORE_HOME.",
        ) from error
    owned = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not owned or stat.S_IMODE(found.st_mode) & 0o077:
        raise failure(
            root,
            f"its socket folder {folder} is not a private folder of uid {os.geteuid()} "
            f"(owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o})",
            "Remove it, or use a shorter QIGSTORE_HOME, so that the socket fits below it.",
        )
    return folder


class Places(NamedTuple):
    """The files of one embedded server."""

    root: Path

    @property
    def data(self) -> Path:
        """The cluster."""
        return self.root / "data"

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.root / "server.log"

    @property
    def passfile(self) -> Path:
        """libpq's password file."""
        return self.root / "pgpass"

    @property
    def sockets(self) -> Path:
        """Folder of the Unix socket, whose whole path the kernel limits to 107 bytes."""
        near = self.root / "run"
        if len(os.fsencode(near)) + len(_SOCKET_NAME) <= _SOCKET_BYTES_MAX:
            return near
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        return _SHORT / f"qigstore-{os.geteuid()}-{digest}"

    def prepare(self) -> None:
        """Make the root folder.

        Raises:
            EmbeddedServerError: it cannot be made.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self.unusable(error) from error

    def make_socket_folder(self) -> None:
        """Make the folder of the socket, private; the start lock is held and no keeper lives.

        Raises:
            EmbeddedServerError: it cannot be made, or somebody else made it first.
        """
        _private(self.sockets, self.root)

    def unusable(self, error: OSError) -> EmbeddedServerError:
        """What to say when the folder cannot be written."""
        return failure(
            self.root,
            f"its folder cannot be used: {error}",
            "Set QIGSTORE_HOME to a folder you can write (with room for about 100 MB), or name a "
            "running server with QIGSTORE_DSN.",
        )

    def make_password(self) -> None:
        """Write a generated password once, into a file of mode 0600; the start lock is held."""
        if self.passfile.exists():
            return
        if self.data.exists():
            raise failure(
                self.root,
                f"{self.passfile} is gone, and with it the password of the cluster",
                f"Restore it from a backup (one line `*:*:*:{USER}:<password>`, mode 0600).",
            )
        fresh = self.passfile.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"*:*:*:{USER}:{secrets.token_urlsafe(32)}\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.passfile)

    def password(self) -> str:
        """The generated password."""
        return self.passfile.read_text().rstrip("\n").rpartition(":")[2]

    def cluster_major(self) -> int | None:
        """PostgreSQL version of the cluster, or None where there is none yet.

        Raises:
            EmbeddedServerError: the folder is there, but it is no cluster.
        """
        if not self.data.exists():
            return None
        try:
            return int((self.data / "PG_VERSION").read_text().split(".")[0])
        except (OSError, ValueError) as error:
            raise failure(
                self.root,
                f"{self.data} is not a PostgreSQL cluster ({error})",
                "Restore the folder from a backup, or move it away to start with an empty one.",
            ) from error
