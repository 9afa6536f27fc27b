"""Ranks of one attempt as processes: rank 0 claims and speaks for all, the others join it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from processes import kill, python

from qigstore.attempt import claim, join, join_offline
from qigstore.errors import InvalidInput, SessionBusy
from qigstore.leftovers import settle_leftovers
from qigstore.recording import Draining
from qigstore.repository import Store
from qigstore.settings import load_settings

pytestmark = pytest.mark.usefixtures("home")

# Each holds its spool, with one row in it, until it is killed.
PROCESS = """
import sys
from qigstore.attempt import claim, join
from qigstore.recording import Recorder
from qigstore.repository import Store
from qigstore.database.engine import open_database
from qigstore.settings import load_settings
settings = load_settings(dsn=sys.argv[1])
store = Store(open_database(settings))
if len(sys.argv) == 2:
    held = claim(store, settings, "s", {}, takeover=False)
else:
    held = join(store, settings, "s", {}, told=sys.argv[2], rank=int(sys.argv[3]))
Recorder(held.spool).record(7, {"loss": 1.0})
print(held.invitation, flush=True)
sys.stdin.read()
"""


@contextmanager
def holding(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that holds a rank, and what it invites others with."""
    with python(PROCESS, *arguments) as process:
        try:
            assert process.stdout is not None
            told = process.stdout.readline().strip()
            assert told, process.communicate()
            yield process, told
        finally:
            process.kill()


@pytest.fixture
def ranks(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[tuple[subprocess.Popen[str], str]]]:
    """Ranks 0 and 1 of the session `s`; they have no pulse, and count as alive all the same."""
    monkeypatch.setenv("QIGSTORE_HEARTBEAT_LIMIT_S", "3600")
    with ExitStack() as stack:
        first = stack.enter_context(holding(dsn))
        yield [first, stack.enter_context(holding(dsn, first[1], 1))]


def test_two_ranks_are_one_attempt_with_a_writer_each(
    store: Store, ranks: list[tuple[subprocess.Popen[str], str]]
) -> None:
    assert ranks[0][1] == ranks[1][1]
    (attempt,) = store.sessions.attempts(store.sessions.get("s").id)
    assert attempt.pid == ranks[0][0].pid
    assert len(store.writers.of_attempt(attempt.id)) == 2


def test_the_end_of_another_rank_is_not_the_attempts_end(
    store: Store, dsn: str, ranks: list[tuple[subprocess.Popen[str], str]]
) -> None:
    kill(ranks[1][0].pid)
    ranks[1][0].wait()
    reports = settle_leftovers(store, load_settings(dsn=dsn), Draining())
    assert sorted((report.rows, report.busy) for report in reports) == [(0, True), (1, False)]
    session = store.sessions.get("s")
    assert session.status == "running"
    assert [(rank, rows) for _, rank, rows, *_ in store.telemetry.counts(session.id)] == [(1, 1)]


def test_a_living_rank_keeps_the_session_when_rank_0_is_dead_unless_it_is_taken_over(
    store: Store, dsn: str, ranks: list[tuple[subprocess.Popen[str], str]]
) -> None:
    kill(ranks[0][0].pid)
    ranks[0][0].wait()
    settings = load_settings(dsn=dsn)
    with pytest.raises(SessionBusy, match=f"process {ranks[1][0].pid} on"):
        claim(store, settings, "s", {}, takeover=False)
    mine = claim(store, settings, "s", {}, takeover=True)
    attempts = store.sessions.attempts(mine.session.id)
    assert [attempt.status for attempt in attempts] == ["lost", "failed", "running"]
    mine.withdraw(store)


def test_a_rank_that_is_taken_is_refused_and_leaves_nothing(
    store: Store, dsn: str, home: Path, ranks: list[tuple[subprocess.Popen[str], str]]
) -> None:
    settings = load_settings(dsn=dsn)
    before = sorted((home / "spool").rglob("spool.json"))
    with pytest.raises(InvalidInput, match="one writer for attempt and rank"):
        join(store, settings, "s", {}, told=ranks[0][1], rank=1)
    assert sorted((home / "spool").rglob("spool.json")) == before


def test_a_database_that_has_not_heard_of_the_attempt_joins_nobody(
    elsewhere: Store, dsn: str, home: Path, ranks: list[tuple[subprocess.Popen[str], str]]
) -> None:
    settings = load_settings(dsn=dsn)
    told = ranks[0][1]
    assert join(elsewhere, settings, "s", {}, told=told, rank=2) is None
    alone = join_offline(settings, "s", {}, told=told, rank=2, address=None)
    assert (alone.spool.identity.rank, alone.spool.identity.pid) == (2, os.getpid())
    assert str(alone.attempt.id) in told
    alone.withdraw(None)
