"""The views, for SQL, psql and Grafana: sessions and regimes by name, one subject a view.

This is what they are now. Migrations hold their own fixed text; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import BigInteger, Boolean, DateTime, Double, Integer, TableClause, Text
from sqlalchemy import column as _column
from sqlalchemy import table as _table
from sqlalchemy.dialects.postgresql import ARRAY

from qigkernels.regimes import Regime
from qigstore.database.schema import CUSTOM_COLUMNS, CUSTOM_FROM, SCHEMA
from qigstore.records import STANDARD_METRICS

__all__ = ["REGIMES", "VIEWS", "View", "canonical_telemetry", "statements"]

REGIMES: tuple[str, ...] = tuple(regime.value for regime in Regime)
"""Names of the stored codes 0, 1, 2, ..."""


@dataclass(frozen=True, slots=True)
class View:
    """A view: what it is for, what its less obvious columns say, and its query."""

    purpose: str
    columns: dict[str, str]
    query: str


_REGIME = "CASE t.regime {}\n       END AS regime".format(
    "\n            ".join(f"WHEN {code} THEN '{name}'" for code, name in enumerate(REGIMES))
)


def _lines(parts: Sequence[str], to_a_line: int, between: str, indent: int) -> str:
    """The parts, a few to a line."""
    lines = [parts[i : i + to_a_line] for i in range(0, len(parts), to_a_line)]
    return f"{between.rstrip()}\n{' ' * indent}".join(between.join(line) for line in lines)


_METRICS = _lines([f"t.{name}" for name in STANDARD_METRICS], 5, ", ", 7)


def _custom() -> str:
    """Custom metrics as one array by position, as long as the last one that the row has."""
    plain = _lines([f"t.{name}" for name in CUSTOM_COLUMNS], 6, ", ", 15)
    columns = len(CUSTOM_COLUMNS)
    places = reversed(list(enumerate(CUSTOM_COLUMNS, start=1)))
    last = _lines([f"WHEN t.{n} IS NOT NULL THEN {place}" for place, n in places], 2, " ", 15)
    return f"""nullif((
           ARRAY[{plain}] || t.custom_more
       )[:CASE WHEN t.custom_more IS NOT NULL THEN {columns} + cardinality(t.custom_more)
               {last}
               ELSE 0 END], '{{}}') AS custom"""


def _columns(before: str = "") -> str:
    """A row `t` of its writer `w`; `before`: a column ahead of the time."""
    return f"""SELECT s.name AS session, w.attempt, w.rank, t.step,{before} t.recorded_at,
       {_REGIME},
       {_METRICS},
       {_custom()},
       coalesce(t.seq, t.step + w.seq_less_step) AS seq, s.id AS session_id"""


def _quoted(words: str) -> str:
    return "'" + words.replace("'", "''") + "'"


_SESSION = {"session": "Name of the session."}
_KEY = _SESSION | {
    "attempt": "Number of the attempt: one process life of the session.",
    "rank": "Rank of the process in a distributed run, from 0.",
}
_ROW = _KEY | {
    "recorded_at": "When record() was called, by the clock of its machine.",
    "regime": f"{', '.join(REGIMES)}, or NULL.",
    "custom": "Custom metrics by position; telemetry_metric shows them by name.",
    "seq": "Number of the record among those of its writer: the true order.",
}

_STATUS = """CASE WHEN a.status = 'running'
              AND a.heartbeat_at < now() - a.heartbeat_limit_s * interval '1 s'
            THEN 'lost' ELSE a.status END"""

_VALUE = _lines(
    [f"WHEN {place} THEN t.{name}" for place, name in enumerate(CUSTOM_COLUMNS, start=1)],
    3,
    " ",
    11,
)
_TELEMETRY_METRIC = View(
    "Custom metrics by name, one row a value. Filter by session and name.",
    _KEY | {"name": "Name of the metric.", "value": "What was recorded; NaN where that was NaN."},
    f"""
SELECT s.name AS session, a.number AS attempt, w.rank, t.step, m.name, v.value
FROM qigstore.session s
JOIN qigstore.metric m ON m.session_id = s.id
JOIN qigstore.attempt a ON a.session_id = s.id
JOIN qigstore.writer w ON w.attempt_id = a.id
JOIN qigstore.telemetry t ON t.writer = w.number
CROSS JOIN LATERAL (
    SELECT CASE m.position
           {_VALUE}
           ELSE t.custom_more[m.position - {len(CUSTOM_COLUMNS)}] END AS value
) v
WHERE v.value IS NOT NULL""",  # noqa: S608 - our own column names
)

_ALL_TELEMETRY = View(
    "Every row of every attempt and rank. Filter by session.",
    _ROW,
    f"""
{_columns()}
FROM qigstore.session s
JOIN (SELECT a.session_id, a.number AS attempt, w.rank, w.number, w.seq_less_step
      FROM qigstore.attempt a JOIN qigstore.writer w ON w.attempt_id = a.id) w
  ON w.session_id = s.id
JOIN qigstore.telemetry t ON t.writer = w.number""",  # noqa: S608 - our own column names
)

_LATEST_TELEMETRY = View(
    "For each session the greatest step of its newest attempt that stored any.",
    _ROW,
    f"""
{_columns()}
FROM qigstore.session s
CROSS JOIN LATERAL (
    SELECT a.number AS attempt, w.rank, w.number, w.seq_less_step
    FROM qigstore.attempt a JOIN qigstore.writer w ON w.attempt_id = a.id
    WHERE a.session_id = s.id AND w.max_step IS NOT NULL
    ORDER BY a.number DESC, w.rank LIMIT 1
) w
CROSS JOIN LATERAL (
    SELECT * FROM qigstore.telemetry r WHERE r.writer = w.number ORDER BY r.step DESC LIMIT 1
) t""",  # noqa: S608 - our own column names
)

_ABANDONED = "\n       coalesce(t.step > w.resumed_step, false) AS abandoned,"
# Deciding row by row whether a later attempt reached the same step costs a probe of the key for
# each of them. Most steps need none: no later attempt's range of steps holds them. The ranges are
# found once for a writer (OFFSET 0 keeps the planner from folding that into each row).
_CANONICAL_TELEMETRY = View(
    "The timeline of a session: for each rank and step the newest attempt that reached it. "
    "Filter by session.",
    _ROW
    | {
        "abandoned": "A later attempt resumed before this step and did not reach it.",
    },
    f"""
{_columns(_ABANDONED)}
FROM qigstore.session s
CROSS JOIN LATERAL (
    SELECT a.number AS attempt, w.rank, w.number, w.seq_less_step,
           (SELECT min(l.resumed_step)
            FROM qigstore.attempt l
            WHERE l.session_id = a.session_id AND l.number > a.number) AS resumed_step,
           later.reached, later.writers
    FROM qigstore.attempt a JOIN qigstore.writer w ON w.attempt_id = a.id
    CROSS JOIN LATERAL (
        SELECT range_agg(int8range(lw.min_step, lw.max_step, '[]')) AS reached,
               array_agg(lw.number) AS writers
        FROM qigstore.attempt l JOIN qigstore.writer lw ON lw.attempt_id = l.id
        WHERE l.session_id = a.session_id AND l.number > a.number
          AND lw.rank = w.rank AND lw.max_step IS NOT NULL
    ) later
    WHERE a.session_id = s.id AND w.max_step IS NOT NULL
    OFFSET 0
) w
JOIN qigstore.telemetry t ON t.writer = w.number
WHERE w.reached IS NULL OR NOT w.reached @> t.step OR NOT EXISTS (
    SELECT FROM qigstore.telemetry n WHERE n.writer = ANY (w.writers) AND n.step = t.step
)""",  # noqa: S608 - our own column names
)

_BEST_CHECKPOINTS = View(
    "Committed checkpoints of each session by Φ; equal Φ: the later step, then the id.",
    _SESSION
    | {
        "place": "1 for the best of its session.",
        "phi": "Integration Φ at that step; finite.",
        "kind": "regular, or emergency: saved while a stop was under way.",
        "verified": "Whether its files were read back and found whole.",
        "size": "Bytes on disk.",
    },
    """
SELECT s.name AS session,
       row_number() OVER (
           PARTITION BY c.session_id ORDER BY c.phi DESC NULLS LAST, c.step DESC, c.id) AS place,
       c.step, c.phi, c.kappa_eff, c.regime, c.attempt, c.kind,
       c.verified_at IS NOT NULL AS verified, pg_size_pretty(c.bytes) AS size, c.created_at, c.id
FROM qigstore.checkpoint c JOIN qigstore.session s ON s.id = c.session_id
WHERE c.status = 'committed' AND c.phi IS NOT NULL""",
)

_EMERGENCY_SUMMARY = View(
    "Events of each session by rule and severity.",
    _SESSION
    | {
        "events": "How many.",
        "open": "How many nobody acknowledged and nothing resolved.",
        "last_message": "What the newest one says.",
    },
    """
SELECT s.name AS session, e.rule, e.severity, count(*) AS events,
       count(*) FILTER (WHERE e.acknowledged_at IS NULL AND e.resolved_at IS NULL) AS open,
       min(e.raised_at) AS first_at, max(e.raised_at) AS last_at,
       min(e.step) AS first_step, max(e.step) AS last_step,
       (array_agg(e.message ORDER BY e.raised_at DESC, e.id))[1] AS last_message
FROM qigstore.event e JOIN qigstore.session s ON s.id = e.session_id
GROUP BY s.id, s.name, e.rule, e.severity""",
)

_SESSION_STATS = View(
    "One row a session: how it stands, how far it came, its best checkpoint and its events.",
    _SESSION
    | {
        "attempts": "How many process lives it has had.",
        "status": "Of the newest attempt; lost: it runs, and has not been heard of within its "
        "heartbeat_limit_s.",
        "rows": "Telemetry rows of all attempts and ranks.",
        "repeated_rows": "Records replaced by a later record of the same step.",
        "last_step": "The greatest step of the newest attempt that stored any.",
        "last_seen_at": "Last heartbeat or stored batch.",
        "best_phi": "Φ of the best committed checkpoint.",
        "best_step": "Its step.",
        "best_checkpoint": "Its id.",
        "checkpoints": "Committed checkpoints.",
        "critical": "Critical events.",
    },
    f"""
SELECT s.name AS session, coalesce(n.attempts, 0) AS attempts, newest.status,
       coalesce(n.rows, 0)::bigint AS rows, coalesce(n.repeated, 0)::bigint AS repeated_rows,
       n.first_step, last.step AS last_step, n.last_seen_at,
       best.phi AS best_phi, best.step AS best_step, best.id AS best_checkpoint,
       (SELECT count(*) FROM qigstore.checkpoint c
        WHERE c.session_id = s.id AND c.status = 'committed') AS checkpoints,
       events.critical, events.warning, events.info, s.created_at
FROM qigstore.session s
CROSS JOIN LATERAL (
    SELECT count(DISTINCT a.id) AS attempts, sum(w.stored_rows) AS rows,
           sum(w.repeated_rows) AS repeated, min(w.min_step) AS first_step,
           greatest(max(a.heartbeat_at), max(w.stored_at)) AS last_seen_at
    FROM qigstore.attempt a LEFT JOIN qigstore.writer w ON w.attempt_id = a.id
    WHERE a.session_id = s.id
) n
LEFT JOIN LATERAL (
    SELECT {_STATUS} AS status
    FROM qigstore.attempt a WHERE a.session_id = s.id ORDER BY a.number DESC LIMIT 1
) newest ON true
LEFT JOIN LATERAL (
    SELECT max(w.max_step) AS step
    FROM qigstore.attempt a JOIN qigstore.writer w ON w.attempt_id = a.id
    WHERE a.session_id = s.id AND w.max_step IS NOT NULL
    GROUP BY a.number ORDER BY a.number DESC LIMIT 1
) last ON true
LEFT JOIN LATERAL (
    SELECT c.id, c.step, c.phi
    FROM qigstore.checkpoint c
    WHERE c.session_id = s.id AND c.status = 'committed' AND c.phi IS NOT NULL
    ORDER BY c.phi DESC NULLS LAST, c.step DESC, c.id LIMIT 1
) best ON true
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE e.severity = 'critical') AS critical,
           count(*) FILTER (WHERE e.severity = 'warning') AS warning,
           count(*) FILTER (WHERE e.severity = 'info') AS info
    FROM qigstore.event e WHERE e.session_id = s.id
) events""",  # noqa: S608 - our own constants
)

_RECOVERY_HISTORY = View(
    "What recovery decided at each start, and why.",
    _SESSION
    | {
        "attempt": "The attempt that it opened.",
        "step": "Step of the chosen checkpoint; NULL: a fresh start.",
        "candidates": "How many checkpoints it looked at.",
        "healthy": "How many of them were fit to load.",
        "skip_first": "First step it advised to leave out.",
        "skip_last": "Last step it advised to leave out.",
    },
    """
SELECT s.name AS session, r.attempt, r.decided_at, r.policy, c.step, c.phi, r.reason,
       jsonb_array_length(r.candidates) AS candidates,
       (SELECT count(*) FROM jsonb_array_elements(r.candidates) x
        WHERE (x ->> 'healthy')::boolean) AS healthy,
       r.skip_first, r.skip_last, r.checkpoint_id, r.id
FROM qigstore.recovery_event r
JOIN qigstore.session s ON s.id = r.session_id
LEFT JOIN qigstore.checkpoint c ON c.id = r.checkpoint_id""",
)

_EVENT_HISTORY = View(
    "Events of each session, one a row: what a rule, a signal or a person raised.",
    _SESSION
    | {
        "step": "Step of the row that raised it, if one did.",
        "action": "What followed: abort, checkpoint, soft_reset, or NULL.",
        "open": "Nobody acknowledged it, and nothing resolved it.",
        "result": "What became of it.",
    },
    """
SELECT s.name AS session, e.raised_at, e.severity, e.rule, e.attempt, e.rank, e.step, e.message,
       e.metric, e.value, e.threshold, e.action,
       e.acknowledged_at IS NULL AND e.resolved_at IS NULL AS open,
       e.detail ->> 'result' AS result, e.acknowledged_at, e.resolved_at, e.checkpoint_id, e.id
FROM qigstore.event e JOIN qigstore.session s ON s.id = e.session_id""",
)

_PLACES = [f"({_quoted(name)}, {place})" for place, name in enumerate(STANDARD_METRICS, start=1)]
_LINES = [", ".join(_PLACES[i : i + 3]) for i in range(0, len(_PLACES), 3)]
_VALUES = ",\n             ".join(_LINES)
_CURVE_BUCKETS = View(
    "Roll-ups by metric: least, greatest and mean value of each closed bucket of steps, at widths "
    "that grow by a factor. Filter by session, metric and width; the newest rows are in no closed "
    "bucket yet.",
    _KEY
    | {
        "metric": "Name of the metric, standard or custom.",
        "width": "Steps that a bucket covers.",
        "start": "Its first step.",
        "low": "Of the finite values; NaN where there is none.",
        "high": "Of the finite values; NaN where there is none.",
        "mean": "Of the finite values; NaN where there is none.",
        "finite": "How many values were finite.",
        "nans": "How many were NaN.",
        "infs": "How many were infinite.",
    },
    f"""
SELECT s.name AS session, a.number AS attempt, w.rank, m.name AS metric, c.width, c.start,
       c.low[m.place] AS low, c.high[m.place] AS high, c.mean[m.place] AS mean,
       coalesce(c.finite[m.place], c.rows) AS finite, coalesce(c.nans[m.place], 0) AS nans,
       coalesce(c.infs[m.place], 0) AS infs
FROM qigstore.session s
JOIN qigstore.attempt a ON a.session_id = s.id
JOIN qigstore.writer w ON w.attempt_id = a.id
CROSS JOIN LATERAL (
    SELECT * FROM (VALUES {_VALUES}) AS standard (name, place)
    UNION ALL
    SELECT custom.name, {CUSTOM_FROM} + custom.position
    FROM qigstore.metric custom WHERE custom.session_id = s.id
) m
JOIN qigstore.curve c ON c.writer = w.number
WHERE c.low[m.place] IS NOT NULL""",  # noqa: S608 - our own names
)

VIEWS: dict[str, View] = {
    "all_telemetry": _ALL_TELEMETRY,
    "best_checkpoints": _BEST_CHECKPOINTS,
    "canonical_telemetry": _CANONICAL_TELEMETRY,
    "curve_buckets": _CURVE_BUCKETS,
    "emergency_summary": _EMERGENCY_SUMMARY,
    "event_history": _EVENT_HISTORY,
    "latest_telemetry": _LATEST_TELEMETRY,
    "recovery_history": _RECOVERY_HISTORY,
    "session_stats": _SESSION_STATS,
    "telemetry_metric": _TELEMETRY_METRIC,
}

canonical_telemetry: TableClause = _table(
    "canonical_telemetry",
    _column("session", Text),
    _column("session_id", BigInteger),
    _column("attempt", Integer),
    _column("rank", Integer),
    _column("step", BigInteger),
    _column("abandoned", Boolean),
    _column("recorded_at", DateTime(timezone=True)),
    _column("regime", Text),
    *(_column(name, Double) for name in STANDARD_METRICS),
    _column("custom", ARRAY(Double)),
    _column("seq", BigInteger),
    schema=SCHEMA,
)
"""The view of that name, to select from."""


def statements() -> Iterator[str]:
    """The SQL that makes every view, with its comments."""
    for name, view in VIEWS.items():
        yield f"CREATE OR REPLACE VIEW {SCHEMA}.{name} AS{view.query}"
        yield f"COMMENT ON VIEW {SCHEMA}.{name} IS {_quoted(view.purpose)}"
        for column, meaning in view.columns.items():
            yield f"COMMENT ON COLUMN {SCHEMA}.{name}.{column} IS {_quoted(meaning)}"
