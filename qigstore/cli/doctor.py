"""`qigstore checkpoints doctor`: whether rows and folders tell the same, and how to mend it.

The folders are the truth. A row is made, changed or marked; a folder that is damaged is put aside.
What is deleted is what dead processes left of a save or a removal, and only in a folder with this
store's marker, unlocked and holding nothing but a checkpoint's files; in doubt it stays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from qigstore.cli.output import Json, cut, print_json, print_table
from qigstore.cli.places import Place, opened_place
from qigstore.cli.progress import Progress
from qigstore.errors import CheckpointCorrupt, CheckpointError, NotFound

if TYPE_CHECKING:
    from qigstore.records import Checkpoint, Location
    from qigstore.repository import Store

__all__ = ["Finding", "doctor", "examine"]

EXIT_TO_MEND = 7
_ROWS_MAX = 1_000_000


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be (`mend` is set) or that is told for information."""

    what: str
    path: Path | str | None
    detail: str
    session: str | None = None
    id: UUID | None = None
    mend: Callable[[], str] | None = field(default=None, repr=False)


def doctor(
    session: Annotated[
        str | None, typer.Argument(metavar="[SESSION]", help="Only this one; unset: all.")
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended.")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every payload too, not only the manifests.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare folders and rows, and report remains, damage, what was put aside, what is not ours.

    With --fix: rows are made for folders that have none, marked where the folder is gone, and
    corrected; damaged folders are put aside; remains of dead saves are removed where they are
    provably ours. Nothing else is ever deleted. Status 7 where something is left to mend.
    """
    with opened_place() as place, Progress("examining", "checkpoints") as progress:
        told, left = [], 0
        for finding in examine(place, session, deep=deep, progress=progress):
            fate = "for information" if finding.mend is None else "to mend"
            if fix and finding.mend is not None:
                try:
                    fate = finding.mend()
                except (CheckpointError, NotFound, OSError) as error:
                    fate = f"could not be mended: {error}"
                    left += 1
            elif finding.mend is not None:
                left += 1
            told.append(_shown(finding, fate))
    if as_json:
        print_json(told)
    else:
        print_table(
            ("what", "session", "id", "fate", "detail"),
            [(i["what"], i["session"], i["id"], i["fate"], cut(i["detail"])) for i in told],
            empty="rows and folders tell the same; nothing is left over",
        )
    if left:
        if not fix:
            sys.stderr.write(f"{left} to mend: qigstore checkpoints doctor --fix\n")
        raise typer.Exit(EXIT_TO_MEND)


def _shown(finding: Finding, fate: str) -> dict[str, Any]:
    return {
        "what": finding.what,
        "session": finding.session,
        "id": finding.id,
        "path": finding.path,
        "detail": finding.detail,
        "fate": fate,
    }


def examine(
    place: Place, session: str | None, *, deep: bool, progress: Callable[[int, int], object]
) -> Iterator[Finding]:
    """Everything that folders and rows tell differently, session by session.

    Raises:
        NotFound: neither rows nor folders know that session.
    """
    names = set(place.catalog.sessions())
    if session is not None:
        if session not in names:
            place.session(session)  # it has no folder: then the database must know it
        names = {session}
    elif place.store is not None:
        names |= {info.name for info in place.store.sessions.list(limit=_ROWS_MAX)}
    for number, name in enumerate(sorted(names)):
        progress(number, len(names))
        yield from _Session(place, name, deep=deep).findings()
    if session is None:
        for path in place.catalog.strangers():
            yield Finding("not ours", path, f"{path} has no marker of this store; it stays")


class _Session:
    """One session as its folders tell it and as its rows do."""

    def __init__(self, place: Place, name: str, *, deep: bool) -> None:
        self.place, self.name, self.deep = place, name, deep
        self.folders, self.catalog = place.folders, place.catalog

    def findings(self) -> Iterator[Finding]:
        yield from self._remains()
        survey = self.folders.survey(self.name)
        damaged = list(survey.damaged)
        whole = []
        for item in survey.checkpoints:
            problem = self._damage(item.path) if self.deep else None
            if problem is None:
                whole.append(item)
            else:
                damaged.append((item.path, problem))
        for path, error in damaged:
            yield self._damaged(path, error)
        aside = {found.id: found for found in self.catalog.quarantined(self.name) if found.id}
        for found in aside.values():
            reason = found.reason or "no reason was noted"
            yield Finding("put aside", found.path, reason, self.name, found.id)
        yield from self._pins(set(aside))
        if self.place.store is not None:
            here = {UUID(path.name) for path, _ in damaged} | set(aside)
            yield from self._rows(self.place.store, whole, here)

    def _remains(self) -> Iterator[Finding]:
        for path in self.catalog.remains(self.name):

            def mend(path: Location = path) -> str:
                self.folders.clean(self.name)
                return "stays: locked, or in doubt" if self.folders.has(path) else "removed"

            detail = f"{path.name}: a save or a removal that did not end, or is under way"
            yield Finding("unfinished", path, detail, self.name, mend=mend)

    def _pins(self, aside: set[UUID]) -> Iterator[Finding]:
        pins = self.folders.pins(self.name)
        try:
            pinned = pins.all()
        except CheckpointCorrupt as error:
            yield Finding("not ours", error.path, f"{error}; nothing is pruned", self.name)
            return
        for key in sorted(set(pinned) - self.folders.ids(self.name) - aside):

            def mend(key: UUID = key) -> str:
                return "unpinned" if pins.unpin(key) else "was unpinned meanwhile"

            detail = "pinned, and there is no such checkpoint (any more)"
            yield Finding("pin", None, detail, self.name, key, mend)

    def _damage(self, path: Location) -> Exception | None:
        try:
            self.folders.verify(path)
        except NotFound:
            return None  # removed meanwhile
        except (CheckpointError, OSError) as error:
            return error
        return None

    def _damaged(self, path: Location, error: Exception) -> Finding:
        def mend() -> str:
            self.folders.quarantine(path, str(error))
            self._mark(UUID(path.name), "quarantined", str(error))
            return "put aside"

        # What cannot be read now may be readable tomorrow: only what is provably wrong is moved.
        provably = isinstance(error, CheckpointError)
        return Finding(
            "damaged", path, str(error), self.name, UUID(path.name), mend if provably else None
        )

    def _mark(self, key: UUID, status: Any, reason: str) -> None:
        if self.place.store is not None:
            try:
                self.place.store.checkpoints.set_status(key, status, reason[:2000])
            except NotFound:
                return  # it never had a row, and needs none now

    def _rows(
        self, store: Store, whole: list[Checkpoint], elsewhere: set[UUID]
    ) -> Iterator[Finding]:
        session_id = self._session_id(store)
        listed = [] if session_id is None else store.checkpoints.list(session_id, limit=_ROWS_MAX)
        rows = {row.id: row for row in listed}
        for item in whole:
            yield from self._compared(store, item, rows.get(item.id))
        here = {item.id for item in whole}
        for row in listed:
            if row.id not in here and row.status == "committed":
                yield self._without_folder(row, aside=row.id in elsewhere)

    def _session_id(self, store: Store) -> int | None:
        try:
            return store.sessions.get(self.name).id
        except NotFound:
            return None

    def _compared(
        self, store: Store, item: Checkpoint, row: Checkpoint | None
    ) -> Iterator[Finding]:
        def mend() -> str:
            from qigstore.leftovers import located

            session_id = store.sessions.open(self.name, {}).id
            store.checkpoints.put(located(store, session_id, item))
            return "the row tells the same now"

        if row is None:
            detail = f"step {item.step} has a folder and no row"
        elif row.status != "committed":
            detail = f"the row says {row.status}, the folder is whole"
        elif (row.digest, row.path) != (item.digest, item.path):
            what = "digest" if row.digest != item.digest else "path"
            detail = f"the row's {what} is another one: {getattr(row, what)}"
        else:
            return
        yield Finding("row", item.path, detail, self.name, item.id, mend)

    def _without_folder(self, row: Checkpoint, *, aside: bool) -> Finding:
        def mend() -> str:
            if aside:
                self._mark(row.id, "quarantined", "its folder was put aside")
                return "the row says quarantined now"
            self._mark(row.id, "deleted", "its folder is gone (doctor)")
            return "the row says deleted now"

        inside = row.path.parent.parent == self.folders.root
        if not inside and not aside:
            detail = f"its folder lies elsewhere: {row.path}"
            return Finding("elsewhere", row.path, detail, self.name, row.id)
        where = "was put aside" if aside else "is gone"
        detail = f"step {row.step} has a row and its folder {where}"
        return Finding("folder", row.path, detail, self.name, row.id, mend)
