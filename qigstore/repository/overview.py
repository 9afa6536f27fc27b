"""Sessions at a glance: the newest row of many, one in numbers, how often each regime was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psycopg.rows

from qigstore.database.views import REGIMES
from qigstore.records import STANDARD_METRICS, TelemetryRow
from qigstore.repository.curve_buckets import FACTOR
from qigstore.repository.texts import line
from qigstore.repository.timelines import Span, of_writer

if TYPE_CHECKING:
    from qigstore.database.engine import Database

__all__ = ["Overview"]

_ROWS_LOOKED_AT = 10_000
"""Of a writer's rows behind its last closed bucket, which are about 64, or more without buckets."""
_LEVELS_MAX = 30
_KEY = ("attempt", "rank", "step", "seq", "recorded_at", "regime")
_COLUMNS = ", ".join(f"l.{name}" for name in (*_KEY, *STANDARD_METRICS, "custom"))
_LATEST = f"SELECT l.session, l.session_id, {_COLUMNS} FROM qigstore.latest_telemetry l"  # noqa: S608
_LATEST_NAMED = f"{_LATEST} WHERE l.session = ANY(%s)"
_LATEST_NEWEST = f"""{_LATEST} JOIN (
    SELECT id, name FROM qigstore.session ORDER BY id DESC LIMIT %s) s ON s.name = l.session
ORDER BY s.id DESC"""  # noqa: S608
_NAMES = "SELECT session_id, position, name FROM qigstore.metric WHERE session_id = ANY(%s)"
_KNOWN = "SELECT name FROM qigstore.session WHERE name = ANY(%s)"
_NUMBERS = "SELECT * FROM qigstore.session_stats WHERE session = %s"
# Of each level of buckets the newest few: together they reach from a writer's first row to the end
# of its last closed bucket. What is behind that is in rows.
_PLACES_IN_BUCKETS = f"""
SELECT DISTINCT m.place
FROM qigstore.attempt a
JOIN qigstore.writer w ON w.attempt_id = a.id AND w.bucket_steps > 0
CROSS JOIN generate_series(0, {_LEVELS_MAX}) AS level (k)
CROSS JOIN LATERAL (
    SELECT c.low FROM qigstore.curve c
    WHERE {of_writer("c")} AND c.width = (w.bucket_steps * {FACTOR}::numeric ^ level.k)::bigint
    ORDER BY c.start DESC LIMIT {FACTOR}
) b
CROSS JOIN LATERAL unnest(b.low) WITH ORDINALITY AS m (value, place)
WHERE a.session_id = %s AND m.value IS NOT NULL AND m.place <= {len(STANDARD_METRICS)}
 AND w.bucket_steps * {FACTOR}::numeric ^ level.k <= w.max_step"""  # noqa: S608
_NAMES_IN_ROWS = f"""
SELECT {", ".join(f"bool_or(r.{name} IS NOT NULL)" for name in STANDARD_METRICS)}
FROM qigstore.attempt a
JOIN qigstore.writer w ON w.attempt_id = a.id
CROSS JOIN LATERAL (
    SELECT * FROM qigstore.telemetry t
    WHERE {of_writer("t")} AND t.step >= CASE
        WHEN w.bucket_steps > 0 THEN w.max_step / w.bucket_steps * w.bucket_steps ELSE 0 END
    ORDER BY t.step DESC LIMIT {_ROWS_LOOKED_AT}
) r
WHERE a.session_id = %s AND w.max_step IS NOT NULL"""  # noqa: S608
_CUSTOM = "SELECT name FROM qigstore.metric WHERE session_id = %s ORDER BY position"
_REGIMES = f"""
SELECT t.regime, count(*)
FROM qigstore.attempt a
JOIN qigstore.writer w ON w.attempt_id = a.id
JOIN qigstore.telemetry t ON {of_writer("t")}
WHERE a.session_id = %(session)s AND a.number = %(attempt)s AND w.rank = %(rank)s
 AND t.step >= %(start)s AND t.step < %(stop)s
GROUP BY t.regime"""  # noqa: S608
_SHARED_REGIMES = """
SELECT t.regime, count(*) FROM qigstore.canonical_telemetry t
WHERE t.session_id = %(session)s AND t.attempt = %(attempt)s AND t.rank = %(rank)s
 AND t.step >= %(start)s AND t.step < %(stop)s
GROUP BY t.regime"""


class Overview:
    """Reads what a list or a head of a page shows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def latest(self, sessions: Sequence[str] | None, limit: int) -> list[tuple[str, TelemetryRow]]:
        """The newest row of these sessions, or of the `limit` newest; without those that have none.

        Raises:
            InvalidInput: a name that is none.
        """
        for name in sessions or ():
            line("session name", name)
        with self._database.raw() as connection:
            if sessions is None:
                rows = connection.execute(_LATEST_NEWEST, (limit,)).fetchall()
            else:
                rows = connection.execute(_LATEST_NAMED, (list(sessions),)).fetchall()
                place = {name: number for number, name in enumerate(sessions)}
                rows.sort(key=lambda row: place[row[0]])
            with_custom = sorted({row[1] for row in rows if row[-1] is not None})
            found = connection.execute(_NAMES, (with_custom,)).fetchall() if with_custom else []
        names = {(session, position): name for session, position, name in found}
        return [(row[0], _row(row[2:], row[1], names)) for row in rows]

    def unknown(self, sessions: Sequence[str]) -> list[str]:
        """Those of the names that no session has."""
        with self._database.raw() as connection:
            known = {row[0] for row in connection.execute(_KNOWN, (list(sessions),))}
        return [name for name in sessions if name not in known]

    def numbers(self, session: str) -> dict[str, Any] | None:
        """The session's row of `session_stats`; None: there is no such session."""
        with (
            self._database.raw() as connection,
            connection.cursor(row_factory=psycopg.rows.dict_row) as cursor,
        ):
            return cursor.execute(_NUMBERS, (session,)).fetchone()

    def metrics(self, session_id: int) -> list[str]:
        """Names of the metrics that it has, the standard ones first; reads no more than a curve."""
        with self._database.raw() as connection:
            found = connection.execute(_PLACES_IN_BUCKETS, (session_id,)).fetchall()
            in_rows = connection.execute(_NAMES_IN_ROWS, (session_id,)).fetchone() or ()
            custom = [row[0] for row in connection.execute(_CUSTOM, (session_id,))]
        used = {STANDARD_METRICS[place - 1] for (place,) in found}
        used |= {name for name, there in zip(STANDARD_METRICS, in_rows, strict=True) if there}
        return [name for name in STANDARD_METRICS if name in used] + custom

    def regimes(self, session_id: int, spans: Iterable[Span]) -> Mapping[str | None, int]:
        """How many rows of the spans were in each regime; None: in no known one."""
        counts: Counter[str | None] = Counter()
        with self._database.raw() as connection:
            for span in spans:
                query = _SHARED_REGIMES if span.shared else _REGIMES
                values = span._asdict() | {"session": session_id}
                for regime, rows in connection.execute(query, values):
                    counts[REGIMES[regime] if isinstance(regime, int) else regime] += rows
        return counts


def _row(
    values: Sequence[Any], session_id: int, names: Mapping[tuple[int, int], str]
) -> TelemetryRow:
    key, measured, custom = values[: len(_KEY)], values[len(_KEY) : -1], values[-1]
    metrics = {
        name: value
        for name, value in zip(STANDARD_METRICS, measured, strict=True)
        if value is not None
    }
    for position, value in enumerate(custom or (), start=1):
        if value is not None:
            metrics[names[session_id, position]] = value
    attempt, rank, step, seq, recorded_at, regime = key
    return TelemetryRow(attempt, rank, step, seq, recorded_at, regime, metrics)
