"""The writer of a run that opened without its database: keeps rows durable, ships them later."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from qigstore.errors import NotStored, QigstoreError
from qigstore.recording.disk_keeper import DiskKeeper
from qigstore.recording.writer import Health, Writer

if TYPE_CHECKING:
    from qigstore.recording.spool import Spool

__all__ = ["LateWriter"]

_log = logging.getLogger("qigstore")
_BACK_OFF_S = (0.5, 30.0)
_JOIN_S = 0.2


class LateWriter:
    """Looks after a spool until a database can be had, then hands it to a `Writer`.

    Args:
        spool: of this process.
        connect: registers the attempt and makes its writer, not yet started; raises `StoreError`
            while there is no database. None: there will be none in this process.
        why: what keeps the rows from the database now.
    """

    def __init__(self, spool: Spool, connect: Callable[[], Writer] | None, why: str) -> None:
        self._spool, self._connect = spool, connect
        self._error, self._since = why, monotonic()
        self._writer: Writer | None = None
        self._closed = False
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._disk = DiskKeeper(spool)
        self._link = threading.Thread(target=self._keep_trying, name="qigstore-link", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._disk.start()
        if self._connect is not None:
            self._link.start()

    def _keep_trying(self) -> None:
        assert self._connect is not None
        least, most = _BACK_OFF_S
        pause = least
        while not self._stop.wait(pause * random.uniform(0.5, 1.0)):  # noqa: S311 (jitter)
            pause = min(2.0 * pause, most)
            try:
                writer = self._connect()
            except QigstoreError as error:
                self._error = str(error)
            except Exception as error:
                # The rows are safe, and it may be over the next time; but nobody foresaw it.
                _log.exception("no database yet")
                self._error = str(error) or type(error).__name__
            else:
                self._hand_over(writer)
                return

    def _hand_over(self, writer: Writer) -> None:
        with self._news:
            if not self._closed:
                writer.start()  # with a disk keeper of its own
                self._disk.stop()
                self._writer = writer
            self._news.notify_all()

    # -- barriers -----------------------------------------------------------------------------

    def flush(self, timeout_s: float = 30.0, *, durable: bool = False) -> None:
        """Wait until every row recorded before this call is stored.

        `durable`: on the disk first. Where no database is ever asked, on the disk is all there is.

        Raises:
            NotStored: there was no database in time.
            OSError: the disk refuses.
        """
        if self._spool.forked:
            return
        if durable or self._connect is None:
            self._spool.sync()
        if self._connect is None or not self._spool.seq:
            return
        end = monotonic() + timeout_s
        with self._news:
            self._news.wait_for(lambda: self._writer is not None or self._closed, timeout_s)
        if self._writer is None:
            raise NotStored(self._spool.seq, self._spool.folder, self._error)
        self._writer.flush(max(end - monotonic(), 0.0))

    def close(self, timeout_s: float = 30.0) -> None:
        """Store everything, or let go of the spool for another process to ship.

        Raises:
            NotStored: a database was wanted, and rows are left.
        """
        if self._closed or self._spool.forked:
            return
        end = monotonic() + timeout_s
        try:
            self.flush(timeout_s)
        finally:
            with self._news:
                self._closed = True
                self._news.notify_all()
            self._stop.set()
            self._disk.stop()
            self._disk.join(_JOIN_S)
            if self._link.is_alive():
                self._link.join(_JOIN_S)
            if self._writer is not None:
                self._writer.close(max(end - monotonic(), _JOIN_S))
            else:
                self._spool.close()

    @property
    def health(self) -> Health:
        """Lag, losses and the last error, now."""
        if self._writer is not None:
            return self._writer.health
        rows = self._spool.seq
        return Health(
            lag_rows=rows,
            lag_s=monotonic() - self._since if rows else 0.0,
            dropped_rows=self._spool.dropped,
            repeated_rows=0,
            stored_rows=0,
            last_error=self._error,
            connected=False,
        )
