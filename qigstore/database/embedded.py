"""The local PostgreSQL server: attach to it or start it; it stops when its last user has left.

Any number of processes share one server a folder. Each holds a shared `flock` on `lease`; the
kernel frees it however the process ends. A keeper (embedded_keeper.py) waits for the lease to be
free and then stops the server, so nothing is left running after Ctrl-C or `kill -9`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qigstore.database.embedded_binaries import find_binaries
from qigstore.database.embedded_places import USER, Places, failure
from qigstore.errors import EmbeddedServerError

__all__ = ["EmbeddedServer", "ServerStatus", "kept_port", "status", "stop"]

_DEFAULT_PORT = 5432
_START_LIMIT_S = 120.0
_STOP_LIMIT_S = 45.0
_POLL_S = 0.004
_KEEPER = Path(__file__).with_name("embedded_keeper.py")
_HINTS = (
    ("No space left on device", "Free the disk below QIGSTORE_HOME, then try again."),
    ("Read-only file system", "Set QIGSTORE_HOME to a folder you can write."),
    ("Permission denied", "Check the owner of the folder, or set QIGSTORE_HOME to one of yours."),
    ("Address already in use", "Choose another TCP port."),
    ("could not look up effective user ID", "Run as a user with an entry in /etc/passwd."),
    ("could not locate a valid checkpoint record", "The cluster is damaged: restore a backup."),
    ("invalid checksum", "The cluster is damaged: restore a backup."),
)


@dataclass(frozen=True)
class ServerStatus:
    """What can be said of an embedded server without starting it."""

    root: Path
    running: bool
    in_use: bool
    major: int | None
    keeper_pid: int | None
    server_pid: int | None
    dsn: str | None
    tcp: str | None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_by(descriptor: int, kind: int, limit: float) -> bool:
    # Polled, so that a bound can be kept: flock itself waits for ever.
    while not _lock(descriptor, kind):
        if time.monotonic() > limit:
            return False
        time.sleep(_POLL_S)
    return True


def _is_free(path: Path) -> bool:
    """Whether nobody holds this lock exclusively."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        return _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _answers(folder: Path, port: int) -> bool:
    """Whether a server there takes sessions: it asks for a password, or says it is full."""
    body = struct.pack("!i", 196608) + f"user\0{USER}\0database\0postgres\0\0".encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(folder / f".s.PGSQL.{port}"))
            probe.sendall(struct.pack("!i", len(body) + 4) + body)
            answer = probe.recv(4096)
        except OSError:
            return False
    return answer[:1] == b"R" or b"\0C53300\0" in answer


@contextlib.contextmanager
def kept_port() -> Iterator[int]:
    """A free TCP port of 127.0.0.1, which meanwhile goes to no one but a server that shares it.

    Bound and not listened at, the kernel gives it to nobody; PostgreSQL may listen all the same.
    """
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(("127.0.0.1", 0))
        yield int(place.getsockname()[1])


def _keeper_state(places: Places) -> dict[str, Any] | None:
    """What the living keeper says of its server; None where no keeper lives, {} while it starts."""
    lock = places.root / "keeper.lock"
    if _is_free(lock):
        return None
    try:
        state: dict[str, Any] = json.loads(lock.read_text() or "{}")
    except (OSError, ValueError):  # it has ended, or is writing, right now
        return {}
    return state


def _serving(places: Places) -> dict[str, Any] | None:
    state = _keeper_state(places)
    return state if state and _answers(places.sockets, state["port"]) else None


_leases: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()


def _forget_leases() -> None:
    # A worker forked from a holder must not keep the server alive after the holder's death.
    for server in list(_leases):
        server._forked()


os.register_at_fork(after_in_child=_forget_leases)


class EmbeddedServer:
    """One process's hold on the server of a folder; `close` it, or leave a `with` block."""

    def __init__(self, root: Path, pg_bin: Path | None = None, *, tcp_port: int | None = None):
        self.places = Places(Path(os.path.abspath(root)))  # noqa: PTH100 - keeps symlinks
        self.pg_bin = pg_bin
        self.tcp_port = tcp_port
        self.port = _DEFAULT_PORT
        self._lease: int | None = None
        self._mutex = threading.Lock()
        _leases.add(self)

    @classmethod
    def start(
        cls, root: Path, pg_bin: Path | None = None, *, tcp_port: int | None = None
    ) -> EmbeddedServer:
        """Attach to the server of `root`, starting it (and making its cluster) where needed.

        `tcp_port` also listens on that port of 127.0.0.1 (0: any free one).

        Raises:
            EmbeddedServerError: it cannot be started, with what the server said.
        """
        server = cls(root, pg_bin, tcp_port=tcp_port)
        try:
            server.ensure()
        except BaseException:
            server.close(wait=False)
            raise
        return server

    def __repr__(self) -> str:
        return f"EmbeddedServer({str(self.places.root)!r})"

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def dsn(self, dbname: str = "qigstore", *, tcp: bool = False) -> str:
        """Where the server is, for psycopg; it names everything, so no PG* variable interferes."""
        from psycopg.conninfo import make_conninfo

        return make_conninfo(
            host="127.0.0.1" if tcp else str(self.places.sockets),
            hostaddr="",
            port=self.port,
            dbname=dbname,
            user=USER,
            password=self.places.password(),
            sslmode="disable",
            gssencmode="disable",
            channel_binding="disable",
            target_session_attrs="any",
        )

    def ensure(self) -> None:
        """Make sure that the server takes sessions; start it again where it was killed.

        Raises:
            EmbeddedServerError: it cannot be started.
        """
        limit = time.monotonic() + _START_LIMIT_S
        with self._mutex:
            try:
                self.places.prepare()
                self._hold(limit)
                state = _serving(self.places) or self._start(limit)
            except OSError as error:
                raise self.places.unusable(error) from error
        if self.tcp_port is not None and not state["listen"]:
            raise failure(
                self.places.root,
                "it runs without TCP already",
                "Stop it first (`qigstore db stop --force`), or use its Unix socket.",
            )
        self.port = int(state["port"])

    def _hold(self, limit: float) -> None:
        if self._lease is not None:
            return
        descriptor = os.open(self.places.root / "lease", os.O_RDWR | os.O_CREAT, 0o600)
        # Exclusively held only while a keeper stops its server: a moment.
        if not _lock_by(descriptor, fcntl.LOCK_SH, limit):
            os.close(descriptor)
            raise self._stuck("an earlier server does not finish stopping")
        self._lease = descriptor

    def _stuck(self, reason: str) -> EmbeddedServerError:
        return failure(
            self.places.root,
            reason,
            f"See {self.places.log}; `qigstore db stop --force` ends a server that hangs.",
        )

    def _start(self, limit: float) -> dict[str, Any]:
        with _opened(self.places.root / "start.lock") as lock:
            if not _lock_by(lock, fcntl.LOCK_EX, limit):
                raise self._stuck("another process has been starting it for too long")
            while _keeper_state(self.places) is not None:
                if state := _serving(self.places):
                    return state
                if time.monotonic() > limit:
                    raise self._stuck("it is there but does not answer")
                time.sleep(_POLL_S)
            self._launch()
            while not (state := _serving(self.places)):
                if time.monotonic() > limit or _keeper_state(self.places) is None:
                    raise self._stuck("it ended right after its start")
                time.sleep(_POLL_S)
            return state

    def _launch(self) -> None:
        if self.tcp_port == 0:
            with kept_port() as port:
                self._launch_at(port)
        else:
            self._launch_at(self.tcp_port or _DEFAULT_PORT)

    def _launch_at(self, port: int) -> None:
        places = self.places
        binaries = find_binaries(places.root, self.pg_bin, major=places.cluster_major())
        places.make_password()
        places.make_socket_folder()
        job = (
            *(places.root, binaries.folder, binaries.major, places.sockets, port),
            *("" if self.tcp_port is None else "127.0.0.1", binaries.locale_flags),
        )
        command = [sys.executable, "-I", "-S", str(_KEEPER), *map(str, job)]
        # A session of its own: the terminal's Ctrl-C is for us, not for the server.
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
        ) as launcher:
            assert launcher.stdout is not None
            line = launcher.stdout.readline()
        if not line:
            raise self._stuck("its keeper was killed while it started")
        answer = json.loads(line)
        if "error" in answer:
            raise self._refused(answer["error"], answer["log"])

    def _refused(self, reason: str, log: str) -> EmbeddedServerError:
        told = [line for line in log.splitlines() if "FATAL" in line or "PANIC" in line]
        told = told or [line for line in log.splitlines() if "rror" in line or "cannot" in line]
        words = "; ".join([reason, *(line.strip() for line in told[-3:])])
        text = reason + log
        hint = next((hint for sign, hint in _HINTS if sign in text), "")
        todo = f"{hint} All it said is in {self.places.log}."
        return failure(self.places.root, words, todo.strip())

    def _forked(self) -> None:
        self._mutex = threading.Lock()
        if self._lease is not None:
            os.close(self._lease)
            self._lease = None

    def close(self, *, wait: bool = True) -> None:
        """Leave; the last to leave waits until the server has stopped. Idempotent."""
        with self._mutex:
            if self._lease is None:
                return
            os.close(self._lease)
            self._lease = None
        if wait:
            _await_stop(self.places, time.monotonic() + _STOP_LIMIT_S)


def _await_stop(places: Places, limit: float) -> bool:
    """Wait while the server of a folder stops; False where somebody still uses it."""
    with _opened(places.root / "lease") as lease:
        while _keeper_state(places) is not None and time.monotonic() < limit:
            if _lock(lease, fcntl.LOCK_EX):  # nobody has it, and the keeper has not noticed yet
                fcntl.flock(lease, fcntl.LOCK_UN)
            elif _lock(lease, fcntl.LOCK_SH):
                fcntl.flock(lease, fcntl.LOCK_UN)
                return False
            time.sleep(_POLL_S)
    return _keeper_state(places) is None


def status(root: Path) -> ServerStatus:
    """Look at the server of a folder; starts nothing and makes no file."""
    places = Places(Path(os.path.abspath(root)))  # noqa: PTH100
    state = _keeper_state(places) or {}
    running = bool(state) and _answers(places.sockets, state["port"])
    dsn = tcp = None
    if running:
        port = state["port"]
        # The password stays in its file, so this line can be shown and pasted into psql.
        dsn = f"host={places.sockets} port={port} user={USER} dbname=qigstore"
        dsn += f" passfile={places.passfile}"
        tcp = f"{state['listen']}:{port}" if state["listen"] else None
    return ServerStatus(
        root=places.root,
        running=running,
        in_use=(places.root / "lease").exists() and not _lock_probe(places.root / "lease"),
        major=places.cluster_major(),
        keeper_pid=state.get("pid"),
        server_pid=state.get("server"),
        dsn=dsn,
        tcp=tcp,
    )


def _lock_probe(path: Path) -> bool:
    with _opened(path) as descriptor:
        return _lock(descriptor, fcntl.LOCK_EX)


def stop(root: Path, *, force: bool = False) -> bool:
    """Wait until an unused server has stopped, or with `force` stop one in use; True: it is down.

    A process that still needs the server starts it again at its next statement.
    """
    places = Places(Path(os.path.abspath(root)))  # noqa: PTH100
    state = _keeper_state(places)
    if state is None:
        return True
    limit = time.monotonic() + _STOP_LIMIT_S
    if not force:
        return _await_stop(places, limit)
    if "pid" in state:
        _ask_to_stop(places, int(state["pid"]))
    while _keeper_state(places) is not None:
        if time.monotonic() > limit:
            return False
        time.sleep(_POLL_S)
    return True


def _ask_to_stop(places: Places, pid: int) -> None:
    import signal

    # The descriptor names one process for ever; the lock, held after it was opened, says that it
    # is the keeper and not a later process with the same number.
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if (_keeper_state(places) or {}).get("pid") == pid:
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        finally:
            os.close(descriptor)
