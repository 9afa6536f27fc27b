"""The thread that talks to the disk: keeps a spool's rows durable and its next pages ready."""

from __future__ import annotations

import logging
import threading
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qigstore.recording.spool import Spool

__all__ = ["DiskKeeper"]

_log = logging.getLogger("qigstore")
_SYNC_INTERVAL_S = 0.5
"""Half of what is promised (1 s), so that a slow fsync still keeps it."""
_PREPARE_INTERVAL_S = 0.1


class DiskKeeper:
    """Syncs a spool twice a second; whoever talks to the database does not wait for it.

    Args:
        spool: of this process.
        stop: ends it; its `wait` is the pause between two rounds.
    """

    def __init__(self, spool: Spool, stop: threading.Event | None = None) -> None:
        self._spool, self._stop = spool, stop or threading.Event()
        self._thread = threading.Thread(target=self.run, name="qigstore-disk", daemon=True)

    def start(self) -> None:
        """Begin, in a daemon thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end."""
        self._stop.set()

    def join(self, timeout_s: float) -> None:
        """Wait for its end, where it had begun."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def run(self) -> None:
        """Go on until `stop`; a disk that refuses is said once."""
        due, failing = 0.0, False
        while not self._stop.wait(_PREPARE_INTERVAL_S):
            self._spool.prepare()
            if monotonic() < due:
                continue
            due = monotonic() + _SYNC_INTERVAL_S
            try:
                self._spool.sync()
                failing = False
            except OSError as error:
                if not failing:
                    _log.warning("recorded rows are not durable: %s", error)
                failing = True
