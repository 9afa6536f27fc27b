"""What recovery may choose from, in one statement: the first entries of an index, however many.

Two orders: by rank (Φ descending) and by age (the latest attempt's latest step). The statement has
a branch for each; the one that is not asked for is not even begun. What may be healthy stands in an
index by how long no critical event followed it (migration 0008), so that the others, however many,
are not read on the way to it; which of it is healthy the events themselves decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from psycopg import sql
from psycopg.rows import dict_row

from qigstore.records import Candidate, Checkpoint, location

if TYPE_CHECKING:
    from qigstore.database.engine import Database

__all__ = ["CHECKPOINT_COLUMNS", "candidates", "record", "statement"]

# To plan it takes longer than to run it, and no parameter makes another plan a better one.
_ONE_PLAN = "SET plan_cache_mode = force_generic_plan"
_PLANS_AS_BEFORE = "RESET plan_cache_mode"
CHECKPOINT_COLUMNS = tuple(item.name for item in fields(Checkpoint))

# Words such as 'committed' are literals, so that the plan sees which partial index fits; so is the
# limit, so that the plan is one for a few rows. A pair compared with a pair, as in `(c.phi, c.step)
# >= …`, is one condition of the index: equal Φ, however often, does not widen what is read.
_STATEMENT = sql.SQL("""
WITH asked AS (
    SELECT measured, measured AND NOT %(by_age)s::bool AS by_rank
    FROM (SELECT %(floor)s::float8 IS NOT NULL OR (
        SELECT true FROM qigstore.checkpoint c
        WHERE c.session_id = %(session)s AND c.status = 'committed' AND c.phi IS NOT NULL
        ORDER BY {rank} LIMIT 1) IS NOT NULL AS measured) m
), fit AS MATERIALIZED (
    (SELECT c.* FROM {levels} CROSS JOIN LATERAL (
        SELECT c.*, alarm.*
        FROM qigstore.checkpoint c {alarm}
        WHERE (SELECT by_rank FROM asked) AND c.session_id = %(session)s
          AND {of_level} AND c.status = 'committed' AND c.phi IS NOT NULL
          AND c.phi >= coalesce(%(floor)s::float8, '-Infinity') AND {fit}
        ORDER BY c.quiet, {rank} LIMIT {limit}) c
     ORDER BY {rank} LIMIT {limit})
    UNION ALL
    (SELECT c.* FROM {levels} CROSS JOIN LATERAL (
        SELECT c.*, alarm.*
        FROM qigstore.checkpoint c {alarm}
        WHERE NOT (SELECT by_rank FROM asked) AND c.session_id = %(session)s
          AND {of_level} AND c.status = 'committed'
          AND (c.phi IS NULL) = NOT (SELECT measured FROM asked) AND {floor} AND {fit}
        ORDER BY c.quiet, {age} LIMIT {limit}) c
     ORDER BY {age} LIMIT {limit})
), lowest AS (
    SELECT phi, step, id FROM fit WHERE (SELECT count(*) FROM fit) = {limit}
    ORDER BY phi, step, id DESC LIMIT 1
), oldest AS (
    SELECT attempt, step, id FROM fit WHERE (SELECT count(*) FROM fit) = {limit}
    ORDER BY attempt, step, id DESC LIMIT 1
)
SELECT true AS healthy, measured, fit.* FROM fit, asked
UNION ALL
(SELECT false, true, c.*, alarm.*
 FROM qigstore.checkpoint c {alarm}
 WHERE (SELECT by_rank FROM asked) AND c.session_id = %(session)s
   AND c.status = 'committed' AND c.phi IS NOT NULL
   AND (c.phi, c.step) >= (coalesce((SELECT phi FROM lowest), '-Infinity'),
                           coalesce((SELECT step FROM lowest), 0))
   AND NOT ({fit} AND {floor})
   AND NOT EXISTS (SELECT FROM lowest l WHERE (l.phi, l.step) = (c.phi, c.step) AND l.id < c.id)
 ORDER BY {rank} LIMIT {limit})
UNION ALL
(SELECT false, true, c.*, alarm.*
 FROM qigstore.checkpoint c {alarm}
 WHERE (SELECT by_rank FROM asked) AND c.session_id = %(session)s
   AND (c.status = 'quarantined' OR (c.status = 'committed' AND c.phi IS NULL))
 ORDER BY {rank} LIMIT {limit})
UNION ALL
(SELECT false, (SELECT measured FROM asked), c.*, alarm.*
 FROM qigstore.checkpoint c {alarm}
 WHERE NOT (SELECT by_rank FROM asked) AND c.session_id = %(session)s
   AND c.status <> 'deleted'
   AND (c.attempt, c.step) >= (coalesce((SELECT attempt FROM oldest), 0),
                               coalesce((SELECT step FROM oldest), 0))
   AND NOT (c.status = 'committed' AND {fit}
            AND (c.phi IS NOT NULL OR NOT (SELECT measured FROM asked))
            AND {floor})
   AND NOT EXISTS (SELECT FROM oldest o
                   WHERE (o.attempt, o.step) = (c.attempt, c.step) AND o.id < c.id)
 ORDER BY {age} LIMIT {limit})
""")
_PARTS = {
    # The next critical event, however far: the first entry that one index probe finds.
    "alarm": sql.SQL(
        "LEFT JOIN LATERAL (SELECT e.rule, e.step FROM qigstore.event e "
        "WHERE (e.session_id, e.attempt) = (c.session_id, c.attempt) "
        "AND e.severity = 'critical' AND e.step >= c.step ORDER BY e.step, e.id LIMIT 1"
        ") alarm (alarm_rule, alarm_step) ON true"
    ),
    # A checkpoint of these levels may be healthy, one of the others is not (migration 0008).
    "levels": sql.SQL("generate_series(qigstore.quiet_level(%(settle)s::bigint), 11) level"),
    # An equality would say that the other indexes have the order as well, and where most rows are
    # of one level the planner would take them: it cannot know that another level has none.
    "of_level": sql.SQL("c.quiet BETWEEN level AND level"),
    # Its step is not below the checkpoint's, so the difference cannot leave bigint.
    "fit": sql.SQL(
        "(c.kind = 'regular' AND c.weights_finite "
        "AND (alarm_step IS NULL OR alarm_step - c.step > %(settle)s::bigint))"
    ),
    "floor": sql.SQL("(c.phi >= %(floor)s::float8) IS NOT FALSE"),
    # The orders of the indexes, word for word.
    "rank": sql.SQL("c.phi DESC NULLS LAST, c.step DESC, c.id"),
    "age": sql.SQL("c.attempt DESC, c.step DESC, c.id"),
}


@lru_cache(maxsize=16)
def statement(limit: int) -> sql.SQL:
    """The statement for at most `limit` of either kind.

    Its parameters: session, settle (steps), floor (least Φ, or NULL), by_age.
    """
    text = _STATEMENT.format(**_PARTS, limit=sql.Literal(limit)).as_string()
    return sql.SQL(" ".join(text.split()))


def candidates(database: Database, parameters: Mapping[str, Any], *, limit: int) -> list[Candidate]:
    """The healthy ones, then the refused ones, each in the order asked for; see `Checkpoints`.

    Raises:
        StoreUnavailable: the database is away.
    """
    with database.reading() as driver, driver.cursor(row_factory=dict_row) as cursor:
        with driver.pipeline():  # one round trip
            driver.execute(_ONE_PLAN)
            cursor.execute(statement(limit), parameters, prepare=True)
            driver.execute(_PLANS_AS_BEFORE)
        rows = cursor.fetchall()
    by_age = parameters["by_age"] or not all(row["measured"] for row in rows)
    rows.sort(key=_age if by_age else _rank)
    fit = [row for row in rows if row["healthy"]]
    unfit = [row for row in rows if not row["healthy"]][:limit]
    return [
        Candidate(record(row), bool(row["healthy"]), _reason(row, parameters))
        for row in (*fit, *unfit)
    ]


def _rank(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["phi"] is None, -(row["phi"] or 0.0), -row["step"], row["id"]


def _age(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return -row["attempt"], -row["step"], row["id"]


def record(row: Mapping[Any, Any]) -> Checkpoint:
    """The record of a row of the table, among whatever else was selected."""
    values = {name: row[name] for name in CHECKPOINT_COLUMNS}
    return Checkpoint(**values | {"path": location(values["path"])})


def _reason(row: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """Why it is fit, or everything that speaks against it."""
    settle, floor, phi = parameters["settle"], parameters["floor"], row["phi"]
    against = []
    if row["status"] == "quarantined":
        against.append(f"quarantined: {row['status_reason'] or 'no reason was given'}")
    if row["kind"] != "regular":
        against.append("an emergency checkpoint, saved while a stop was under way")
    if phi is None and row["measured"]:
        against.append("Φ was not measured")
    elif floor is not None and not phi >= floor:
        against.append(f"Φ {phi:.4f} is below the floor {floor:.4f}")
    if not row["weights_finite"]:
        against.append("the weights are not finite")
    if row["alarm_rule"] is not None and row["alarm_step"] - row["step"] <= settle:
        later = row["alarm_step"] - row["step"]
        after = "at the same step" if later == 0 else f"{later} steps later"
        alarm = f"critical event {row['alarm_rule']} at step {row['alarm_step']}"
        against.append(f"{alarm} ({after})")
    if against:
        return "; ".join(against)
    told = f"Φ {phi:.4f}" if row["measured"] and phi is not None else "Φ is not measured"
    where = "" if row["measured"] else " in this session"
    return f"{told}{where}, no critical event within {settle} steps"
