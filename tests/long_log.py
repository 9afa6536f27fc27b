"""The log of a long run: of every test its verdict, its duration and what it printed, in one file.

`--long-log=FILE` writes it as the tests end, also those of xdist's workers, and shows the figures
at the end. `--resume` goes on with a run of the same tree and share: what passed there stays in the
log and is not run again. The longest tests begin first (`long(seconds=...)`), and one that is
marked `alone` has the machine to itself.
"""

from __future__ import annotations

import fcntl
import re
import subprocess
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from figures import SHARE

ENTRY = re.compile(r"(passed|failed|skipped) +([\d.]+) s  (.*)")
"""The first line of what the log says of a test; what it printed follows, indented."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of a long run."""
    parser.addoption("--long-log", metavar="FILE", help="write verdicts and figures to this file")
    parser.addoption("--resume", action="store_true", help="leave out what passed in that file")


def pytest_configure(config: pytest.Config) -> None:
    """Only where a log is asked for."""
    if config.option.long_log:
        config.pluginmanager.register(LongLog(config))


def state_of_tree(root: Path) -> str:
    """Which commit this is, and with which changes; the same words for the same files only."""

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True).stdout

    commit, changes = git("rev-parse", "HEAD").decode().strip(), git("diff", "--binary", "HEAD")
    for name in git("ls-files", "--others", "--exclude-standard", "-z").decode().split("\0")[:-1]:
        changes += name.encode() + (root / name).read_bytes()
    return f"commit {commit}" + (f", changed: {sha256(changes).hexdigest()}" if changes else "")


class LongLog:
    """Reads and writes the log where the run is led; a worker knows what is not to be run again."""

    def __init__(self, config: pytest.Config) -> None:
        self.path: Path = config.rootpath / config.option.long_log
        worker = getattr(config, "workerinput", None)
        self.leads = worker is None
        # Of the tests that are under way.
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.told: defaultdict[str, str] = defaultdict(str)
        self.outcomes: dict[str, str] = {}
        self.passed: list[str] = worker["passed"] if worker else self._begin(config)

    def _begin(self, config: pytest.Config) -> list[str]:
        """Write the head of the log, and what of an earlier run still holds; which tests passed."""
        if config.option.capture == "no":
            raise pytest.UsageError("--long-log needs what the tests print: leave out -s")
        head = f"{state_of_tree(config.rootpath)}, share {SHARE:g}\n"
        kept = []
        if config.option.resume and self.path.exists():
            before, *entries = self.entries()
            same = before == head
            kept = [entry for entry in entries if entry.startswith(("passed", "began")) and same]
        began = f"began {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n"
        self.path.write_text("".join((head, *kept, began)))
        return [match[3] for entry in kept if (match := ENTRY.match(entry))]

    def entries(self) -> list[str]:
        """The log in pieces: its head, and the lines of each test."""
        return re.split(r"(?<=\n)(?=\S)", self.path.read_text())

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker, also one that takes the place of one that died."""
        node.workerinput["passed"] = self.passed

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """What is left to do: the longest first, and last what needs the machine to itself."""
        passed = set(self.passed)
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
        items[:] = [item for item in items if item.nodeid not in passed]
        items.sort(key=lambda item: (alone(item), -seconds_of(item)))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Side by side with others, or alone."""
        with self.path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX if alone(item) else fcntl.LOCK_SH)
            try:
                return (yield)
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # also for a child that has inherited the file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write down a test that has ended; of one whose worker died there is this report only."""
        if not self.leads:
            return
        self.spent[report.nodeid] += report.duration
        if not report.passed:
            self.outcomes[report.nodeid] = report.outcome
            self.told[report.nodeid] += f"{report.longreprtext}\n"
        if report.when not in {"setup", "call"}:
            text = report.capstdout + self.told.pop(report.nodeid, "")
            outcome = self.outcomes.pop(report.nodeid, "passed")
            spent = self.spent.pop(report.nodeid)
            entry = f"{outcome:7} {spent:7.1f} s  {report.nodeid}\n{textwrap.indent(text, '    ')}"
            with self.path.open("a") as file:
                file.write(entry)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Every figure, and where they stand."""
        if not self.leads:
            return
        terminalreporter.section("figures")
        counts: Counter[str] = Counter()
        spent = 0.0
        for entry in self.entries():
            if match := ENTRY.match(entry):
                counts[match[1]] += 1
                spent += float(match[2])
            if not match or "\n    " in entry:
                terminalreporter.write(entry)
        told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        terminalreporter.write_line(
            f"{told}; {spent / 60:.1f} minutes of tests, {len(self.passed)} of them in an earlier "
            f"run: {self.path}"
        )


def alone(item: pytest.Item) -> bool:
    """Whether it needs the machine to itself."""
    return item.get_closest_marker("alone") is not None


def seconds_of(item: pytest.Item) -> float:
    """About how long it takes, as far as that is worth saying."""
    marker = item.get_closest_marker("long")
    return float(marker.kwargs.get("seconds", 0)) if marker else 0.0
