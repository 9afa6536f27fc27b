"""A real training is stopped by a rule, a signal and a person; the next start comes back each time.

Each way ends with a checkpoint that verifies, an event row and its own exit status.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import data, environment, run
from processes import REPOSITORY, wait_until

from qigstore.checkpoints import CheckpointStore
from qigstore.repository import Store

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def env(home: Path, dsn: str) -> dict[str, str]:
    return environment(home, dsn)


def start(env: dict[str, str], **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(REPOSITORY / "examples" / "emergency.py")],
        env={**os.environ, **env, "SESSION": "s", **more},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def verified_steps(home: Path, store: Store) -> set[int]:
    """Steps of the committed checkpoints, each read back whole."""
    folders = CheckpointStore(home / "checkpoints")
    found = store.checkpoints.list(store.sessions.get("s").id, status="committed")
    for item in found:
        folders.verify(folders.locate("s", item.id))
    return {item.step for item in found}


def test_a_rule_stops_it_and_the_next_start_finishes_from_before_the_fault(
    env: dict[str, str], home: Path, store: Store
) -> None:
    with start(env) as first:
        out, err = first.communicate(timeout=120)
    assert (first.returncode, out) == (75, ""), err
    (event,) = store.events.list(severity="critical")
    assert event.step is not None
    assert 300 <= event.step < 320
    assert event.action == "abort"
    assert event.checkpoint_id is not None
    assert event.step in verified_steps(home, store)
    with start(env) as second:
        out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert float(out.split()[-1]) > 0.9
    attempts = store.sessions.attempts(store.sessions.get("s").id)
    assert [(a.status, a.exit_status) for a in attempts] == [("aborted", 75), ("completed", 0)]
    assert attempts[1].resumed_step == 249


@pytest.mark.parametrize(
    "case",
    [("abort", 75, "stop"), ("SIGTERM", -signal.SIGTERM, "SIGTERM"), ("SIGINT", -2, "SIGINT")],
)
def test_a_person_or_a_signal_stops_it_and_the_next_start_goes_on(
    env: dict[str, str], home: Path, store: Store, case: tuple[str, int, str]
) -> None:
    how, status, rule = case
    with start(env, PAUSE_S="0.2", STEPS="280") as child:  # long enough for whoever is slow
        wait_until(
            lambda: any((s.last_step or 0) > 5 for s in store.sessions.list()), "some rows", 120
        )
        began = time.monotonic()
        if how == "abort":
            assert run(env, "abort", "s", "--reason", "enough").returncode == 0
        else:
            child.send_signal(signal.Signals[how])
        _, err = child.communicate(timeout=120)
        print(f"{how}: left after {time.monotonic() - began:.2f} s")
    assert child.returncode == status, err
    (event,) = store.events.list()
    assert (event.rule, event.action) == (rule, "abort")
    saved = max(verified_steps(home, store))  # on a slow machine one of the fiftieth step, too
    assert store.checkpoints.get(event.checkpoint_id or "").step == saved
    assert event.resolved_at is not None
    with start(env, STEPS="280") as again:
        _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    shown = data(env, "sessions", "show", "s")
    assert [a["status"] for a in shown["attempts"]] == ["aborted", "completed"]
    assert shown["attempts"][1]["resumed_step"] == saved
