"""Roll-up buckets of telemetry, and how wide a writer's are.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_SCHEMA = "qigstore"
_KEY = {"session_id": sa.BigInteger(), "attempt": sa.Integer(), "rank": sa.Integer(),
        "width": sa.BigInteger(), "start": sa.BigInteger()}  # fmt: skip


def upgrade() -> None:
    """Add the table and the column; writers that stored rows already go on without buckets."""
    op.create_table(
        "curve",
        *(
            sa.Column(name, kind, autoincrement=False, nullable=False)
            for name, kind in _KEY.items()
        ),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        *(sa.Column(name, pg.ARRAY(sa.Double())) for name in ("low", "high", "mean")),
        *(sa.Column(name, pg.ARRAY(sa.BigInteger())) for name in ("finite", "nans", "infs")),
        sa.PrimaryKeyConstraint(*_KEY, name="pk_curve"),
        schema=_SCHEMA,
    )
    op.add_column("writer", sa.Column("bucket_steps", sa.BigInteger()), schema=_SCHEMA)
    # Curves of what they recorded are read from the rows, which is exact and slower.
    op.execute(f"UPDATE {_SCHEMA}.writer SET bucket_steps = 0 WHERE max_step IS NOT NULL")


def downgrade() -> None:
    """Remove both; the rows are untouched."""
    op.drop_column("writer", "bucket_steps", schema=_SCHEMA)
    op.drop_table("curve", schema=_SCHEMA)
