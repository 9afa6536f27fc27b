"""How long no critical event followed a checkpoint, so that the healthy ones stand in an index.

A level, not the number of steps: whatever settle time is asked for, the healthy ones are those of
the levels above its own and some of its own. It is kept by the database itself, as events and
checkpoints come in any order. Where the two come at once it may be too high, never too low: who
reads it looks at the events of what it finds.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_SCHEMA = "qigstore"
_FIT = "status = 'committed' AND kind = 'regular' AND weights_finite"
_FUNCTIONS = (
    # How many of the bounds are at most so many steps; 11 also says: no critical event at all.
    """
CREATE FUNCTION qigstore.quiet_level(steps bigint) RETURNS smallint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT width_bucket(
        steps, ARRAY[0, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000]::bigint[])::smallint
$$
""",
    """
CREATE FUNCTION qigstore.level_checkpoint() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.quiet := coalesce((
        SELECT qigstore.quiet_level(e.step - NEW.step - 1) FROM qigstore.event e
        WHERE e.session_id = NEW.session_id AND e.attempt = NEW.attempt
          AND e.severity = 'critical' AND e.step >= NEW.step
        ORDER BY e.step, e.id LIMIT 1), 11);
    RETURN NEW;
END $$
""",
    # Those before the critical event before it are nearer to that one.
    """
CREATE FUNCTION qigstore.level_checkpoints_before() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    earlier bigint := (
        SELECT e.step FROM qigstore.event e
        WHERE e.session_id = NEW.session_id AND e.attempt = NEW.attempt
          AND e.severity = 'critical' AND e.step < NEW.step
        ORDER BY e.step DESC, e.id DESC LIMIT 1);
BEGIN
    UPDATE qigstore.checkpoint c SET quiet = qigstore.quiet_level(NEW.step - c.step - 1)
    WHERE c.session_id = NEW.session_id AND c.attempt = NEW.attempt AND c.status <> 'deleted'
      AND c.step > greatest(coalesce(earlier, -1), NEW.step - 10001) AND c.step <= NEW.step
      AND c.quiet > qigstore.quiet_level(NEW.step - c.step - 1);
    RETURN NULL;
END $$
""",
    """
CREATE TRIGGER level_checkpoint BEFORE INSERT OR UPDATE OF session_id, attempt, step
ON qigstore.checkpoint FOR EACH ROW EXECUTE FUNCTION qigstore.level_checkpoint()
""",
    """
CREATE TRIGGER level_checkpoints_before AFTER INSERT ON qigstore.event FOR EACH ROW
WHEN (NEW.severity = 'critical' AND NEW.step IS NOT NULL)
EXECUTE FUNCTION qigstore.level_checkpoints_before()
""",
)


def upgrade() -> None:
    """Add the level, what keeps it, and an index for each order; give each row its level."""
    level = sa.Column("quiet", sa.SmallInteger(), server_default="11", nullable=False)
    op.add_column("checkpoint", level, schema=_SCHEMA)
    for statement in _FUNCTIONS:
        op.execute(statement)
    op.execute("UPDATE qigstore.checkpoint SET step = step")
    op.create_index(
        "ix_checkpoint_fit_ranking",
        "checkpoint",
        ["session_id", "quiet", sa.text("phi DESC NULLS LAST"), sa.text("step DESC"), "id"],
        schema=_SCHEMA,
        postgresql_where=sa.text(f"{_FIT} AND phi IS NOT NULL"),
    )
    op.create_index(
        "ix_checkpoint_fit_newest",
        "checkpoint",
        [
            "session_id",
            "quiet",
            sa.text("(phi IS NULL)"),
            sa.text("attempt DESC"),
            sa.text("step DESC"),
            "id",
        ],
        schema=_SCHEMA,
        postgresql_where=sa.text(_FIT),
    )


def downgrade() -> None:
    """Remove them."""
    op.drop_index("ix_checkpoint_fit_newest", "checkpoint", schema=_SCHEMA)
    op.drop_index("ix_checkpoint_fit_ranking", "checkpoint", schema=_SCHEMA)
    op.execute("DROP TRIGGER level_checkpoints_before ON qigstore.event")
    op.execute("DROP TRIGGER level_checkpoint ON qigstore.checkpoint")
    op.execute("DROP FUNCTION qigstore.level_checkpoints_before()")
    op.execute("DROP FUNCTION qigstore.level_checkpoint()")
    op.execute("DROP FUNCTION qigstore.quiet_level(bigint)")
    op.drop_column("checkpoint", "quiet", schema=_SCHEMA)
