"""The pulse of a run: says that its process lives, and hears whether somebody asks it to stop.

A thread of its own, so that neither a long step of training nor a backlog of rows keeps it from
either. It asks rather than listens: a pooler in transaction mode passes no notification on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic

from qigstore.records import Event

__all__ = ["POLL_S", "Pulse"]

_log = logging.getLogger(__name__)

POLL_S = 0.25
"""A request is heard within a second, with room for a slow answer."""
_JOIN_S = 1.0


class Pulse:
    """Beats every `interval_s`, and asks every `poll_s` whether to stop, until it is closed.

    Args:
        beat: says that the process lives; may block and raise.
        asked: the request to stop, or None; may block and raise.
        heed: called once with that request.
        look: called at each turn, for what has to be looked at now and then; may raise.
    """

    def __init__(
        self,
        beat: Callable[[], object],
        asked: Callable[[], Event | None],
        heed: Callable[[Event], object],
        *,
        interval_s: float,
        poll_s: float = POLL_S,
        look: Callable[[], object] | None = None,
    ) -> None:
        self._beat, self._asked, self._heed, self._look = beat, asked, heed, look
        self._interval_s, self._poll_s = interval_s, poll_s
        self._due, self._heeded, self._told = 0.0, False, ""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="qigstore-pulse", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop; a call that hangs is left to itself."""
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        while not self._closed.wait(min(self._poll_s, self._interval_s)):
            try:
                self._turn()
                self._told = ""
            except Exception as error:
                # The database is away: said once, tried again.
                text = f"no pulse: {type(error).__name__}: {error}"
                level = logging.DEBUG if text == self._told else logging.WARNING
                _log.log(level, "%s", text)
                self._told = text

    def _turn(self) -> None:
        if self._look is not None:
            self._look()
        if monotonic() >= self._due:
            self._beat()
            self._due = monotonic() + self._interval_s
        if self._heeded:
            return
        request = self._asked()
        if request is not None:
            self._heed(request)
            self._heeded = True
