"""What a client asks a stream for: which sessions, kinds and metrics, how many points a second."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qigstore.errors import InvalidInput
from qigstore.repository.tokens import matches

__all__ = ["KINDS", "Subscription"]

KINDS = frozenset({"telemetry", "event", "checkpoint"})
"""What may be asked for; `health` always comes."""

_SESSIONS_MAX, _METRICS_MAX, _NAME_MAX = 100, 500, 200
_RATE_DEFAULT, _RATES = 10.0, (0.01, 100.0)
_KNOWN = {"sessions", "metrics", "kinds", "rate"}


@dataclass(frozen=True, slots=True)
class Subscription:
    """A client's wishes, checked.

    Attributes:
        sessions: names; None: every one.
        metrics: names; None: every one.
        kinds: of `KINDS`.
        rate: points of one writer a second, at most; inf: every row.
        visible: the sessions that the token is for, as a pattern; None: every one.
    """

    sessions: frozenset[str] | None = None
    metrics: frozenset[str] | None = None
    kinds: frozenset[str] = KINDS
    rate: float = _RATE_DEFAULT
    visible: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any], visible: str | None = None) -> Subscription:
        """From a client's message or query.

        Raises:
            InvalidInput: an unknown wish, or one that cannot be met.
        """
        for name in given:
            if name not in _KNOWN:
                raise InvalidInput("subscription", name, f"one of {', '.join(sorted(_KNOWN))}")
        kinds = _names("kinds", given.get("kinds"), len(KINDS))
        if kinds is not None and not kinds <= KINDS:
            raise InvalidInput("kinds", sorted(kinds), f"of {', '.join(sorted(KINDS))}")
        return cls(
            _names("sessions", given.get("sessions"), _SESSIONS_MAX),
            _names("metrics", given.get("metrics"), _METRICS_MAX),
            KINDS if kinds is None else kinds,
            _rate(given.get("rate", _RATE_DEFAULT)),
            visible,
        )

    def covers(self, session: str) -> bool:
        """Whether a session is asked for, and the token is for it."""
        if self.sessions is not None:
            return session in self.sessions
        return matches(self.visible, session)

    @property
    def scope(self) -> bytes:
        """Four bytes that are the same where the same things come: for whom a position holds."""
        wishes = (sorted(self.kinds), self.sessions and sorted(self.sessions), self.visible)
        return hashlib.blake2b(repr(wishes).encode(errors="replace"), digest_size=4).digest()


def _names(name: str, given: Any, most: int) -> frozenset[str] | None:
    if given is None:
        return None
    expected = f"1 to {most} names"
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidInput(name, given, expected)
    names = list(given)
    if not 1 <= len(names) <= most:
        raise InvalidInput(name, f"{len(names)} names", expected)
    for one in names:
        if not isinstance(one, str) or not 1 <= len(one) <= _NAME_MAX:
            raise InvalidInput(name, one, f"names of 1 to {_NAME_MAX} characters")
    return frozenset(names)


def _rate(given: Any) -> float:
    if given == "all":
        return math.inf
    least, most = _RATES
    expected = f'{least:g} to {most:g} points a second, or "all"'
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise InvalidInput("rate", given, expected)
    if not least <= given <= most:
        raise InvalidInput("rate", given, expected)
    return float(given)
