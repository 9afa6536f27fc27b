"""`qigstore db`: the schema of any database, and the embedded server."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from qigstore.cli.output import Json, print_json
from qigstore.errors import ConfigurationError

if TYPE_CHECKING:
    from qigstore.database.embedded import ServerStatus
    from qigstore.settings import Settings

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The database: its schema, and the local server.")

Dsn = Annotated[str | None, typer.Option("--dsn", help="Another database than QIGSTORE_DSN's.")]


def _say(as_json: bool, data: dict[str, Any], words: str) -> None:
    if as_json:
        print_json(data)
    else:
        typer.echo(words)


def _embedded_settings() -> Settings:
    from qigstore.settings import load_settings

    settings = load_settings()
    if settings.dsn is not None:
        raise ConfigurationError(
            "QIGSTORE_DSN names a database elsewhere; start and stop are for the embedded server. "
            "Unset QIGSTORE_DSN, or use that server's own tools."
        )
    return settings


@app.command()
def upgrade(
    revision: Annotated[str, typer.Argument(help="Revision to go to.")] = "head",
    dsn: Dsn = None,
    as_json: Json = False,
) -> None:
    """Bring the database's schema to this version's revision."""
    from qigstore.database import migrate
    from qigstore.database.engine import open_database
    from qigstore.settings import load_settings

    database = open_database(load_settings(dsn=dsn), check=False)
    try:
        before = migrate.current(database)
        migrate.upgrade(database, revision)
        after = migrate.current(database)
    finally:
        database.dispose()
    data = {"address": database.address, "before": before, "after": after}
    words = f"{database.address} is at revision {after}"
    _say(as_json, data, words if before == after else f"{words} (was at {before})")


@app.command()
def current(dsn: Dsn = None, as_json: Json = False) -> None:
    """Show the schema revision of the database and the one this version needs."""
    from qigstore.database import migrate
    from qigstore.database.engine import open_database
    from qigstore.settings import load_settings

    database = open_database(load_settings(dsn=dsn), check=False)
    try:
        found = migrate.current(database)
    finally:
        database.dispose()
    data = {"address": database.address, "found": found, "needed": migrate.head()}
    words = f"{database.address}: revision {found}; this version needs {migrate.head()}"
    _say(as_json, data, words)


@app.command()
def check(dsn: Dsn = None, as_json: Json = False) -> None:
    """Compare the database's tables and views with this version's; status 1 where they differ."""
    from qigstore.database import migrate
    from qigstore.database.engine import open_database
    from qigstore.settings import load_settings

    database = open_database(load_settings(dsn=dsn), check=False)
    try:
        drift = migrate.check(database)
    finally:
        database.dispose()
    words = "\n".join(drift) if drift else f"{database.address}: no difference"
    _say(as_json, {"address": database.address, "drift": drift}, words)
    if drift:
        raise typer.Exit(1)


Role = Annotated[str, typer.Argument(metavar="ROLE", help="A role of the server.")]


@app.command()
def grant(
    role: Role,
    access: Annotated[
        Literal["reader", "writer"], typer.Option("--as", help="What it may do.")
    ] = "reader",
    create: Annotated[
        bool, typer.Option("--create", help="Make the role; its password is shown once.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Let a role read the views (reader: Grafana, SQL), or record (writer: training), no more.

    A writer may append and cannot migrate, remove a session or touch tokens. Rights that the role
    had on the schema are replaced; `db upgrade` gives them on what is new, too.
    """
    from qigstore.cli.context import opened_store
    from qigstore.database import access as rights

    with opened_store() as store:
        password = rights.grant(store.database, role, access, create=create)
        address = store.database.address
    words = f"{role} is a {access} of {address}"
    if password is not None:
        words += f"\n  password, shown only here: {password}"
    _say(as_json, {"role": role, "access": access, "password": password}, words)


@app.command()
def revoke(role: Role, as_json: Json = False) -> None:
    """Take every right on the schema from a role; the role itself stays."""
    from qigstore.cli.context import opened_store
    from qigstore.database import access

    with opened_store() as store:
        access.revoke(store.database, role)
        address = store.database.address
    _say(as_json, {"role": role}, f"{role} has no rights at {address}")


@app.command("index-basins")
def index_basins(
    drop: Annotated[bool, typer.Option("--drop", help="Remove the index.")] = False,
    as_json: Json = False,
) -> None:
    """Install pgvector and index the basins, for the nearest among more than 100,000.

    Each basin recorded later goes into the index, which makes storing it several times as slow.
    """
    from qigstore.cli.context import opened_store
    from qigstore.repository.basins import INDEX

    with opened_store() as store:
        if drop:
            store.basins.drop_index()
        else:
            store.basins.make_index()
        address = store.database.address
    state = "has no index of basins" if drop else "has an index of basins"
    _say(as_json, {"index": None if drop else INDEX}, f"{address} {state}")


@app.command()
def start(
    tcp_port: Annotated[
        int | None, typer.Option("--tcp", help="Listen on 127.0.0.1 too (0: any free port).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Keep the local server running until Ctrl-C, for psql, Grafana and the like."""
    import signal

    from qigstore.database.embedded import EmbeddedServer, status

    settings = _embedded_settings()
    with EmbeddedServer.start(settings.server_root, settings.pg_bin, tcp_port=tcp_port):
        _show(status(settings.server_root), as_json)
        if not as_json:
            typer.echo("Running until Ctrl-C.")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        signal.sigwait((signal.SIGINT, signal.SIGTERM))


@app.command()
def stop(
    force: Annotated[
        bool, typer.Option("--force", help="Even if in use; its users start it again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Stop the local server; without --force only if nobody uses it. Status 1 where it runs on."""
    from qigstore.database import embedded

    root = _embedded_settings().server_root
    stopped = embedded.stop(root, force=force)
    words = "stopped" if stopped else "still in use (--force stops it all the same)"
    _say(as_json, {"root": root, "stopped": stopped}, f"the embedded server in {root}: {words}")
    if not stopped:
        raise typer.Exit(1)


@app.command()
def status(as_json: Json = False) -> None:
    """Show whether the database answers; starts nothing."""
    from qigstore.settings import load_settings

    settings = load_settings()
    if settings.dsn is None:
        _show(_embedded_status(settings.server_root), as_json)
        return
    from qigstore.database import migrate
    from qigstore.database.engine import open_database

    database = open_database(settings, check=False)
    try:
        found = migrate.current(database)
    finally:
        database.dispose()
    data = {"address": database.address, "found": found, "needed": migrate.head()}
    _say(as_json, data, f"{database.address} answers; schema revision {found}")


def _embedded_status(root: Path) -> ServerStatus:
    from qigstore.database import embedded

    return embedded.status(root)


def _show(found: ServerStatus, as_json: bool) -> None:
    if found.keeper_pid and not found.running:
        words = f"the embedded server in {found.root} is there but does not answer (keeper "
        words += f"{found.keeper_pid}); `qigstore db stop --force` ends it"
    elif not found.running:
        made = f"PostgreSQL {found.major}" if found.major else "not made yet"
        words = f"the embedded server in {found.root} is not running ({made})"
    else:
        words = f"the embedded server in {found.root}: PostgreSQL {found.major}, running\n"
        words += f"  psql '{found.dsn}'"
        words += f"\n  TCP {found.tcp}, password in {found.root / 'pgpass'}" if found.tcp else ""
    _say(as_json, dataclasses.asdict(found), words)
