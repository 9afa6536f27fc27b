"""`python -m benchmarks.signals`: from a signal to its event, while the main thread is busy.

The main thread sits in native code that has released the interpreter's lock (a key derivation of
a tenth of a second, again and again). Three times from the same kind of `kill`, in turns: until a
bare thread behind `signal.set_wakeup_fd` runs, which is the floor; until a `SignalWatch` has
noticed; and until its event is appended to the event log, where it outlives the process. Native
code that keeps the lock keeps every thread of Python waiting: nothing is noticed before it returns.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from qigstore.recording.event_log import EventLog
from qigstore.records import Event
from qigstore.safety.emergency import Emergency, Origin
from qigstore.safety.signals import SignalWatch

__all__ = ["main", "measure"]

_SIGNAL, _LIMIT_S = signal.SIGUSR1, 60.0
Round: TypeAlias = Callable[[Callable[[], int]], dict[str, int]]


def _native() -> None:
    hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 150_000)


def _bare(send: Callable[[], int]) -> dict[str, int]:
    """One signal to a thread that does nothing but wait for it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    earlier = signal.signal(_SIGNAL, lambda *_: None)
    woken: list[int] = []

    def wait() -> None:
        os.read(reader, 1)
        woken.append(time.monotonic_ns())

    thread = threading.Thread(target=wait)
    thread.start()
    sent = _busy_until(thread, send)
    signal.set_wakeup_fd(before)
    signal.signal(_SIGNAL, earlier)
    os.close(reader)
    os.close(writer)
    return {"a bare thread runs": woken[0] - sent}


def _ours(folder: Path) -> Round:
    """One signal to a watch whose event goes to a log in `folder`."""

    def one(send: Callable[[], int]) -> dict[str, int]:
        log, appended = EventLog(folder), threading.Event()
        at: list[int] = []

        def append(event: Event) -> None:
            log.append("s", event)
            at.append(time.monotonic_ns())
            appended.set()

        emergency = Emergency(
            Origin(1, 1), write_event=lambda event: log.write("s", event), append_event=append
        )
        emergency.start()
        log.prepare()

        def on_signal(signum: int) -> None:
            emergency.request_stop("asked to stop", signum=signum, at_once=True)

        watch = SignalWatch(on_signal, signals=(_SIGNAL,), deadline_s=None)
        watch.install()
        thread = threading.Thread(target=appended.wait, args=(_LIMIT_S,))
        thread.start()
        sent = _busy_until(thread, send)
        watch.restore()
        emergency.close(_LIMIT_S)
        log.close()
        assert watch.noticed_ns is not None
        return {"our watch notices": watch.noticed_ns - sent, "its event is appended": at[0] - sent}

    return one


def _busy_until(thread: threading.Thread, send: Callable[[], int]) -> int:
    """Keep the main thread in native code until the other one is done; when it was sent."""
    sent: list[int] = []

    def sender() -> None:
        time.sleep(0.02)  # by now the main thread is in native code
        sent.append(send())

    helper = threading.Thread(target=sender)
    helper.start()
    while thread.is_alive():
        _native()
    helper.join()
    return sent[0]


def _kill() -> int:
    now = time.monotonic_ns()
    os.kill(os.getpid(), _SIGNAL)
    return now


def measure(count: int) -> dict[str, list[float]]:
    """Milliseconds from a signal to each of the three, sorted; `count` of each, in turns."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ours = _ours(Path(folder) / "events")
        for _ in range(count):
            for ns_of in (_bare(_kill), ours(_kill)):
                for name, ns in ns_of.items():
                    found.setdefault(name, []).append(ns / 1e6)
    return {name: sorted(ms) for name, ms in found.items()}


def main() -> None:
    """Print the three distributions."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=300)
    count = parser.parse_args().count
    print(f"{count} signals each, in turns; the main thread is in native code; milliseconds")
    print(f"{'until':<28}{'p50':>8}{'p99':>8}{'most':>8}")
    for name, ms in measure(count).items():
        p99 = ms[min(count - 1, round(0.99 * count))]
        print(f"{name:<28}{ms[count // 2]:>8.2f}{p99:>8.2f}{ms[-1]:>8.2f}")


if __name__ == "__main__":
    main()
