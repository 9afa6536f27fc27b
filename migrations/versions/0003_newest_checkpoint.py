"""The newest checkpoints first, from an index: recovery by age reads a few entries of any number.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_NAME, _SCHEMA = "ix_checkpoint_newest", "qigstore"


def upgrade() -> None:
    """Add the index."""
    op.create_index(
        _NAME,
        "checkpoint",
        ["session_id", sa.text("attempt DESC"), sa.text("step DESC"), "id"],
        schema=_SCHEMA,
        postgresql_where=sa.text("status <> 'deleted'"),
    )


def downgrade() -> None:
    """Remove it."""
    op.drop_index(_NAME, "checkpoint", schema=_SCHEMA)
