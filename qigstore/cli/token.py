"""`qigstore token`: who may ask the REST server."""

from __future__ import annotations

import getpass
import platform
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from qigstore.cli.context import opened_store
from qigstore.cli.output import Json, fields_of, print_json, print_table

__all__ = ["app", "who"]

app = typer.Typer(no_args_is_help=True, help="Tokens of the REST server.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called in the audit.")],
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", help="What it may do; again for more. Unset: read."),
    ] = None,
    sessions: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Only sessions of this name; * for any characters."),
    ] = None,
    days: Annotated[
        float | None, typer.Option(min=0.001, max=36_500, help="It expires after so many days.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a token and print it: the only time that it is shown.

    The store keeps a digest of it. Scopes: read; write (record, acknowledge); checkpoint (verify,
    download); abort; admin (all of them, and the audit).
    """
    end = None if days is None else datetime.now(UTC) + timedelta(days=days)
    with opened_store() as store:
        token, text = store.tokens.create(
            name, scope or ["read"], sessions=sessions, expires_at=end, by=who()
        )
    if as_json:
        print_json({**fields_of(token), "token": text})
        return
    until = "" if end is None else f" until {end:%Y-%m-%d %H:%M} UTC"
    whose = "every session" if sessions is None else f"sessions named {sessions}"
    words = f"{token.name}: {', '.join(token.scopes)}, for {whose}{until}"
    typer.echo(text)
    typer.echo(f"{words}. Keep it now: it is not shown again.", err=True)


@app.command("list")
def list_tokens(as_json: Json = False) -> None:
    """List tokens, the newest first; never the tokens themselves."""
    with opened_store() as store:
        found = store.tokens.list()
    if as_json:
        print_json([{**fields_of(token), "status": token.status()} for token in found])
        return
    print_table(
        ("id", "name", "scopes", "sessions", "status", "expires (UTC)", "last used (UTC)"),
        [
            (t.id, t.name, " ".join(t.scopes), t.sessions or "*", t.status(), t.expires_at,
             t.last_used_at)
            for t in found
        ],
        empty="no tokens; `qigstore token create NAME` makes one",
    )  # fmt: skip


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(metavar="NAME", help="Its name, or the start of its id.")],
    as_json: Json = False,
) -> None:
    """Take a token back: from now on it is refused."""
    with opened_store() as store:
        found = store.tokens.revoke(token, by=who())
    if as_json:
        print_json({**fields_of(found), "status": found.status()})
    else:
        typer.echo(f"{found.name}: revoked")


def who() -> str:
    """Who types, for the audit: user@host."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "someone"  # a container's user without a name
    return f"{user}@{platform.node()}"
