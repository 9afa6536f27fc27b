"""The background writer: spool → repository, and the disk's durability, while training goes on."""

from __future__ import annotations

import atexit
import logging
import random
import threading
from dataclasses import dataclass
from time import monotonic, sleep
from typing import TYPE_CHECKING

from qigstore.errors import NotStored, QigstoreError, StaleWriter
from qigstore.recording.disk_keeper import DiskKeeper
from qigstore.recording.shipper import Shipper, Target
from qigstore.recording.spool.quarantine import Quarantine
from qigstore.recording.spool.reader import SpoolReader

if TYPE_CHECKING:
    from qigstore.recording.spool import Spool
    from qigstore.repository import Store

__all__ = ["Health", "Writer"]

_log = logging.getLogger("qigstore")
_BACK_OFF_S = (0.05, 5.0)
_EXIT_TIMEOUT_S = 5.0
_JOIN_S = 0.2


@dataclass(frozen=True, slots=True)
class Health:
    """How far the database is behind the training.

    Attributes:
        lag_rows, lag_s: rows not stored yet; how long the oldest of them waits, at most.
        dropped_rows: found no room in the spool. repeated_rows: replaced by a later record of
            their step. refused_rows: in quarantine. gap_rows: lost to damage.
        stale: another process took this writer's place.
    """

    lag_rows: int
    lag_s: float
    dropped_rows: int
    repeated_rows: int
    stored_rows: int
    last_error: str | None
    connected: bool
    refused_rows: int = 0
    gap_rows: int = 0
    stale: bool = False


class _Courtesy:
    """Gives other threads the interpreter's lock, for at most half of the time.

    Without it, a thread that records now and then would wait up to 5 ms for the lock. One that
    records without end takes it for 5 ms each time it is offered, and rows would pile up.
    """

    def __init__(self) -> None:
        self._next_at = 0.0

    def __call__(self) -> None:
        now = monotonic()
        if now >= self._next_at:
            sleep(0)
            end = monotonic()
            self._next_at = end + (end - now)


class Writer:
    """Ships one spool. `start` it; `close` is a barrier; leaving it unclosed is safe but slower.

    Two daemon threads: one talks to the database, the other to the disk, so that neither waits for
    the other's bad day.
    """

    def __init__(
        self,
        store: Store,
        spool: Spool,
        *,
        session_id: int,
        attempt: int,
        epoch: int,
        flush_interval_s: float = 0.1,
        batch_rows_max: int = 50_000,
    ) -> None:
        identity = spool.identity
        self._spool = spool
        self._shipper = Shipper(
            store,
            SpoolReader(spool, identity.writer, pause=_Courtesy()),
            Target(identity.writer, epoch, session_id, attempt, identity.rank),
            quarantine=Quarantine(spool.folder.parent, identity.writer),
            rows_max=batch_rows_max,
        )
        self._flush_interval_s = flush_interval_s
        self._failures = self._acked = 0
        self._abreast_at = monotonic()
        self._error: str | None = None
        self._stale = False
        self._stopping = self._closed = False
        self._wake = threading.Event()
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="qigstore-writer", daemon=True)
        self._disk = DiskKeeper(spool)

    def start(self) -> None:
        """Begin."""
        self._thread.start()
        self._disk.start()
        atexit.register(self._leave)

    # -- the thread that talks to the database ---------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(self._pause_s())
            self._wake.clear()
            self._ship()
        if not self._stale and not self._closed:
            self._ship()

    def _pause_s(self) -> float:
        if self._stale:
            return 60.0
        if not self._failures:
            return self._flush_interval_s
        least, most = _BACK_OFF_S
        longest = min(most, least * 2.0 ** min(self._failures, 10))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 (jitter, not a secret)

    def _ship(self) -> None:
        if self._stale:
            return
        try:
            while not self._closed:
                began, recorded = monotonic(), self._spool.seq
                more = self._shipper.step()
                if not more or self._shipper.acked >= recorded:
                    self._abreast_at = began
                self._tell(None)
                if not more:
                    break
                self._spool.release(self._shipper.acked)
        except StaleWriter as stale:
            self._spool.notify(str(stale))
            self._tell(stale, stale=True)
        except Exception as error:
            # Nothing is lost: the rows are in the spool, and the error is in `health`.
            self._tell(error)

    def _tell(self, error: Exception | None, *, stale: bool = False) -> None:
        # What came of it and why, in one: who waits for the one asks for the other at once.
        with self._news:
            self._acked, self._stale = self._shipper.acked, self._stale or stale
            if error is None:
                self._failures, self._error = 0, None
            else:
                if not self._failures:
                    level = logging.WARNING if isinstance(error, QigstoreError) else logging.ERROR
                    _log.log(level, "recorded rows wait in the spool: %s", error)
                self._failures += 1
                self._error = str(error) or type(error).__name__
            self._news.notify_all()

    # -- barriers -----------------------------------------------------------------------------

    def flush(self, timeout_s: float = 30.0, *, durable: bool = False) -> None:
        """Wait until every row recorded before this call is stored.

        `durable`: on the disk first, whatever the database does.

        Raises:
            NotStored: the database did not take everything in time.
            OSError: `durable`, and the disk refuses.
        """
        if self._spool.forked:
            return
        target = self._spool.seq
        if durable:
            self._spool.sync()
        deadline = monotonic() + timeout_s
        self._wake.set()
        with self._news:
            while self._acked < target:
                left = deadline - monotonic()
                if left <= 0 or self._stale or not self._thread.is_alive():
                    raise self._not_stored(target, timeout_s)
                self._news.wait(left)

    def _not_stored(self, target: int, timeout_s: float) -> NotStored:
        reason = self._error or f"the database took longer than {timeout_s:g} s"
        return NotStored(target - self._shipper.acked, self._spool.folder, reason)

    def close(self, timeout_s: float = 30.0) -> None:
        """Store everything and remove the spool; a second call does nothing.

        Raises:
            NotStored: rows are left; the spool is released for another process to ship.
        """
        if self._closed or self._spool.forked:
            return
        deadline = monotonic() + timeout_s
        try:
            self.flush(timeout_s)
        finally:
            self._stopping = True
            self._wake.set()
            self._disk.stop()
            # A thread that hangs in a call to the database is left to itself: whatever it still
            # commits, the fence keeps it from being stored a second time.
            self._thread.join(max(deadline - monotonic(), _JOIN_S))
            self._closed = True
            self._disk.join(max(deadline - monotonic(), _JOIN_S))
            atexit.unregister(self._leave)
            if self._shipper.acked >= self._spool.seq:
                self._spool.remove()
            else:
                self._spool.close()

    def _leave(self) -> None:
        try:
            self.close(_EXIT_TIMEOUT_S)
        except NotStored as waiting:
            _log.warning("%s", waiting)

    @property
    def health(self) -> Health:
        """Lag, losses and the last error, now."""
        shipper, spool = self._shipper, self._spool
        lag_rows = max(spool.seq - shipper.acked, 0)
        return Health(
            lag_rows=lag_rows,
            lag_s=monotonic() - self._abreast_at if lag_rows else 0.0,
            dropped_rows=spool.dropped,
            repeated_rows=shipper.repeated,
            stored_rows=shipper.rows,
            last_error=self._error,
            connected=self._error is None,
            refused_rows=shipper.refused,
            gap_rows=shipper.gap,
            stale=self._stale,
        )
