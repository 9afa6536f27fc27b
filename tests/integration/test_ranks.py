"""Real ranks of a real training: one stops, all stop at that step, with one checkpoint.

`examples/ranks.py` trains a network on scikit-learn's digits in several processes over gloo. Each
way to end has its own status outside, its event, and a checkpoint that verifies.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import data, environment, run
from processes import REPOSITORY, wait_until

from qigstore.checkpoints import CheckpointStore
from qigstore.leftovers import spools
from qigstore.records import Event
from qigstore.repository import Store

pytest.importorskip("torch")
# Processes that load PyTorch: seconds each, many of them on a busy machine.
pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.timeout(900)]

EXAMPLE = REPOSITORY / "examples" / "ranks.py"
LIMIT_S = 280


@pytest.fixture
def env(home: Path, dsn: str) -> dict[str, str]:
    return environment(home, dsn, SESSION="s", OMP_NUM_THREADS="1")


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@contextmanager
def started(
    env: dict[str, str], size: int = 2, **more: str
) -> Iterator[list[subprocess.Popen[str]]]:
    """The ranks, as torchrun starts them, but each our own child with a status of its own."""
    meeting = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(EXAMPLE)],
            env={**env, **meeting, **more, "RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    try:
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


def finish(ranks: list[subprocess.Popen[str]]) -> list[int]:
    """Their statuses, in the order of the ranks."""
    said = [process.communicate(timeout=LIMIT_S) for process in ranks]
    for rank, (out, err) in enumerate(said):
        print(f"rank {rank}: {out}{err}")
    return [process.returncode for process in ranks]


def stored(store: Store) -> tuple[list[tuple[str, int | None]], list[Event]]:
    """How the attempts of the session ended, and its events."""
    info = store.sessions.get("s")
    attempts = [(a.status, a.exit_status) for a in store.sessions.attempts(info.id)]
    return attempts, store.events.list(info.id)


def last_steps(store: Store, attempt: int) -> list[int]:
    """The last step that each rank recorded."""
    counts = store.telemetry.counts(store.sessions.get("s").id)
    return [last for number, _, _, _, last in sorted(counts) if number == attempt]


def verified_steps(home: Path, store: Store) -> list[int]:
    """Steps of the committed checkpoints, each read back whole; each has its row."""
    folders = CheckpointStore(home / "checkpoints")
    found = store.checkpoints.list(store.sessions.get("s").id, status="committed")
    for item in found:
        folders.verify(folders.locate("s", item.id))
    assert {item.id for item in found} == {item.id for item in folders.scan("s")}
    return sorted(item.step for item in found)


def pause_until_some_rows(store: Store) -> None:
    wait_until(
        lambda: any((s.last_step or 0) > 5 for s in store.sessions.list()), "some rows", LIMIT_S
    )


def test_a_rule_on_one_rank_stops_all_and_torchrun_starts_them_again(
    env: dict[str, str], home: Path, store: Store
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=1"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node=2", str(EXAMPLE)],
        env={**env, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},  # pytorch/pytorch#135712
        check=False, capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "accuracy 0.9" in done.stdout
    attempts, events = stored(store)
    assert attempts == [("aborted", 75), ("completed", 0)]
    (event,) = events
    assert (event.rule, event.rank, event.step) == ("loss finite", 1, 120)
    assert event.resolved_at is not None
    assert last_steps(store, 1) == [120, 120]
    assert last_steps(store, 2) == [239, 239]
    steps = verified_steps(home, store)
    assert 120 in steps
    emergency = [c for c in store.checkpoints.list(event.session_id) if c.kind == "emergency"]
    assert [(c.step, c.metadata["event"]) for c in emergency] == [(120, str(event.id))]
    assert event.checkpoint_id == emergency[0].id


@pytest.mark.parametrize("who", ["one rank", "all ranks", "abort"])
def test_a_signal_or_a_person_stops_all_ranks_at_one_step(
    env: dict[str, str], home: Path, store: Store, who: str
) -> None:
    with started(env, FAULT="none", STEPS="100000", PAUSE_S="0.01") as ranks:
        pause_until_some_rows(store)
        began = time.monotonic()
        if who == "abort":
            assert run(env, "abort", "s", "--reason", "enough").returncode == 0
        for process in {"one rank": ranks[1:], "all ranks": ranks, "abort": []}[who]:
            process.send_signal(signal.SIGTERM)
        statuses = finish(ranks)
        print(f"{who}: left after {time.monotonic() - began:.2f} s")
    term = -signal.SIGTERM
    expected = {"one rank": [75, term], "all ranks": [term, term], "abort": [75, 75]}[who]
    assert statuses == expected
    attempts, events = stored(store)
    assert attempts == [("aborted", 75 if expected[0] == 75 else 128 + signal.SIGTERM)]
    rules = {"one rank": ["SIGTERM"], "all ranks": ["SIGTERM", "SIGTERM"], "abort": ["stop"]}[who]
    assert [event.rule for event in events] == rules
    first, second = last_steps(store, 1)
    assert first == second
    steps = verified_steps(home, store)
    assert steps[-1] == first
    (saved,) = [c for c in store.checkpoints.list(events[0].session_id) if c.step == first]
    for event in events:
        assert event.checkpoint_id == saved.id
        assert event.resolved_at is not None


@pytest.mark.parametrize("fault", ["kill", "raise"])
def test_a_rank_that_dies_or_fails_in_its_step_lets_the_others_save_the_step_before(
    env: dict[str, str], home: Path, store: Store, fault: str
) -> None:
    size = 3 if fault == "kill" else 2
    with started(env, size, FAULT=fault, FAULT_AT="60", STEPS="70") as ranks:
        statuses = finish(ranks)
    died = -signal.SIGKILL if fault == "kill" else 1
    assert statuses == [75, died, 75][:size]
    attempts, events = stored(store)
    assert attempts == [("aborted", 75)]
    lost = [event for event in events if event.rule == "rank lost"]
    assert sorted(event.rank for event in lost) == [0, 2][: size - 1]
    failed = [event.message for event in events if event.rule == "rank failed"]
    assert failed == (["ValueError: this rank's data are unreadable"] if fault == "raise" else [])
    # Everybody was in step 60, whose gradients nobody got: the state after step 59 is whole.
    assert verified_steps(home, store) == [49, 59]
    with started(env, size, FAULT=fault, FAULT_AT="60", STEPS="70") as ranks:
        assert finish(ranks) == [0] * size
    attempts, _ = stored(store)
    assert attempts[-1] == ("completed", 0)
    assert store.sessions.attempts(lost[0].session_id)[-1].resumed_step == 59
    # What the dead one had recorded came with the next start at the latest.
    assert last_steps(store, 1) == [59] * size
    assert last_steps(store, 2) == [69] * size


@pytest.mark.long
def test_a_silent_rank_makes_the_others_wait_no_longer_than_the_limit(
    env: dict[str, str], home: Path, store: Store
) -> None:
    with started(env, 4, FAULT="hang", FAULT_RANK="2", FAULT_AT="60", LIMIT_S="20") as ranks:
        others = [process for rank, process in enumerate(ranks) if rank != 2]
        wait_until(lambda: all(p.poll() is not None for p in others), "they leave", LIMIT_S)
        assert {process.returncode for process in others} == {75}
    assert verified_steps(home, store)[-1] == 59


def test_a_second_start_is_refused_on_every_rank_and_says_why(
    env: dict[str, str], store: Store
) -> None:
    with started(env, FAULT="none", STEPS="100000", PAUSE_S="0.01") as ranks:
        pause_until_some_rows(store)
        with started(env, FAULT="none") as second:
            said = [process.communicate(timeout=LIMIT_S)[1] for process in second]
            assert [process.returncode for process in second] == [1, 1]
        assert f"process {ranks[0].pid} on" in said[0]
        assert "SessionBusy" in said[0]
        assert "RankError: rank 0 could not open the session: SessionBusy" in said[1]
        ranks[0].send_signal(signal.SIGTERM)
        assert finish(ranks) == [-signal.SIGTERM, 75]


def test_without_a_database_each_rank_keeps_its_rows_and_they_come_to_one_attempt(
    env: dict[str, str], home: Path, store: Store
) -> None:
    with started(env, FAULT="none", STEPS="20", QIGSTORE_MODE="offline") as ranks:
        assert finish(ranks) == [0, 0]
    waiting = [told for told, _ in spools(home / "spool")]
    assert sorted(told.rank for told in waiting) == [0, 1]
    assert len({told.attempt for told in waiting}) == 1
    data(env, "spool", "drain")
    assert stored(store)[0] == [("completed", 0)]
    assert last_steps(store, 1) == [19, 19]


def test_ranks_without_a_process_group_are_refused() -> None:
    from qigstore.errors import ConfigurationError
    from qigstore.integrations.torch import ranks

    with pytest.raises(ConfigurationError, match=r"init_process_group"):
        ranks()


def test_the_mark_of_a_state_tells_whether_anything_was_written_to_it() -> None:
    import numpy as np
    import torch

    from qigstore.integrations.torch import _mark

    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    state = {"step": 1, "net": net.state_dict(), "opt": optimizer.state_dict(), "of": [None, "a"]}
    before = _mark(state)
    assert before is not None
    assert _mark(state) == before
    net(torch.ones(1, 3)).sum().backward()
    assert _mark(state) == before  # gradients are no part of it
    optimizer.step()
    after = _mark(state)
    assert after != before
    state["step"] = 2
    assert _mark(state) != after
    assert _mark({"w": np.zeros(2)}) is None
    assert _mark([0.0] * 100_000) is None
    circle: list[object] = []
    circle.append(circle)
    assert _mark(circle) is None
