"""`qigstore version`: this version, and what it runs on."""

from __future__ import annotations

import platform

import typer

from qigstore.cli.output import Json, print_json

__all__ = ["version"]


def version(as_json: Json = False) -> None:
    """Show the version; needs no database."""
    from qigstore import __version__

    if as_json:
        print_json({"qigstore": __version__, "python": platform.python_version()})
    else:
        typer.echo(f"qigstore {__version__} (Python {platform.python_version()})")
