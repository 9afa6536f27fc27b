"""A stop asked for from outside: heard within a second, obeyed at a safe point, answered."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from commands import data, environment, run
from processes import python, wait_until

import qigstore
from qigstore.errors import NotRunning
from qigstore.records import Event
from qigstore.repository import Store
from qigstore.safety.pulse import Pulse

pytestmark = pytest.mark.usefixtures("home")

TRAINING = """
import sys, time, qigstore
with qigstore.session(sys.argv[1], quiet=True, heartbeat_interval_s=0.2) as run:
    state = run.recover(default={"step": 0})
    print("from", state["step"], flush=True)
    for step in run.steps(state["step"], 10**9):
        state = {"step": step + 1}
        run.record(step, loss=1.0, phi=0.7)
        run.checkpoint(state, step=step, every=10**8)
        time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def env(home: Path, dsn: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("QIGSTORE_DSN", dsn)
    return environment(home, dsn)


def test_abort_reaches_another_process_which_saves_and_comes_back(
    env: dict[str, str], store: Store
) -> None:
    with python(TRAINING, "ocean", 0.002) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "from 0\n"
        told = data(env, "abort", "ocean", "--reason", "too hot", "--wait", "120")
        assert child.wait(120) == 75
    assert (told["attempt"]["status"], told["attempt"]["exit_status"]) == ("aborted", 75)
    assert told["attempt"]["reason"] == told["request"]["message"]
    assert told["request"]["message"].endswith(": too hot")
    info = store.sessions.get("ocean")
    (event,) = store.events.list(info.id)
    (saved,) = store.checkpoints.list(info.id, status="committed")
    assert str(event.id) == told["request"]["id"]
    assert event.checkpoint_id == saved.id
    assert event.raised_at <= event.acknowledged_at <= event.resolved_at  # type: ignore[operator]
    assert event.detail["result"] == f"aborted, exit status 75, checkpoint {saved.id}"
    with python(TRAINING, "ocean", 0.002) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == f"from {saved.step + 1}\n"
        run(env, "abort", "ocean", "--no-checkpoint")
        assert child.wait(120) == 75
    assert [c.id for c in store.checkpoints.list(info.id, status="committed")] == [saved.id]
    newest = store.events.list(info.id)[0]
    assert newest.checkpoint_id is None
    assert newest.detail["result"] == "aborted, exit status 75, no checkpoint"


def ended(opened: qigstore.Run) -> qigstore.EmergencyStop:
    with pytest.raises(qigstore.EmergencyStop) as stopped:
        opened.close()
    return stopped.value


def test_a_request_is_heard_while_rows_pour_in(dsn: str, store: Store) -> None:
    opened = qigstore.session("s", dsn=dsn, quiet=True).open()
    info = store.sessions.get("s")
    end, step = time.monotonic() + 120, 0
    while not opened.should_stop and time.monotonic() < end:
        opened.record(step, loss=1.0)
        step += 1
        if step == 5000:
            store.stops.request(info.id, reason="enough", by="me")
    stopped = ended(opened)
    assert stopped.reason == "asked to stop by me: enough"
    assert stopped.event.id == store.stops.request(info.id).id


def test_asked_twice_it_is_asked_once_and_after_the_end_the_first_is_the_answer(
    dsn: str, store: Store, env: dict[str, str]
) -> None:
    opened = qigstore.session("s", quiet=True).open()
    info = store.sessions.get("s")
    first = store.stops.request(info.id, reason="a")
    again = store.stops.request(info.id, reason="b", checkpoint=False)
    assert (again.id, again.message) == (first.id, "asked to stop: a")
    wait_until(lambda: opened.should_stop, "the run hears of it")
    ended(opened)
    assert store.stops.request(info.id).id == first.id
    assert len(store.events.list(info.id)) == 1
    done = run(env, "abort", "s")
    assert (done.returncode, done.stderr) == (0, "")
    assert "aborted, exit status 75" in done.stdout


def test_what_is_not_running_cannot_be_stopped_and_the_answer_says_why(
    dsn: str, store: Store, env: dict[str, str]
) -> None:
    assert run(env, "abort", "nothing").returncode == 5
    with qigstore.session("done", quiet=True) as opened:
        opened.record(0, loss=1.0)
    done = run(env, "abort", "done")
    assert done.returncode == 8
    assert "its newest attempt is completed" in done.stderr
    empty = store.sessions.open("empty", {})
    with pytest.raises(NotRunning, match="never started"):
        store.stops.request(empty.id)
    with pytest.raises(qigstore.NotFound):
        store.stops.request(10**9)


def test_a_request_that_a_dead_process_never_heard_is_answered_by_the_next(
    env: dict[str, str], store: Store
) -> None:
    script = TRAINING.replace("print(", "run._rooms.pulse.close(); print(", 1)
    with python(script, "s", 0.01) as child:
        assert child.stdout is not None
        child.stdout.readline()
        request = store.stops.request(store.sessions.get("s").id)
        child.kill()
    with qigstore.session("s", quiet=True) as opened:
        opened.record(0, loss=1.0)
        assert not opened.should_stop
    found = store.events.get(request.id)
    assert (found.acknowledged_at, found.detail["result"]) == (None, "lost")


def test_a_pulse_goes_on_through_errors_and_heeds_a_request_once() -> None:
    beats, heeded, ready = [], [], threading.Event()
    request: Any = object()

    def beat() -> None:
        beats.append(len(beats))
        if len(beats) == 1:
            raise OSError("away")

    def asked() -> Event | None:
        if len(beats) > 2:
            ready.set()
            return request  # type: ignore[no-any-return]
        return None

    pulse = Pulse(beat, asked, heeded.append, interval_s=0.001, poll_s=0.001)
    pulse.start()
    assert ready.wait(30)
    wait_until(lambda: len(beats) > 5, "it goes on")
    pulse.close()
    assert heeded == [request]


def test_a_fast_loop_does_not_keep_the_heart_from_beating(dsn: str, store: Store) -> None:
    """A writer that never comes to the end of its rows must not make its session look lost."""
    seen = set()
    with qigstore.session("s", dsn=dsn, quiet=True, heartbeat_interval_s=0.05) as opened:
        info = store.sessions.get("s")
        end, step = time.monotonic() + 120, 0
        while len(seen) < 5 and time.monotonic() < end:
            for _ in range(500):
                opened.record(step, loss=1.0)
                step += 1
            seen.add(store.sessions.attempts(info.id)[0].heartbeat_at)
    assert len(seen) >= 5


def test_a_killed_process_is_lost_within_its_own_limit_to_every_reader(
    env: dict[str, str], store: Store
) -> None:
    script = TRAINING.replace("heartbeat_interval_s=0.2", "heartbeat_limit_s=0.5")
    with python(script, "s", 0.01) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
    wait_until(lambda: store.sessions.get("s").status == "lost", "it is lost")
    # What a reader has for its own runs does not matter.
    reader = {**env, "QIGSTORE_HEARTBEAT_LIMIT_S": "3600"}
    assert [s["status"] for s in data(reader, "sessions", "list")] == ["lost"]
    shown = data(reader, "sessions", "show", "s")
    assert (shown["session"]["status"], shown["attempts"][0]["status"]) == ("lost", "lost")
    assert run(reader, "abort", "s").returncode == 8
