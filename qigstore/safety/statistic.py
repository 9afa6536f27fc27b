"""What a detector remembers: numbers, and of two detectors how a quiet value changes them.

In C where it was compiled: at the pace of a training loop the processor has forgotten Python's way
through forty operations each time, and has to find it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from qigstore.compiled import compiled_or
from qigstore.records import Severity

__all__ = ["PurePythonStatistic", "Statistic"]


class PurePythonStatistic:
    """Base of every detector; each uses what it needs of the numbers, `detectors.py` says for what.

    `take_level` and `take_drift` take one finite value, and ask `judge` where there may be
    something to say; here that is always.
    """

    __slots__ = (
        "a", "action", "count", "covariance", "delta", "direction", "floor", "floor_relative",
        "gathered", "jitter", "lagged", "lam", "last", "level", "mean", "metric", "name", "open",
        "run", "scale", "severity", "total", "variance", "warm_up", "warn_squared", "weight",
        "wide",
    )  # fmt: skip
    name: str
    severity: Severity
    action: Literal["record", "checkpoint", "soft_reset", "abort"]
    metric: str
    a: float
    covariance: float
    delta: float
    floor: float
    floor_relative: float
    gathered: float
    jitter: float
    lagged: float
    lam: float
    last: float
    mean: float
    scale: float
    total: float
    variance: float
    warn_squared: float
    weight: float
    wide: float
    count: int
    direction: int
    level: int
    run: int
    warm_up: int
    open: bool

    def judge(self, step: int, value: float, /) -> Any:
        """Take one finite value, whatever it means; the alarm that it raises, if any."""
        raise NotImplementedError

    def take_level(self, step: int, value: float, /) -> Any:
        """`EwmaDetector.judge`, sooner for a value inside the usual range."""
        return self.judge(step, value)

    def take_drift(self, step: int, value: float, /) -> Any:
        """`PageHinkleyDetector.judge`, sooner for a value of no drift."""
        return self.judge(step, value)


if TYPE_CHECKING:
    Statistic = PurePythonStatistic
else:
    Statistic = compiled_or(PurePythonStatistic, "qigstore.safety._statistic", "Statistic")
