"""The hot path: from `record(step, metrics)` to a row in the spool, in a few microseconds.

A row of plain numbers with the names of the last one takes the short way, `Spool.put`. Whatever
else comes goes the long way, where every check has its words.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from qigkernels.regimes import NO_REGIME, Regime, RegimeDetector, RegimeThresholds
from qigstore.errors import InvalidInput
from qigstore.recording.geometry import BasinTrack, check_basin
from qigstore.recording.values import (
    PLAIN,
    RESERVED,
    check_names,
    regime_code,
    to_numbers,
    to_step,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qigstore.recording.spool import Spool
    from qigstore.recording.spool.frame import Layout

__all__ = ["Recorder"]

A = TypeVar("A")

_PLANS_MAX = 4_096

Check: TypeAlias = Callable[[int, Sequence[float], float | None], Sequence[A]]
"""Step, values and, where it is known, their sum → alarms."""


class _Plan(Generic[A]):
    """What is known of rows with these names: worked out once.

    `mixed`: some values were no plain numbers (NumPy scalars, 0-d tensors), and will be again.
    """

    __slots__ = ("check", "has_phi", "layout", "mixed", "names")

    def __init__(self, layout: Layout, check: Check[A] | None) -> None:
        self.layout, self.check, self.mixed = layout, check, False
        self.names, self.has_phi = layout.order, "phi" in layout.names


class Recorder(Generic[A]):
    """Checks rows and adds them to a spool; any thread may call it.

    Args:
        spool: where the rows go.
        bind_rules: makes, for the names of a row, the check that is called with its step, values
            and sum *after* the row is in the spool: no rule can lose a row.
        preset: thresholds of the regime, which is computed where the caller gives Φ and no regime.
    """

    __slots__ = ("_bind", "_detect", "_last", "_plan", "_plans", "_spool", "_track")

    def __init__(
        self,
        spool: Spool,
        *,
        bind_rules: Callable[[tuple[str, ...]], Check[A]] | None = None,
        preset: RegimeThresholds | None = None,
    ) -> None:
        self._spool = spool
        self._bind = bind_rules
        self._detect = RegimeDetector(preset).code
        self._track = BasinTrack()
        self._plans: OrderedDict[tuple[tuple[str, ...], int], _Plan[A]] = OrderedDict()
        self._plan = self._plan_of((), 0)
        self._last: tuple[int, Sequence[str], Sequence[float], int] = (-1, (), (), NO_REGIME)

    def record(self, step: int, metrics: Mapping[str, Any]) -> Sequence[A]:
        """Add one row; the alarms that the rules raise about it, `()` as a rule.

        Args:
            step: 0 ≤ step < 2^62.
            metrics: real scalars by name; None: not measured. `basin`: a distribution, from which
                the geometry metrics follow; `regime`: a name or code.

        Raises:
            InvalidInput: what cannot be recorded, by name; nothing of the row was kept.
        """
        plan, spool = self._plan, self._spool
        try:
            row = self._converted(plan, metrics) if plan.mixed else metrics
            regime = self._regime(row) if plan.has_phi else NO_REGIME
        except Exception:
            return self._record_slowly(step, metrics)  # there it is told which value is none
        with spool.lock:
            values = spool.put(plan.layout, step, regime, row)
            if values is not None:
                self._last = (step, plan.names, values, regime)
                return () if plan.check is None else plan.check(step, values, spool.total)
        return self._record_slowly(step, metrics)

    def _converted(self, plan: _Plan[A], metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        """A row like the last one, some of whose values were NumPy scalars or 0-d tensors."""
        if [*metrics] != plan.names:
            return metrics  # another row: the long way converts it
        return dict(zip(plan.names, to_numbers(plan.names, metrics.values()), strict=True))

    def _regime(self, row: Mapping[str, Any]) -> int:
        return self._detect(row["phi"], row.get("kappa_eff"), row.get("basin_distance"))

    # -- the long way -------------------------------------------------------------------------

    def _record_slowly(self, step: Any, metrics: Mapping[str, Any]) -> Sequence[A]:
        number = to_step(step)
        if not isinstance(metrics, Mapping):
            raise InvalidInput("metrics", metrics, "a mapping of values by name")
        given = {name: value for name, value in metrics.items() if value is not None}
        basin, regime = given.pop("basin", None), given.pop("regime", None)
        if not (RESERVED.isdisjoint(given) and all(type(name) is str for name in given)):
            check_names(tuple(given))
        row = dict(zip(given, to_numbers(given, given.values()), strict=True))
        code = None if regime is None else regime_code(regime)
        with self._spool.lock:
            point = None if basin is None else check_basin(basin)
            told = {} if point is None else self._track.measure(point)
            row = told | row
            plan = self._plan_of(tuple(row), 0 if point is None else len(point))
            values = tuple(row.values())
            if code is None:
                code = self._regime(row) if plan.has_phi else NO_REGIME
            cells = values if point is None else (*values, *point.tolist())
            if self._spool.append(plan.layout, number, code, cells) and point is not None:
                self._track.advance(point, told)
            if point is None:
                self._plan = plan
                self._spool.use(plan.layout)
                plan.mixed = not all(isinstance(value, PLAIN) for value in given.values())
            self._last = (number, plan.names, values, code)
            return () if plan.check is None else plan.check(number, values, None)

    def _plan_of(self, names: tuple[str, ...], dimension: int) -> _Plan[A]:
        plan = self._plans.get((names, dimension))
        if plan is None:
            check_names(names)
            layout = self._spool.layout(names, dimension)
            plan = _Plan(layout, None if self._bind is None else self._bind(names))
            self._plans[names, dimension] = plan
            if len(self._plans) > _PLANS_MAX:
                self._plans.popitem(last=False)
        return plan

    # -- what the last row was ------------------------------------------------------------------

    @property
    def last(self) -> Mapping[str, float]:
        """Metrics of the last row."""
        _, names, values, _ = self._last
        return dict(zip(names, values, strict=True))

    @property
    def last_step(self) -> int | None:
        """Step of the last row; None before the first."""
        step = self._last[0]
        return None if step < 0 else step

    @property
    def last_regime(self) -> str | None:
        """Regime of the last row."""
        code = self._last[3]
        return None if code == NO_REGIME else Regime.from_code(code).value

    @property
    def reference_basin(self) -> NDArray[np.float64] | None:
        """The distribution that `basin_distance` is measured from."""
        return self._track.reference

    def set_reference_basin(self, basin: Any) -> None:
        """Measure `basin_distance` from here; the first basin recorded is the reference otherwise.

        Raises:
            InvalidInput: it is no distribution.
        """
        point = check_basin(basin, "reference basin")
        with self._spool.lock:
            self._track.reference = point
