"""Telemetry from training nodes without a way to the database: batches, each stored once."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from starlette.responses import Response

from qigkernels.regimes import Regime
from qigstore.encoding import NON_FINITE
from qigstore.exchange.importer import row_groups
from qigstore.recording.geometry import BASIN_DIMENSION_MAX, check_basin
from qigstore.recording.values import METRICS_MAX, check_names, regime_code
from qigstore.repository import TelemetryBatch
from qigstore.repository.batches import STEP_MAX
from qigstore.repository.exports import ExportedRow
from qigstore.server.api import route
from qigstore.server.api.route import Whole, Writes, answers, encoded
from qigstore.server.api.shapes import AcceptedRows, Number

__all__ = ["routes"]

routes = route.router("ingest")

ROWS_MAX = 10_000
"""Rows of one batch."""
_SEQ_MAX = 2**62
_WRITER_ID = "0b9d5a52-2c3f-4f0a-8b7e-4a5d1c7e2f60"


def _number(value: Any) -> Any:
    """A number, or the name of one that JSON lacks; text of any other kind is no number."""
    if isinstance(value, bool) or (isinstance(value, str) and value not in NON_FINITE):
        raise ValueError(f"a number, or one of {', '.join(NON_FINITE)}")
    try:
        return float(value) if isinstance(value, str | int) else value
    except OverflowError as error:
        raise ValueError("a number within ±1.8e308") from error


class SentRow(BaseModel):
    """What was measured at a step."""

    model_config = ConfigDict(extra="forbid")
    step: Whole = Field(ge=0, lt=STEP_MAX)
    time: AwareDatetime | None = Field(
        None, description="When it was recorded (ISO 8601 with its offset); left out: now."
    )
    metrics: dict[str, Annotated[Number, BeforeValidator(_number)]] = Field(
        {}, description="By name; a metric that was not measured is left out.",
        max_length=METRICS_MAX,
    )  # fmt: skip
    regime: str | None = Field(None, description="linear, geometric, hierarchical or breakdown.")
    basin: list[Annotated[float, Field(strict=True)]] | None = Field(
        None, description="A distribution.", min_length=2, max_length=BASIN_DIMENSION_MAX
    )


class Batch(BaseModel):
    """Records of one writer, one after the other: the first has the number `first_seq`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "writer": _WRITER_ID, "epoch": 1, "attempt": 2, "rank": 0, "first_seq": 1,
                    "rows": [{"step": 0, "metrics": {"loss": 1.0, "grad_norm": "NaN"}}],
                }
            ]
        },
    )  # fmt: skip
    writer: UUID
    epoch: Whole = Field(ge=1, le=2**63 - 1, description="As the claim answered.")
    attempt: Whole = Field(ge=1, le=2**31 - 1, description="Its number.")
    rank: Whole = Field(0, ge=0, le=2**31 - 1)
    first_seq: Whole = Field(ge=1, le=_SEQ_MAX, description="`acked_seq` + 1.")
    rows: list[SentRow] = Field(min_length=1, max_length=ROWS_MAX)


@routes.post(
    "/sessions/{session}/ingest",
    responses=answers("not-found", "stale-writer", cached=False),
    response_model=AcceptedRows,
)
def ingest(at: Writes, batch: Batch) -> Response:
    """Store a batch, whole or not at all; once, however often it is sent.

    Unsure whether it arrived, send it again as it was. `stale-writer` says that it does not follow
    what is settled, or that a later process took over: ask for the writer's state.
    """
    info, now = at.session(), datetime.now(UTC)
    rows = [_row(batch, seq, row, now) for seq, row in enumerate(batch.rows, batch.first_seq)]
    last = rows[-1].seq
    done = at.store.telemetry.append(
        TelemetryBatch(
            writer=batch.writer,
            epoch=batch.epoch,
            session_id=info.id,
            attempt=batch.attempt,
            rank=batch.rank,
            first_seq=batch.first_seq,
            last_seq=last,
            groups=tuple(row_groups(rows)),
        )
    )
    return encoded({"rows": done.rows, "repeated": done.repeated, "acked_seq": last})


def _row(batch: Batch, seq: int, sent: SentRow, now: datetime) -> ExportedRow:
    """A row as the store knows it; what `record()` would refuse is refused here."""
    metrics: Mapping[str, float] = {name: float(value) for name, value in sent.metrics.items()}
    check_names(tuple(metrics))
    regime = None if sent.regime is None else Regime.from_code(regime_code(sent.regime)).value
    basin = None if sent.basin is None else check_basin(sent.basin).tolist()
    moment = sent.time or now
    return ExportedRow(batch.attempt, batch.rank, sent.step, seq, moment, regime, metrics, basin)
