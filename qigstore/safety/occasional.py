"""Detectors of what is no metric, asked now and then: too many alarms, and silence."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from fnmatch import fnmatchcase

from qigstore.records import Severity
from qigstore.safety.detectors import Action, Alarm, Detector

__all__ = ["EscalationDetector", "HeartbeatDetector"]


class EscalationDetector(Detector):
    """`alarms` alarms of other rules within `within` steps; over when there are fewer again."""

    __slots__ = ("alarms", "of", "open", "steps", "within")
    SAVED = ("open", "steps")

    def __init__(
        self, name: str, severity: Severity, action: Action, of: str, *, alarms: int, within: int
    ) -> None:
        super().__init__(name, severity, action, "alarms")
        self.of, self.alarms, self.within = of, alarms, within
        self.steps: deque[int] = deque(maxlen=alarms)
        self.open = False

    def take(self, raised: Sequence[Alarm]) -> Alarm | None:
        """Count the alarms of one step; the alarm that they raise together, if any."""
        for alarm in raised:
            if alarm.metric != self.metric and fnmatchcase(alarm.rule, self.of):
                self.steps.append(alarm.step)
        many = len(self.steps) == self.alarms and self.steps[-1] - self.steps[0] < self.within
        if not many:
            self.open = False
            return None
        if self.open:
            return None
        self.open = True
        first, last = self.steps[0], self.steps[-1]
        message = f"{self.alarms} alarms in {last - first + 1} steps, the last: {raised[0].message}"
        return self._alarm(last, float(self.alarms), float(self.alarms), message)


class HeartbeatDetector(Detector):
    """No row for longer than max(`floor_s`, `factor` × the longest pause so far).

    Before the first row, and before the second, `first_s` is the limit: a start takes its time.
    """

    __slots__ = ("factor", "first_s", "floor_s", "last_s", "longest_s", "open", "rows")
    SAVED = ("longest_s",)

    def __init__(
        self,
        name: str,
        severity: Severity,
        action: Action,
        *,
        floor_s: float,
        factor: float,
        first_s: float,
    ) -> None:
        super().__init__(name, severity, action, "silence_s")
        self.floor_s, self.factor, self.first_s = floor_s, factor, first_s
        self.last_s: float | None = None
        self.longest_s, self.rows, self.open = 0.0, 0, False

    def look(self, now_s: float, rows: int, step: int) -> Alarm | None:
        """See whether there are rows that were not there before; the alarm of a silence, if any."""
        if self.last_s is None:
            self.last_s, self.rows = now_s, rows
            return None
        silence_s = now_s - self.last_s
        if rows != self.rows:
            # What was reported as a silence does not make the next one longer; nor does the start.
            if self.rows > 0 and not self.open:
                self.longest_s = max(self.longest_s, silence_s)
            self.last_s, self.rows, self.open = now_s, rows, False
            return None
        limit_s = max(self.floor_s, self.factor * self.longest_s)
        if rows == 0 or self.longest_s == 0.0:
            limit_s = max(limit_s, self.first_s)
        if self.open or silence_s <= limit_s:
            return None
        self.open = True
        message = f"no row for {silence_s:.3g} s, {limit_s:.3g} s allowed"
        return self._alarm(max(step, 0), silence_s, limit_s, message)
