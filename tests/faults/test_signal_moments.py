"""Signals at bad moments: in a save, in an import, a hundred at once, as PID 1; the watchdog."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from figures import figure, in_parts
from signal_children import PRELUDE, ROOT, Raise, child, finish, run_until_signal, wait_for, warm

from qigstore.checkpoints import CheckpointStore

RUN = """
import numpy as np, qigstore
with qigstore.session("s", mode="offline", home=sys.argv[1], quiet=True) as run:
    weights = np.zeros(200_000)
    say("ready")
    for step in run.steps(0, 10**9):
        weights += 1.0
        run.record(step, loss=1.0)
        run.checkpoint({"step": step, "weights": weights}, step=step)
"""


def interrupted_saves(count: int, tmp_path: Path, rng: random.Random, child: Raise = child) -> None:
    kept = 0
    for number in range(count):
        home = tmp_path / str(number)
        with child(RUN, str(home)) as process:
            wait_for(process, "ready")
            time.sleep(rng.uniform(0, 0.2))  # some ten saves
            process.terminate()
            assert finish(process)[0] == -signal.SIGTERM
        store = CheckpointStore(home / "checkpoints")
        found = store.scan("s")
        assert found
        for item in found:
            state = store.load(item.path)
            assert np.array_equal(state["weights"], np.full(200_000, state["step"] + 1.0))
        kept += len(found)
        shutil.rmtree(home)
    print(f"{count} signals while saving: {kept} checkpoints, every one whole")


def test_a_signal_in_the_middle_of_a_save_leaves_whole_checkpoints(
    tmp_path: Path, rng: random.Random
) -> None:
    interrupted_saves(6, tmp_path, rng)


@pytest.mark.long(seconds=150)
@in_parts(1000)
def test_1_000_signals_in_the_middle_of_a_save_leave_whole_checkpoints(
    tmp_path: Path, rng: random.Random, count: int
) -> None:
    with warm("import numpy, qigstore.closing, qigstore.opening") as child:
        interrupted_saves(figure(count), tmp_path, rng, child)


IMPORTING = """
watch = SignalWatch(lambda n: None, deadline_s=30); watch.install()
say("ready")
import importlib
names = ["json", "decimal", "email.parser", "xml.dom.minidom", "http.client", "sqlite3"]
while watch.signum is None:
    for name in names:
        for known in [m for m in sys.modules if m.split(".")[0] == name.split(".")[0]]:
            del sys.modules[known]
        importlib.import_module(name)
importlib.import_module("json").dumps({})
say("saved")
watch.re_raise()
"""


def interrupted_imports(count: int, rng: random.Random) -> None:
    for begin in range(0, count, 8):
        with ExitStack() as stack:
            group = [stack.enter_context(child(IMPORTING)) for _ in range(min(8, count - begin))]
            for process in group:
                wait_for(process, "ready")
            for process in group:
                time.sleep(rng.uniform(0.0, 0.05))
                process.terminate()
            for process in group:
                assert finish(process) == (-signal.SIGTERM, "saved\n", "")
    print(f"{count} signals while importing: 0 hangs")


def test_a_signal_in_the_middle_of_an_import_deadlocks_nothing(rng: random.Random) -> None:
    interrupted_imports(8, rng)


@pytest.mark.long(seconds=90)
def test_1_000_signals_in_the_middle_of_an_import_deadlock_nothing(rng: random.Random) -> None:
    interrupted_imports(figure(1000), rng)


def test_a_hundred_signals_at_once_end_the_process_with_its_status() -> None:
    """The second of them leaves at once; which of the two statuses is a matter of microseconds."""
    script = """
watch = SignalWatch(lambda n: time.sleep(60), deadline_s=30); watch.install()
say("ready")
while True:
    sum(range(1000))
"""
    with ExitStack() as stack:
        group = [stack.enter_context(child(script)) for _ in range(4)]
        for process in group:
            wait_for(process, "ready")
            for _ in range(100):
                os.kill(process.pid, signal.SIGTERM)
                time.sleep(0.0001)
        for process in group:
            assert finish(process)[0] == 128 + signal.SIGTERM


@pytest.mark.skipif(
    subprocess.run(
        ["unshare", "--user", "--map-root-user", "--pid", "--fork", "true"],
        check=False, capture_output=True,
    ).returncode != 0,
    reason="no new PID namespace may be made here",
)  # fmt: skip
def test_pid_1_which_the_kernel_spares_the_default_action_leaves_all_the_same() -> None:
    script = """
watch = SignalWatch(lambda n: None, deadline_s=30); watch.install()
assert os.getpid() == 1
os.kill(1, signal.SIGTERM)
while watch.signum is None:
    time.sleep(0.005)
say("saved")
watch.re_raise()
say("not reached")
"""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--pid", "--fork",
         sys.executable, "-c", PRELUDE + script],
        check=False, capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "saved\n"), done.stderr


# The watchdog's clock is held until the save hangs, so that it is the save which it shows.
HANGING_SAVE = """
import qigstore, qigstore.rooms
qigstore.rooms.WATCHDOG_S = 0.2
hangs, runs_out = threading.Event(), qigstore.rooms.Deadline._wait
def wait(*arguments):
    hangs.wait()
    runs_out(*arguments)
qigstore.rooms.Deadline._wait = wait
def stuck(*_, **__):
    hangs.set()
    time.sleep(3600)
qigstore.rooms.CheckpointManager.save = stuck  # a device that never answers
with qigstore.session(
    "s", mode="offline", home=sys.argv[1], quiet=True, abort_deadline_s=0.2
) as run:
    for step in run.steps(0, 10**9):
        run.record(step, loss=1.0)
        if step == 3:
            run.stop("enough")
        run.checkpoint({"step": step}, step=step, every=10**6)
"""


def test_a_way_out_that_hangs_is_shown_and_ended(tmp_path: Path) -> None:
    with child(HANGING_SAVE, str(tmp_path)) as process:
        status, _, err = finish(process)
    assert status == 75
    assert "stopping (enough), saving its state: not done after 0.4 s" in err
    assert "most recent call first" in err
    assert "in stuck" in err


def test_a_deadline_for_a_block_that_ends_in_time_does_nothing() -> None:
    """The clock's thread ends in two ways only: cancelled, or with the process."""
    script = """
from qigstore.safety import Deadline
with Deadline.during(20, 9, "quick"):
    [clock] = [thread for thread in threading.enumerate() if thread.name == "qigstore-deadline"]
clock.join()
say("stayed")
"""
    with child(script) as process:
        assert finish(process) == (0, "stayed\n", "")


def latencies(count: int) -> None:
    """Each signal becomes an event while the main thread is in native code; the times are said."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.signals", f"--count={count}"],
        check=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    print(done.stdout)
    assert "its event is appended" in done.stdout


def test_signals_in_native_code_become_events_and_the_time_it_took_is_said() -> None:
    latencies(20)


@pytest.mark.long(seconds=150)
@pytest.mark.alone
def test_1_000_signals_in_native_code_become_events() -> None:
    latencies(figure(1000))


STOPPING = """
import qigstore
with qigstore.session("s", mode="offline", home=sys.argv[1], quiet=True) as run:
    for step in run.steps(0, 10**9):
        run.record(step, loss=1.0)
        run.checkpoint({"step": step}, step=step, every=10**6)
        if step == 3:
            run.stop("enough")
    os.kill(os.getpid(), signal.SIGTERM)
    while not run._rooms.signals.noticed_ns:
        time.sleep(0.01)
"""


def test_a_signal_on_the_way_out_for_another_reason_does_not_change_the_status(
    tmp_path: Path,
) -> None:
    """As when torchrun sends SIGTERM to the ranks that are leaving already."""
    with child(STOPPING, str(tmp_path)) as process:
        status, _, err = finish(process)
    assert (status, err) == (75, ""), err


def test_the_status_of_a_stop_by_signal_is_the_signals_own(tmp_path: Path) -> None:
    status, _, err = run_until_signal(
        signal.SIGINT, RUN.replace("sys.argv[1]", repr(str(tmp_path)))
    )
    assert status == -signal.SIGINT
    assert "KeyboardInterrupt" in err
