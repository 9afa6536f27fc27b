"""How an attempt ended, in the words of its row and of its exit status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qigstore.errors import EXIT_EMERGENCY

if TYPE_CHECKING:
    from qigstore.records import AttemptStatus
    from qigstore.rooms import Rooms

__all__ = ["outcome", "where_it_waits"]


def where_it_waits(rooms: Rooms) -> str:
    """Where the rows of an offline run are, for whoever wonders."""
    spool = rooms.link.spool
    return (
        f"qigstore: {spool.seq} rows of session {spool.identity.session!r} wait in {spool.folder}; "
        "the next run that reaches the database ships them, or `qigstore spool drain`\n"
    )


def outcome(
    rooms: Rooms, error: BaseException | None
) -> tuple[AttemptStatus, str | None, int | None]:
    """How the attempt ended: status, reason, exit status."""
    stop = rooms.emergency.stop
    if stop.requested:
        return "aborted", stop.reason, 128 + stop.signum if stop.signum else EXIT_EMERGENCY
    if error is None:
        return "completed", None, 0
    if isinstance(error, KeyboardInterrupt):
        return "aborted", "KeyboardInterrupt", 130
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        return ("failed" if code else "completed"), f"SystemExit({error.code!r})", code
    return "failed", f"{type(error).__name__}: {error}"[:2000], 1
