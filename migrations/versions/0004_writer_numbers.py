"""Rows keyed by their writer's number, custom metrics in columns: a quarter fewer bytes a step.

The rows are copied into new tables in the order they have, so the disk needs room for them twice;
whoever records meanwhile keeps his rows in the spool. Rows of sessions that were removed go.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_SCHEMA = "qigstore"
_METRICS = (
    "loss",
    "accuracy",
    "grad_norm",
    "learning_rate",
    "phi",
    "phi_nats",
    "kappa_eff",
    "basin_distance",
    "geodesic_distance",
    "curvature",
    "recursion_depth",
    "breakdown_pct",
    "coherence_drift",
    "meta_awareness",
    "generativity",
    "external_coupling",
    "grounding",
    "temporal_coherence",
    "fisher_metric_trace",
)
_CUSTOM = tuple(f"custom_{place}" for place in range(1, 17))
_BUCKETS = ("width", "start", "rows", "low", "high", "mean", "finite", "nans", "infs")
_OLD_KEY, _NEW_KEY = ("session_id", "attempt", "rank"), ("writer",)
_KEYS = {"telemetry": ("step",), "basin": ("step",), "curve": ("width", "start")}
_KINDS: dict[str, Any] = {
    "session_id": sa.BigInteger(),
    "attempt": sa.Integer(),
    "rank": sa.Integer(),
    "writer": sa.Integer(),
    "step": sa.BigInteger(),
    "seq": sa.BigInteger(),
    "recorded_at": sa.DateTime(timezone=True),
    "regime": sa.SmallInteger(),
    "root": pg.ARRAY(sa.Double()),
    "custom": pg.ARRAY(sa.Double()),
    "custom_more": pg.ARRAY(sa.Double()),
    **dict.fromkeys((*_METRICS, *_CUSTOM), sa.Double()),
    **dict.fromkeys(("width", "start", "rows"), sa.BigInteger()),
    **dict.fromkeys(("low", "high", "mean"), pg.ARRAY(sa.Double())),
    **dict.fromkeys(("finite", "nans", "infs"), pg.ARRAY(sa.BigInteger())),
}
_VIEWS = ("canonical_telemetry", "latest_telemetry", "telemetry_metric")
# The custom metrics of a row as one array, as long as the last one that the row has.
_AS_ARRAY = """nullif((ARRAY[{plain}] || o.custom_more)[1:CASE
    WHEN o.custom_more IS NOT NULL THEN {count} + cardinality(o.custom_more) {last} ELSE 0 END],
    '{{}}')""".format(
    plain=", ".join(f"o.{name}" for name in _CUSTOM),
    count=len(_CUSTOM),
    last=" ".join(
        f"WHEN o.{_CUSTOM[place - 1]} IS NOT NULL THEN {place}"
        for place in range(len(_CUSTOM), 0, -1)
    ),
)


def upgrade() -> None:
    """Number the writers, copy the rows, make the views anew."""
    _lock()
    _drop(_VIEWS)
    number = sa.Column("number", sa.Integer(), sa.Identity(always=True), nullable=False)
    op.add_column("writer", number, schema=_SCHEMA)
    op.create_unique_constraint("uq_writer_number", "writer", ["number"], schema=_SCHEMA)
    op.add_column("writer", sa.Column("seq_less_step", sa.BigInteger()), schema=_SCHEMA)
    op.execute(f"""
        UPDATE {_SCHEMA}.writer w SET seq_less_step = t.seq - t.step
        FROM {_SCHEMA}.attempt a, {_SCHEMA}.telemetry t
        WHERE a.id = w.attempt_id AND t.session_id = a.session_id AND t.attempt = a.number
          AND t.rank = w.rank AND t.step = w.min_step""")
    count = len(_CUSTOM)
    rows = {
        "writer": "w.number",
        "regime": "o.regime",
        "step": "o.step",
        "seq": "nullif(o.seq, o.step + w.seq_less_step)",
        "recorded_at": "o.recorded_at",
        **{name: f"o.{name}" for name in _METRICS},
        **{name: f"o.custom[{place}]" for place, name in enumerate(_CUSTOM, start=1)},
        "custom_more": f"CASE WHEN cardinality(o.custom) > {count} THEN o.custom[{count + 1}:] END",
    }
    _replace("telemetry", rows, _NEW_KEY)
    _replace("basin", {"writer": "w.number", **_same("step", "root")}, _NEW_KEY)
    _replace("curve", {"writer": "w.number", **_same(*_BUCKETS)}, _NEW_KEY)
    for statement in _view_statements("0004_views.sql"):
        op.execute(statement)


def downgrade() -> None:
    """Put session, attempt and rank back into each row."""
    _lock()
    _drop(("all_telemetry", *_VIEWS))
    key = {"session_id": "a.session_id", "attempt": "a.number", "rank": "w.rank"}
    rows = {
        **key,
        "step": "o.step",
        "seq": "coalesce(o.seq, o.step + w.seq_less_step)",
        "recorded_at": "o.recorded_at",
        "regime": "o.regime",
        **{name: f"o.{name}" for name in _METRICS},
        "custom": _AS_ARRAY,
    }
    _replace("telemetry", rows, _OLD_KEY)
    _replace("basin", {**key, **_same("step", "root")}, _OLD_KEY)
    _replace("curve", {**key, **_same(*_BUCKETS)}, _OLD_KEY)
    for name in ("seq_less_step", "number"):
        op.drop_column("writer", name, schema=_SCHEMA)
    for statement in _view_statements("0001_views.sql"):
        if any(f" {_SCHEMA}.{view}" in str(statement) for view in _VIEWS):
            op.execute(statement)


def _lock() -> None:
    """Nobody stores meanwhile: a batch is in whole before this, or is sent again after it."""
    tables = ", ".join(f"{_SCHEMA}.{name}" for name in ("writer", *_KEYS))
    op.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")


def _drop(views: Sequence[str]) -> None:
    for view in views:
        op.execute(f"DROP VIEW {_SCHEMA}.{view}")


def _same(*names: str) -> dict[str, str]:
    return {name: f'o."{name}"' for name in names}


def _replace(table: str, values: dict[str, str], whose: Sequence[str]) -> None:
    """Make a table anew: the key `whose` and its own, each column from what it says of the old."""
    key = (*whose, *_KEYS[table])
    needed = (*key, "rows", "root", "recorded_at", *(("seq",) if whose == _OLD_KEY else ()))
    join = (
        "a.session_id = o.session_id AND a.number = o.attempt AND w.rank = o.rank"
        if whose == _NEW_KEY
        else "w.number = o.writer"
    )
    op.rename_table(table, "old", schema=_SCHEMA)
    op.create_table(table, *(sa.Column(name, _KINDS[name]) for name in values), schema=_SCHEMA)
    op.execute(f"""
        INSERT INTO {_SCHEMA}.{table} SELECT {", ".join(values.values())}
        FROM {_SCHEMA}.old o JOIN ({_SCHEMA}.writer w JOIN {_SCHEMA}.attempt a
            ON a.id = w.attempt_id) ON {join}""")
    op.drop_table("old", schema=_SCHEMA)  # before its constraints' names are given again
    required = "".join(f'ALTER "{name}" SET NOT NULL, ' for name in values if name in needed)
    # Filled to the last byte: steps come in order.
    fill = " WITH (fillfactor = 100)" if whose == _NEW_KEY else ""
    named = f"CONSTRAINT pk_{table} PRIMARY KEY ({', '.join(key)}){fill}"
    op.execute(f"ALTER TABLE {_SCHEMA}.{table} {required} ADD {named}")


def _view_statements(file: str) -> list[sa.TextClause]:
    """Their fixed text; a colon would be the mark of a parameter."""
    text = Path(__file__).with_name(file).read_text()
    return [sa.text(s.replace(":", r"\:")) for s in text.split(";\n") if s.strip()]
