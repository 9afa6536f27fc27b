"""A full disk never stops or corrupts training (R6): rows are counted, recovery is automatic."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from figures import SHARE
from line import identity

from qigstore.errors import SpoolFull
from qigstore.recording.spool import Spool
from qigstore.recording.spool import spool as spool_module
from qigstore.recording.spool.leftover import LeftOver
from qigstore.recording.spool.reader import SpoolReader

ROWS = 600
CALLS = {
    os: ("open", "posix_fallocate", "write", "fsync", "fdatasync", "rename", "replace", "unlink"),
    mmap: ("mmap",),
}


class Refusing:
    """System calls that refuse from the `first`-th on, `count` times, then work again.

    Those of this thread: others of this process may have work of their own.
    """

    def __init__(self, first: int, count: int, code: int) -> None:
        self.first, self.last, self.code = first, first + count, code
        self.calls = 0
        self.refused: Counter[str] = Counter()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Stand before every call that changes the disk."""
        for module, names in CALLS.items():
            for name in names:
                patch.setattr(module, name, self._instead_of(name, getattr(module, name)))

    def _instead_of(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        mine = threading.get_ident()

        def call(*arguments: Any, **options: Any) -> Any:
            foreign = threading.get_ident() != mine
            if foreign or (name == "open" and not arguments[1] & os.O_CREAT):
                return real(*arguments, **options)
            self.calls += 1
            if self.first < self.calls <= self.last:
                self.refused[name] += 1
                raise OSError(self.code, os.strerror(self.code))
            return real(*arguments, **options)

        return call


def read(spool: Spool, source: Any) -> tuple[dict[int, float], int]:
    """Loss by sequence, and how many rows were damaged."""
    reader, found, gap = SpoolReader(source, spool.identity.writer), {}, 0
    while (take := reader.take(500)) is not None:
        gap += take.gap
        for rows in take.groups:
            found |= dict(zip(rows.seq.tolist(), rows.values[:, 0].tolist(), strict=True))
    return found, gap


def tend(spool: Spool, step: int, now: list[float]) -> None:
    """What the background threads do, and what they do about errors: go on, and come again."""
    now[0] += 0.01
    with suppress(OSError):
        if step % 40 == 0:
            spool.prepare()
        if step % 60 == 0:
            spool.sync()
        if step % 150 == 0:
            spool.release(spool.seq - 100)


def train(root: Path, refusing: Refusing) -> bool:
    """One history over a refusing disk; False where the spool could not be made at all."""
    now = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "monotonic", lambda: now[0])
        refusing.install(patch)
        try:
            spool = Spool.create(root / "store", identity(), segment_bytes=1 << 13)
        except (SpoolFull, OSError):
            return False
        layouts = [spool.layout(("loss",)), spool.layout(("loss", "phi"))]
        kept: dict[int, float] = {}
        for step in range(ROWS):
            layout = layouts[step % 7 == 0]
            with spool.lock:
                if spool.append(layout, step, -1, [step * 0.5, 0.5][: len(layout.names)]):
                    kept[spool.seq] = step * 0.5
            tend(spool, step, now)
        assert spool.dropped == ROWS - len(kept)
    # The disk works again: so does the spool, by itself.
    with spool.lock:
        assert spool.append(layouts[0], ROWS, -1, [ROWS * 0.5]), "it did not recover"
        kept[spool.seq] = ROWS * 0.5
    spool.sync()
    left = {seq: loss for seq, loss in kept.items() if seq >= spool.spans()[0][1]}
    assert read(spool, spool) == (left, spool.spans()[0][1] - 1)
    spool.close()
    found, _ = read(spool, LeftOver(spool.folder, spool.identity.writer))
    assert left.items() <= found.items() <= kept.items()
    return True


def refuse_everywhere(root: Path, counts: list[int], codes: list[int], stride: int = 1) -> None:
    refused: Counter[str] = Counter()
    histories = 0
    logging.getLogger("qigstore").setLevel(logging.CRITICAL)
    try:
        undisturbed = Refusing(0, 0, 0)
        train(root / "undisturbed", undisturbed)
        for begin, (code, count) in enumerate(product(codes, counts)):
            # Not from what a refused history gets to: the first refusal may end it at once.
            first, calls = begin % stride, undisturbed.calls
            while first <= calls:
                refusing = Refusing(first, count, code)
                folder = root / f"{histories}"
                train(folder, refusing)
                shutil.rmtree(folder, ignore_errors=True)
                calls, first = max(calls, refusing.calls), first + stride
                refused += refusing.refused
                histories += 1
    finally:
        logging.getLogger("qigstore").setLevel(logging.NOTSET)
    print(f"{histories} histories, refused {dict(refused)}: 0 corrupt, dropped == reported")
    assert set(refused) >= set(CALLS[os]) - {"replace"}, "some calls were never refused"


def test_a_refusal_at_every_system_call_corrupts_nothing(tmp_path: Path) -> None:
    refuse_everywhere(tmp_path, [1, 8], [errno.ENOSPC])


@pytest.mark.long(seconds=85)
def test_every_refusal_of_every_length_corrupts_nothing(tmp_path: Path) -> None:
    codes = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS]
    refuse_everywhere(tmp_path, [1, 2, 3, 5, 8, 20, 10**6], codes, max(1, round(1 / SHARE)))
