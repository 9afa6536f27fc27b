"""Every error this package raises on purpose.

Each says what was given, what was expected and what to do next; the data rides on the exception
as attributes, so a caller never parses a message.

::

    QigstoreError
    ├── ConfigurationError          a setting or an argument cannot be used     (also ValueError)
    ├── InvalidInput                a value at the boundary cannot be recorded  (also ValueError)
    ├── NotFound                    no session, checkpoint or event of that name (also LookupError)
    ├── SessionBusy                 another living process records this session
    ├── NotRunning                  no living process records this session, so none can be stopped
    ├── RankError                   a rank of a distributed run is gone, or silent
    ├── StoreError
    │   ├── StoreUnavailable        no database answers
    │   │   ├── EmbeddedServerError the local server cannot be started
    │   │   └── StoreDenied         it answers, and its role lacks a right
    │   ├── SchemaOutdated          the database's schema is not the one this version speaks
    │   ├── StaleWriter             a later process took this writer's place, or rows are missing
    │   └── SqlError                the server refused a statement that a person typed
    ├── SpoolError
    │   ├── SpoolFull               the disk or the spool's own limit is used up
    │   └── SpoolBusy               a living process owns this spool
    ├── NotStored                   recorded rows are still in the spool, not yet in the database
    └── CheckpointError
        ├── CheckpointCorrupt       what is on disk is not what was saved
        ├── CheckpointFormatError   written by a newer version, or not a checkpoint at all
        ├── CheckpointMismatch      good, and not of the shape of what it is loaded into
        ├── CheckpointUnsupported   good, and this process lacks what it needs (torch, JAX)
        └── NoHealthyCheckpoint     nothing to recover from, with every candidate's reason

    EmergencyStop (SystemExit)      the run stopped itself; carries the process's exit status
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "EXIT_EMERGENCY",
    "CheckpointCorrupt",
    "CheckpointError",
    "CheckpointFormatError",
    "CheckpointMismatch",
    "CheckpointUnsupported",
    "ConfigurationError",
    "EmbeddedServerError",
    "EmergencyStop",
    "InvalidInput",
    "NoHealthyCheckpoint",
    "NotFound",
    "NotRunning",
    "NotStored",
    "QigstoreError",
    "RankError",
    "SchemaOutdated",
    "SessionBusy",
    "SpoolBusy",
    "SpoolError",
    "SpoolFull",
    "SqlError",
    "StaleWriter",
    "StoreDenied",
    "StoreError",
    "StoreUnavailable",
]

EXIT_EMERGENCY = 75
"""Exit status of a run that stopped itself (``EX_TEMPFAIL``: "start me again")."""


class QigstoreError(Exception):
    """Base of every error of this package."""


class ConfigurationError(QigstoreError, ValueError):
    """A setting or an argument cannot be used as given."""


class InvalidInput(QigstoreError, ValueError):
    """A value handed to the recording boundary cannot be recorded; nothing of it was kept.

    Attributes:
        name: the metric or argument.
        value: what was given.
    """

    def __init__(self, name: str, value: object, expected: str) -> None:
        self.name, self.value, self.expected = name, value, expected
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        super().__init__(
            f"{name[:80]!r}: got {shown} ({type(value).__name__}); expected {expected}"
        )


class NotFound(QigstoreError, LookupError):
    """Nothing of that kind has that name."""

    def __init__(
        self, kind: str, name: object, *, near: Sequence[str] = (), hint: str = ""
    ) -> None:
        self.kind, self.name, self.near = kind, name, tuple(near)
        text = f"no {kind} named {str(name)[:120]!r}"
        if near:
            text += f"; the nearest are {', '.join(near)}"
        super().__init__(f"{text}. {hint}".rstrip(". ") + ".")


class SessionBusy(QigstoreError):
    """Another living process records this session."""

    def __init__(self, session: str, owner: str) -> None:
        self.session, self.owner = session, owner
        super().__init__(
            f"session {session!r} is being recorded by {owner}. Wait for it to end, choose another "
            "session name, or pass takeover=True to shut that process out."
        )


class NotRunning(QigstoreError):
    """No process records this session now.

    Attributes:
        session: its name.
        status: of its newest attempt; None where it has none.
        reason: how that one ended, where it is known.
    """

    def __init__(self, session: str, status: str | None, reason: str | None) -> None:
        self.session, self.status, self.reason = session, status, reason
        how = "it was never started" if status is None else f"its newest attempt is {status}"
        how += f" ({reason})" if reason else ""
        if status == "lost":
            how += ": its process has not been heard of within the heartbeat limit"
        super().__init__(
            f"session {session!r} is not running: {how}. See `qigstore sessions show {session}`."
        )


class RankError(QigstoreError):
    """A rank of a distributed run is gone, or did not answer in time."""


class StoreError(QigstoreError):
    """Base of every error of the database side."""


class StoreUnavailable(StoreError):
    """No database answers at the address given.

    Attributes:
        address: the DSN with its password masked.
        reason: what the driver said.
    """

    def __init__(self, address: str, reason: str, *, hint: str = "") -> None:
        self.address, self.reason = address, reason
        todo = hint or "Check QIGSTORE_DSN and that the server runs (`qigstore db status`)."
        said = reason.rstrip(".?! ")
        super().__init__(f"no database at {address}: {said}. {todo}")


class EmbeddedServerError(StoreUnavailable):
    """The local PostgreSQL server could not be found, started or reached."""


class StoreDenied(StoreUnavailable):
    """The database answers, and the role that logged in lacks a right there."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.args = (
            f"the database at {address} denies this role: {reason}. Connect as the role that owns "
            "the schema `qigstore`, or have it grant the right.",
        )


class SchemaOutdated(StoreError):
    """The database's schema revision is not the one this version speaks.

    Attributes:
        found: revision in the database, or None where there is no schema.
        expected: revision of this version.
    """

    def __init__(self, address: str, found: str | None, expected: str) -> None:
        self.address, self.found, self.expected = address, found, expected
        state = f"is at revision {found}" if found else "has no qigstore schema"
        super().__init__(
            f"the database at {address} {state}; this version needs {expected}. "
            "Run `qigstore db upgrade` (or, if the database is newer, upgrade qigstore)."
        )


class StaleWriter(StoreError):
    """The fence refused a batch: it is not this writer's turn, or not this batch's.

    Attributes:
        epoch, current: the epoch it came with, and the database's.
    """

    def __init__(
        self, writer: object, epoch: int, current: int | None, *, gap: str | None = None
    ) -> None:
        self.writer, self.epoch, self.current = writer, epoch, current
        if gap is not None and current == epoch:
            super().__init__(f"writer {writer}: {gap}; ask for its state before sending again")
            return
        super().__init__(
            f"writer {writer} holds epoch {epoch}, the database is at {current}: "
            "a later process took over. This process must stop recording."
        )


class SqlError(StoreError):
    """The server refused a statement that a person typed; nothing of its transaction was kept.

    Attributes:
        sqlstate: the server's code, such as "42P01" (undefined table).
    """

    def __init__(self, words: str, sqlstate: str | None) -> None:
        self.sqlstate = sqlstate
        hint = ""
        if sqlstate == "25006":
            hint = ". `qigstore sql --write` allows statements that change something"
        super().__init__(f"{words}{hint}")


class SpoolError(QigstoreError):
    """Base of every error of the spool."""


class SpoolFull(SpoolError):
    """The spool cannot take another segment."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(
            f"the spool {path} is full ({reason}). Rows are dropped and counted in run.health "
            "until there is room: free the disk, or raise spool_bytes_max."
        )


class SpoolBusy(SpoolError):
    """A living process owns this spool."""

    def __init__(self, path: Path, owner: str) -> None:
        self.path, self.owner = path, owner
        super().__init__(f"the spool {path} is owned by {owner}, which is alive")


class NotStored(QigstoreError):
    """Recorded rows are not in the database yet; they are safe in the spool.

    Attributes:
        rows: how many rows.
        spool: the folder that holds them.
    """

    def __init__(self, rows: int, spool: Path, reason: str) -> None:
        self.rows, self.spool, self.reason = rows, spool, reason
        super().__init__(
            f"{rows} recorded rows are not stored yet ({reason}). They are kept in {spool} and are "
            "shipped by the next qigstore process of this user that reaches the database."
        )


class CheckpointError(QigstoreError):
    """Base of every error of checkpoints and recovery."""


class CheckpointCorrupt(CheckpointError):
    """What is on disk is not what was saved; it is never loaded.

    Attributes:
        path: the file, or its URL.
        expected, found: digest, size or field that differs.
    """

    def __init__(self, path: Path | str, what: str, *, expected: object, found: object) -> None:
        self.path, self.what, self.expected, self.found = path, what, expected, found
        super().__init__(
            f"{path}: {what}: expected {expected}, found {found}. "
            "Restore another one (`qigstore checkpoints list`)."
        )

    @property
    def brief(self) -> str:
        """The same for a table: the file without its folder, digests by their first digits."""
        sides = [str(side) for side in (self.expected, self.found)]
        expected, found = (f"{side[:12]}…" if len(side) > 60 else side for side in sides)
        name = str(self.path).rpartition("/")[2]
        return f"{name}: {self.what}: expected {expected}, found {found}"


class CheckpointFormatError(CheckpointError):
    """Not a checkpoint this version can read."""

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path}: {reason}")


class CheckpointMismatch(CheckpointError):
    """A good checkpoint does not fit what it is to be loaded into, or lacks the part asked for.

    Attributes:
        differences: each with its place, what was expected and what was found.
    """

    def __init__(self, what: str, differences: Sequence[str]) -> None:
        self.differences = tuple(differences)
        shown = "".join(f"\n  - {line}" for line in self.differences[:20])
        more = len(self.differences) - 20
        super().__init__(f"{what}:{shown}" + (f"\n  … and {more} more" if more > 0 else ""))


class CheckpointUnsupported(CheckpointError):
    """A good checkpoint needs a library or a setting that this process lacks."""


class NoHealthyCheckpoint(CheckpointError):
    """Nothing to recover from.

    Attributes:
        session: the session's name.
        decision: the recorded decision, with every candidate and why it was refused.
    """

    def __init__(self, session: str, reasons: Sequence[str], *, decision: Any = None) -> None:
        self.session, self.reasons, self.decision = session, tuple(reasons), decision
        listed = "".join(f"\n  - {reason}" for reason in reasons) or " (there are none)"
        super().__init__(
            f"session {session!r} has no healthy checkpoint to recover from. Candidates:{listed}\n"
            "Pass default=... to start afresh, or look at `qigstore checkpoints list`."
        )


class EmergencyStop(SystemExit):
    """The run stopped itself at a safe point; uncaught, the process ends with `status`.

    It is a `SystemExit`, so that a script that does not handle it ends at once with the right
    status, and no `except Exception` in a training loop takes it for an ordinary failure.

    Attributes:
        reason: what was noticed, in words.
        event: the stored event, or None where the stop was asked for from outside.
        status: the exit status.
    """

    def __init__(self, reason: str, *, event: Any = None, status: int = EXIT_EMERGENCY) -> None:
        self.reason, self.event, self.status = reason, event, status
        super().__init__(status)

    def __str__(self) -> str:
        return f"stopped: {self.reason} (exit status {self.status})"
