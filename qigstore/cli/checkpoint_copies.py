"""`qigstore checkpoints export, restore, diff`: checkpoints that leave, come back, or differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qigstore.cli.output import Json, cut, fields_of, print_json, print_table
from qigstore.cli.places import folders_only
from qigstore.cli.progress import Progress
from qigstore.errors import CheckpointUnsupported, InvalidInput

if TYPE_CHECKING:
    from qigstore.checkpoints.difference import Difference
    from qigstore.checkpoints.format import TensorInfo
    from qigstore.records import Location

__all__ = ["diff", "export", "restore"]

_Id = Annotated[str, typer.Argument(metavar="ID", help="Id, or the start of one.")]


def export(
    checkpoint: _Id,
    target: Annotated[Path, typer.Argument(metavar="TO", help="A folder or FILE.safetensors.")],
    as_json: Json = False,
) -> None:
    """Copy a checkpoint out, every digest verified on the way and read back where it went.

    TO is made and must not be there. A folder gets both files as they are, and `restore` takes it
    on any machine; a name that ends in .safetensors gets the arrays, for any reader of that format.
    """
    from qigstore.checkpoints import transfer
    from qigstore.checkpoints.holds import in_use

    place = folders_only()
    found, target = place.catalog.find(checkpoint), target.absolute()
    path = _on_disk(found.path)
    with in_use(path), Progress("exporting", "bytes") as progress:
        manifest = transfer.export(path, target, progress=progress)
    told = {
        "id": found.id, "session": found.session, "step": manifest.step, "path": target,
        "bytes": manifest.bytes, "blake3": {n: f.blake3 for n, f in manifest.files.items()},
    }  # fmt: skip
    if as_json:
        print_json(told)
    else:
        typer.echo(f"{found.id} (step {manifest.step}) is in {target}, verified")


def restore(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Id, or a checkpoint's folder: exported, put aside."),
    ],
    target: Annotated[
        Path | None,
        typer.Option("--to", metavar="ROOT", help="Root of checkpoints; unset: this data folder's"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put a checkpoint into a root of checkpoints, so that a run can resume from it there.

    Every digest is verified on the way, and again when it is read back; id, session and step stay.
    A checkpoint that is damaged is not restored (status 7); what is there already is not replaced.
    The next run of the session, or `qigstore checkpoints doctor --fix`, gives it its row.
    """
    from qigstore.checkpoints import CheckpointStore, transfer
    from qigstore.checkpoints.holds import in_use

    place = folders_only()
    path = Path(source)
    given_folder = path.is_dir()
    if not given_folder and target is None:
        found = place.catalog.find(source)
        raise InvalidInput(
            "--to", None, f"another root than {place.folders.root}, where {found.id} lies already"
        )
    path = path.resolve() if given_folder else _on_disk(place.catalog.find(source).path)
    store = CheckpointStore(_on_disk(place.folders.root) if target is None else target.absolute())
    with in_use(path), Progress("restoring", "bytes") as progress:
        there = transfer.restore_into(path, store, progress=progress)
    record = store.record(there)
    if as_json:
        print_json(record)
    else:
        typer.echo(f"{record.id} (step {record.step}) is in {there}, verified")


def _on_disk(place: Location) -> Path:
    """A folder of checkpoints on this machine.

    Raises:
        CheckpointUnsupported: it is in an object store.
    """
    if not isinstance(place, Path):
        raise CheckpointUnsupported(
            f"{place} is in an object store; only folders are exported from and restored into. "
            "`qigstore.checkpoints.open_store` loads from there."
        )
    return place


def diff(
    first: _Id,
    second: _Id,
    everything: Annotated[bool, typer.Option("--all", help="Also arrays that are equal.")] = False,
    values: Annotated[
        bool, typer.Option("--values/--no-values", help="Read arrays that differ, for max |a - b|.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Show what differs between two checkpoints: arrays, metrics, metadata, structure.

    Equal digests are equal arrays, so only those that differ are read, a piece at a time.
    """
    from qigstore.checkpoints.difference import compare

    place = folders_only()
    one, two = place.catalog.find(first), place.catalog.find(second)
    with Progress("comparing", "bytes") as progress:
        found = compare(place.folders, one.path, two.path, numbers=values, progress=progress)
    if as_json:
        tensors = [fields_of(t) for t in found.tensors if everything or t.kind != "equal"]
        said = {name: {"first": a, "second": b} for name, (a, b) in found.fields.items()}
        print_json({"first": one.id, "second": two.id, "same": found.same, "fields": said,
                    "tensors": tensors})  # fmt: skip
    else:
        _print(found, everything=everything)


def _print(found: Difference, *, everything: bool) -> None:
    fields = found.fields.items()
    said = [(name, cut(a, 40), cut(b, 40)) for name, (a, b) in fields if name != "structure"]
    if said:
        print_table(("what", "first", "second"), said, whole="what")
    if "structure" in found.fields:
        typer.echo("values outside the arrays, or the way they are nested, differ")
    arrays = [
        (t.name, t.kind, _info(t.first), _info(t.second), t.differing, t.largest)
        for t in found.tensors
        if everything or t.kind != "equal"
    ]
    if arrays:
        columns = ("array", "what differs", "first", "second", "elements", "max |a - b|")
        print_table(columns, arrays, whole="array")
    equal = sum(t.kind == "equal" for t in found.tensors)
    typer.echo(f"{equal} of {len(found.tensors)} arrays are equal")


def _info(info: TensorInfo | None) -> Any:
    return None if info is None else f"{info.dtype} {list(info.shape)}"
