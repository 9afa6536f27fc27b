"""`qigstore checkpoints`: the states a session can come back to, and which of them are healthy."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qigstore.cli import checkpoint_copies, doctor
from qigstore.cli.context import SessionName
from qigstore.cli.output import Json, cut, fields_of, print_json, print_pairs, print_table
from qigstore.cli.places import Place, folders_only, opened_place
from qigstore.cli.progress import Progress
from qigstore.errors import CheckpointCorrupt, CheckpointFormatError, NotFound, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from qigstore.checkpoints.catalog import Found
    from qigstore.records import Candidate, Checkpoint

__all__ = ["app"]

EXIT_DAMAGED = 7
_DAMAGED = (CheckpointCorrupt, CheckpointFormatError, NotFound, OSError)

app = typer.Typer(no_args_is_help=True, help="Checkpoints: saved states, ranked by Φ.")

CheckpointId = Annotated[str, typer.Argument(metavar="ID", help="Id, or the start of one.")]


@app.command("list")
def list_checkpoints(
    session: SessionName,
    everything: Annotated[
        bool, typer.Option("--all", help="Also those that retention has removed.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 100,
    as_json: Json = False,
) -> None:
    """List a session's checkpoints: the healthy ones first, the best Φ first among them.

    Without the database the folders and the event log answer.
    """
    with opened_place() as place:
        health = {item.checkpoint.id: item for item in place.health(session)}
        rows = _rows(place, session, health)
        pinned = place.manager(session).pins.all()
    order = {id_: number for number, id_ in enumerate(health)}
    rows.sort(key=lambda checkpoint: order.get(checkpoint.id, len(order)))
    kept = [row for row in rows if everything or row.status != "deleted"][:limit]
    listed = [
        _with_health(checkpoint, health) | {"pinned": checkpoint.id in pinned}
        for checkpoint in kept
    ]
    if as_json:
        print_json(listed)
        return
    names = ("id", "step", "attempt", "phi", "kind", "status", "healthy", "pinned")
    print_table(
        names,
        [tuple(item[name] for name in names) for item in listed],
        empty=f"session {session!r} has no checkpoints",
    )


def _rows(place: Place, session: str, health: Mapping[UUID, Candidate]) -> list[Checkpoint]:
    if place.store is None:
        return [item.checkpoint for item in health.values()]
    return place.store.checkpoints.list(place.session(session)[0], limit=100_000)


@app.command()
def show(checkpoint: CheckpointId, as_json: Json = False) -> None:
    """Show one checkpoint: what it holds, where it lies, whether recovery would take it and why."""
    with opened_place() as place:
        session, found = place.get(checkpoint)
        health = {item.checkpoint.id: item for item in place.health(session)}
        pin = place.manager(session).pins.all().get(found.id)
        lineage = _lineage(place, session, found.id)
    data = {"session": session} | _with_health(found, health) | {"pinned": pin is not None}
    data |= lineage
    if as_json:
        print_json(data)
    else:
        note = (pin or {}).get("note") or None
        empty = {name: data[name] or None for name in ("metadata", "resumed by attempts")}
        print_pairs({**data, "pin note": note, **empty})


def _lineage(place: Place, session: str, key: UUID) -> dict[str, Any]:
    """The checkpoint saved before it, and the attempts that resumed from it, where known."""
    parent = None
    try:
        parent = place.folders.manifest(place.folders.locate(session, key)).parent
    except _DAMAGED as error:
        typer.echo(f"its folder: {error}", err=True)
    attempts = (
        [] if place.store is None else place.store.sessions.attempts(place.session(session)[0])
    )
    resumed = [attempt.number for attempt in attempts if attempt.resumed_from == key]
    return {"parent": parent, "resumed by attempts": resumed}


def _with_health(checkpoint: Any, health: Mapping[UUID, Candidate]) -> dict[str, Any]:
    candidate = health.get(checkpoint.id)
    return {
        **fields_of(checkpoint),
        "healthy": candidate is not None and candidate.healthy,
        "reason": candidate.reason if candidate else f"it is {checkpoint.status}",
    }


@app.command()
def verify(
    checkpoints: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Ids, or the starts of some.")
    ] = None,
    session: Annotated[str | None, typer.Option("--session", help="All of this one.")] = None,
    as_json: Json = False,
) -> None:
    """Read checkpoints back and compare every digest; those named, a session's, or all here.

    Nothing is moved. What is sound is noted in the database where one answers. Status 7 where one
    is damaged.
    """
    with opened_place() as place:
        if session is not None:
            place.session(session)
        every = [item for item in place.catalog.every() if session in {None, item.session}]
        chosen = [place.found(text) for text in checkpoints] if checkpoints else every
        with Progress("verifying", "checkpoints") as progress:
            told = []
            for number, item in enumerate(chosen):
                progress(number, len(chosen))
                told.append(_verified(place, item))
    if as_json:
        print_json(told)
    else:
        names = ("id", "session", "step", "bytes", "sound", "problem")
        print_table(
            names,
            [(*(item[name] for name in names[:-1]), cut(item["problem"], 200)) for item in told],
            empty=f"no checkpoints below {place.folders.root}",
        )
    if not all(item["sound"] for item in told):
        raise typer.Exit(EXIT_DAMAGED)


def _verified(place: Place, item: Found) -> dict[str, Any]:
    told: dict[str, Any] = {"id": item.id, "session": item.session, "path": item.path}
    try:
        with place.folders.in_use(item.path):
            manifest = place.folders.verify(item.path)
    except _DAMAGED as error:
        problem = error.brief if isinstance(error, CheckpointCorrupt) else str(error)
        return told | {"step": None, "bytes": None, "sound": False, "problem": problem}
    if place.store is not None:
        try:
            place.store.checkpoints.mark_verified(item.id)
        except NotFound:
            typer.echo(f"{item.id} has no row; `qigstore checkpoints doctor --fix`", err=True)
    size = sum(file.bytes for file in manifest.files.values())
    return told | {"step": manifest.step, "bytes": size, "sound": True, "problem": None}


@app.command()
def pin(
    checkpoint: CheckpointId,
    note: Annotated[str, typer.Option("--note", help="Why, for whoever asks later.")] = "",
    as_json: Json = False,
) -> None:
    """Keep a checkpoint until it is unpinned, whatever retention says; asks no database."""
    place = folders_only()
    found = place.catalog.find(checkpoint)
    fresh = place.folders.pins(found.session).pin(found.id, note)
    said = "is pinned" if fresh else "was pinned already"
    _tell(found.id, said, pinned=True, as_json=as_json)


@app.command()
def unpin(checkpoint: CheckpointId, as_json: Json = False) -> None:
    """Take the pin away: retention decides again; asks no database."""
    place = folders_only()
    found = place.catalog.find(checkpoint)
    was = place.folders.pins(found.session).unpin(found.id)
    said = "is no longer pinned" if was else "was not pinned"
    _tell(found.id, said, pinned=False, as_json=as_json)


def _tell(key: UUID, said: str, *, pinned: bool, as_json: bool) -> None:
    if as_json:
        print_json({"id": key, "pinned": pinned, "said": said})
    else:
        typer.echo(f"{key} {said}")


_Count = Annotated[int | None, typer.Option(min=1)]


@app.command()
def prune(
    session: SessionName,
    *,
    keep_newest: _Count = None,
    keep_best: _Count = None,
    keep_emergency: _Count = None,
    keep_every: Annotated[
        int | None, typer.Option(min=1, help="Keep the first of every so many steps.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show which role keeps which.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove the checkpoints of a session that no role keeps.

    Roles: the newest, the best and the emergency ones (3 each unless told otherwise), one of every
    n steps, pinned, resumed from, the newest healthy one and those that are settled or settling.
    What somebody reads now stays. Needs the database: without it nobody knows who is healthy.
    """
    from qigstore.checkpoints import Retention, pruning
    from qigstore.database.engine import address_of

    asked = {
        "keep_newest": keep_newest, "keep_best": keep_best,
        "keep_emergency": keep_emergency, "keep_every": keep_every,
    }  # fmt: skip
    with opened_place() as place:
        if place.store is None:
            why = "nothing is removed while nobody knows who is healthy"
            raise StoreUnavailable(address_of(place.settings), why)
        rule = Retention(settle_steps=place.settings.settle_steps)
        rule = replace(rule, **{name: k for name, k in asked.items() if k is not None})
        manager = place.manager(session, rule)
        try:
            plan = pruning.planned(manager)
            gone, used = ([], []) if dry_run else pruning.prune(manager)
        finally:
            manager.close()
    fates = [
        (item, _fate(names, item.id, gone, used, dry_run=dry_run), names) for item, names in plan
    ]
    if as_json:
        print_json(
            [
                {"id": c.id, "step": c.step, "phi": c.phi, "fate": fate, "roles": names}
                for c, fate, names in fates
            ]
        )
        return
    print_table(
        ("id", "step", "phi", "fate", "roles"),
        [(c.id, c.step, c.phi, fate, ", ".join(names)) for c, fate, names in fates],
        empty=f"session {session!r} has no checkpoints",
    )


def _fate(
    names: tuple[str, ...], key: UUID, gone: list[UUID], used: list[UUID], *, dry_run: bool
) -> str:
    if names:
        return "kept"
    if dry_run:
        return "would go"
    return "removed" if key in gone else "in use" if key in used else "left to another process"


app.command("restore")(checkpoint_copies.restore)
app.command("diff")(checkpoint_copies.diff)
app.command("export")(checkpoint_copies.export)
app.command("doctor")(doctor.doctor)
