"""`qigstore version`: this version, and what it runs on."""

from __future__ import annotations

import platform

import typer

from qigstore.cli.output import Json, print_json

__all__ = ["version"]


def version(as_json: Json = False) -> None:
    """Show the version; needs no database."""
    from qigstore import __version__
    from qigstore.compiled import all_compiled

    compiled = all_compiled()
    if as_json:
        told = {"qigstore": __version__, "python": platform.python_version(), "compiled": compiled}
        print_json(told)
        return
    typer.echo(f"qigstore {__version__} (Python {platform.python_version()})")
    if compiled:
        typer.echo("recording path: compiled")
    else:
        typer.echo(
            "recording path: pure Python, which is slower; with a C compiler and Python's "
            "headers, install again for the compiled one"
        )
