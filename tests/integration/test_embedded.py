"""The embedded server: shared, left by the last one out, and back after every kind of kill."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from places import short_folder
from processes import holder, kill, processes_in, python, servers_in, state_of, wait_until

from qigstore.database.embedded import EmbeddedServer, kept_port, status, stop
from qigstore.database.engine import Database
from qigstore.errors import EmbeddedServerError


def _one(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]


@pytest.fixture(scope="session")
def made() -> Iterator[Path]:
    """A cluster made once, to be copied: most properties are not about making it."""
    with short_folder() as folder:
        EmbeddedServer.start(folder / "postgres").close()
        yield folder / "postgres"


@pytest.fixture
def root(home: Path, made: Path) -> Path:
    """A data folder with a cluster in it and no server."""
    return Path(shutil.copytree(made, home / "postgres"))


@pytest.fixture
def fresh(home: Path) -> Path:
    """A data folder that is not there yet."""
    return home / "postgres"


def test_rows_outlive_the_server_and_times_are_shown(fresh: Path) -> None:
    times = {}
    begin = time.perf_counter()
    with EmbeddedServer.start(fresh) as server:
        times["cold"] = time.perf_counter() - begin
        begin = time.perf_counter()
        with EmbeddedServer.start(fresh):
            times["attach"] = time.perf_counter() - begin
        with psycopg.connect(server.dsn()) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    assert not servers_in(fresh)
    begin = time.perf_counter()
    with EmbeddedServer.start(fresh) as server:
        times["warm"] = time.perf_counter() - begin
        assert _one(server.dsn(), "SELECT answer FROM kept") == 42
    print({name: f"{value:.3f} s" for name, value in times.items()})


def test_the_cluster_is_durable_checked_utf8_and_private(root: Path) -> None:
    with EmbeddedServer.start(root) as server:
        for name, expected in (
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("synchronous_commit", "on"),
            ("data_checksums", "on"),
            ("server_encoding", "UTF8"),
            ("listen_addresses", ""),
            ("timezone", "UTC"),
            ("password_encryption", "scram-sha-256"),
        ):
            assert _one(server.dsn(), f"SHOW {name}") == expected, name
        rules = _one(server.dsn(), "SELECT array_agg(DISTINCT auth_method) FROM pg_hba_file_rules")
        assert rules == ["scram-sha-256"]
        assert stat.S_IMODE((root / "pgpass").stat().st_mode) == 0o600
        for folder in (root, root / "data", server.places.sockets):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
        password = server.places.password()
    assert len(password) >= 32
    assert password not in (root / "server.log").read_text()
    assert password not in repr(server) + repr(status(root))


def test_foreign_pg_variables_do_not_interfere(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("PGHOST", "192.0.2.1"),
        ("PGHOSTADDR", "192.0.2.1"),
        ("PGPASSWORD", "another"),
        ("PGSSLMODE", "require"),
        ("PGCHANNELBINDING", "require"),
        ("PGTARGETSESSIONATTRS", "standby"),
        ("PGDATA", "/nowhere"),
    ):
        monkeypatch.setenv(name, value)
    with EmbeddedServer.start(root) as server:
        assert _one(server.dsn(), "SELECT 1") == 1


def test_four_processes_starting_at_once_share_one_server(fresh: Path) -> None:
    children = []
    code = """
import sys
from pathlib import Path
from qigstore.database.embedded import EmbeddedServer, status
server = EmbeddedServer.start(Path(sys.argv[1]))
print(status(Path(sys.argv[1])).server_pid, flush=True)
sys.stdin.read()
"""
    try:
        children = [python(code, fresh) for _ in range(4)]
        pids = {child.stdout.readline() for child in children if child.stdout}
        assert len(pids) == 1
        assert pids.pop().strip().isdigit()
    finally:
        for child in children:
            child.communicate()
    wait_until(lambda: not servers_in(fresh), "the server has stopped")


def test_the_server_stays_for_the_others_and_stops_with_the_last(root: Path) -> None:
    server = EmbeddedServer.start(root)
    with holder(root) as child:
        before = status(root).server_pid
        server.close()
        assert status(root).running
        assert status(root).server_pid == before
        assert not stop(root)
        child.communicate("")
    assert child.returncode == 0
    assert not servers_in(root)
    assert stop(root)


def test_a_killed_holder_leaves_nothing_running(root: Path) -> None:
    with EmbeddedServer.start(root) as server, holder(root) as child:
        child.kill()
        child.wait()
        assert _one(server.dsn(), "SELECT 1") == 1
    with holder(root) as child:
        assert servers_in(root)
        child.kill()
        child.wait()
        wait_until(lambda: not processes_in(root), "nothing runs")


def test_a_forked_worker_does_not_keep_the_server_alive(root: Path) -> None:
    code = """
import os, sys, time
from pathlib import Path
from qigstore.database.embedded import EmbeddedServer
server = EmbeddedServer.start(Path(sys.argv[1]))
worker = os.fork()
if worker == 0:
    time.sleep(600)
print("ready", flush=True)
print(worker, flush=True)
time.sleep(600)
"""
    with holder(root, code) as child:
        assert child.stdout is not None
        worker = int(child.stdout.readline())
        try:
            child.kill()
            wait_until(lambda: not servers_in(root), "the server has stopped")
            assert state_of(worker) not in "ZX-"
        finally:
            kill(worker)


@pytest.mark.parametrize("victim", ["postmaster", "keeper", "both", "all"])
def test_a_killed_server_is_back_at_the_next_statement(root: Path, victim: str) -> None:
    with EmbeddedServer.start(root) as server:
        database = Database(server.dsn(), revive=server.ensure)
        with database.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE kept AS SELECT 42 AS answer")
        before = status(root)
        assert before.server_pid
        assert before.keeper_pid
        kill(
            *{
                "postmaster": [before.server_pid],
                "keeper": [before.keeper_pid],
                "both": [before.keeper_pid, before.server_pid],
                "all": list(servers_in(root)),
            }[victim]
        )
        wait_until(lambda: state_of(before.server_pid or 0) in "Z-", "the old server has ended")
        begin = time.perf_counter()
        with database.begin() as connection:
            assert connection.exec_driver_sql("SELECT answer FROM kept").scalar() == 42
        print(f"back after {time.perf_counter() - begin:.3f} s")
        assert status(root).server_pid != before.server_pid
        database.dispose()
    assert not servers_in(root)


def test_a_zombie_counts_as_dead(root: Path) -> None:
    with EmbeddedServer.start(root) as server:
        before = status(root)
        assert before.keeper_pid
        assert before.server_pid
        os.kill(before.keeper_pid, signal.SIGSTOP)
        revival = threading.Thread(target=server.ensure)
        try:
            kill(before.server_pid)
            wait_until(lambda: state_of(before.server_pid or 0) == "Z", "a zombie")
            assert not status(root).running
            revival.start()
        finally:
            os.kill(before.keeper_pid, signal.SIGCONT)
        revival.join()
        assert _one(server.dsn(), "SELECT 1") == 1


def test_zombies_that_nobody_reaps_do_not_matter(root: Path) -> None:
    # As under a container's first process that never waits: keeper and server stay zombies.
    code = """
import ctypes, os, signal, sys, time
from pathlib import Path
from qigstore.database.embedded import EmbeddedServer, status
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
root = Path(sys.argv[1])
server = EmbeddedServer.start(root)
old = status(root)
os.kill(old.keeper_pid, signal.SIGKILL)
os.kill(old.server_pid, signal.SIGKILL)
state = ""
while state != "Z":
    state = Path(f"/proc/{old.server_pid}/stat").read_text().rpartition(")")[2].split()[0]
    time.sleep(0.01)
server.ensure()
assert status(root).running and status(root).server_pid != old.server_pid
print("ready", flush=True)
server.close()
"""
    with holder(root, code) as child:
        child.communicate()
    assert child.returncode == 0
    wait_until(lambda: not servers_in(root), "nothing runs")


def test_when_everything_is_killed_nothing_stays(root: Path) -> None:
    with holder(root) as child:
        with psycopg.connect(status(root).dsn) as connection:
            connection.execute("SELECT 1")
        found = status(root)
        assert found.keeper_pid
        # The postmaster is spared: it must follow its keeper by itself.
        kill(child.pid, found.keeper_pid)
        wait_until(lambda: not processes_in(root), "nothing runs")
    with EmbeddedServer.start(root) as server:
        assert _one(server.dsn(), "SELECT 1") == 1


def until_initdb_works(fresh: Path, starting: Callable[[], bool]) -> None:
    """Wait for the middle of making a cluster, which a slow test may miss."""
    begun = fresh / "data.new" / "global"
    wait_until(lambda: begun.exists() or not starting(), "initdb has begun", 120)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_start_that_is_interrupted_is_repaired_by_the_next(fresh: Path, number: int) -> None:
    for _ in range(20):
        with python(
            "import sys; from pathlib import Path\n"
            "from qigstore.database.embedded import EmbeddedServer\n"
            "EmbeddedServer.start(Path(sys.argv[1]))",
            fresh,
        ) as child:
            until_initdb_works(fresh, lambda child=child: child.poll() is None)
            child.send_signal(number)
            child.communicate()
        wait_until(lambda: not processes_in(fresh), "nothing runs", 60)
        if not (fresh / "data").exists():
            break
        shutil.rmtree(fresh)  # the cluster was made when the signal came: once more
    assert child.returncode == -number
    assert not (fresh / "data").exists()
    with EmbeddedServer.start(fresh) as server:
        assert _one(server.dsn(), "SELECT 1") == 1
    assert not list(fresh.glob("data.new*"))


def test_a_keeper_killed_while_it_makes_the_cluster_is_reported_and_repaired(fresh: Path) -> None:
    said: list[str] = []

    def start() -> None:
        try:
            EmbeddedServer.start(fresh).close()
            said.append("started")
        except EmbeddedServerError as error:
            said.append(str(error))

    for _ in range(20):
        starter = threading.Thread(target=start)
        starter.start()
        until_initdb_works(fresh, starter.is_alive)
        kill(*(pid for pid, what in servers_in(fresh).items() if "embedded_keeper" in what))
        starter.join()
        wait_until(lambda: not processes_in(fresh), "nothing runs", 60)
        if not (fresh / "data").exists():
            break
        shutil.rmtree(fresh)  # the cluster was made when the keeper was killed: once more
    assert "killed while it started" in said[-1]
    with EmbeddedServer.start(fresh) as server:
        assert _one(server.dsn(), "SELECT 1") == 1


def test_the_terminals_ctrl_c_does_not_reach_the_server(root: Path) -> None:
    with EmbeddedServer.start(root):
        found = status(root)
        for pid in (found.keeper_pid, found.server_pid):
            assert pid is not None
            assert os.getsid(pid) != os.getsid(0)
        for pid in servers_in(root):
            with contextlib.suppress(ProcessLookupError):  # a worker of the server's has left
                assert os.getsid(pid) != os.getsid(0)


def test_a_long_path_gets_a_short_private_socket_folder_that_is_removed(home: Path) -> None:
    root = home / ("long-" * 20) / ("path-" * 20)
    with EmbeddedServer.start(root) as server:
        sockets = server.places.sockets
        assert not sockets.is_relative_to(home)
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
        assert _one(server.dsn(), "SELECT 1") == 1
    assert not sockets.exists()


def test_a_socket_folder_that_others_can_enter_is_refused(home: Path) -> None:
    root = home / ("long-" * 20) / ("path-" * 20)
    sockets = EmbeddedServer(root).places.sockets
    sockets.mkdir(mode=0o755)
    try:
        with pytest.raises(EmbeddedServerError, match=r"not a private folder.*0755.*QIGSTORE_HOME"):
            EmbeddedServer.start(root)
    finally:
        sockets.rmdir()
    assert not processes_in(root)


def test_a_folder_that_cannot_be_made_is_named(home: Path) -> None:
    (home / "file").write_text("not a folder")
    with pytest.raises(EmbeddedServerError, match=r"file/postgres.*QIGSTORE_HOME"):
        EmbeddedServer.start(home / "file" / "postgres")


def test_missing_programs_are_named_with_what_to_do(fresh: Path, home: Path) -> None:
    empty = home / "empty"
    empty.mkdir()
    with pytest.raises(EmbeddedServerError, match=r"no postgres and no initdb.*QIGSTORE_PG_BIN"):
        EmbeddedServer.start(fresh, empty)


def test_a_damaged_cluster_is_reported_and_left_alone(root: Path) -> None:
    EmbeddedServer.start(root).close()
    control = root / "data" / "global" / "pg_control"
    good = control.read_bytes()
    control.write_bytes(b"\0" * len(good))
    with pytest.raises(EmbeddedServerError, match=r"FATAL|PANIC") as caught:
        EmbeddedServer.start(root)
    assert str(root / "server.log") in str(caught.value)
    wait_until(lambda: not processes_in(root), "nothing runs")
    control.write_bytes(good)
    EmbeddedServer.start(root).close()
    (root / "data" / "PG_VERSION").unlink()
    with pytest.raises(EmbeddedServerError, match=r"not a PostgreSQL cluster.*backup"):
        EmbeddedServer.start(root)


def test_a_lost_password_file_is_reported(root: Path) -> None:
    EmbeddedServer.start(root).close()
    (root / "pgpass").unlink()
    with pytest.raises(EmbeddedServerError, match=r"pgpass is gone.*Restore"):
        EmbeddedServer.start(root)


def test_tcp_only_on_request_and_on_the_loopback_alone(root: Path) -> None:
    with kept_port() as port, EmbeddedServer.start(root, tcp_port=port) as server:
        assert status(root).tcp == f"127.0.0.1:{port}"
        assert _one(server.dsn(tcp=True), "SELECT inet_server_addr()::text") == "127.0.0.1/32"
        with socket.socket() as probe, pytest.raises(OSError):
            probe.connect(("127.0.0.2", port))
        with EmbeddedServer.start(root) as second:  # attaches, whatever the port
            assert _one(second.dsn(), "SELECT 1") == 1
    with EmbeddedServer.start(root):
        assert status(root).tcp is None
        with pytest.raises(EmbeddedServerError, match=r"without TCP.*stop --force"):
            EmbeddedServer.start(root, tcp_port=0)


def test_a_port_that_is_kept_goes_to_nobody_but_whoever_shares_it() -> None:
    with kept_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with socket.socket() as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            ours.bind(("127.0.0.1", port))
            ours.listen()
            with socket.create_connection(("127.0.0.1", port), timeout=60):
                pass
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=60)


def test_a_wrong_password_is_refused_on_socket_and_tcp(root: Path) -> None:
    with EmbeddedServer.start(root, tcp_port=0) as server:
        for tcp in (False, True):
            dsn = server.dsn(tcp=tcp)
            wrong = dsn.replace(server.places.password(), "wrong")
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(wrong)


def test_a_forced_stop_ends_it_and_the_next_statement_starts_it(root: Path) -> None:
    with EmbeddedServer.start(root) as server:
        database = Database(server.dsn(), revive=server.ensure)
        database.ping()
        assert stop(root, force=True)
        assert not servers_in(root)
        database.ping()
        database.dispose()


def test_status_starts_nothing_and_makes_nothing(fresh: Path) -> None:
    found = status(fresh)
    assert not found.running
    assert not found.in_use
    assert not fresh.exists()


def test_the_shown_dsn_works_without_showing_the_password(root: Path) -> None:
    with EmbeddedServer.start(root) as server:
        shown = status(root).dsn
        assert shown
        assert server.places.password() not in shown
        assert _one(shown, "SELECT current_user") == "qigstore"
