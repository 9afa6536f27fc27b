"""Signals against real child processes: noticed at once, never a hang, the true status outside."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from signal_children import child, finish, run_until_signal, wait_for

STUCK = """
watch = SignalWatch(lambda n: say("noticed"), deadline_s=30); watch.install()
say("ready")
while True:
    time.sleep(0.01)  # never looks at the watch
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_leaves_at_once(signum: int) -> None:
    with child(STUCK) as process:
        wait_for(process, "ready")
        process.send_signal(signum)
        wait_for(process, "noticed")
        process.send_signal(signum)
        assert finish(process)[0] == 128 + signum


IN_NATIVE_CODE = """
import hashlib
watch = SignalWatch(lambda n: say("noticed", main_is_busy), deadline_s=SECONDS); watch.install()
main_is_busy = True
say("ready")
hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2_000_000_000)  # hours, without the GIL
main_is_busy = False
"""


def test_a_signal_is_noticed_while_the_main_thread_is_in_native_code() -> None:
    with child(IN_NATIVE_CODE.replace("SECONDS", "30")) as process:
        wait_for(process, "ready")
        process.terminate()
        assert wait_for(process, "noticed") == "noticed True"


def test_the_second_signal_leaves_at_once_out_of_native_code() -> None:
    with child(IN_NATIVE_CODE.replace("SECONDS", "300")) as process:
        wait_for(process, "ready")
        process.terminate()
        wait_for(process, "noticed")
        process.terminate()
        assert finish(process)[0] == 128 + signal.SIGTERM


def test_the_deadline_ends_a_process_that_does_not_leave_and_shows_where_it_was() -> None:
    status, _, err = run_until_signal(signal.SIGTERM, IN_NATIVE_CODE.replace("SECONDS", "0.2"))
    assert status == 128 + signal.SIGTERM
    assert "not done after 0.2 s" in err
    assert "most recent call first" in err


HANGING_CALLBACK = """
begun = threading.Event()
def on_signal(n):
    say("noticed")
    begun.set()
    threading.Event().wait()
watch = SignalWatch(on_signal, deadline_s=None); watch.install()
say("ready")
begun.wait()
say("saved")
watch.re_raise()
"""

# Python waits for a callback for two seconds, which a busy machine may spend elsewhere.
PATIENT = """
from qigstore.safety import signals
signals._CALLBACK_WAIT_S = 100
"""


def test_a_callback_that_hangs_keeps_nothing_from_leaving() -> None:
    status, out, _ = run_until_signal(signal.SIGTERM, HANGING_CALLBACK)
    assert status == -signal.SIGTERM
    assert out.split() == ["noticed", "saved"]


def test_a_callback_that_still_writes_is_waited_for() -> None:
    script = HANGING_CALLBACK.replace("threading.Event().wait()", "time.sleep(0.5); say('written')")
    status, out, _ = run_until_signal(signal.SIGTERM, PATIENT + script)
    assert status == -signal.SIGTERM
    assert "written" in out


def test_a_callback_that_fails_is_reported_and_keeps_nothing_from_leaving() -> None:
    script = HANGING_CALLBACK.replace("threading.Event().wait()", "raise OSError('disk gone')")
    status, _, err = run_until_signal(signal.SIGTERM, PATIENT + script)
    assert status == -signal.SIGTERM
    assert "disk gone" in err


def test_leaving_before_the_watching_thread_has_woken_still_calls_back() -> None:
    script = """
watch = SignalWatch(lambda n: say("noticed"), deadline_s=None); watch.install()
watch._earlier.forward = lambda byte: time.sleep(0.5)  # the thread is this late
say("ready")
while watch.signum is None:
    pass
watch.re_raise()
"""
    status, out, _ = run_until_signal(signal.SIGTERM, PATIENT + script)
    assert status == -signal.SIGTERM
    assert out == "noticed\n"


SAVING = """
BEFORE
watch = SignalWatch(lambda n: None, deadline_s=30); watch.install()
say("ready")
try:
    while watch.signum is None:
        time.sleep(0.005)
    say("saved")
    watch.re_raise()
    say("left")
except KeyboardInterrupt:
    say("interrupted")
    raise
"""


def test_keyboard_interrupt_comes_after_saving() -> None:
    status, out, err = run_until_signal(signal.SIGINT, SAVING.replace("BEFORE", ""))
    assert out == "saved\ninterrupted\n"
    assert "KeyboardInterrupt" in err
    assert status == -signal.SIGINT


def test_an_earlier_handler_is_called_last_and_keeps_its_signal() -> None:
    before = "signal.signal(signal.SIGTERM, lambda n, f: say('theirs', n))"
    status, out, err = run_until_signal(signal.SIGTERM, SAVING.replace("BEFORE", before))
    assert (status, out, err) == (0, "saved\ntheirs 15\nleft\n", "")


def test_what_is_ignored_stays_ignored() -> None:
    script = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
watch = SignalWatch(lambda n: say("noticed"), deadline_s=30); watch.install()
say("ready")
while watch.signum is None:
    time.sleep(0.005)
say("signal", watch.signum)
watch.re_raise()
"""
    with child(script) as process:
        wait_for(process, "ready")
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        process.terminate()
        status, out, _ = finish(process)
    assert status == -signal.SIGTERM
    assert "signal 15" in out


def test_buffered_output_is_not_lost_with_the_default_action() -> None:
    script = SAVING.replace("BEFORE", "").replace('say("saved")', 'print("buffered", end="")')
    status, out, _ = run_until_signal(signal.SIGTERM, script)
    assert (status, out) == (-signal.SIGTERM, "buffered")


NESTED = """
outer = SignalWatch(lambda n: None, deadline_s=30); outer.install()
inner = SignalWatch(lambda n: None, deadline_s=30); inner.install()
say("ready")
while inner.signum is None:
    time.sleep(0.005)
inner.re_raise()
say("inner saved", outer.signum)
time.sleep(0.1)
outer.re_raise()
say("not reached")
"""


def test_a_run_inside_another_passes_its_signal_outwards_once() -> None:
    status, out, err = run_until_signal(signal.SIGTERM, NESTED)
    assert (status, out, err) == (-signal.SIGTERM, "inner saved 15\n", "")


def test_watches_closed_in_the_wrong_order_leave_the_first_disposition() -> None:
    script = """
first = SignalWatch(lambda n: None); first.install()
second = SignalWatch(lambda n: None); second.install()
first.restore(); second.restore()
say("ready", signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
    signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.set_wakeup_fd(-1))
"""
    with child(script) as process:
        assert wait_for(process, "ready") == "ready True True -1"


def test_a_handler_set_over_ours_stays_and_ours_passes_on_when_it_calls_us() -> None:
    script = """
watch = SignalWatch(lambda n: None); watch.install()
ours = signal.getsignal(signal.SIGTERM)
def theirs(n, f):
    say("theirs")
    ours(n, f)
signal.signal(signal.SIGTERM, theirs)
watch.restore()
say("ready", signal.getsignal(signal.SIGTERM) is theirs)
time.sleep(30)
"""
    with child(script) as process:
        assert wait_for(process, "ready") == "ready True"
        process.terminate()
        status, out, _ = finish(process)
    assert (status, out) == (-signal.SIGTERM, "theirs\n")


def test_an_asyncio_loop_started_before_keeps_its_signal_handlers() -> None:
    script = """
import asyncio
async def main():
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, done.set)
    watch = SignalWatch(lambda n: None); watch.install()
    say("ready")
    await asyncio.wait_for(done.wait(), 30)
    watch.restore()
    say("usr1")
    done.clear()
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.wait_for(done.wait(), 30)
    say("again")
asyncio.run(main())
"""
    status, out, err = run_until_signal(signal.SIGUSR1, script)
    assert (status, out, err) == (0, "usr1\nagain\n", "")


def test_a_loop_that_takes_the_wakeup_descriptor_later_does_not_blind_the_watch() -> None:
    script = """
import asyncio
async def main():
    told = threading.Event()
    def on_signal(n):
        say("noticed", n)
        told.set()
    watch = SignalWatch(on_signal); watch.install()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: None)
    say("ready")
    while not told.is_set():
        await asyncio.sleep(0.01)
    watch.restore()
asyncio.run(main())
"""
    status, out, err = run_until_signal(signal.SIGTERM, script)
    assert (status, out, err) == (0, "noticed 15\n", "")


FORK = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: a thread of ours runs beside the fork
watch = SignalWatch(lambda n: say("parent noticed"), deadline_s=30); watch.install()
def mask():
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())
def fork(wait):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        default = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        good = default and signal.set_wakeup_fd(-1) == -1 and not mask()
        os.write(writer, b"yes" if good else b"no")
        time.sleep(60)
        os._exit(3)
    disarmed = os.read(reader, 3).decode() if wait else "?"
    os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)
    say(disarmed, os.waitstatus_to_exitcode(status), watch.signum, mask())
"""


@pytest.mark.parametrize(
    "how",
    ["fork(True)", "t = threading.Thread(target=fork, args=(True,)); t.start(); t.join()"],
    ids=["main thread", "another thread"],
)
def test_a_forked_child_is_disarmed_and_its_signals_are_its_own(how: str) -> None:
    with child(FORK + how) as process:
        assert finish(process) == (0, "yes -15 None set()\n", "")


def test_a_signal_in_the_moment_of_the_fork_never_wakes_the_parent() -> None:
    with child(FORK + "for _ in range(200): fork(False)") as process:
        assert finish(process) == (0, "? -15 None set()\n" * 200, "")


def test_off_the_main_thread_there_is_one_warning_and_a_flag_to_poll() -> None:
    script = """
import warnings
def work():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch = SignalWatch(lambda n: None)
        say("ready", watch.install(), len(caught), caught[0].category.__name__, watch.signum)
        watch.notice(15)
        watch.re_raise()
        say("flag", watch.signum)
t = threading.Thread(target=work); t.start(); t.join()
"""
    with child(script) as process:
        assert wait_for(process, "ready") == "ready False 1 RuntimeWarning None"
        assert finish(process)[:2] == (0, "flag 15\n")


def test_a_process_that_decides_to_stay_is_not_ended_by_the_deadline() -> None:
    """The clock's thread ends in two ways only: cancelled, or with the process."""
    script = """
watch = SignalWatch(lambda n: None, deadline_s=20); watch.install()
say("ready")
def clocks():
    return [thread for thread in threading.enumerate() if thread.name == "qigstore-deadline"]
while not (running := clocks()):
    time.sleep(0.005)
watch.restore()
for clock in running:
    clock.join()
say("stayed", len(running))
"""
    assert run_until_signal(signal.SIGTERM, script) == (0, "stayed 1\n", "")


def test_install_and_restore_leave_the_process_as_it_was() -> None:
    """In a process of its own, where nobody else opens or closes a file."""
    script = """
def state():
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    return handlers, os.listdir("/proc/self/fd"), signal.set_wakeup_fd(-1)
before = state()
for _ in range(50):
    watch = SignalWatch(print)
    assert watch.install()
    assert watch.install()
    watch.restore()
    watch.restore()
assert state() == before, (before, state())
for thread in set(threading.enumerate()) - {threading.main_thread()}:
    thread.join()
say("as it was")
"""
    with child(script) as process:
        assert finish(process) == (0, "as it was\n", "")


SERVED = """
import uvicorn, qigstore
async def app(scope, receive, send):
    while scope["type"] == "lifespan":
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
            say("ready")
        else:
            await send({"type": "lifespan.shutdown.complete"})
            return
with qigstore.session("s", mode="offline", home=sys.argv[1], quiet=True) as run:
    run.record(0, loss=1.0)
    run.checkpoint({"step": 1}, step=0, every=1000)
    try:
        uvicorn.run(app, port=0, log_level="error")
    finally:
        say("served", run.should_stop)
        for step in run.steps(1, 10):
            say("trained")
        say("saved", run._saved_step)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_uvicorn_inside_a_run_ends_first_and_its_signal_is_no_second_one(
    tmp_path: Path, signum: int
) -> None:
    """uvicorn puts its handler over ours and, once it has shut down, raises the signal again."""
    with child(SERVED, str(tmp_path)) as process:
        wait_for(process, "ready")
        process.send_signal(signum)
        status, out, err = finish(process)
    assert (status, out) == (-signum, "served True\nsaved 0\n"), err


SERVING = """
import asyncio, uvicorn, qigstore
async def train():
    try:
        with qigstore.session("s", mode="offline", home=sys.argv[1], quiet=True) as run:
            for step in run.steps(0, 10**9):
                run.record(step, loss=1.0)
                run.checkpoint({"step": step}, step=step, every=10**9)
                if step == 3:
                    say("ready")
                await asyncio.sleep(0.001)
            say("saved", run._saved_step == step)
    except qigstore.EmergencyStop as stop:
        say(stop.reason)
async def app(scope, receive, send):
    while scope["type"] == "lifespan":
        message = await receive()
        if message["type"] == "lifespan.startup":
            app.training = asyncio.create_task(train())
            await send({"type": "lifespan.startup.complete"})
        else:
            await app.training
            await send({"type": "lifespan.shutdown.complete"})
            say("shut down")
            return
uvicorn.run(app, port=0, log_level="error")
"""


def test_a_run_inside_uvicorn_saves_first_and_passes_the_signal_on(tmp_path: Path) -> None:
    with child(SERVING, str(tmp_path)) as process:
        wait_for(process, "ready")
        process.terminate()
        status, out, err = finish(process)
    told = "saved True\nSIGTERM received\nshut down\n"
    assert (status, out) == (-signal.SIGTERM, told), err
