"""What recording costs, and how fast rows are readable: ratios against peers in the same run.

    python -m benchmarks.recording [--repeats K] [--rows N] [--only NAME …] [--json FILE]

20 metrics a step. Every repeat measures each of them, one after the other and each in a process of
its own, so that a slow minute of the machine hits all alike; figures are medians over the repeats.
The peers come with `pip install 'qigstore[bench]'`; one that cannot run here is listed with the
reason. The floors say what part of a figure is the machine's: a call that does nothing, a frame
with nothing around it, PostgreSQL's own COPY. The server is an embedded one of this run's own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.recording_child import (
    DSN_VARIABLE,
    KILLED_CALLS,
    PACE_S,
    SEEN_LIMIT_S,
    SUBJECTS,
    TOLD,
)
from benchmarks.recording_copy import COPY, RATES
from benchmarks.recording_subjects import NAMES, OURS, Place, new_spool, rows

__all__ = ["main"]

_CHILD_LIMIT_S = 180.0
_FIRST = OURS[0].__name__


@dataclass
class Told:
    """What was measured: by subject, one entry a repeat; rates by name; what did not run, why."""

    measures: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    spool_bytes: int = 0


class Bench:
    """Runs the subjects in processes of their own, in folders of their own."""

    def __init__(self, root: Path, dsn: str) -> None:
        self.root, self.dsn, self.told = root, dsn, Told()
        self._numbers = count()

    def place(self, name: str) -> Place:
        """A fresh one."""
        folder = self.root / f"{name.lower()}-{next(self._numbers)}"
        folder.mkdir()
        return Place(folder, self.dsn, folder.name)

    def child(self, what: str, name: str, place: Place) -> dict[str, Any] | None:
        """What a child told; None where it could not, which is noted with the reason."""
        _progress(f"{what} {name}")
        command = [sys.executable, "-m", "benchmarks.recording_child", what, name]
        log = place.folder / f"{what}.log"
        with log.open("wb") as output:
            try:
                done = subprocess.run(
                    [*command, str(place.folder)], stdout=output, stderr=output, check=False,
                    env=os.environ | {DSN_VARIABLE: self.dsn}, timeout=_CHILD_LIMIT_S,
                )  # fmt: skip
                code: object = done.returncode
            except subprocess.TimeoutExpired:
                code = f"over {_CHILD_LIMIT_S:g} s"
        told = place.folder / TOLD
        if what == "die" and code == -9:
            return {}
        if code == 0 and told.exists():
            found: dict[str, Any] = json.loads(told.read_text())
            return found
        last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no message"]
        self.told.absent[name] = f"failed here ({code}): {last[0][:150]}"
        return None

    def subject(self, name: str) -> None:
        """Measure one of them once."""
        found = self.child("measure", name, self.place(name))
        if found is not None:
            self.told.measures.setdefault(name, []).append(found)

    def kill(self, name: str) -> None:
        """Count what one of them leaves behind when it is killed right after its last call."""
        place = self.place(name)
        if self.child("die", name, place) is not None:
            found = self.child("left", name, place)
            if found is not None:
                self.told.left[name] = int(found["left"])

    def rate(self, name: str, data: list[dict[str, float]]) -> None:
        """One of the ways into PostgreSQL that is no call of a training loop."""
        _progress(name)
        found = RATES[name](self.place("rate"), data)
        if isinstance(found, str):
            self.told.absent[name] = found
        else:
            self.told.rates.setdefault(name, []).append(found)


def _progress(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)


@contextmanager
def server() -> Iterator[str]:
    """DSN of a migrated database: `QIGSTORE_BENCH_DSN`, else an embedded server of our own."""
    from qigstore.database.embedded import EmbeddedServer
    from qigstore.database.engine import Database
    from qigstore.database.migrate import upgrade

    with tempfile.TemporaryDirectory(prefix="qs-", dir="/tmp") as folder:
        given = os.environ.get("QIGSTORE_BENCH_DSN")
        started = None if given else EmbeddedServer.start(Path(folder) / "postgres")
        try:
            dsn = given or (started.dsn() if started else "")
            database = Database(dsn)
            upgrade(database)
            database.dispose()
            yield dsn
        finally:
            if started is not None:
                started.close()


def run(only: Sequence[str], repeats: int, count_rows: int) -> Told:
    """Measure all of them, `repeats` times round."""
    chosen = [name for name in SUBJECTS if not only or name in only]
    with tempfile.TemporaryDirectory(prefix="qs-") as folder, server() as dsn:
        bench = Bench(Path(folder), dsn)
        for name in chosen:
            reason = SUBJECTS[name].missing()
            if reason:
                bench.told.absent[name] = reason
        data = rows(count_rows)
        for number in range(repeats):
            _progress(f"repeat {number + 1} of {repeats}")
            for name in chosen:
                if name not in bench.told.absent:
                    bench.subject(name)
            for name in RATES:
                if name not in bench.told.absent:
                    bench.rate(name, data)
        for name in chosen:
            if SUBJECTS[name].keeps and name not in bench.told.absent:
                bench.kill(name)
        spool = new_spool(bench.place("size"))
        bench.told.spool_bytes = spool.layout(NAMES).size
        spool.remove()
    return bench.told


# -- the report ------------------------------------------------------------------------------


def _middle(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")


def _column(repeats: list[dict[str, Any]], kind: str, key: str) -> list[float]:
    return [repeat[kind][key] for repeat in repeats if key in repeat.get(kind, {})]


def _micro(values: list[float]) -> str:
    return f"{_middle(values) / 1000:,.1f}" if values else "–"


def _ratio(repeats: list[dict[str, Any]], ours: list[dict[str, Any]], kind: str, key: str) -> str:
    pairs = zip(_column(repeats, kind, key), _column(ours, kind, key), strict=False)
    value = _middle([theirs / own for theirs, own in pairs])
    return f"{value:,.2f}×" if value < 10 else f"{value:,.0f}×"


def _call_table(told: Told, kind: str) -> Iterator[str]:
    ours = told.measures.get(_FIRST, [])
    for name, repeats in told.measures.items():
        p50 = _column(repeats, kind, "p50")
        low, high = min(p50) / 1000, max(p50) / 1000
        yield "  ".join(
            (
                f"{_title(name):42}",
                *(f"{_micro(_column(repeats, kind, key)):>9}" for key in ("p50", "p99", "p999")),
                f"{_micro(_column(repeats, kind, 'mean')):>9}",
                *(f"{_ratio(repeats, ours, kind, key):>9}" for key in ("p50", "mean")),
                f"({low:,.1f} to {high:,.1f})",
            )
        )


def _title(name: str) -> str:
    return SUBJECTS[name].title


def _rate_table(told: Told) -> Iterator[str]:
    rates = {
        _title(name): [repeat["steps_s"] for repeat in repeats if "steps_s" in repeat]
        for name, repeats in told.measures.items()
    }
    rates |= told.rates
    base = told.rates.get(COPY, [])
    for title, found in rates.items():
        if found:
            ratios = [a / b for a, b in zip(found, base, strict=False)]
            yield "  ".join(
                (
                    f"{title:42}",
                    f"{_middle(found) / 1000:>9,.2f}",
                    f"{_middle(ratios):>9.4f}",
                    f"({min(found) / 1000:,.2f} to {max(found) / 1000:,.2f})",
                )
            )


def _size_table(told: Told) -> Iterator[str]:
    yield f"{'our spool':42}  {told.spool_bytes:>9,}"
    for name, repeats in told.measures.items():
        found = [repeat["bytes"] for repeat in repeats if "bytes" in repeat]
        if found:
            yield f"{_title(name):42}  {_middle(found):>9,.0f}"


def _seen_table(told: Told) -> Iterator[str]:
    for name, repeats in told.measures.items():
        found = [value for repeat in repeats for value in repeat.get("seen_s", ())]
        if found:
            limit = f"(> {SEEN_LIMIT_S:g} s: not waited for)" if max(found) > SEEN_LIMIT_S else ""
            yield f"{_title(name):42}  {_middle(found):>9.3f}  {max(found):>9.3f}  {limit}"


def report(told: Told) -> Iterator[str]:
    """The figures as text."""
    heads = "  ".join(f"{head:>9}" for head in ("p50", "p99", "p99.9", "mean"))
    for kind, pace in (("hot", "back to back"), ("paced", f"every {PACE_S * 1000:g} ms")):
        ratios = f"{'p50/ours':>9}  {'mean/ours':>9}"
        yield f"\n{f'µs a call, {pace}':42}  {heads}  {ratios}  (p50, least to most)"
        yield from _call_table(told, kind)
    yield f"\n{'k steps/s until readable':42}  {'median':>9}  {'to COPY':>9}  (least to most)"
    yield from _rate_table(told)
    yield f"\n{'bytes a step':42}  {'median':>9}"
    yield from _size_table(told)
    yield f"\n{'s until a reader sees a step':42}  {'median':>9}  {'most':>9}"
    yield from _seen_table(told)
    yield f"\nsteps left of {KILLED_CALLS}, SIGKILL right after the last call returned"
    yield from (f"{_title(name):42}  {left:>9}" for name, left in told.left.items())
    for name, reason in told.absent.items():
        title = SUBJECTS[name].title if name in SUBJECTS else name
        yield f"\nNOT MEASURED: {title}: {reason}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rows", type=int, default=100_000, help="of COPY and of the backlog")
    parser.add_argument("--only", nargs="*", default=(), choices=[*SUBJECTS], metavar="NAME")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    began = perf_counter()
    told = run(given.only, given.repeats, given.rows)
    print(f"20 metrics a step, {given.repeats} repeats, {perf_counter() - began:.0f} s in all")
    for line in report(told):
        print(line)
    if given.json:
        given.json.write_text(json.dumps(vars(told), indent=1))


if __name__ == "__main__":
    main()
