"""The folders of checkpoints while a command runs, and the database where one answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from qigstore.cli.context import opened_store
from qigstore.errors import StoreUnavailable
from qigstore.place import Place, folders_only

__all__ = ["Place", "folders_only", "opened_place"]


@contextmanager
def opened_place() -> Iterator[Place]:
    """The folders and the database; where none answers, the folders alone, said on stderr."""
    place = folders_only()
    with ExitStack() as stack:
        try:
            store = stack.enter_context(opened_store(place.settings))
        except StoreUnavailable as away:
            sys.stderr.write(f"qigstore: {away} The folders below {place.folders.root} answer.\n")
            store = None
        yield replace(place, store=store)
