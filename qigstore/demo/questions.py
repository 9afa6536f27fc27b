"""What the demo asks the store: plain SQL on the tables and views, as anyone could type it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qigstore.errors import StoreUnavailable

if TYPE_CHECKING:
    from qigstore.repository import Store

__all__ = ["Questions"]

_PATIENCE_S = 30.0

_NOW = """SELECT t.attempt, t.step, t.loss, t.accuracy, t.phi, s.rows
FROM session_stats s LEFT JOIN latest_telemetry t USING (session) WHERE session = %(session)s"""
_ROWS = """SELECT attempt, step, loss, phi FROM all_telemetry WHERE session = %(session)s
ORDER BY attempt, step"""
_ATTEMPTS = """SELECT a.number, a.status, a.exit_status, a.reason, a.resumed_step,
       w.acked_seq, w.repeated_rows, count(t.step) AS rows, min(t.step) AS first_step,
       max(t.step) AS last_step
FROM session s JOIN attempt a ON a.session_id = s.id
LEFT JOIN writer w ON w.attempt_id = a.id
LEFT JOIN telemetry t ON t.writer = w.number
WHERE s.name = %(session)s
GROUP BY a.id, w.id ORDER BY a.number"""
_EVENTS = """SELECT e.id, e.attempt, e.step, e.severity, e.rule, e.action, e.message
FROM event e JOIN session s ON s.id = e.session_id WHERE s.name = %(session)s
ORDER BY e.raised_at"""
# Healthy said once more, in words of our own: recovery's answer is checked against this one.
_CHECKPOINTS = """SELECT c.id, c.attempt, c.step, c.phi, c.kind, c.status,
       c.kind = 'regular' AND c.status <> 'quarantined' AND c.weights_finite AND c.phi IS NOT NULL
       AND NOT EXISTS (SELECT FROM event e WHERE e.session_id = c.session_id
           AND e.attempt = c.attempt AND e.severity = 'critical'
           AND e.step BETWEEN c.step AND c.step + %(settle)s) AS healthy
FROM checkpoint c JOIN session s ON s.id = c.session_id
WHERE s.name = %(session)s
ORDER BY c.phi DESC NULLS LAST, c.step DESC, c.id"""
_DECISIONS = """SELECT r.attempt, r.policy, r.checkpoint_id, r.reason, r.candidates,
       r.skip_first, r.skip_last, c.step, c.phi, c.attempt AS from_attempt
FROM recovery_event r JOIN session s ON s.id = r.session_id
LEFT JOIN checkpoint c ON c.id = r.checkpoint_id
WHERE s.name = %(session)s ORDER BY r.attempt"""
_TIMELINE = """SELECT attempt, abandoned, min(step) AS first_step, max(step) AS last_step,
       count(*) AS rows
FROM (SELECT *, step - row_number() OVER (PARTITION BY attempt, abandoned ORDER BY step) AS island
      FROM canonical_telemetry WHERE session = %(session)s) t
GROUP BY attempt, abandoned, island ORDER BY first_step, attempt"""
_ACCURACY = """SELECT value FROM telemetry_metric
WHERE session = %(session)s AND name = 'test_accuracy' AND step = %(step)s
ORDER BY attempt DESC LIMIT 1"""
# Materialized: in a fresh store, which has no statistics yet, the planner would compute one side
# anew for each row of the other.
_DIFFERENCE = """WITH mine AS MATERIALIZED (SELECT rank, step, loss FROM canonical_telemetry
    WHERE session = %(session)s AND step < %(step)s),
theirs AS MATERIALIZED (SELECT rank, step, loss FROM canonical_telemetry
    WHERE session = %(other)s AND step < %(step)s)
SELECT count(*) AS steps, max(abs(mine.loss - theirs.loss)) AS largest
FROM mine JOIN theirs USING (rank, step)"""


class Questions:
    """The demo's questions about one session; an absent database is waited for, within reason."""

    def __init__(self, store: Store, session: str, say: Callable[[str], None]) -> None:
        self._store, self._session, self._say = store, session, say

    def now(self) -> dict[str, Any] | None:
        """Where the session stands; None while the database does not answer."""
        try:
            rows = self._ask(_NOW, {})
        except StoreUnavailable:
            return None
        return rows[0] if rows else {}

    def rows(self) -> list[dict[str, Any]]:
        """Every telemetry row, in the order of attempts and steps."""
        return self._patiently(_ROWS)

    def attempts(self) -> list[dict[str, Any]]:
        """Attempts, each with what its writer and its rows say."""
        return self._patiently(_ATTEMPTS)

    def events(self) -> list[dict[str, Any]]:
        """Events in the order in which they were raised."""
        return self._patiently(_EVENTS)

    def checkpoints(self, settle_steps: int) -> list[dict[str, Any]]:
        """Checkpoints by Φ, each with whether it is healthy."""
        return self._patiently(_CHECKPOINTS, settle=settle_steps)

    def decisions(self) -> list[dict[str, Any]]:
        """What recovery decided, attempt by attempt."""
        return self._patiently(_DECISIONS)

    def timeline(self) -> list[dict[str, Any]]:
        """The canonical timeline as unbroken stretches of one attempt."""
        return self._patiently(_TIMELINE)

    def accuracy(self, step: int) -> float | None:
        """Test accuracy at a step, of the newest attempt that reached it."""
        rows = self._patiently(_ACCURACY, step=step)
        return float(rows[0]["value"]) if rows else None

    def difference(self, other: str, step: int) -> dict[str, Any]:
        """How far the loss is from another session's, over the steps before `step`."""
        return self._patiently(_DIFFERENCE, other=other, step=step)[0]

    def _ask(self, text: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        from qigstore.repository.console import run_sql

        given = {"session": self._session, **parameters}
        result = run_sql(self._store.database, text, given)[-1]
        return [dict(zip(result.columns, row, strict=True)) for row in result.rows]

    def _patiently(self, text: str, **parameters: Any) -> list[dict[str, Any]]:
        deadline, told = time.monotonic() + _PATIENCE_S, False
        while True:
            try:
                return self._ask(text, parameters)
            except StoreUnavailable:
                if time.monotonic() > deadline:
                    raise
                if not told:
                    self._say(
                        "The database does not answer. Training goes on, its rows wait in the "
                        f"spool; waiting up to {_PATIENCE_S:.0f} s for it."
                    )
                    told = True
                time.sleep(0.5)
