"""PostgreSQL in a container, by testcontainers; and our embedded server inside a default one.

Only `make test-containers` runs these. They use the engine that runs; as root, and with `dockerd`
installed, they start one of their own and stop it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from image import make_image
from places import short_folder
from processes import REPOSITORY, wait_until

from qigstore.database import migrate
from qigstore.database.embedded_binaries import find_binaries
from qigstore.database.engine import Database, open_database
from qigstore.settings import load_settings

pytestmark = pytest.mark.containers
IMAGE = "qigstore-test-postgres"


def _engine_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def engine() -> Iterator[None]:
    """A container engine: the one that runs, or one of our own."""
    if _engine_answers():
        yield
        return
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.fail("no container engine answers, and none can be started (root, `dockerd`)")
    with short_folder() as folder, pytest.MonkeyPatch.context() as patch:
        address = f"unix://{folder}/docker.sock"
        patch.setenv("DOCKER_HOST", address)
        command = ["dockerd", "--host", address, "--data-root", f"{folder}/data"]
        command += ["--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"]
        with (folder / "log").open("wb") as log:
            daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until(
                lambda: _engine_answers() or daemon.poll() is not None, "dockerd answers", 60
            )
            assert daemon.poll() is None, (folder / "log").read_text()[-2000:]
            yield
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(60)


@pytest.fixture(scope="module")
def image(engine: None) -> str:
    with short_folder() as folder:
        make_image(find_binaries(folder).folder, IMAGE, folder)
    return IMAGE


def test_a_container_is_as_good_a_server_as_the_embedded_one(
    image: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
    monkeypatch.setenv("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1")
    monkeypatch.setenv("TESTCONTAINERS_CONNECTION_MODE", "docker_host")
    from testcontainers.community.postgres import PostgresContainer

    with PostgresContainer(image, driver=None) as container:
        dsn = container.get_connection_url()
        database = Database(dsn)
        try:
            migrate.upgrade(database)
            assert migrate.check(database) == []
        finally:
            database.dispose()
        opened = open_database(load_settings(dsn=dsn))
        opened.ping()
        opened.dispose()


def test_the_embedded_server_works_for_root_in_a_default_container(image: str, home: Path) -> None:
    # The machine's own folders, seen from a container with its default limits: root there may
    # make no namespaces, and may not look at other users' processes.
    tops = [top for top in Path("/").iterdir() if top.is_dir() and not top.is_symlink()]
    kept = [top for top in tops if top.name not in ("proc", "sys", "dev", "etc", "run")]
    mounts = [part for top in kept for part in ("--volume", f"{top}:{top}")]
    code = """
import os, signal, sys
from pathlib import Path
import psycopg
from qigstore.database.embedded import EmbeddedServer, status
root = Path(sys.argv[1])
for kept in range(3):
    with EmbeddedServer.start(root) as server:
        with psycopg.connect(server.dsn()) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS kept (answer int)")
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (kept,)
            connection.execute("INSERT INTO kept VALUES (42)")
        found = status(root)
        owner = Path(f"/proc/{found.server_pid}").stat().st_uid
        if kept == 1:
            os.kill(found.keeper_pid, signal.SIGKILL)
            os.kill(found.server_pid, signal.SIGKILL)
            server.ensure()
print("owner", owner)
"""
    command = ["docker", "run", "--rm", "--network=none", *mounts, "--workdir", str(REPOSITORY)]
    command += ["--entrypoint", sys.executable, image, "-c", code, str(home / "postgres")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["owner", "65534"]
