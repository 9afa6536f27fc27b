"""The short way of `record()`: a row of plain numbers with the names of the last one.

There are two, which do the same: this one, and one in C (see `qigstore/compiled.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qigkernels.regimes import NO_REGIME, RegimeDetector, RegimeThresholds
from qigstore.compiled import compiled_or

if TYPE_CHECKING:
    from qigstore.recording.spool import Spool
    from qigstore.recording.spool.frame import Layout

__all__ = ["PurePythonShortWay", "ShortWay"]


class PurePythonShortWay:
    """Base of the recorder: what it knows of usual rows, and of the last row.

    Args:
        spool: where the rows go. bounds: of the regimes.

    Attributes:
        layout, check: of the rows that are usual; None: none are, and there are no rules.
        has_phi: they tell Φ, from which the regime follows.
        mixed: some of their values are no plain numbers, and have to be converted first.
        last_row: layout, step, values and regime of the last row; None before it.
    """

    __slots__ = (
        "_detect", "_into", "check", "has_phi", "last_row", "layout", "mixed",
    )  # fmt: skip

    def __init__(self, spool: Spool, bounds: RegimeThresholds, /) -> None:
        self._into = spool
        self._detect = RegimeDetector(bounds).code
        self.layout: Layout | None = None
        self.check: Callable[[int, Sequence[float]], Sequence[Any]] | None = None
        self.has_phi = self.mixed = False
        self.last_row: tuple[Layout, int, Sequence[float], int] | None = None

    def record(self, step: int, metrics: Mapping[str, Any], /) -> Sequence[Any]:
        """Add one row; the alarms that the rules raise about it, `()` as a rule."""
        if not self.mixed:
            alarms = self.record_plain(step, metrics)
            if alarms is not None:
                return alarms
        return self.record_unusual(step, metrics)

    def record_plain(self, step: int, metrics: Mapping[str, Any], /) -> Sequence[Any] | None:
        """Add a usual row; its alarms, or None: it is not usual, and nothing was written.

        Also None while somebody else holds the spool's lock: waiting is the long way's.
        """
        layout, check, regime = self.layout, self.check, NO_REGIME
        if layout is None or type(metrics) is not dict:
            return None
        if self.has_phi:
            told = (metrics.get(name) for name in ("phi", "kappa_eff", "basin_distance"))
            try:
                regime = self._detect(*told)
            except Exception:
                return None  # some value is no number: the long way tells which
        lock = self._into.lock
        if not lock.acquire(blocking=False):
            return None
        try:
            values = self._into.put(layout, step, regime, metrics)
            if values is None:
                return None
            self.last_row = (layout, step, values, regime)
            return () if check is None else check(step, values)
        finally:
            lock.release()

    def record_unusual(self, step: Any, metrics: Any, /) -> Sequence[Any]:
        """Add a row of any other kind; the recorder's."""
        raise NotImplementedError


if TYPE_CHECKING:
    ShortWay = PurePythonShortWay
else:
    ShortWay = compiled_or(PurePythonShortWay, "qigstore.recording._short_way", "ShortWay")
