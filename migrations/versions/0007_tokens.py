"""Tokens of the REST server, and the audit of what they and people asked for.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_SCHEMA = "qigstore"
_SCOPES = "{read,write,checkpoint,abort,admin}"


def _time(name: str, *, required: bool = False) -> sa.Column[object]:
    default = sa.text("now()") if required else None
    kind = sa.DateTime(timezone=True)
    return sa.Column(name, kind, nullable=not required, server_default=default)


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "token",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("sessions", sa.Text()),
        _time("created_at", required=True),
        _time("expires_at"),
        _time("revoked_at"),
        _time("last_used_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_token")),
        sa.UniqueConstraint("name", name=op.f("uq_token_name")),
        sa.CheckConstraint("length(digest) = 32", name=op.f("ck_token_digest_sha256")),
        sa.CheckConstraint(
            f"scopes <@ '{_SCOPES}'::text[] AND cardinality(scopes) >= 1",
            name=op.f("ck_token_scopes_known"),
        ),
        schema=_SCHEMA,
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        _time("at", required=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("token_id", sa.UUID()),
        sa.Column("session", sa.Text()),
        sa.Column("address", sa.Text()),
        sa.Column("detail", postgresql.JSONB(), nullable=False, server_default=sa.text("'{}'")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        schema=_SCHEMA,
    )


def downgrade() -> None:
    """Remove them."""
    op.drop_table("audit", schema=_SCHEMA)
    op.drop_table("token", schema=_SCHEMA)
