"""The check of a row: quiet as long as every value is finite and new to no detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import TYPE_CHECKING, TypeAlias

from qigstore.compiled import compiled_or

if TYPE_CHECKING:
    from qigstore.safety.detectors import Alarm

__all__ = ["Check", "PurePythonCheck"]

Judge: TypeAlias = "Callable[[int, Sequence[float]], Sequence[Alarm]]"


class PurePythonCheck:
    """Judges the values of a row, in the order of the layout that it was made for.

    Args:
        observers: (index of a value, what judges it); each takes the step and a finite value.
        busy: not empty while some value was not finite of late: then every row goes the slow way.
        slow: judges a row whose values may be anything.
        bounded: what becomes of the alarms of one row.
    """

    __slots__ = ("_bounded", "_busy", "_observers", "_slow")

    def __init__(
        self,
        observers: tuple[tuple[int, Callable[[int, float], Alarm | None]], ...],
        busy: Set[object],
        slow: Judge,
        bounded: Callable[[list[Alarm]], Sequence[Alarm]],
        /,
    ) -> None:
        self._observers, self._busy, self._slow, self._bounded = observers, busy, slow, bounded

    def __call__(self, step: int, values: Sequence[float], /) -> Sequence[Alarm]:
        """The alarms that a step raises, `()` when quiet."""
        total = sum(values)
        # A sum of finite values is finite, or overflows, which the slow way then finds out.
        if total - total != 0.0 or self._busy:
            return self._slow(step, values)
        found: list[Alarm] | None = None
        for index, observe in self._observers:
            alarm = observe(step, values[index])
            if alarm is not None:
                found = [alarm] if found is None else [*found, alarm]
        return () if found is None else self._bounded(found)


if TYPE_CHECKING:
    Check = PurePythonCheck
else:
    Check = compiled_or(PurePythonCheck, "qigstore.safety._check", "Check")
