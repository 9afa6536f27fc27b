"""Makes a small PostgreSQL image from this machine's programs, where no registry can be reached.

What goes in: the wheel's server and psql, the few programs of the entry script, and the libraries
they name. `docker import` takes the archive as it is. The entry script speaks the language of the
official image as far as testcontainers does: POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

__all__ = ["make_image"]

PROGRAMS = ("sh", "bash", "setpriv", "mkdir", "chown", "cat", "rm", "id", "chroot", "env", "sleep")
ENTRY = """#!/bin/sh
set -e
data=${PGDATA:-/data}
user=${POSTGRES_USER:-postgres}
run() { setpriv --reuid=70 --regid=70 --clear-groups "$@"; }
mkdir -p "$data" /run/postgresql
chown 70:70 "$data" /run/postgresql
if [ ! -f "$data/PG_VERSION" ]; then
  echo "${POSTGRES_PASSWORD:?}" > /run/postgresql/password
  chown 70:70 /run/postgresql/password
  run @bin@/initdb -D "$data" -U "$user" -A scram-sha-256 --pwfile=/run/postgresql/password \\
    --encoding=UTF8 --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8
  rm /run/postgresql/password
  echo 'host all all all scram-sha-256' >> "$data/pg_hba.conf"
  if [ "${POSTGRES_DB:-$user}" != postgres ]; then
    echo "CREATE DATABASE \\"${POSTGRES_DB:-$user}\\"" |
      run @bin@/postgres --single -D "$data" postgres
  fi
fi
exec setpriv --reuid=70 --regid=70 --clear-groups @bin@/postgres -D "$data" \\
  -c listen_addresses='*' -c unix_socket_directories=/run/postgresql
"""


def _libraries(program: Path) -> set[Path]:
    """Every library that a program loads, the loader included."""
    answer = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    return {Path(name) for name in re.findall(r"(/\S+) \(0x", answer.stdout)}


def _place(path: Path) -> str:
    """Where a file lies in the image: as here, folders that are links on the way resolved."""
    return str(path.parent.resolve() / path.name).lstrip("/")


def _files(binaries: Path) -> set[Path]:
    tree = binaries.parent
    files = {file for part in ("share", "lib") for file in (tree / part).rglob("*")}
    programs = [binaries / name for name in ("postgres", "initdb", "psql")]
    programs += [Path(found) for name in PROGRAMS if (found := shutil.which(name))]
    for program in [*programs, *(tree / "lib").glob("*.so")]:
        files |= _libraries(program) | {program}
    return {file for file in files if file.is_file()}


def _add_text(archive: tarfile.TarFile, name: str, content: str, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content.encode()), mode
    archive.addfile(entry, io.BytesIO(content.encode()))


def _archive(binaries: Path, target: Path) -> None:
    with tarfile.open(target, "w") as archive:
        for top in ("bin", "sbin", "lib", "lib64"):  # as this machine merges them into /usr
            if Path("/", top).is_symlink():
                archive.add(f"/{top}", top, recursive=False)
        files = {_place(file): file for file in sorted(_files(binaries))}
        for place, file in files.items():
            entry = archive.gettarinfo(str(file.resolve()), place)
            entry.type, entry.uid, entry.gid = tarfile.REGTYPE, 0, 0
            entry.size = file.stat().st_size
            with file.open("rb") as content:
                archive.addfile(entry, content)
        for folder in ("tmp", "run", "etc"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            archive.addfile(entry)
        users = "root:x:0:0::/:/bin/sh\npostgres:x:70:70::/:/bin/sh\n"
        _add_text(archive, "etc/passwd", users + "nobody:x:65534:65534::/:/bin/sh\n")
        _add_text(archive, "etc/group", "root:x:0:\npostgres:x:70:\nnogroup:x:65534:\n")
        _add_text(archive, "entry.sh", ENTRY.replace("@bin@", str(binaries)), 0o755)


def make_image(binaries: Path, name: str, workplace: Path) -> None:
    """Make the image `name` from the programs in `binaries`, by `docker import`."""
    archive = workplace / "image.tar"
    _archive(binaries, archive)
    changes = [
        f"ENV PATH={binaries}:/usr/sbin:/usr/bin:/sbin:/bin",
        'ENTRYPOINT ["/entry.sh"]',
        "EXPOSE 5432",
    ]
    options = [part for change in changes for part in ("--change", change)]
    subprocess.run(
        ["docker", "import", *options, str(archive), name], check=True, env=os.environ.copy()
    )
    archive.unlink()
