"""What is looked at now and then, in the pulse's thread: silence, ends of episodes, idle rules."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from difflib import get_close_matches
from time import monotonic
from uuid import UUID

from qigstore.records import Event
from qigstore.safety.detectors import Alarm
from qigstore.safety.rules import RuleSet

__all__ = ["Lookout"]

_OPEN_MAX, _WAITING_MAX = 1000, 1000
_NAMED_MAX = 10
_ROWS_BEFORE_IDLE = 100
"""So many rows have shown which metrics there are."""

_Word = tuple[UUID, str, UUID | None, bool]


class Lookout:
    """Resolves the events of episodes that have ended, and notices what no row can tell.

    Args:
        progress: rows recorded so far, and the step of the last one (None: none yet).
        raise_alarm: acts on an alarm of a heartbeat rule.
        tell: notes in the database what became of an event, by id, in words, with the checkpoint
            it led to, and whether it is over; raises while the database is away.
        idle: told once of declared rules that no recorded metric answers to; None: nobody asks.
    """

    def __init__(
        self,
        rules: RuleSet,
        progress: Callable[[], tuple[int, int | None]],
        raise_alarm: Callable[[Alarm], object],
        tell: Callable[[UUID, str, UUID | None, bool], object],
        *,
        idle: Callable[[str], object] | None = None,
    ) -> None:
        self._rules, self._progress, self._raise = rules, progress, raise_alarm
        self._tell, self._idle = tell, idle
        # Bounded: an old episode's end is lost before memory is.
        self._open: deque[tuple[Alarm, Event]] = deque(maxlen=_OPEN_MAX)
        self._words: deque[_Word] = deque(maxlen=_WAITING_MAX)

    def follow(self, alarm: Alarm, event: Event) -> None:
        """Resolve the event of this alarm once its episode ends; from the training's thread."""
        self._open.append((alarm, event))

    def over(self, event: Event, result: str, checkpoint: UUID | None = None) -> None:
        """The event is over, for a reason of the caller's; told to the database from here."""
        self._words.append((event.id, result, checkpoint, True))

    def acted(self, event: Event, result: str, checkpoint: UUID | None = None) -> None:
        """What the event's action came to; told to the database from here."""
        self._words.append((event.id, result, checkpoint, False))

    def look(self) -> None:
        """One turn.

        Raises:
            StoreError: the database is away; what waits is told in another turn.
        """
        rows, step = self._progress()
        for alarm in self._rules.look(monotonic(), rows, -1 if step is None else step):
            self._raise(alarm)
        for _ in range(len(self._open)):
            alarm, event = self._open.popleft()
            if self._rules.is_open(alarm):
                self._open.append((alarm, event))
            else:
                self.over(event, f"{alarm.metric} is well again at step {step}")
        if self._idle is not None and rows >= _ROWS_BEFORE_IDLE:
            idle, self._idle = self._idle, None
            self._tell_idle(idle)
        while self._words:
            self._tell(*self._words[0])
            self._words.popleft()

    def _tell_idle(self, idle: Callable[[str], object]) -> None:
        named = {rule.name: rule.metric for rule in self._rules.rules}
        words = []
        for name in self._rules.unmatched():
            near = get_close_matches(named[name], self._rules.metrics, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            words.append(f"{name!r} on {named[name]!r}{hint}")
        if words:
            more = f" and {len(words) - _NAMED_MAX} more" if len(words) > _NAMED_MAX else ""
            idle(f"rules without a metric: {', '.join(words[:_NAMED_MAX])}{more}")
