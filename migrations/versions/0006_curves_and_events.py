"""Views of roll-up buckets by metric, and of events one by one.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the views."""
    views = Path(__file__).with_name("0006_views.sql").read_text()
    for statement in views.split(";\n"):
        if statement.strip():
            # A colon would be the mark of a parameter.
            op.execute(sa.text(statement.replace(":", r"\:")))


def downgrade() -> None:
    """Remove them."""
    for name in ("curve_buckets", "event_history"):
        op.execute(f"DROP VIEW qigstore.{name}")
