"""What a stream reads: which transaction changed an event or a checkpoint last, and a word of it.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_SCHEMA = "qigstore"
_TRANSACTION = sa.text("pg_current_xact_id()::text::bigint")
# Of its owner's rights, so that whoever may write an event or a checkpoint need not write here.
_FUNCTION = """
CREATE FUNCTION qigstore.note_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO qigstore.change (id, kind, session_id, changed_in)
    VALUES (NEW.id, TG_TABLE_NAME, NEW.session_id, pg_current_xact_id()::text::bigint)
    ON CONFLICT (id) DO UPDATE SET changed_in = EXCLUDED.changed_in;
    PERFORM pg_notify('qigstore_feed', '');
    RETURN NULL;
END $$"""
# Only what a reader sees: a checkpoint has columns that are kept for choosing among them.
_TOLD = {
    "event": "acknowledged_at, resolved_at, action, checkpoint_id, detail",
    "checkpoint": "kind, status, status_reason, phi, kappa_eff, regime, weights_finite, path, "
    "bytes, digest, metadata, verified_at",
}
_TRIGGER = """
CREATE TRIGGER note_change AFTER INSERT OR UPDATE OF {1} ON qigstore.{0}
FOR EACH ROW EXECUTE FUNCTION qigstore.note_change()"""


def upgrade() -> None:
    """Add the table and its triggers; what is there counts as changed by this migration."""
    op.create_table(
        "change",
        sa.Column("id", pg.UUID(as_uuid=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("session_id", sa.BigInteger(), nullable=False),
        sa.Column("changed_in", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_change"),
        sa.ForeignKeyConstraint(
            ["session_id"], [f"{_SCHEMA}.session.id"], ondelete="CASCADE",
            name="fk_change_session_id_session",
        ),
        schema=_SCHEMA,
    )  # fmt: skip
    op.create_index("ix_change_changed_in", "change", ["changed_in"], schema=_SCHEMA)
    op.create_index("ix_change_session_id", "change", ["session_id"], schema=_SCHEMA)
    op.execute(_FUNCTION)
    for table, columns in _TOLD.items():
        op.execute(
            f"INSERT INTO {_SCHEMA}.change (id, kind, session_id, changed_in) "
            f"SELECT id, '{table}', session_id, {_TRANSACTION} FROM {_SCHEMA}.{table}"
        )
        op.execute(_TRIGGER.format(table, columns))
    created = sa.Column("created_in", sa.BigInteger(), nullable=False, server_default=_TRANSACTION)
    op.add_column("writer", created, schema=_SCHEMA)
    zero = sa.text("0")
    reordered = sa.Column("reordered_seq", sa.BigInteger(), nullable=False, server_default=zero)
    op.add_column("writer", reordered, schema=_SCHEMA)
    # Nobody noted in which order their steps came.
    op.execute(f"UPDATE {_SCHEMA}.writer SET reordered_seq = acked_seq")


def downgrade() -> None:
    """Remove them."""
    op.drop_column("writer", "reordered_seq", schema=_SCHEMA)
    op.drop_column("writer", "created_in", schema=_SCHEMA)
    for table in ("event", "checkpoint"):
        op.execute(f"DROP TRIGGER note_change ON {_SCHEMA}.{table}")
    op.execute(f"DROP FUNCTION {_SCHEMA}.note_change()")
    op.drop_table("change", schema=_SCHEMA)
