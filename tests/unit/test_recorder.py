"""The recording boundary: what a row may hold, what it may not, and what follows from it."""

from __future__ import annotations

import logging
import math
import os
import random
import signal
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

import qigstore
from qigkernels.regimes import Regime, RegimeThresholds
from qigkernels.simplex import distance, path_curvature
from qigstore.errors import InvalidInput
from qigstore.recording.recorder import Recorder
from qigstore.recording.spool import Spool, SpoolIdentity
from qigstore.recording.spool.reader import SpoolReader


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool.create(
        tmp_path,
        SpoolIdentity(uuid4(), uuid4(), "s", 0, {}, "here", os.getpid(), datetime.now(UTC)),
    )
    yield made
    made.close()


@pytest.fixture
def recorder(spool: Spool) -> Recorder[Any]:
    return Recorder(spool)


def rows_of(spool: Spool) -> list[dict[str, Any]]:
    """Every row, with its step, regime and basin among the metrics."""
    reader = SpoolReader(spool, spool.identity.writer)
    found: list[tuple[int, dict[str, Any]]] = []
    while (take := reader.take(10_000)) is not None:
        assert take.gap == 0
        for rows in take.groups:
            for i in range(len(rows.seq)):
                row = dict(zip(rows.names, rows.values[i].tolist(), strict=True))
                extra = {"step": int(rows.step[i]), "regime": int(rows.regime[i])}
                if rows.basins is not None:
                    extra["basin"] = rows.basins[i].tolist()
                found.append((int(rows.seq[i]), row | extra))
    return [row for _, row in sorted(found, key=lambda pair: pair[0])]


class Odd:
    """Adds up to a float and is none."""

    def __radd__(self, other: object) -> float:
        return 1.0


class Tensor:
    """What a 0-d tensor shows of itself."""

    def __init__(self, value: float, ndim: int = 0) -> None:
        self.value, self.ndim = value, ndim

    def detach(self) -> Tensor:
        return self

    def __radd__(self, other: object) -> Tensor:
        return self

    def __float__(self) -> float:
        return self.value


@pytest.mark.parametrize(
    "value",
    [
        1, 1.0, True, np.float64(1), np.float32(1), np.float16(1), np.int64(1), np.uint8(1),
        np.bool_(True), np.longdouble(1), np.array(1.0), np.array(1, dtype=np.int32), Decimal(1),
        Fraction(1), Tensor(1.0),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
@pytest.mark.parametrize("beside", [{}, {"a": 0.5}, {"a": np.float32(0.5)}], ids=str)
def test_every_real_scalar_is_recorded(
    spool: Spool, recorder: Recorder[Any], value: Any, beside: dict[str, Any]
) -> None:
    for step in range(2):
        recorder.record(step, {**beside, "loss": value})
    told = dict.fromkeys(beside, 0.5)
    assert rows_of(spool) == [{**told, "loss": 1.0, "step": s, "regime": -1} for s in range(2)]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_torch_scalars_of_every_kind_are_recorded(
    spool: Spool, recorder: Recorder[Any], device: str
) -> None:
    torch = pytest.importorskip("torch")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    weight = torch.tensor(1.0, requires_grad=True, device=device)
    half = torch.tensor(1.0, dtype=torch.bfloat16, device=device)
    for value in (weight, weight * 1, half, torch.tensor(1, device=device)):
        recorder.record(0, {"loss": value})
    with pytest.raises(InvalidInput, match="loss"):
        recorder.record(0, {"loss": torch.tensor([1.0], device=device)})
    assert [row["loss"] for row in rows_of(spool)] == [1.0] * 4


@pytest.mark.parametrize(
    "value",
    [
        "1.0", b"1", 1j, [1.0], (1.0,), {}, object(), 10**400, -(10**400), Odd(),
        Decimal("1e999999"),
        np.array([1.0]), np.array([1.0, 2.0]), np.array([[1.0]]), np.complex128(1),
        np.complex64(1), np.str_("1"), np.datetime64("2026-01-01"), Tensor(1.0, ndim=1),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
@pytest.mark.parametrize("warm", [False, True])
def test_what_is_no_real_scalar_is_refused_by_name_and_nothing_is_kept(
    spool: Spool, recorder: Recorder[Any], value: Any, warm: bool
) -> None:
    if warm:
        recorder.record(0, {"loss": 1.0, "bad": 1.0, "more": 1.0})
    before = rows_of(spool)
    if isinstance(value, Decimal):  # an infinite float, as any overflow of Decimal is
        recorder.record(1, {"loss": 1.0, "bad": value, "more": 1.0})
        assert rows_of(spool)[-1]["bad"] == math.inf
        return
    with pytest.raises(InvalidInput, match="'bad'") as caught:
        recorder.record(1, {"loss": 1.0, "bad": value, "more": 1.0})
    assert caught.value.name == "bad"
    assert rows_of(spool) == before
    recorder.record(1, {"loss": 1.0})
    assert rows_of(spool) == [*before, {"loss": 1.0, "step": 1, "regime": -1}]


def test_nan_and_infinities_are_kept(spool: Spool, recorder: Recorder[Any]) -> None:
    recorder.record(0, {"a": math.nan, "b": math.inf, "c": -math.inf})
    (row,) = rows_of(spool)
    assert math.isnan(row["a"])
    assert (row["b"], row["c"]) == (math.inf, -math.inf)


@pytest.mark.parametrize("warm", [False, True])
def test_every_bit_of_a_double_is_kept(
    spool: Spool, recorder: Recorder[Any], rng: random.Random, warm: bool
) -> None:
    """NaN payloads of both signs, −0.0, denormals and whatever else 64 bits can be."""
    bits = [0x8000000000000000, 1, 0x7FF8000000000001, 0xFFF8DEADBEEF0001, 0x7FEFFFFFFFFFFFFF]
    bits += [rng.getrandbits(64) | 1 << 51 for _ in range(200)]  # quiet NaNs only, among NaNs
    values = struct.unpack(f"<{len(bits)}d", struct.pack(f"<{len(bits)}Q", *bits))
    names = [f"m{i}" for i in range(len(bits))]
    if warm:
        recorder.record(0, dict.fromkeys(names, 1.0))
    recorder.record(1, dict(zip(names, values, strict=True)))
    (row,) = rows_of(spool)[warm:]
    assert struct.pack(f"<{len(bits)}d", *(row[name] for name in names)) == struct.pack(
        f"<{len(bits)}Q", *bits
    )


def test_integers_are_rounded_as_python_rounds_them(spool: Spool, recorder: Recorder[Any]) -> None:
    values = [2**53 + 1, -(2**63), 10**308, True, 2**1023 + 1]
    for _ in range(2):
        recorder.record(0, {f"m{i}": value for i, value in enumerate(values)})
    for row in rows_of(spool):
        assert [row[f"m{i}"] for i in range(len(values))] == [float(value) for value in values]


SCALARS: list[Callable[[float], Any]] = [
    float, int, bool, Decimal, Fraction, np.float64, np.float32, np.float16, np.int64, np.bool_,
    np.longdouble, np.array, lambda x: np.array(x, np.float32), lambda x: Tensor(float(x)),
]  # fmt: skip


def test_rows_of_any_mixture_say_what_float_says(
    spool: Spool, recorder: Recorder[Any], rng: random.Random
) -> None:
    names = ["loss", "phi", "a", "b", "c"]
    told = []
    for step in range(400):
        kinds = rng.choices(SCALARS[:1] if step % 5 == 4 else SCALARS, k=len(names))
        row = {n: kind(rng.choice([0, 1, 3, 0.5])) for n, kind in zip(names, kinds, strict=True)}
        wrong = rng.choice([None, "1.0", np.array([1.0]), 1j]) if step % 7 == 6 else 0.0
        if wrong is None:
            row["a"] = None
        elif wrong != 0.0:
            with pytest.raises(InvalidInput, match="'b'"):
                recorder.record(step, row | {"b": wrong})
            continue
        recorder.record(step, row)
        told.append({n: float(v) for n, v in row.items() if v is not None} | {"step": step})
    assert [{k: v for k, v in row.items() if k != "regime"} for row in rows_of(spool)] == told
    assert recorder.last == {k: v for k, v in told[-1].items() if k != "step"}


def test_tensors_are_converted_and_not_added_up(spool: Spool, recorder: Recorder[Any]) -> None:
    """On a GPU each addition of two would be a kernel of its own."""
    added: list[float] = []

    class Counted(Tensor):
        def __radd__(self, other: object) -> Tensor:
            added.append(self.value)
            return self

    for step in range(10):
        recorder.record(step, {"loss": Counted(1.0 + step), "phi": 0.5})
    assert [row["loss"] for row in rows_of(spool)] == [1.0 + step for step in range(10)]
    assert len(added) <= 1


@pytest.mark.parametrize("row", [1.0, "loss", [("loss", 1.0)], None, np.ones(2)], ids=repr)
def test_a_row_is_a_mapping(spool: Spool, recorder: Recorder[Any], row: Any) -> None:
    with pytest.raises(InvalidInput, match="mapping"):
        recorder.record(0, row)
    assert rows_of(spool) == []


def test_a_run_takes_a_row_as_a_mapping_as_keywords_or_both(
    spool: Spool, recorder: Recorder[Any]
) -> None:
    run = qigstore.session("s", mode="off")
    run.record(0, {"loss": 1.0})  # not opened: nothing happens
    run._rooms = SimpleNamespace(recorder=recorder)  # type: ignore[assignment]
    given = {"loss/train": 1.0, "loss": 2.0}
    run.record(1, given)
    run.record(2, given, loss=3.0, row=4.0, step=None, self=5.0)
    run.record(3, **given)
    run.record(4)
    assert given == {"loss/train": 1.0, "loss": 2.0}
    assert rows_of(spool) == [
        {**given, "step": 1, "regime": -1},
        {**given, "loss": 3.0, "row": 4.0, "self": 5.0, "step": 2, "regime": -1},
        {**given, "step": 3, "regime": -1},
        {"step": 4, "regime": -1},
    ]


def test_none_is_not_measured(spool: Spool, recorder: Recorder[Any]) -> None:
    recorder.record(0, {"loss": 1.0, "phi": None, "basin": None, "regime": None})
    recorder.record(1, {"loss": None})
    assert rows_of(spool) == [{"loss": 1.0, "step": 0, "regime": -1}, {"step": 1, "regime": -1}]


@pytest.mark.parametrize(
    "name",
    ["", "a\0b", "a\nb", "a\x7f", "a\x85", "\ud800", "x" * 201, "x" * 1_000_000, "step",
     "attempt", "seq", "rank", "session", 3],
    ids=ascii,
)  # fmt: skip
def test_names_that_cannot_be_stored_are_refused(
    spool: Spool, recorder: Recorder[Any], name: Any
) -> None:
    for row in ({name: 1.0}, {"loss": 1.0, name: 1.0}):
        with pytest.raises(InvalidInput) as caught:
            recorder.record(0, row)
        assert len(str(caught.value)) < 500
    assert rows_of(spool) == []


def test_a_row_has_at_most_a_thousand_metrics(spool: Spool, recorder: Recorder[Any]) -> None:
    recorder.record(0, {f"m{i}": 1.0 for i in range(1000)})
    for count in (1001, 10_000):
        with pytest.raises(InvalidInput, match=str(count)):
            recorder.record(1, {f"m{i}": 1.0 for i in range(count)})
    assert len(rows_of(spool)) == 1


@pytest.mark.parametrize("step", [-1, 2**62, 2**63, 10**30, 1.0, "1", None, np.int64(-1), 1j])
@pytest.mark.parametrize("warm", [False, True])
def test_a_step_is_an_integer_from_0_to_2_62(
    spool: Spool, recorder: Recorder[Any], step: Any, warm: bool
) -> None:
    if warm:
        recorder.record(0, {"loss": 1.0})
    with pytest.raises(InvalidInput, match="step"):
        recorder.record(step, {"loss": 1.0})
    recorder.record(np.int64(7), {"loss": 1.0})  # type: ignore[arg-type]
    recorder.record(2**62 - 1, {"loss": 1.0})
    assert [row["step"] for row in rows_of(spool)][-2:] == [7, 2**62 - 1]
    assert len(rows_of(spool)) == 2 + warm


def test_the_order_of_the_names_does_not_matter(spool: Spool, recorder: Recorder[Any]) -> None:
    recorder.record(0, {"a": 1.0, "b": 2.0})
    recorder.record(1, {"b": 2.0, "a": 1.0})
    recorder.record(2, {"a": 1.0})
    recorder.record(3, {"a": 1.0, "b": 2.0})
    whole = {"a": 1.0, "b": 2.0, "regime": -1}
    assert rows_of(spool) == [
        {**whole, "step": 0}, {**whole, "step": 1}, {"a": 1.0, "regime": -1, "step": 2},
        {**whole, "step": 3},
    ]  # fmt: skip


def test_the_regime_follows_from_phi_unless_it_is_given(spool: Spool) -> None:
    recorder: Recorder[Any] = Recorder(spool)
    rows: list[tuple[dict[str, Any], int]] = [
        ({"phi": 0.1}, 0), ({"phi": 0.5}, 1), ({"phi": 0.8}, 2), ({"phi": 0.95}, 3),
        ({"phi": 0.8, "kappa_eff": 30.0}, 3), ({"phi": 0.8, "kappa_eff": 64.0}, 2),
        ({"phi": 0.8, "basin_distance": 0.2}, 3), ({"phi": math.nan}, -1), ({"loss": 1.0}, -1),
        ({"phi": 0.1, "regime": "geometric"}, 1), ({"phi": 0.1, "regime": Regime.LINEAR}, 0),
        ({"loss": 0.1, "regime": 2}, 2), ({"phi": 0.1, "regime": None}, 0),
    ]  # fmt: skip
    for metrics, _ in rows * 2:
        recorder.record(0, metrics)
    assert [row["regime"] for row in rows_of(spool)] == [code for _, code in rows] * 2
    assert recorder.last_regime == "linear"
    for wrong in ("quiet", 4, -1, 1.5):
        with pytest.raises(InvalidInput, match="regime"):
            recorder.record(0, {"regime": wrong})
    mine: Recorder[Any] = Recorder(spool, preset=RegimeThresholds(geometric=0.05))
    mine.record(0, {"phi": 0.1})
    assert rows_of(spool)[-1]["regime"] == 1


def test_geometry_follows_from_the_basins(
    spool: Spool, recorder: Recorder[Any], rng: random.Random
) -> None:
    points = [np.random.default_rng(rng.randrange(2**32)).dirichlet(np.ones(64)) for _ in range(4)]
    for step, point in enumerate(points):
        recorder.record(step, {"loss": 1.0, "basin": point})
    rows = rows_of(spool)
    assert [row["basin"] for row in rows] == [point.tolist() for point in points]
    for i, row in enumerate(rows):
        assert row["basin_distance"] == distance(points[0], points[i])
        assert ("geodesic_distance" in row) == (i > 0)
        assert ("curvature" in row) == (i > 1)
        if i > 1:
            (curvature,) = path_curvature(np.array(points[i - 2 : i + 1]))
            assert row["curvature"] == pytest.approx(curvature, rel=1e-12)
        if i:
            assert row["geodesic_distance"] == distance(points[i - 1], points[i])
    recorder.set_reference_basin(points[3])
    recorder.record(4, {"basin": points[3], "curvature": 7.0})
    last = rows_of(spool)[-1]
    assert (last["basin_distance"], last["curvature"]) == (0.0, 7.0)
    assert recorder.last["curvature"] == 7.0
    assert recorder.last_regime is None
    assert recorder.reference_basin is not None
    assert recorder.reference_basin.tolist() == points[3].tolist()


def test_a_straight_path_has_no_curvature_and_a_right_angle_a_known_one(
    spool: Spool, recorder: Recorder[Any]
) -> None:
    from qigkernels.simplex import geodesic

    p, q = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    for step, t in enumerate((0.0, 0.4, 0.8)):
        recorder.record(step, {"basin": geodesic(p, q, t)})
    assert rows_of(spool)[-1]["curvature"] == pytest.approx(0.0, abs=1e-12)
    # On the sphere of radius 2 of √p, from the first corner through the middle of the edge.
    a, b = np.array([1.0, 0.0, 0.0]), np.array([0.5, 0.5, 0.0])
    c = np.array([0.25, 0.25, 0.5])
    for step, point in enumerate((a, b, c)):
        recorder.record(3 + step, {"basin": point})
    mean = (math.pi / 2 + math.pi / 2) / 2
    assert distance(a, b) == pytest.approx(math.pi / 2)
    assert rows_of(spool)[-1]["curvature"] == pytest.approx(math.pi / 2 / mean)


@pytest.mark.parametrize(
    "basin",
    [
        [0.5, 0.6], [1.5, -0.5], [math.nan, 1.0], [[0.5, 0.5]], 1.0, "basin", [], [1.0],
        [0.5, 0.5 + 2e-8], np.full(20_000, 1 / 20_000), [0.5, "half"], [0.5, None],
    ],
    ids=lambda basin: repr(basin)[:20],
)  # fmt: skip
def test_a_basin_that_is_no_distribution_is_refused_and_moves_nothing(
    spool: Spool, recorder: Recorder[Any], basin: Any
) -> None:
    recorder.record(0, {"basin": [0.5, 0.5]})
    with pytest.raises(InvalidInput, match="basin"):
        recorder.record(1, {"loss": 1.0, "basin": basin})
    with pytest.raises(InvalidInput, match="basin"):
        recorder.set_reference_basin(basin)
    recorder.record(1, {"basin": [0.5, 0.5]})
    assert [row["geodesic_distance"] for row in rows_of(spool)[1:]] == [0.0]


def test_rules_see_the_row_after_it_is_safe(spool: Spool) -> None:
    seen: list[tuple[int, tuple[float, ...]]] = []

    def bind(names: tuple[str, ...]) -> Any:
        def check(step: int, values: Sequence[float]) -> Sequence[str]:
            assert spool.seq == len(seen) + 1
            seen.append((step, tuple(values)))
            if step == 2:
                raise RuntimeError("a rule's bug")
            return [f"{names} {step}"] if step == 1 else ()

        return check

    recorder: Recorder[str] = Recorder(spool, bind_rules=bind)
    assert recorder.record(0, {"loss": 1.0, "phi": None}) == ()
    assert recorder.record(1, {"loss": 2.0}) == ["('loss',) 1"]
    for row in ({"loss": 3.0}, {"loss": 4.0, "phi": 0.5}, {"loss": np.float32(5.0)}):
        with pytest.raises(RuntimeError, match="bug"):
            recorder.record(2, row)
    assert seen == [(0, (1.0,)), (1, (2.0,)), (2, (3.0,)), (2, (4.0, 0.5)), (2, (5.0,))]
    assert [row["loss"] for row in rows_of(spool)] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert (recorder.last_step, recorder.last) == (2, {"loss": 5.0})


def test_threads_record_without_losing_a_row(spool: Spool, recorder: Recorder[Any]) -> None:
    def work(k: int) -> None:
        for step in range(500):
            recorder.record(1000 * k + step, {"loss": 1.0} | ({"phi": 0.5} if step % 7 else {}))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    steps = sorted(row["step"] for row in rows_of(spool))
    assert steps == [1000 * k + step for k in range(4) for step in range(500)]


def test_a_handler_may_record_at_any_moment_of_record(
    spool: Spool, recorder: Recorder[Any]
) -> None:
    heard = 0

    def handler(signum: int, frame: object) -> None:
        nonlocal heard
        heard += 1
        recorder.record(10**6 + heard, {"signal": float(signum)})

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    step = 0
    try:
        while heard < 50:
            recorder.record(step, {"loss": float(step), "phi": 0.5})
            step += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    steps = sorted(row["step"] for row in rows_of(spool))
    assert steps == [*range(step), *range(10**6 + 1, 10**6 + heard + 1)]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # 3.12: a fork beside threads
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # JAX's, where its tests ran before
def test_a_forked_child_records_nothing_and_does_not_fail(
    spool: Spool, recorder: Recorder[Any]
) -> None:
    recorder.record(0, {"loss": 1.0})
    child = os.fork()
    if child == 0:
        status = 1
        try:
            logging.disable()
            for step in range(10):
                recorder.record(step, {"loss": 1.0})
                recorder.record(step, {"other": 1.0})
            status = 0 if spool.dropped == 20 else 2
        finally:
            os._exit(status)
    recorder.record(1, {"loss": 2.0})
    assert os.waitpid(child, 0)[1] == 0
    assert [row["loss"] for row in rows_of(spool)] == [1.0, 2.0]


def test_a_notice_is_said_once_by_the_next_row(
    spool: Spool, recorder: Recorder[Any], caplog: pytest.LogCaptureFixture
) -> None:
    recorder.record(0, {"loss": 1.0})
    spool.notify("another process took over")
    for step in range(3):
        recorder.record(step, {"loss": 1.0})
    said = [record.getMessage() for record in caplog.records]
    assert said.count("another process took over") == 1
    assert len(rows_of(spool)) == 4
