"""What commands share: the settings, the store while a command runs, names for completion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from qigstore.errors import QigstoreError

if TYPE_CHECKING:
    from qigstore.repository import Store
    from qigstore.settings import Settings

__all__ = ["MaybeSessionName", "SessionName", "opened_store"]


@contextmanager
def opened_store(settings: Settings | None = None) -> Iterator[Store]:
    """The store that the settings name, closed at the end of the block."""
    from qigstore.database.engine import open_database
    from qigstore.repository import Store
    from qigstore.settings import load_settings

    with Store(open_database(settings or load_settings())) as store:
        yield store


def _session_names(incomplete: str) -> list[str]:
    """Names for the shell's completion: only from a database that answers at once."""
    from qigstore.settings import load_settings

    try:
        settings = load_settings(connect_timeout_s=1)
        if settings.dsn is None:
            from qigstore.database.embedded import status

            if not status(settings.server_root).running:
                return []
        with opened_store(settings) as store:
            names = [session.name for session in store.sessions.list(limit=200)]
    except (QigstoreError, OSError):
        return []  # a shell that completes has nowhere to say why it cannot
    return [name for name in names if name.startswith(incomplete)]


_SESSION = typer.Argument(
    metavar="SESSION", help="Name of a session.", autocompletion=_session_names
)
SessionName = Annotated[str, _SESSION]
MaybeSessionName = Annotated[str | None, _SESSION]
