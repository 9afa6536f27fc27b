"""What a writer hands over in one transaction: rows grouped by layout, checked on construction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from qigstore.errors import InvalidInput
from qigstore.repository.texts import METRIC_CHARACTERS_MAX, text_value

__all__ = ["NO_REGIME", "STEP_MAX", "AppendResult", "RowGroup", "RowKeys", "TelemetryBatch"]

NO_REGIME = -1
_REGIME_CODE_MAX = 3
STEP_MAX = 2**62
"""Far from the end of `bigint`, so that ranges of steps have an end of their own."""

_INT4_MAX = 2**31 - 1


class AppendResult(NamedTuple):
    """What one batch did.

    Attributes:
        rows: records it brought; 0 where it was stored already.
        repeated: records, of this batch or stored before, that a later record of their step
            replaced. Rows in the table are the sum of `rows` less the sum of `repeated`.
    """

    rows: int
    repeated: int


class RowKeys(NamedTuple):
    """Sequence number and step of each row, (n,) each."""

    seq: NDArray[np.int64]
    step: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class RowGroup:
    """Rows of one layout, in the order of their sequence numbers.

    Attributes:
        names: metrics of the columns of `values`; one that is not named is NULL in these rows.
        seq, step, time_ns: (n,); steps from 0; time in Unix ns, UTC.
        values: (n, k); a recorded NaN stays NaN.
        regime: (n,), code of the regime, -1 for none.
        basins: (n, d), distributions, or None where these rows have none.

    Raises:
        InvalidInput: shapes or names that do not fit together.
    """

    names: tuple[str, ...]
    seq: NDArray[np.int64]
    step: NDArray[np.int64]
    time_ns: NDArray[np.int64]
    values: NDArray[np.float64]
    regime: NDArray[np.int16]
    basins: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        count = len(self.seq)
        shapes: dict[str, tuple[Any, type[np.generic], tuple[int, ...]]] = {
            "seq": (self.seq, np.int64, (count,)),
            "step": (self.step, np.int64, (count,)),
            "time_ns": (self.time_ns, np.int64, (count,)),
            "values": (self.values, np.float64, (count, len(self.names))),
            "regime": (self.regime, np.int16, (count,)),
        }
        for name, (given, kind, shape) in shapes.items():
            _require(name, given, kind, shape)
        _within("step", self.step, 0, STEP_MAX)
        _within("regime", self.regime, NO_REGIME, _REGIME_CODE_MAX)
        if self.basins is not None:
            width = self.basins.shape[1] if self.basins.ndim == 2 else 0
            _require("basins", self.basins, np.float64, (count, max(width, 1)))
        if len(set(self.names)) != len(self.names):
            raise InvalidInput("names", self.names, "each metric once")
        for name in self.names:
            if not text_value("metric name", name, METRIC_CHARACTERS_MAX):
                raise InvalidInput("metric name", name, "at least one character")

    def __len__(self) -> int:
        return len(self.seq)

    def take(self, kept: NDArray[Any]) -> RowGroup:
        """The rows that a boolean mask (n,) names."""
        basins = None if self.basins is None else self.basins[kept]
        parts = (self.seq, self.step, self.time_ns, self.values, self.regime)
        seq, step, time_ns, values, regime = (part[kept] for part in parts)
        return RowGroup(self.names, seq, step, time_ns, values, regime, basins)


def _within(name: str, given: NDArray[Any], least: int, most: int) -> None:
    if len(given) and not (least <= given.min() and given.max() <= most):
        raise InvalidInput(name, f"{given.min()} to {given.max()}", f"{least} to {most}")


def _require(name: str, given: Any, kind: type[np.generic], shape: tuple[int, ...]) -> None:
    if not isinstance(given, np.ndarray) or given.dtype != kind or given.shape != shape:
        found = f"{getattr(given, 'dtype', type(given).__name__)}{getattr(given, 'shape', '')}"
        raise InvalidInput(name, found, f"{np.dtype(kind)} of the shape {shape}")


@dataclass(frozen=True, slots=True, eq=False)
class TelemetryBatch:
    """The records `first_seq` to `last_seq` of one writer, both included.

    The range also counts records that were lost to damage: it says what is settled once this batch
    is stored.

    Raises:
        InvalidInput: numbers that do not fit together.
    """

    writer: UUID
    epoch: int
    session_id: int
    attempt: int
    rank: int
    first_seq: int
    last_seq: int
    groups: tuple[RowGroup, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.first_seq <= self.last_seq:
            raise InvalidInput(
                "first_seq", self.first_seq, f"1 to last_seq, which is {self.last_seq}"
            )
        for name, value in (("attempt", self.attempt), ("rank", self.rank)):
            if not 0 <= value <= _INT4_MAX:
                raise InvalidInput(name, value, f"0 to {_INT4_MAX}")
        for group in self.groups:
            if len(group) and not (
                self.first_seq <= group.seq.min() and group.seq.max() <= self.last_seq
            ):
                found = f"{group.seq.min()} to {group.seq.max()}"
                raise InvalidInput("seq", found, f"{self.first_seq} to {self.last_seq}")

    @property
    def rows(self) -> int:
        """Number of records it brings."""
        return sum(map(len, self.groups))

    def keys(self) -> RowKeys:
        """Sequence numbers and steps of every row, group after group."""
        none = np.empty(0, dtype=np.int64)
        return RowKeys(
            np.concatenate([none, *(group.seq for group in self.groups)]),
            np.concatenate([none, *(group.step for group in self.groups)]),
        )

    def latest(self) -> tuple[RowGroup, ...]:
        """Its groups with one row a step: the one recorded last."""
        seq, step = self.keys()
        if (np.diff(step) > 0).all():  # the ordinary case, in one pass
            return tuple(group for group in self.groups if len(group))
        order = np.lexsort((seq, step))
        last_of_step = np.append(np.diff(step[order]) != 0, True)
        kept = np.zeros(len(step), dtype=bool)
        kept[order[last_of_step]] = True
        parts = np.split(kept, np.cumsum([len(group) for group in self.groups])[:-1])
        chosen = (group.take(mask) for group, mask in zip(self.groups, parts, strict=True))
        return tuple(group for group in chosen if len(group))
