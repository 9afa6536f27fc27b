"""A session into a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from qigstore.exchange.files import replacing
from qigstore.exchange.formats import Exportable, Format, format_of

if TYPE_CHECKING:
    from qigstore.repository import Store
    from qigstore.repository.exports import ExportedRow
    from qigstore.settings import Settings

__all__ = ["ExportReport", "export_session", "export_spools"]


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What is in the file now (in a `.csv`: the rows alone)."""

    path: Path
    session: str
    rows: int
    attempts: int
    events: int
    checkpoints: int
    bytes: int


def export_session(
    store: Store,
    name: str,
    path: Path,
    *,
    force: bool = False,
    progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> ExportReport:
    """Write a session as it is at this moment into a file; `force` replaces one that is there.

    `progress` is told the rows done and the rows there are.

    Raises:
        NotFound: there is no such session.
        ConfigurationError: the file is there already, or its suffix names no format.
        OSError: the disk refuses; no part of a file is left.
    """
    written = format_of(path)
    with replacing(path, force=force) as file, store.exports.snapshot(name) as snapshot:
        return _write(file, path, written, snapshot, progress)


def export_spools(
    settings: Settings,
    name: str,
    path: Path,
    *,
    force: bool = False,
    progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> ExportReport:
    """Write what lies in the offline spools of a session into a file; asks no database.

    Raises:
        NotFound: nothing of that session waits there.
        SpoolError, ConfigurationError, OSError: as above.
    """
    from qigstore.exchange.spools import SpoolSnapshot

    written = format_of(path)
    with replacing(path, force=force) as file:
        return _write(file, path, written, SpoolSnapshot(settings, name), progress)


def _write(
    file: BinaryIO,
    path: Path,
    written: Format,
    snapshot: Exportable,
    progress: Callable[[int, int], object],
) -> ExportReport:
    written.write(file, snapshot, _counted(snapshot, progress))
    session = snapshot.session
    return ExportReport(
        path=path,
        session=session.name,
        rows=snapshot.rows,
        attempts=len(session.attempts),
        events=len(session.events),
        checkpoints=len(session.checkpoints),
        bytes=file.tell(),
    )


def _counted(
    snapshot: Exportable, progress: Callable[[int, int], object]
) -> Iterator[Sequence[ExportedRow]]:
    done = 0
    for batch in snapshot.batches():
        yield batch
        done += len(batch)
        progress(done, snapshot.rows)
