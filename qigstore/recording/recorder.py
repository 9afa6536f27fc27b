"""The hot path: from `record(step, metrics)` to a row in the spool, in a few microseconds.

A row of plain numbers with the names of the last one takes the short way (`short_way.py`). Whatever
else comes goes the long way, where every check has its words.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from qigkernels.regimes import NO_REGIME, Regime, RegimeDetector, RegimeThresholds
from qigstore.errors import InvalidInput
from qigstore.recording.geometry import BasinTrack, check_basin
from qigstore.recording.short_way import ShortWay
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

Check: TypeAlias = Callable[[int, Sequence[float]], Sequence[A]]
"""Step and values → alarms."""


class _Plan(Generic[A]):
    """What is known of rows with these names: worked out once."""

    __slots__ = ("check", "has_phi", "layout")

    def __init__(self, layout: Layout, check: Check[A] | None) -> None:
        self.layout, self.check = layout, check
        self.has_phi = "phi" in layout.names


class Recorder(ShortWay, Generic[A]):
    """Checks rows and adds them to a spool; any thread may call it.

    `record(step, metrics)` adds one row and returns the alarms that the rules raise about it, `()`
    as a rule. Step: from 0, below 2^62. Metrics: real scalars by name; None: not measured; `basin`:
    a distribution, from which the geometry metrics follow; `regime`: a name or code. It raises
    `InvalidInput` about what cannot be recorded, by name, and then nothing of the row was kept.

    Args:
        spool: where the rows go.
        bind_rules: makes, for the names of a row, the check that is called with its step and
            values *after* the row is in the spool: no rule can lose a row.
        preset: thresholds of the regime, which is computed where the caller gives Φ and no regime.
    """

    __slots__ = ("_bind", "_plans", "_regime", "_spool", "_track")

    def __init__(
        self,
        spool: Spool,
        *,
        bind_rules: Callable[[tuple[str, ...]], Check[A]] | None = None,
        preset: RegimeThresholds | None = None,
    ) -> None:
        detector = RegimeDetector(preset)
        super().__init__(spool, detector.thresholds)
        self._spool = spool
        self._bind = bind_rules
        self._regime = detector.code
        self._track = BasinTrack()
        self._plans: OrderedDict[tuple[tuple[str, ...], int], _Plan[A]] = OrderedDict()

    # -- the long way -------------------------------------------------------------------------

    def record_unusual(self, step: Any, metrics: Any, /) -> Sequence[A]:
        """Add a row that the short way leaves; see the class."""
        if self.mixed:
            try:
                plain = self._converted(metrics)
            except Exception:  # the long way tells which value is none
                plain = None
            alarms = None if plain is None else self.record_plain(step, plain)
            if alarms is not None:
                return alarms
        return self._record_slowly(step, metrics)

    def _converted(self, metrics: Mapping[str, Any]) -> dict[str, float] | None:
        """A row like the last one, some of whose values are NumPy scalars or 0-d tensors."""
        if self.layout is None or [*metrics] != self.layout.order:
            return None
        return dict(zip(metrics, to_numbers(metrics, metrics.values()), strict=True))

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
                code = self._regime_of(row)
            cells = values if point is None else (*values, *point.tolist())
            if self._spool.append(plan.layout, number, code, cells) and point is not None:
                self._track.advance(point, told)
            if point is None:
                mixed = not all(isinstance(value, PLAIN) for value in given.values())
                self._use(plan, mixed=mixed)
            self.last_row = (plan.layout, number, values, code)
            return () if plan.check is None else plan.check(number, values)

    def _use(self, plan: _Plan[A], *, mixed: bool) -> None:
        """Rows like this one are usual from now on."""
        self._spool.use(plan.layout)
        self.layout, self.check = plan.layout, plan.check
        self.has_phi, self.mixed = plan.has_phi, mixed

    def _regime_of(self, row: Mapping[str, float]) -> int:
        return self._regime(row.get("phi"), row.get("kappa_eff"), row.get("basin_distance"))

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
        if self.last_row is None:
            return {}
        layout, _, values, _ = self.last_row
        return dict(zip(layout.names, values, strict=True))

    @property
    def last_step(self) -> int | None:
        """Step of the last row; None before the first."""
        return None if self.last_row is None else self.last_row[1]

    @property
    def last_regime(self) -> str | None:
        """Regime of the last row."""
        code = NO_REGIME if self.last_row is None else self.last_row[3]
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
