"""Ranks that train one state together: at a step boundary all do what one of them wants.

No framework is known here: `Ranks` holds the callables of one (`qigstore.integrations.torch` makes
them). What is exchanged at a boundary is one number, the greatest of all ranks' wishes; only a stop
costs more. A rank that is gone, or silent for too long, is a reason to stop, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from time import monotonic
from typing import Any

from qigstore.errors import ConfigurationError, RankError
from qigstore.safety.emergency import Emergency

__all__ = ["Ranks", "Together", "Wish", "led"]

_REASON_MAX = 2000


class Wish(IntEnum):
    """What a rank wants of all at a step boundary; the greatest holds."""

    GO_ON = 0
    CHECKPOINT = 1
    LEAVE = 2
    """Stop without a checkpoint."""
    STOP = 3
    """Stop, and save first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """How this process talks to those it trains with; every rank makes the same calls in order.

    Args:
        rank, size: which of how many this one is.
        most: the greatest of a number that every rank gives. Waits for the others as long as its
            second argument, asked about once a second, says so.
        tell: the text of one rank, on all of them: `tell(text, source)`.
        broke: whether an error that the training raised says that a rank is gone.
        mark: of a state: equal as long as nothing was written to it; None where nobody can tell.
        every: steps from one exchange to the next, by the step's number, so that all ranks agree.
        limit_s: how long one waits for the others; a rank that is dead is noticed at once.

    `most` and `tell` raise `RankError` where a rank is gone or silent.

    Raises:
        ConfigurationError: a number out of its range.
    """

    rank: int
    size: int
    most: Callable[[int, Callable[[], bool]], int]
    tell: Callable[[str, int], str]
    broke: Callable[[BaseException], bool] = lambda _error: False
    mark: Callable[[Any], object] = lambda _state: None
    every: int = 1
    limit_s: float = 120.0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            given = f"rank={self.rank}, size={self.size}"
            raise ConfigurationError(f"{given}; expected a rank from 0 to below the size")
        if self.every < 1 or not self.limit_s > 0.0:
            given = f"every={self.every}, limit_s={self.limit_s:g}"
            raise ConfigurationError(f"{given}; expected every from 1 on, limit_s above 0")


def led(ranks: Ranks, what: str, do: Callable[[], str]) -> str:
    """Rank 0 does something for all, and every rank gets what it says of it.

    Raises:
        RankError: on the others, where rank 0 failed in it or does not answer; on rank 0 itself
            its own error.
    """
    if ranks.rank == 0:
        try:
            told = json.dumps({"done": do()})
        except BaseException as error:
            failed = f"{type(error).__name__}: {error}"[:_REASON_MAX]
            with suppress(RankError):  # then nobody is left who waits for it
                ranks.tell(json.dumps({"failed": failed}), 0)
            raise
        return str(json.loads(ranks.tell(told, 0))["done"])
    answer = json.loads(ranks.tell("", 0))
    if "failed" in answer:
        raise RankError(f"rank 0 could not {what}: {answer['failed']}")
    return str(answer["done"])


class Together:
    """One rank among the others: tells its wishes, hears theirs.

    Args:
        ranks: how to talk to them.
        emergency: of this rank; it is asked to stop where another one wants that.
        hurry: whether this rank has to leave soon (a signal): it then waits for `hurry_s` only.

    Attributes:
        stopping: whether all ranks, as far as they live, stop at this boundary.
        saves: whether they save first.
        lost: whether that is because one of them does not answer.
        event, alarm: the event of another rank that is why (its id), and whether it is critical.
    """

    def __init__(
        self, ranks: Ranks, emergency: Emergency, hurry: Callable[[], bool], hurry_s: float
    ) -> None:
        self.ranks = ranks
        self.stopping = self.saves = self.lost = self.alarm = False
        self.event: str | None = None
        self._emergency, self._hurry, self._hurry_s = emergency, hurry, hurry_s

    @property
    def first(self) -> bool:
        """Whether this is rank 0: it claims, decides and saves for all."""
        return self.ranks.rank == 0

    def due(self, step: int) -> bool:
        """Whether the ranks exchange their wishes before this step."""
        return step % self.ranks.every == 0

    def meet(self, wish: Wish, step: int | None) -> Wish:
        """Exchange the wishes; what all ranks do now. A lost rank means that the others stop."""
        ranks, place = self.ranks, self.ranks.size - 1 - self.ranks.rank
        try:
            # Of equal wishes the lowest rank's counts: it says why.
            most = ranks.most(wish * ranks.size + place, self._patience())
            agreed, place = divmod(most, ranks.size)
            if agreed >= Wish.LEAVE:
                self._stop(Wish(agreed), ranks.size - 1 - place)
        except RankError as error:
            self.lose(str(error), step)
            return Wish.STOP
        return Wish(agreed)

    def lose(self, why: str, step: int | None) -> None:
        """Stop, because a rank does not answer; which of the others stop is not known."""
        self._emergency.request_stop(why[:_REASON_MAX], step=step, rule="rank lost")
        self.saves = self._emergency.stop.checkpoint
        self.stopping = self.lost = True

    def _stop(self, wish: Wish, source: int) -> None:
        stop = self._emergency.stop
        event, mine = stop.event, {"reason": (stop.reason or "")[:_REASON_MAX]}
        if event is not None:
            mine |= {"event": str(event.id), "severity": event.severity}
        told = json.loads(self.ranks.tell(json.dumps(mine), source))
        if source != self.ranks.rank:
            stop.set(f"rank {source}: {told['reason']}", checkpoint=wish == Wish.STOP)
            self.event, self.alarm = told.get("event"), told.get("severity") == "critical"
        self.stopping, self.saves = True, wish == Wish.STOP

    def _patience(self) -> Callable[[], bool]:
        began = monotonic()

        def waits() -> bool:
            limit_s = self.ranks.limit_s
            return monotonic() - began < (min(limit_s, self._hurry_s) if self._hurry() else limit_s)

        return waits
