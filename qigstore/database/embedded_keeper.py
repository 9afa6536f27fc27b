"""The keeper: a small process that starts one PostgreSQL server and stops it when nobody is left.

Executed by path with a bare interpreter (`python -I -S embedded_keeper.py …`), so it imports the
standard library only. It is no child of the process that asked for the server, and lives in a
session of its own, so neither Ctrl-C nor that process's death reaches it::

    lease         flock; shared: one a process that uses the server; exclusive: "nobody is left"
    keeper.lock   flock; exclusive for the keeper's life: "there is a keeper" (no pid is trusted)

A forked watcher blocks on the exclusive lease and ends when it has it; as both share one open
file, the keeper then owns the lease, and whoever wants to attach waits until it has left.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import pwd
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

__all__ = ["Identity", "Job", "Keeper", "KeeperFailure", "choose_identity", "main", "spawn"]

STOP_FAST_S, STOP_HARD_S = 30.0, 5.0
_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 1, 8, 47, 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


class Job(NamedTuple):
    """What to keep; the command line, in this order."""

    root: Path
    binaries: Path
    major: int
    sockets: Path
    port: int
    listen: str
    locale: str

    @property
    def data(self) -> Path:
        """The cluster."""
        return self.root / "data"

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.root / "server.log"


class Identity(NamedTuple):
    """Whom the server runs as: `plain`, `namespace` (seen as uid) or `drop` (becomes uid)."""

    kind: str
    uid: int = 0
    gid: int = 0


class KeeperFailure(Exception):
    """The server cannot be started; the text is for the user."""


# ---------------------------------------------------------------- children


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _enter_namespace(identity: Identity) -> None:
    # PostgreSQL refuses uid 0. Here it sees another number, while every file stays its owner's
    # and no folder has to be opened to others.
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{identity.uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{identity.gid} {gid} 1")


def _drop(identity: Identity) -> None:
    # Where namespaces are barred: another uid, which keeps the one capability it needs to pass
    # through the folders of the first. No folder is opened to others for it, nothing is copied.
    _call("prctl", _PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    bit = 1 << _CAP_DAC_OVERRIDE
    _call("capset", header, (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0))
    _call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)


def _exec(
    command: Sequence[str], identity: Identity, out: int, on_death: int, stdin: str
) -> NoReturn:
    parent = os.getppid()
    os.setpgid(0, 0)
    if identity.kind == "namespace":
        _enter_namespace(identity)
    elif identity.kind == "drop":
        _drop(identity)
    # After the change of identity, which clears it. A killed keeper takes its server along.
    _call("prctl", _PR_SET_PDEATHSIG, on_death, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    os.dup2(os.open(stdin, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    os.execve(command[0], list(command), environment | {"LC_ALL": "C"})  # noqa: S606


def spawn(
    command: Sequence[str],
    identity: Identity,
    *,
    out: int,
    on_death: int = signal.SIGKILL,
    stdin: str = os.devnull,
) -> int:
    """Start a command as `identity`; this process has one thread, so a plain fork is safe."""
    pid = os.fork()
    if pid:
        return pid
    try:
        _exec(command, identity, out, on_death, stdin)
    except BaseException as error:
        os.write(out, f"cannot run {command[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def _known_user() -> tuple[int, int] | None:
    # initdb insists on a name for its uid, so the number must be one the system knows.
    users = [user for user in pwd.getpwall() if user.pw_uid != 0]
    users.sort(key=lambda user: user.pw_name != "nobody")
    return (users[0].pw_uid, users[0].pw_gid) if users else None


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def choose_identity(binaries: Path) -> Identity:
    """`plain` for an ordinary user; else a user namespace, or another uid where it is barred."""
    uid = os.geteuid()
    if uid != 0 and _has_name(uid):
        return Identity("plain")
    known = _known_user()
    if known is None:
        return Identity("plain")
    candidate = Identity("namespace", *known)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        pid = spawn([str(binaries / "postgres"), "--version"], candidate, out=sink)
    finally:
        os.close(sink)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
        return candidate
    return Identity("drop", *known) if uid == 0 else Identity("plain")


# ---------------------------------------------------------------- what an earlier keeper left


def _server_processes(data: Path) -> Iterator[int]:
    """Processes of any PostgreSQL that works in this cluster, whoever started them."""
    here = data.stat()
    pidfile = data / "postmaster.pid"
    recorded = pidfile.read_text().split("\n", 1)[0] if pidfile.exists() else ""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        # It may end, or belong to someone else, while we look.
        with contextlib.suppress(OSError):
            name, state = (entry / "stat").read_text().partition("(")[2].rsplit(") ", 1)
            if name != "postgres" or state.startswith("Z"):  # a zombie counts as dead
                continue
            try:
                there = (entry / "cwd").stat()
                ours = (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
            except PermissionError:  # a container's root may not look at another uid's process
                ours = entry.name == recorded
            if ours:
                yield int(entry.name)


def sweep(data: Path, *, grace_s: float) -> None:
    """End whatever still works in the cluster: gently for `grace_s`, then by SIGKILL.

    Only a keeper calls this, and holds keeper.lock: no living server can be in there except
    orphans of a killed keeper or postmaster.
    """
    if not data.is_dir():
        return
    start = time.monotonic()
    while left := list(_server_processes(data)):
        if time.monotonic() - start > grace_s + STOP_HARD_S:
            raise KeeperFailure(f"processes {left} of an earlier server do not end")
        if time.monotonic() - start >= grace_s:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    # Its pid may be another process's by now, for which PostgreSQL would refuse to start.
    (data / "postmaster.pid").unlink(missing_ok=True)


# ---------------------------------------------------------------- the keeper


class Keeper:
    """Starts, watches and stops the server of one job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.released = False
        self.server = 0
        self.exits: dict[int, int] = {}
        self.lock = os.open(job.root / "keeper.lock", os.O_RDWR | os.O_CREAT, 0o600)
        self._lock()
        self.lease = os.open(job.root / "lease", os.O_RDWR | os.O_CREAT, 0o600)
        self.watcher = self._watch()
        if job.log.exists() and job.log.stat().st_size > 4 << 20:
            job.log.replace(job.log.with_suffix(".log.1"))
        self.out = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.log_start = job.log.stat().st_size
        self.identity = choose_identity(job.binaries)

    def _lock(self) -> None:
        limit = time.monotonic() + STOP_FAST_S
        while True:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > limit:
                    raise KeeperFailure("another keeper holds this folder") from None
                time.sleep(0.005)
            else:
                os.truncate(self.lock, 0)
                return

    def _watch(self) -> int:
        keeper = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() == keeper:
                fcntl.flock(self.lease, fcntl.LOCK_EX)
        finally:
            os._exit(0)

    def _reap(self, flags: int = 0) -> None:
        pid, status = os.waitpid(-1, flags)
        if pid == self.watcher:
            self.released = True
        elif pid:
            self.exits[pid] = os.waitstatus_to_exitcode(status)

    def log_tail(self) -> str:
        """What the server and initdb said since this keeper began."""
        with self.job.log.open("rb") as file:
            file.seek(self.log_start)
            return file.read()[-4000:].decode(errors="replace")

    def _run(self, command: Sequence[str], *, stdin: str = os.devnull) -> None:
        pid = spawn(command, self.identity, out=self.out, stdin=stdin)
        while pid not in self.exits:
            self._reap()
            if self.released:
                os.killpg(pid, signal.SIGKILL)
        if self.released:
            raise KeeperFailure("nobody waits for the server any more")
        if self.exits[pid] != 0:
            name = Path(command[0]).name
            raise KeeperFailure(f"{name} ended with status {self.exits[pid]}")

    def _own(self, folder: Path) -> None:
        # The cluster must belong to whom the server runs as; this can change with the container.
        if os.geteuid() != 0:
            return
        uid, gid = (
            (self.identity.uid, self.identity.gid) if self.identity.kind == "drop" else (0, 0)
        )
        if folder.stat().st_uid == uid:
            return
        for parent, _folders, files in os.walk(folder):
            for name in [parent, *(os.path.join(parent, file) for file in files)]:  # noqa: PTH118
                os.chown(name, uid, gid, follow_symlinks=False)

    def initialise(self) -> None:
        """Make the cluster aside and rename it when it is complete."""
        job, fresh = self.job, self.job.root / "data.new"
        secret, script = job.root / "data.new.password", job.root / "data.new.sql"
        for leftover in (secret, script):
            leftover.unlink(missing_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        self._own(fresh)
        password = (job.root / "pgpass").read_text().rstrip("\n").rpartition(":")[2]
        try:
            for path, text in ((secret, password), (script, "CREATE DATABASE qigstore\n")):
                path.touch(mode=0o600)
                path.write_text(text)
            self._run(
                [
                    *(str(job.binaries / "initdb"), "--pgdata", str(fresh), "--username=qigstore"),
                    *("--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8"),
                    *("--data-checksums", "--no-instructions", *job.locale.split()),
                ]
            )
            single = [str(job.binaries / "postgres"), "--single", "-D", str(fresh), "postgres"]
            self._run(single, stdin=str(script))
        finally:
            secret.unlink(missing_ok=True)
            script.unlink(missing_ok=True)
        fresh.rename(job.data)
        folder = os.open(job.root, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def _ready(self) -> bool:
        try:
            lines = (self.job.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self.server) and lines[7].strip() == "ready"

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        job = self.job
        # A killed server's lock file names a pid that may live on as a zombie, or as another's.
        for leftover in job.sockets.glob(".s.PGSQL.*"):
            leftover.unlink()
        settings = {
            "listen_addresses": job.listen,
            "port": str(job.port),
            "unix_socket_directories": str(job.sockets),
            "unix_socket_permissions": "0700",
            "fsync": "on",
            "full_page_writes": "on",
            "synchronous_commit": "on",
            "password_encryption": "scram-sha-256",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "logging_collector": "off",
            "jit": "off",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(job.binaries / "postgres"), "-D", str(job.data), *options]
        self.server = spawn(command, self.identity, out=self.out, on_death=signal.SIGINT)
        while not self._ready():
            self._reap(os.WNOHANG)
            if self.server in self.exits:
                raise KeeperFailure(f"postgres ended with status {self.exits[self.server]}")
            if self.released:
                return
            time.sleep(0.005)
        state = {"pid": os.getpid(), "server": self.server, "port": job.port, "listen": job.listen}
        os.pwrite(self.lock, json.dumps(state).encode(), 0)

    def stop(self) -> None:
        """Fast shutdown; immediate, then SIGKILL, where it does not end in time."""
        fast, immediate = (signal.SIGINT, STOP_FAST_S), (signal.SIGQUIT, STOP_HARD_S)
        for number, limit_s in (fast, immediate, (signal.SIGKILL, STOP_HARD_S)):
            if not self.server or self.server in self.exits:
                return
            os.kill(self.server, number)
            end = time.monotonic() + limit_s
            while self.server not in self.exits and time.monotonic() < end:
                self._reap(os.WNOHANG)
                time.sleep(0.002)

    def _asked_to_stop(self, *_: object) -> None:
        if self.server not in self.exits:
            os.kill(self.server, signal.SIGINT)

    def run(self) -> None:
        """Stay until the server ends or nobody holds the lease."""
        signal.signal(signal.SIGTERM, self._asked_to_stop)
        while self.server not in self.exits and not self.released:
            self._reap()

    def finish(self) -> None:
        """Leave no process and no socket folder behind."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.stop()
        if not self.released:
            os.kill(self.watcher, signal.SIGKILL)
        sweep(self.job.data, grace_s=0.0)
        os.truncate(self.lock, 0)
        if self.job.sockets.parent != self.job.root:
            shutil.rmtree(self.job.sockets, ignore_errors=True)


def _detach() -> int:
    """Leave the caller's terminal, limits and signal settings; returns where to report."""
    report = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.chdir("/")
    os.umask(0o077)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_AS, resource.RLIMIT_DATA):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (hard, hard))
    return report


def _start(keeper: Keeper) -> None:
    sweep(keeper.job.data, grace_s=STOP_HARD_S)
    if not keeper.job.data.exists():
        keeper.initialise()
    keeper._own(keeper.job.data)
    keeper.start()


def main(arguments: Sequence[str]) -> None:
    """Detach, start the server, report `{}` or `{"error": …, "log": …}`, and keep it."""
    root, binaries, major, sockets, port, listen, locale = arguments
    job = Job(Path(root), Path(binaries), int(major), Path(sockets), int(port), listen, locale)
    report = _detach()
    if os.fork():
        return
    keeper, answer = None, {}
    try:
        keeper = Keeper(job)
        _start(keeper)
    except (KeeperFailure, OSError) as error:
        answer = {"error": str(error), "log": keeper.log_tail() if keeper else ""}
    # The asker may have been killed meanwhile; the lease will say so.
    with contextlib.suppress(BrokenPipeError):
        os.write(report, json.dumps(answer).encode() + b"\n")
    os.close(report)
    if keeper is None:
        return
    try:
        if not answer:
            keeper.run()
    finally:
        keeper.finish()


if __name__ == "__main__":
    main(sys.argv[1:])
