"""The tables, in their own PostgreSQL schema `qigstore`, with a naming convention from day one.

Views live beside them in `views.py`. Migrations build both; nothing here touches a database.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID
from sqlalchemy.event import listen

from qigstore.records import STANDARD_METRICS

__all__ = [
    "CUSTOM_COLUMNS",
    "CUSTOM_FROM",
    "SCHEMA",
    "attempt",
    "audit",
    "basin",
    "change",
    "checkpoint",
    "curve",
    "event",
    "metadata",
    "metric",
    "recovery_event",
    "session",
    "store",
    "telemetry",
    "token",
    "writer",
]

SCHEMA = "qigstore"

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    },
)

_NOW = text("now()")
_TRANSACTION = text("pg_current_xact_id()::text::bigint")
_EMPTY = text("'{}'::jsonb")
# In PostgreSQL NaN equals itself and is greater than every number, so this excludes NaN and ±inf.
_FINITE = "{0} IS NULL OR ({0} > '-Infinity'::float8 AND {0} < 'Infinity'::float8)"


def _time(name: str, *, required: bool = False) -> Column[object]:
    default = _NOW if required else None
    return Column(name, DateTime(timezone=True), nullable=not required, server_default=default)


# Which store this is. What a process keeps in files for later (spools, event logs) it keeps under
# this name, so that rows recorded for one database are never shipped into another.
store = Table(
    "store",
    metadata,
    Column("only", Boolean, primary_key=True, server_default=text("true")),
    Column("id", UUID(as_uuid=True), nullable=False, server_default=text("gen_random_uuid()")),
    _time("created_at", required=True),
    CheckConstraint('"only"', name="only_one"),
)

session = Table(
    "session",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False),
    Column("config", JSONB, nullable=False, server_default=_EMPTY),
    _time("created_at", required=True),
    UniqueConstraint("name"),
    CheckConstraint("length(name) BETWEEN 1 AND 200", name="name_length"),
)

attempt = Table(
    "attempt",
    metadata,
    Column("id", UUID(as_uuid=True), primary_key=True),
    Column("session_id", BigInteger, ForeignKey(session.c.id, ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("status", Text, nullable=False, server_default="running"),
    Column("host", Text, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("config", JSONB, nullable=False, server_default=_EMPTY),
    _time("started_at", required=True),
    _time("heartbeat_at", required=True),
    # Its own limit: whoever looks at it need not know the settings it runs with.
    Column("heartbeat_limit_s", Double, nullable=False, server_default=text("30")),
    _time("ended_at"),
    # No foreign key: a checkpoint's row may be rebuilt or removed, the lineage stays.
    Column("resumed_from", UUID(as_uuid=True)),
    Column("resumed_step", BigInteger),
    Column("reason", Text),
    Column("exit_status", Integer),
    UniqueConstraint("session_id", "number"),
    CheckConstraint(
        "status IN ('running', 'completed', 'aborted', 'failed', 'lost')", name="status_known"
    ),
    CheckConstraint("number >= 1", name="number_positive"),
    CheckConstraint("heartbeat_limit_s > 0", name="heartbeat_limit_positive"),
)

writer = Table(
    "writer",
    metadata,
    Column("id", UUID(as_uuid=True), primary_key=True),
    Column(
        "attempt_id",
        UUID(as_uuid=True),
        ForeignKey(attempt.c.id, ondelete="CASCADE"),
        nullable=False,
    ),
    Column("rank", Integer, nullable=False, server_default=text("0")),
    # What its rows are keyed by: four bytes where session, attempt and rank would be sixteen.
    Column("number", Integer, Identity(always=True), nullable=False),
    # The fence: a batch is stored only by the holder of this epoch, only right after acked_seq.
    Column("epoch", BigInteger, nullable=False, server_default=text("1")),
    Column("acked_seq", BigInteger, nullable=False, server_default=text("0")),
    # Kept in the batch's own transaction, so that counting and bounding a session reads no row of
    # telemetry: rows it has there now, records replaced by a later one of their step, and bounds.
    Column("stored_rows", BigInteger, nullable=False, server_default=text("0")),
    Column("repeated_rows", BigInteger, nullable=False, server_default=text("0")),
    Column("min_step", BigInteger),
    Column("max_step", BigInteger),
    # Sequence number less step of its first row, and so of most: telemetry.seq is NULL in those.
    Column("seq_less_step", BigInteger),
    # Steps that its narrowest bucket of a curve covers; NULL: too few rows so far, 0: no buckets.
    Column("bucket_steps", BigInteger),
    # Records up to this one may hold steps in another order than their own; later ones do not.
    Column("reordered_seq", BigInteger, nullable=False, server_default=text("0")),
    # The transaction that made it; see `change`.
    Column("created_in", BigInteger, nullable=False, server_default=_TRANSACTION),
    _time("created_at", required=True),
    _time("stored_at"),
    UniqueConstraint("attempt_id", "rank"),
    UniqueConstraint("number"),
    CheckConstraint("acked_seq >= 0", name="acked_seq_positive"),
)

metric = Table(
    "metric",
    metadata,
    Column(
        "session_id", BigInteger, ForeignKey(session.c.id, ondelete="CASCADE"), primary_key=True
    ),
    # Place in telemetry.custom, from 1 as PostgreSQL counts.
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    UniqueConstraint("session_id", "name"),
)

CUSTOM_COLUMNS: tuple[str, ...] = tuple(f"custom_{place}" for place in range(1, 17))
"""Columns of the custom metrics at positions 1 to 16 of their session."""

CUSTOM_FROM = 32
"""Place of the first custom metric in a bucket's arrays; the standard ones are before it."""

# The hot table: no foreign key and one B-tree, which doubles its COPY speed (architecture note).
# A step of 20 metrics takes 258 bytes, index and roll-ups included. What keeps it there: the key
# is the writer's number and the step; what is NULL has no bytes (a head of 32 covers 72 columns),
# so the first custom metrics have columns of their own, where an array would add 24, and `seq` is
# left out where it follows from the step; writer and regime share one word, so that nothing is
# padded; the index is filled to the last byte, as steps come in order.
telemetry = Table(
    "telemetry",
    metadata,
    Column("writer", Integer, primary_key=True, autoincrement=False),
    # Code of the regime (qigkernels.regimes.Regime, in the order of its members); views name it.
    Column("regime", SmallInteger),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    # NULL: the step and writer.seq_less_step together.
    Column("seq", BigInteger),
    Column("recorded_at", DateTime(timezone=True), nullable=False),
    *(Column(name, Double) for name in (*STANDARD_METRICS, *CUSTOM_COLUMNS)),
    # Those at the positions after the columns'.
    Column("custom_more", ARRAY(Double)),
)

basin = Table(
    "basin",
    metadata,
    Column("writer", Integer, primary_key=True, autoincrement=False),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    # √p, the stored form: distances from stored roots cost a third.
    Column("root", ARRAY(Double), nullable=False),
)

# Roll-up buckets: the rows of steps [start, start + width). An element of an array is a metric: the
# standard ones from 1, the custom metric of position p at 32 + p.
curve = Table(
    "curve",
    metadata,
    Column("writer", Integer, primary_key=True, autoincrement=False),
    Column("width", BigInteger, primary_key=True, autoincrement=False),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("rows", BigInteger, nullable=False),
    # Of the finite values; NaN where a metric has none, NULL where it was not recorded.
    Column("low", ARRAY(Double)),
    Column("high", ARRAY(Double)),
    Column("mean", ARRAY(Double)),
    # How many were finite, NaN and ±inf; all three NULL: each row had a finite value of each.
    Column("finite", ARRAY(BigInteger)),
    Column("nans", ARRAY(BigInteger)),
    Column("infs", ARRAY(BigInteger)),
)


def _fill_index(table: Table, connection: Connection, **_: object) -> None:
    connection.execute(text(f"ALTER INDEX {SCHEMA}.pk_{table.name} SET (fillfactor = 100)"))


for _table in (telemetry, basin, curve):
    listen(_table, "after_create", _fill_index)

event = Table(
    "event",
    metadata,
    Column("id", UUID(as_uuid=True), primary_key=True),
    Column("session_id", BigInteger, ForeignKey(session.c.id, ondelete="CASCADE"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("rank", Integer, nullable=False, server_default=text("0")),
    Column("step", BigInteger),
    Column("rule", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("metric", Text),
    Column("value", Double),
    Column("threshold", Double),
    Column("action", Text),
    Column("checkpoint_id", UUID(as_uuid=True)),
    Column("detail", JSONB, nullable=False, server_default=_EMPTY),
    _time("raised_at", required=True),
    _time("acknowledged_at"),
    _time("resolved_at"),
    Index(None, "session_id", "attempt", "step"),
    # The next critical event after a checkpoint: one probe says whether it is healthy.
    Index(
        "ix_event_critical",
        "session_id",
        "attempt",
        "step",
        "id",
        postgresql_where=text("severity = 'critical'"),
    ),
    CheckConstraint("severity IN ('info', 'warning', 'critical')", name="severity_known"),
)

_FIT = "status = 'committed' AND kind = 'regular' AND weights_finite"

checkpoint = Table(
    "checkpoint",
    metadata,
    Column("id", UUID(as_uuid=True), primary_key=True),
    Column("session_id", BigInteger, ForeignKey(session.c.id, ondelete="CASCADE"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("kind", Text, nullable=False, server_default="regular"),
    Column("status", Text, nullable=False, server_default="committed"),
    Column("status_reason", Text),
    Column("phi", Double),
    Column("kappa_eff", Double),
    Column("regime", Text),
    Column("weights_finite", Boolean, nullable=False),
    Column("path", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("metadata", JSONB, nullable=False, server_default=_EMPTY),
    _time("created_at", required=True),
    _time("verified_at"),
    # How long no critical event followed, as a level; kept by triggers (migration 0008).
    Column("quiet", SmallInteger, nullable=False, server_default="11"),
    CheckConstraint(_FINITE.format("phi"), name="phi_finite"),
    CheckConstraint("kind IN ('regular', 'emergency')", name="kind_known"),
    CheckConstraint("status IN ('committed', 'quarantined', 'deleted')", name="status_known"),
    CheckConstraint("step >= 0", name="step_positive"),
    # The ranking's own order, so that choosing among many reads the first index entries only.
    Index(
        "ix_checkpoint_ranking",
        "session_id",
        text("phi DESC NULLS LAST"),
        text("step DESC"),
        "id",
        postgresql_where=text("status = 'committed' AND phi IS NOT NULL"),
    ),
    # What the ranking leaves out and recovery still gives a reason for.
    Index(
        "ix_checkpoint_unranked",
        "session_id",
        text("phi DESC NULLS LAST"),
        text("step DESC"),
        "id",
        postgresql_where=text("status = 'quarantined' OR (status = 'committed' AND phi IS NULL)"),
    ),
    # The order of age, for policies that ask for the newest, and where nothing measures Φ.
    Index(
        "ix_checkpoint_newest",
        "session_id",
        text("attempt DESC"),
        text("step DESC"),
        "id",
        postgresql_where=text("status <> 'deleted'"),
    ),
    # The healthy ones in both orders, for each level: however many are not, they are not read.
    Index(
        "ix_checkpoint_fit_ranking",
        "session_id",
        "quiet",
        text("phi DESC NULLS LAST"),
        text("step DESC"),
        "id",
        postgresql_where=text(f"{_FIT} AND phi IS NOT NULL"),
    ),
    Index(
        "ix_checkpoint_fit_newest",
        "session_id",
        "quiet",
        text("(phi IS NULL)"),
        text("attempt DESC"),
        text("step DESC"),
        "id",
        postgresql_where=text(_FIT),
    ),
    Index(None, "session_id", "step"),
)

recovery_event = Table(
    "recovery_event",
    metadata,
    Column("id", UUID(as_uuid=True), primary_key=True),
    Column("session_id", BigInteger, ForeignKey(session.c.id, ondelete="CASCADE"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("policy", Text, nullable=False),
    Column("checkpoint_id", UUID(as_uuid=True)),
    Column("reason", Text, nullable=False),
    Column("candidates", JSONB, nullable=False),
    Column("skip_first", BigInteger),
    Column("skip_last", BigInteger),
    _time("decided_at", required=True),
    Index(None, "session_id", "decided_at"),
)

# Which transaction changed an event or a checkpoint last: with a snapshot it tells what is new
# (`repository.feed`). Kept by a trigger, so that no way to change one is left out.
change = Table(
    "change",
    metadata,
    Column("id", UUID(as_uuid=True), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("session_id", BigInteger, ForeignKey(session.c.id, ondelete="CASCADE"), nullable=False),
    Column("changed_in", BigInteger, nullable=False),
    Index(None, "changed_in"),
    Index(None, "session_id"),
)

# Who may ask the REST server. The secret itself is shown once and never stored.
token = Table(
    "token",
    metadata,
    Column("id", UUID(as_uuid=True), primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    # The sessions it is for, `*` for any characters; NULL: all of them.
    Column("sessions", Text),
    _time("created_at", required=True),
    _time("expires_at"),
    _time("revoked_at"),
    _time("last_used_at"),
    UniqueConstraint("name"),
    CheckConstraint("length(digest) = 32", name="digest_sha256"),
    CheckConstraint(
        "scopes <@ '{read,write,checkpoint,abort,admin}'::text[] AND cardinality(scopes) >= 1",
        name="scopes_known",
    ),
)

# Only ever added to. No foreign keys: what it names may be removed, the line stays.
audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _time("at", required=True),
    Column("action", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("token_id", UUID(as_uuid=True)),
    Column("session", Text),
    Column("address", Text),
    Column("detail", JSONB, nullable=False, server_default=_EMPTY),
)
