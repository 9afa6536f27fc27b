"""Tell somebody of events: a command or a webhook, from a thread of its own, for a stated time.

The command and the address come from the settings alone: nothing of an event chooses where it goes.
The event is JSON on the command's stdin or in the request's body; in the words of the command,
`{session}`, `{rule}`, `{severity}`, `{step}` and `{message}` stand for its fields. There is no
shell, and a redirect is an error.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shlex
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import datetime
from queue import Full, Queue
from typing import TYPE_CHECKING, Any
from urllib.request import HTTPRedirectHandler, Request, build_opener

from qigstore.errors import ConfigurationError
from qigstore.records import Event, Severity

if TYPE_CHECKING:
    from qigstore.settings import Settings

__all__ = ["Notifier"]

_log = logging.getLogger(__name__)
_WAITING_MAX = 100
_RANK: Mapping[str, int] = {"info": 0, "warning": 1, "critical": 2}
_PLACE = re.compile(r"\{(\w+)\}")
_FIELDS = ("session", "rule", "severity", "step", "message")


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_args: Any, **_more: Any) -> None:
        """Never: the address is the one that was set, and no other."""


class Notifier:
    """Calls the hook for each event from `least` severity on; `notify` never waits.

    Args:
        session: name of the session, told with the event.
        command: words as a shell would split them; None: no command.
        url: `http` or `https`; the event is posted there; None: no webhook.
        limit_s: how long one call may take; then it is ended and counted as failed.

    Raises:
        ConfigurationError: a command or address that cannot be used.
    """

    def __init__(
        self,
        session: str,
        *,
        command: str | None = None,
        url: str | None = None,
        least: Severity = "critical",
        limit_s: float = 10.0,
    ) -> None:
        self._session, self._least, self._limit_s = session, _RANK[least], limit_s
        self._hooks: list[Callable[[Event], None]] = []
        if command is not None:
            self._words = _words(command)
            self._hooks.append(self._run)
        if url is not None:
            if not url.lower().startswith(("https://", "http://")):
                raise ConfigurationError("notify_url must begin with https:// or http://")
            self._url, self._opener = url, build_opener(_NoRedirect())
            self._hooks.append(self._post)
        self._queue: Queue[Event | None] = Queue(_WAITING_MAX)
        self._thread: threading.Thread | None = None
        self.told = self.failed = self.dropped = 0

    @classmethod
    def of(cls, settings: Settings, session: str) -> Notifier:
        """The hook that the settings name.

        Raises:
            ConfigurationError: a command or address that cannot be used.
        """
        url = settings.notify_url
        return cls(
            session,
            command=settings.notify_command,
            url=None if url is None else url.get_secret_value(),
            least=settings.notify_severity,
            limit_s=settings.notify_timeout_s,
        )

    def notify(self, event: Event) -> None:
        """Have somebody told; where too many wait already, it is counted and logged."""
        if not self._hooks or _RANK[event.severity] < self._least:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._tell, name="qigstore-notify", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(event)
        except Full:
            self.dropped += 1
            _log.error("nobody was told of %s: %d others wait", event.rule, _WAITING_MAX)

    def close(self, timeout_s: float) -> bool:
        """Tell what waits; False where that took longer."""
        if self._thread is None:
            return True
        try:
            self._queue.put(None, timeout=max(timeout_s, 0.0))
        except Full:
            return False
        self._thread.join(max(timeout_s, 0.0))
        return not self._thread.is_alive()

    def _tell(self) -> None:
        while (event := self._queue.get()) is not None:
            for hook in self._hooks:
                try:
                    hook(event)
                    self.told += 1
                except Exception as error:
                    self.failed += 1
                    # Its words may hold the address, which may hold a secret.
                    name, kind = hook.__name__.strip("_"), type(error).__name__
                    _log.error("telling of %s failed (%s): %s", event.rule, name, kind)

    def _run(self, event: Event) -> None:
        told = {name: str(value) for name, value in self._told(event).items() if name in _FIELDS}
        words = [_PLACE.sub(lambda found: told[found[1]], word) for word in self._words]
        subprocess.run(
            words, input=self._json(event), timeout=self._limit_s, check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def _post(self, event: Event) -> None:
        head = {"Content-Type": "application/json", "User-Agent": "qigstore"}
        # The scheme was checked above, and the address is nobody's but the settings'.
        request = Request(self._url, self._json(event), head, method="POST")  # noqa: S310
        with self._opener.open(request, timeout=self._limit_s):
            return

    def _told(self, event: Event) -> dict[str, Any]:
        told = {field.name: getattr(event, field.name) for field in fields(event)}
        del told["detail"]
        return {"session": self._session, **told}

    def _json(self, event: Event) -> bytes:
        told = {name: _finite(value) for name, value in self._told(event).items()}
        return json.dumps(told, default=_plain, allow_nan=False).encode()


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigurationError(f"notify_command cannot be used: {error}") from error
    unknown = {name for word in words for name in _PLACE.findall(word)} - set(_FIELDS)
    if not words or unknown:
        names = ", ".join(f"{{{name}}}" for name in _FIELDS)
        what = f"it names {', '.join(sorted(unknown))}" if unknown else "it is empty"
        raise ConfigurationError(
            f"notify_command cannot be used: {what}; its placeholders are {names}"
        )
    return words


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _finite(value: Any) -> Any:
    """JSON has no word for NaN and ±inf."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
