"""The compiled cursor writes what the one in Python writes, or writes nothing and says so."""

from __future__ import annotations

import gc
import math
import os
import random
import struct
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from time import time_ns
from typing import Any
from uuid import uuid4
from zlib import crc32

import numpy as np
import pytest

from qigstore.compiled import all_compiled
from qigstore.recording.spool import Spool, SpoolIdentity
from qigstore.recording.spool.frame import KIND_ROW, MARKER, Layout
from qigstore.recording.spool.reader import SpoolReader

NAMES = ("loss", "lr", "Δ", "m3", "m4")


def new_spool(folder: Path, **options: Any) -> Spool:
    told = SpoolIdentity(uuid4(), uuid4(), "s", 0, {}, "here", os.getpid(), datetime.now(UTC))
    return Spool.create(folder, told, **options)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = new_spool(tmp_path)
    yield made
    made.close()


def ready(spool: Spool, names: tuple[str, ...] = NAMES) -> Layout:
    """A layout that the cursor takes: a first row has gone the long way."""
    layout = spool.layout(names)
    assert spool.append(layout, 0, -1, [0.0] * len(names))
    spool.use(layout)
    return layout


def steps_of(spool: Spool) -> list[int]:
    """Steps of all rows; each of their values has to be its step."""
    reader, found = SpoolReader(spool, spool.identity.writer), []
    while (take := reader.take(1 << 20)) is not None:
        assert take.gap == 0
        for group in take.groups:
            assert (group.values == group.step[:, None]).all()
            found += group.step.tolist()
    return found


def state(spool: Spool) -> tuple[int, int, bytes]:
    """Where the spool is, and the first word of the frame that comes next."""
    return spool.at, spool.seq, bytes(spool.map[spool.at : spool.at + 8])


def any_number(rng: random.Random) -> Any:
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice([math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308])
    if kind == 1:
        return rng.choice([0, -1, True, False, 2**53 + 1, -(2**63), 10**300])
    if kind == 2 and all_compiled():  # in Python a sum of these may warn of an overflow
        return np.float64(rng.gauss(0, 1))
    return struct.unpack("<d", rng.randbytes(8))[0]


def test_a_row_is_the_same_to_the_bit(spool: Spool, rng: random.Random) -> None:
    layouts: list[Layout] = []
    for k in range(400):
        if not layouts or rng.random() < 0.1:
            names = tuple(f"metric {rng.randrange(10**6)}" for _ in range(rng.randrange(1, 40)))
            layouts.append(ready(spool, names))
        layout = layouts[-1]
        if layout.block != spool.block or spool.at + layout.size > spool.limit:
            ready(spool, layout.names)
        step = rng.choice([0, k, 2**62 - 1, rng.randrange(2**62)])
        regime, start = rng.randrange(-1, 4), spool.at
        row = {name: any_number(rng) for name in layout.names}
        before = time_ns()
        values = spool.put(layout, step, regime, row)
        after = time_ns()
        assert values is not None
        assert [*map(repr, values)] == [*map(repr, row.values())]
        assert (spool.at, spool.at % 8) == (start + layout.size, 0)
        frame = bytes(spool.map[start : spool.at])
        (time,) = struct.unpack_from("<q", frame, 32)
        assert before <= time <= after
        body = layout.pack(
            layout.words, KIND_ROW, regime, layout.id, spool.seq, step, time, *row.values()
        )
        first = MARKER | crc32(body, spool.seed) << 32
        assert frame == first.to_bytes(8, "little") + body


@pytest.mark.parametrize(
    "value",
    [
        None, "1", b"1", 1j, [1.0], 10**400, Decimal(1), Fraction(1, 3), np.float32(1.0),
        np.int64(3), np.ones(3), np.array(1.0), object(),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
@pytest.mark.parametrize("place", [0, 4])
@pytest.mark.skipif(not all_compiled(), reason="the one in Python takes what adds up to a number")
def test_what_is_no_plain_number_writes_nothing(spool: Spool, place: int, value: Any) -> None:
    layout = ready(spool)
    before = state(spool)
    row = dict.fromkeys(NAMES, 1.0) | {NAMES[place]: value}
    assert spool.put(layout, 1, -1, row) is None
    assert state(spool) == before
    assert spool.put(layout, 1, -1, dict.fromkeys(NAMES, 1.0)) is not None


@pytest.mark.parametrize(
    "row",
    [
        {}, dict.fromkeys(NAMES[:-1], 1.0), dict.fromkeys((*NAMES, "more"), 1.0),
        dict.fromkeys(reversed(NAMES), 1.0), dict.fromkeys((*NAMES[:-1], "M4"), 1.0),
        dict.fromkeys((*NAMES[:-1], 4), 1.0), [], None, 3,
    ],
    ids=repr,
)  # fmt: skip
def test_another_row_writes_nothing(spool: Spool, row: Any) -> None:
    layout = ready(spool)
    before = state(spool)
    assert spool.put(layout, 1, -1, row) is None
    assert state(spool) == before


@pytest.mark.parametrize("step", [-1, 2**62, 2**63, 10**30, -(10**30), 1.0, "1", None], ids=repr)
def test_another_step_writes_nothing(spool: Spool, step: Any) -> None:
    layout = ready(spool)
    before = state(spool)
    assert spool.put(layout, step, -1, dict.fromkeys(NAMES, 1.0)) is None
    assert state(spool) == before


def test_equal_names_need_not_be_the_same_object(spool: Spool) -> None:
    layout = ready(spool)
    row = {"".join([*name]): 1.0 for name in NAMES}
    assert spool.put(layout, 1, -1, row) is not None
    assert spool.put(layout, 2, -1, OrderedDict(row)) is None or not all_compiled()


@pytest.mark.skipif(not all_compiled(), reason="the one in Python goes through append, which waits")
def test_the_long_way_is_asked_wherever_something_has_to_be_done_first(tmp_path: Path) -> None:
    spool, row = new_spool(tmp_path, segment_bytes=1 << 16), dict.fromkeys(NAMES, 1.0)
    layout = ready(spool)
    other = spool.layout(("x",))
    assert spool.put(other, 1, -1, {"x": 1.0}) is None  # not the one in use
    spool.busy = True
    assert spool.put(layout, 1, -1, row) is None  # a signal handler, in the middle of a row
    spool.busy = False
    assert spool.put(layout, 1, -1, row) is not None
    spool.notify("to be said before the next row")
    assert spool.put(layout, 2, -1, row) is None
    ready(spool)
    while spool.put(layout, 3, -1, row) is not None:
        assert spool.at <= spool.limit
    assert spool.at + layout.size > spool.limit
    ready(spool)
    assert spool.put(layout, 4, -1, row) is not None
    spool.close()
    assert spool.put(layout, 5, -1, row) is None


def test_segments_are_unmapped_while_rows_go_on(tmp_path: Path) -> None:
    spool, row = new_spool(tmp_path, segment_bytes=8192), dict.fromkeys(NAMES, 1.0)
    layout, rows = ready(spool), 1
    while len(spool.spans()) < 5:
        if spool.put(layout, rows, -1, row) is None:
            ready(spool)
        rows += 1
    spool.sync()  # closes the mappings of those that are full
    reader, found = SpoolReader(spool, spool.identity.writer), 0
    while (take := reader.take(1 << 20)) is not None:
        assert take.gap == 0
        found += take.count
    assert found == rows
    spool.remove()
    assert not spool.folder.exists()


def test_threads_share_one_cursor(tmp_path: Path) -> None:
    spool = new_spool(tmp_path, segment_bytes=1 << 16)
    layout, each = ready(spool), 5_000

    def write(first: int) -> None:
        for step in range(first, first + each):
            row = dict.fromkeys(NAMES, float(step))
            with spool.lock:
                if spool.put(layout, step, -1, row) is None:
                    assert spool.append(layout, step, -1, [*row.values()])
                    spool.use(layout)

    threads = [threading.Thread(target=write, args=(1 + k * each,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(steps_of(spool)) == [*range(4 * each + 1)]
    spool.close()


def test_a_cursor_keeps_nothing_alive(spool: Spool) -> None:
    layout, row = ready(spool), dict.fromkeys(NAMES, 1.5)
    before = [sys.getrefcount(thing) for thing in (layout, layout.names, row, row["loss"])]
    for step in range(100):
        spool.use(layout)
        assert spool.put(layout, step, -1, row) is not None
        assert spool.put(layout, step, -1, {**row, "m4": "text"}) is None
    after = [sys.getrefcount(thing) for thing in (layout, layout.names, row, row["loss"])]
    assert after == before


@pytest.mark.parametrize("wrong", [None, 3, ("loss",)], ids=repr)
@pytest.mark.skipif(not all_compiled(), reason="there is nothing to hold in Python")
def test_misuse_is_an_error_and_no_crash(spool: Spool, wrong: Any) -> None:
    with pytest.raises((TypeError, AttributeError)):
        spool.use(wrong)
    with pytest.raises(ValueError, match="no basin"):
        spool.use(spool.layout(("loss",), 8))
    with pytest.raises((TypeError, BufferError)):
        spool.hold(b"read only")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        spool.put(wrong)  # type: ignore[call-arg]
    assert spool.put(wrong, 1, -1, {}) is None


def test_a_finalizer_that_records_in_the_middle_of_a_row_takes_no_rows_place(
    tmp_path: Path,
) -> None:
    """Whatever is allocated for a row may set off the garbage collection, and that a `__del__`."""
    spool = new_spool(tmp_path)
    names = tuple(f"m{i}" for i in range(25))  # a tuple that Python has no spare one of
    rows = {step: dict.fromkeys(names, float(step)) for step in range(600)}
    layout, told = ready(spool, names), [0]

    class Garbage:
        def __init__(self, step: int) -> None:
            self.step, self.me = step, self

        def __del__(self) -> None:
            write(self.step)

    def write(step: int) -> None:
        if spool.put(layout, step, -1, rows[step]) is None:
            assert spool.append(layout, step, -1, [*rows[step].values()])
            spool.use(layout)
        told.append(step)

    gc.collect()
    for step in range(1, 300):
        Garbage(300 + step)
        kept: list[list[int]] = []
        while gc.get_count()[0] < gc.get_threshold()[0]:
            kept.append([])  # the next one that is made, by whomever, sets it off
        write(step)
    gc.collect()
    assert sorted(steps_of(spool)) == sorted(told)
    spool.close()
