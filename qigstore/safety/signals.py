"""SIGTERM and SIGINT: noticed at once, acted on at a safe point, passed on with their true status.

An ordinary handler runs only between two bytecodes of the main thread, which may sit in native code
for minutes. So there are two: the handler, which only stores, and a thread that the interpreter's
own C handler wakes through `signal.set_wakeup_fd`. That thread runs as soon as it gets the GIL:
at once in native code that released it, never before native code that holds it returns. It calls
`on_signal` itself, for each thread that has to be woken takes milliseconds on a busy machine; a
second one goes on watching.

First signal: `on_signal`, then the run saves at a safe point and `re_raise` hands the signal to
whoever had it before. Second signal, or the deadline: `os._exit(128 + n)`.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from types import FrameType
from typing import Any

__all__ = ["Deadline", "SignalWatch"]

_log = logging.getLogger(__name__)

_POKE, _STOP = 0, 255  # bytes that no signal number uses
_POKE_BYTE = bytes([_POKE])
_CALLBACK_WAIT_S = 2.0

Disposition = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


class Deadline:
    """A clock that ends the process when its time is up: all stacks to stderr, then `os._exit`.

    It needs the GIL: native code that holds it for ever is left to the outside (SIGKILL).
    """

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, seconds: float, status: int, reason: str) -> None:
        """Start the clock; a clock that runs already keeps its time."""
        if self._thread is not None:
            return
        self._thread = threading.Thread(
            target=self._wait, args=(seconds, status, reason), name="qigstore-deadline", daemon=True
        )
        _start(self._thread, "there is no deadline")

    def cancel(self) -> None:
        """Stop the clock for good."""
        self._cancelled.set()

    @classmethod
    @contextmanager
    def during(cls, seconds: float, status: int, reason: str) -> Iterator[None]:
        """The clock runs while the block does."""
        deadline = cls()
        deadline.start(seconds, status, reason)
        try:
            yield
        finally:
            deadline.cancel()

    def _wait(self, seconds: float, status: int, reason: str) -> None:
        if self._cancelled.wait(seconds):
            return
        try:
            # File descriptor 2, not sys.stderr: the lock of a stream may be what hangs.
            os.write(2, f"qigstore: {reason}: not done after {seconds:g} s, leaving\n".encode())
            faulthandler.dump_traceback(file=2, all_threads=True)
        finally:
            os._exit(status)


class _Wakeup:
    """The wakeup descriptor of whoever came before; its number may be reused once it is closed."""

    def __init__(self, fd: int) -> None:
        self.fd, self._identity = fd, _identity(fd)

    def is_open(self) -> bool:
        return self._identity is not None and _identity(self.fd) == self._identity

    def forward(self, byte: int) -> None:
        if not self.is_open():
            return
        try:
            os.write(self.fd, bytes([byte]))
        except OSError as error:
            # Full: its owner has been woken already. Gone: there is nobody to wake.
            _log.debug("the earlier wakeup descriptor took nothing: %s", error)


class SignalWatch:
    """Notice the first signal, leave on the second.

    Args:
        on_signal: called once, with the number, in a thread of its own; it may block and write.
        signals: the signals watched; one that is ignored (SIG_IGN) stays ignored.
        deadline_s: seconds from the first signal to `os._exit(128 + n)`; None: no deadline.

    Attributes:
        signum: the first signal, or None; cheap to poll.
        received_ns: `time.monotonic_ns()` in its handler.
        noticed_ns: `time.monotonic_ns()` in the watching thread.
        count: signals that the handler has seen.
    """

    def __init__(
        self,
        on_signal: Callable[[int], object],
        *,
        signals: Sequence[int] = (signal.SIGTERM, signal.SIGINT),
        deadline_s: float | None = 20.0,
    ) -> None:
        self.signum: int | None = None
        self.received_ns: int | None = None
        self.noticed_ns: int | None = None
        self.count = 0
        self.installed = False
        self._on_signal, self._signals, self._deadline_s = on_signal, tuple(signals), deadline_s
        self._deadline = Deadline()
        self._handler = self._handle  # one object, so that `is` finds it again
        self._previous: dict[int, Disposition] = {}
        self._seen = 0  # signals that the watching thread has seen
        self._read_fd = self._write_fd = -1
        self._earlier = _Wakeup(-1)
        # What is left to read of the bytes that held the first signal; None: there was none.
        self._relay: SimpleQueue[bytes | None] = SimpleQueue()
        self._unwatched, self._called = threading.Event(), threading.Event()

    def install(self) -> bool:
        """Begin to watch; False, with one warning, where Python allows no handler.

        Off the main thread only `signum` remains, set by whoever calls `notice`.
        """
        if self.installed:
            return True
        if threading.current_thread() is not threading.main_thread():
            warnings.warn(
                "signals can only be watched from the main thread: this run will not stop by "
                "itself on SIGTERM or SIGINT. Open it in the main thread, or call its "
                "request_stop() from your own handler.",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)
        self._earlier = _Wakeup(signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False))
        # Both ready and waiting: on a busy machine to start a thread takes milliseconds.
        for name, watch in (("signals", self._watch), ("signals-again", self._watch_on)):
            threading.Thread(target=watch, name=f"qigstore-{name}", daemon=True).start()
        self.installed = True
        _installed.add(self)
        for signum in self._signals:
            earlier = signal.getsignal(signum)
            if earlier is None:
                _log.warning("signal %d has a handler that is not Python's: left alone", signum)
            elif earlier is not signal.SIG_IGN:
                self._previous[signum] = earlier
                signal.signal(signum, self._handler)
        return True

    def notice(self, signum: int) -> None:
        """Take note as the handler does: for code that receives the signal in another way."""
        if self.signum is None:
            self.received_ns = time.monotonic_ns()
            self.signum = signum

    def restore(self) -> None:
        """Hand every signal back to whoever had it; a handler set over ours later stays.

        Stops the deadline: whoever leaves after a signal calls `re_raise` instead.
        """
        self._release()
        self._deadline.cancel()

    def _release(self) -> None:
        if not self.installed:
            return
        self.installed = False
        _installed.discard(self)
        if threading.current_thread() is not threading.main_thread():
            _log.warning("closed off the main thread: signals are passed on from now on")
            return
        for signum, earlier in self._previous.items():
            if signal.getsignal(signum) is self._handler:
                signal.signal(signum, _in_force(earlier, signum))
        self._give_back_wakeup()
        # Behind the byte of every signal so far: these are noticed first.
        os.write(self._write_fd, bytes([_STOP]))
        self._unwatched.wait()
        self._close_pipe()

    def re_raise(self) -> None:
        """Restore, then let the signal take the course that it would have taken without us.

        SIG_DFL ends the process here, so that the parent sees the true status; an earlier Python
        handler runs here (`KeyboardInterrupt` comes from this call). Nothing received: only
        restores. An `on_signal` that is still writing gets two seconds more.
        """
        self._release()
        signum = self.signum
        if self.noticed_ns is not None:
            self._called.wait(_CALLBACK_WAIT_S)
        earlier: Disposition = signal.SIG_IGN
        if signum is not None and signum in self._previous:
            earlier = _in_force(self._previous[signum], signum)
        if earlier == signal.SIG_DFL:
            _flush_streams()  # the deadline still runs: a full pipe could hold this up for ever
        self._deadline.cancel()
        owner = getattr(earlier, "__self__", None)
        if signum is None or earlier == signal.SIG_IGN:
            return
        if isinstance(owner, SignalWatch):
            # A run around this one: to raise again would be its *second* signal.
            owner._pass_on(signum)
            return
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signum})
        signal.raise_signal(signum)
        if earlier == signal.SIG_DFL:
            # PID 1 of a container: the kernel spares it the default action.
            os._exit(128 + signum)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # No lock, no log, no allocation worth the name: this runs between any two bytecodes.
        if not self.installed:
            _emulate(_in_force(self._previous.get(signum), signum), signum, frame)
            return
        self.count += 1
        if self.signum is not None and self.count > 1:
            os._exit(128 + signum)
        self.notice(signum)
        try:
            # Someone (asyncio) may have taken the wakeup descriptor after us: wake the thread.
            os.write(self._write_fd, _POKE_BYTE)
        except OSError:
            return  # a full pipe has woken it already

    def _pass_on(self, signum: int) -> None:
        self.notice(signum)
        if self.installed:
            os.write(self._write_fd, _POKE_BYTE)

    def _watch(self) -> None:
        """Wait for the first signal, hand the watch over, call back."""
        while True:
            read = os.read(self._read_fd, 512) or bytes([_STOP])
            for place, byte in enumerate(read):
                if byte == _STOP:
                    self._relay.put(None)
                    self._unwatched.set()
                    return
                if (signum := self._signal_of(byte)) is not None:
                    self._first(signum, read[place + 1 :])
                    return

    def _first(self, signum: int, rest: bytes) -> None:
        self.noticed_ns = time.monotonic_ns()
        # The main thread may be in native code: its handler has not run yet.
        if self.signum is None:
            self.received_ns, self.signum = self.noticed_ns, signum
        # While this thread writes, the other one has to notice the second signal.
        self._relay.put(rest)
        try:
            self._on_signal(signum)
        except Exception:
            _log.exception("on_signal(%d) failed; the run leaves all the same", signum)
        finally:
            self._called.set()

    def _watch_on(self) -> None:
        """From the first signal on: start the deadline, and leave at the second."""
        rest = self._relay.get()
        if rest is None:
            return
        if self._deadline_s is not None and (signum := self.signum) is not None:
            reason = f"signal {signum} asked this process to leave"
            self._deadline.start(self._deadline_s, 128 + signum, reason)
        while True:
            for byte in rest:
                if byte == _STOP:
                    self._unwatched.set()
                    return
                if byte != _POKE and self._signal_of(byte) is not None and self._seen > 1:
                    os._exit(128 + byte)
            rest = os.read(self._read_fd, 512) or bytes([_STOP])

    def _signal_of(self, byte: int) -> int | None:
        """The signal that a byte stands for, if it is one that is watched; counts it."""
        if byte == _POKE:
            return self.signum
        self._earlier.forward(byte)
        if not (self.installed and byte in self._previous):
            return None
        # Another handler over ours (uvicorn's) takes the signal first and may raise it again.
        self._seen += signal.getsignal(byte) is self._handler
        return byte

    def _give_back_wakeup(self) -> None:
        current = signal.set_wakeup_fd(-1)
        if current == self._write_fd:
            current = self._earlier.fd if self._earlier.is_open() else -1
        if current != -1:
            signal.set_wakeup_fd(current, warn_on_full_buffer=False)

    def _close_pipe(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)
        self._read_fd = self._write_fd = -1

    def _disarm_in_child(self) -> None:
        """After a fork: the child has no watching thread, and its signals are its own affair."""
        self.installed = False
        for signum, earlier in self._previous.items():
            if signal.getsignal(signum) is self._handler:
                signal.signal(signum, _in_force(earlier, signum))
        if signal.set_wakeup_fd(-1) not in (-1, self._write_fd):
            _log.debug("a wakeup descriptor of the parent was dropped in this child")
        self._close_pipe()


_installed: set[SignalWatch] = set()
_fork = threading.local()


def _before_fork() -> None:
    """Hold signals back: one that comes before the child is disarmed would wake the parent."""
    if _installed:
        watched = {signum for watch in list(_installed) for signum in watch._previous}
        _fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, watched)


def _after_fork_in_parent() -> None:
    mask = _fork.__dict__.pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    for watch in list(_installed):
        watch._disarm_in_child()
    _installed.clear()
    _after_fork_in_parent()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


def _start(thread: threading.Thread, otherwise: str) -> None:
    try:
        thread.start()
    except RuntimeError as error:  # no more threads, or the interpreter is going down
        _log.error("%s: %s", otherwise, error)


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _in_force(disposition: Disposition, signum: int) -> Disposition:
    """Look through watches that were restored while another one stood above them."""
    while True:
        owner = getattr(disposition, "__self__", None)
        if not isinstance(owner, SignalWatch) or owner.installed:
            return disposition
        disposition = owner._previous.get(signum, signal.SIG_DFL)


def _emulate(disposition: Disposition, signum: int, frame: FrameType | None) -> None:
    if callable(disposition):
        disposition(signum, frame)
    elif disposition == signal.SIG_DFL:
        signal.signal(signum, signal.SIG_DFL)
        signal.raise_signal(signum)


def _flush_streams() -> None:
    """The default action ends the process without flushing what Python still buffers."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError) as error:
            _log.debug("a stream could not be flushed: %s", error)
