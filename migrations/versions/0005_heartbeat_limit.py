"""How long an attempt may be silent before it counts as lost: its own limit, not one for all.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_SCHEMA = "qigstore"
_CHECK = "ck_attempt_heartbeat_limit_positive"
_STATUS = "Of the newest attempt; lost: it runs, and "
_VIEW = """
CREATE OR REPLACE VIEW qigstore.session_stats AS
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
    SELECT CASE WHEN a.status = 'running'
              AND a.heartbeat_at < now() - {limit}
            THEN 'lost' ELSE a.status END AS status
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
) events"""


def upgrade() -> None:
    """Add the limit (30 s for attempts that did not say), and have the view go by it."""
    op.add_column(
        "attempt",
        sa.Column("heartbeat_limit_s", sa.Double(), server_default=sa.text("30"), nullable=False),
        schema=_SCHEMA,
    )
    op.create_check_constraint(op.f(_CHECK), "attempt", "heartbeat_limit_s > 0", schema=_SCHEMA)
    _show(
        "a.heartbeat_limit_s * interval '1 s'",
        "has not been heard of within its heartbeat_limit_s.",
    )


def downgrade() -> None:
    """One limit for all again."""
    _show("interval '30 s'", "its heartbeat is older than 30 s.")
    op.drop_constraint(op.f(_CHECK), "attempt", schema=_SCHEMA)
    op.drop_column("attempt", "heartbeat_limit_s", schema=_SCHEMA)


def _show(limit: str, meaning: str) -> None:
    view = _VIEW.replace("{limit}", limit)
    op.execute(sa.text(view.replace(":", r"\:")))
    op.execute(f"COMMENT ON COLUMN {_SCHEMA}.session_stats.status IS '{_STATUS}{meaning}'")
