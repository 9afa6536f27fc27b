"""The first schema: tables, indexes and views, as fixed text.

Revision ID: 0001
Revises: -
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


_SCHEMA = "qigstore"
_METRICS = [
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
]


def upgrade() -> None:
    """Make everything; the schema itself is there, for Alembic's own table."""
    _store()
    _sessions()
    _writers()
    _telemetry()
    _events()
    _checkpoints()
    _recovery()
    views = Path(__file__).with_name("0001_views.sql").read_text()
    for statement in views.split(";\n"):
        if statement.strip():
            # A colon would be the mark of a parameter.
            op.execute(sa.text(statement.replace(":", r"\:")))


def downgrade() -> None:
    """Remove everything, data included."""
    for name in _VIEWS:
        op.execute(f"DROP VIEW {_SCHEMA}.{name}")
    for name in reversed(_TABLES):
        op.drop_table(name, schema=_SCHEMA)


def _time(name: str, *, required: bool = False) -> sa.Column[object]:
    default = sa.text("now()") if required else None
    return sa.Column(
        name, sa.DateTime(timezone=True), nullable=not required, server_default=default
    )


def _document(name: str) -> sa.Column[object]:
    return sa.Column(name, pg.JSONB(), nullable=False, server_default=sa.text("'{}'::jsonb"))


def _part_of(table: str, whole: str) -> sa.ForeignKeyConstraint:
    name = f"fk_{table}_{whole}_id_{whole}"
    columns, target = [f"{whole}_id"], [f"{_SCHEMA}.{whole}.id"]
    return sa.ForeignKeyConstraint(columns, target, name=name, ondelete="CASCADE")


def _check(name: str, condition: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(condition, name=op.f(name))


def _index(name: str, table: str, *columns: str | sa.TextClause, where: str = "") -> None:
    condition = sa.text(where) if where else None
    op.create_index(name, table, columns, schema=_SCHEMA, postgresql_where=condition)


def _store() -> None:
    """Which store this is."""
    op.create_table(
        "store",
        sa.Column("only", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("id", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        _time("created_at", required=True),
        _check("ck_store_only_one", '"only"'),
        sa.PrimaryKeyConstraint("only", name=op.f("pk_store")),
        schema=_SCHEMA,
    )
    op.execute(f"INSERT INTO {_SCHEMA}.store DEFAULT VALUES")


def _sessions() -> None:
    """Sessions and attempts."""
    op.create_table(
        "session",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        _document("config"),
        _time("created_at", required=True),
        _check("ck_session_name_length", "length(name) BETWEEN 1 AND 200"),
        sa.PrimaryKeyConstraint("id", name="pk_session"),
        sa.UniqueConstraint("name", name="uq_session_name"),
        schema=_SCHEMA,
    )
    op.create_table(
        "attempt",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("session_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), server_default="running", nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        _document("config"),
        _time("started_at", required=True),
        _time("heartbeat_at", required=True),
        _time("ended_at"),
        sa.Column("resumed_from", sa.UUID()),
        sa.Column("resumed_step", sa.BigInteger()),
        sa.Column("reason", sa.Text()),
        sa.Column("exit_status", sa.Integer()),
        _check(
            "ck_attempt_status_known",
            "status IN ('running', 'completed', 'aborted', 'failed', 'lost')",
        ),
        _check("ck_attempt_number_positive", "number >= 1"),
        _part_of("attempt", "session"),
        sa.PrimaryKeyConstraint("id", name="pk_attempt"),
        sa.UniqueConstraint("session_id", "number", name="uq_attempt_session_id_number"),
        schema=_SCHEMA,
    )


def _writers() -> None:
    """Writers, and the names of custom metrics."""
    op.create_table(
        "writer",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("attempt_id", sa.UUID(), nullable=False),
        sa.Column("rank", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("acked_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("stored_rows", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("repeated_rows", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("min_step", sa.BigInteger()),
        sa.Column("max_step", sa.BigInteger()),
        _time("created_at", required=True),
        _time("stored_at"),
        _check("ck_writer_acked_seq_positive", "acked_seq >= 0"),
        _part_of("writer", "attempt"),
        sa.PrimaryKeyConstraint("id", name="pk_writer"),
        sa.UniqueConstraint("attempt_id", "rank", name="uq_writer_attempt_id_rank"),
        schema=_SCHEMA,
    )
    op.create_table(
        "metric",
        sa.Column("session_id", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        _part_of("metric", "session"),
        sa.PrimaryKeyConstraint("session_id", "position", name="pk_metric"),
        sa.UniqueConstraint("session_id", "name", name="uq_metric_session_id_name"),
        schema=_SCHEMA,
    )


def _telemetry() -> None:
    """Rows and basins: no foreign key and one B-tree, which doubles the speed of COPY."""
    op.create_table(
        "telemetry",
        sa.Column("session_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("rank", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("regime", sa.SmallInteger()),
        *(sa.Column(name, sa.Double()) for name in _METRICS),
        sa.Column("custom", pg.ARRAY(sa.Double())),
        sa.PrimaryKeyConstraint("session_id", "attempt", "rank", "step", name="pk_telemetry"),
        schema=_SCHEMA,
    )
    op.create_table(
        "basin",
        sa.Column("session_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("rank", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("root", pg.ARRAY(sa.Double()), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "attempt", "rank", "step", name="pk_basin"),
        schema=_SCHEMA,
    )


def _events() -> None:
    """Events."""
    op.create_table(
        "event",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("session_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("step", sa.BigInteger()),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text()),
        sa.Column("value", sa.Double()),
        sa.Column("threshold", sa.Double()),
        sa.Column("action", sa.Text()),
        sa.Column("checkpoint_id", sa.UUID()),
        _document("detail"),
        _time("raised_at", required=True),
        _time("acknowledged_at"),
        _time("resolved_at"),
        _check("ck_event_severity_known", "severity IN ('info', 'warning', 'critical')"),
        _part_of("event", "session"),
        sa.PrimaryKeyConstraint("id", name="pk_event"),
        schema=_SCHEMA,
    )
    _index(
        "ix_event_critical",
        "event",
        "session_id",
        "attempt",
        "step",
        "id",
        where="severity = 'critical'",
    )
    _index("ix_event_session_id_attempt_step", "event", "session_id", "attempt", "step")


def _checkpoints() -> None:
    """Checkpoints and their ranking."""
    op.create_table(
        "checkpoint",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("session_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), server_default="regular", nullable=False),
        sa.Column("status", sa.Text(), server_default="committed", nullable=False),
        sa.Column("status_reason", sa.Text()),
        sa.Column("phi", sa.Double()),
        sa.Column("kappa_eff", sa.Double()),
        sa.Column("regime", sa.Text()),
        sa.Column("weights_finite", sa.Boolean(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        _document("metadata"),
        _time("created_at", required=True),
        _time("verified_at"),
        _check("ck_checkpoint_kind_known", "kind IN ('regular', 'emergency')"),
        _check(
            "ck_checkpoint_phi_finite",
            "phi IS NULL OR (phi > '-Infinity'::float8 AND phi < 'Infinity'::float8)",
        ),
        _check("ck_checkpoint_status_known", "status IN ('committed', 'quarantined', 'deleted')"),
        _check("ck_checkpoint_step_positive", "step >= 0"),
        _part_of("checkpoint", "session"),
        sa.PrimaryKeyConstraint("id", name="pk_checkpoint"),
        schema=_SCHEMA,
    )
    _index(
        "ix_checkpoint_ranking",
        "checkpoint",
        "session_id",
        sa.text("phi DESC NULLS LAST"),
        sa.text("step DESC"),
        "id",
        where="status = 'committed' AND phi IS NOT NULL",
    )
    _index("ix_checkpoint_session_id_step", "checkpoint", "session_id", "step")
    _index(
        "ix_checkpoint_unranked",
        "checkpoint",
        "session_id",
        sa.text("phi DESC NULLS LAST"),
        sa.text("step DESC"),
        "id",
        where="status = 'quarantined' OR (status = 'committed' AND phi IS NULL)",
    )


def _recovery() -> None:
    """What recovery decided."""
    op.create_table(
        "recovery_event",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("session_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("checkpoint_id", sa.UUID()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("candidates", pg.JSONB(), nullable=False),
        sa.Column("skip_first", sa.BigInteger()),
        sa.Column("skip_last", sa.BigInteger()),
        _time("decided_at", required=True),
        _part_of("recovery_event", "session"),
        sa.PrimaryKeyConstraint("id", name="pk_recovery_event"),
        schema=_SCHEMA,
    )
    _index("ix_recovery_event_session_id_decided_at", "recovery_event", "session_id", "decided_at")


_TABLES = (
    "store",
    "session",
    "attempt",
    "writer",
    "metric",
    "telemetry",
    "basin",
    "event",
    "checkpoint",
    "recovery_event",
)
_VIEWS = (
    "best_checkpoints",
    "canonical_telemetry",
    "emergency_summary",
    "latest_telemetry",
    "recovery_history",
    "session_stats",
    "telemetry_metric",
)
