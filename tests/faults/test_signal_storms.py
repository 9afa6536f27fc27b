"""No deadlock from signals (R11): thousands, at random moments of a loop and of `record()`."""

from __future__ import annotations

import random
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from figures import figure, in_parts
from signal_children import Raise, child, finish, wait_for, warm

# A loop with the ways of a recording one: a lock, a log, a queue, allocation, a write a step.
RECORDING = """
import logging, queue
log, lock, rows = logging.getLogger("loop"), threading.Lock(), queue.Queue(maxsize=64)
log.addHandler(logging.FileHandler("/dev/null")); log.setLevel("INFO")
stored = []
def drain():
    while (row := rows.get()) is not None:
        stored.append(row)
thread = threading.Thread(target=drain); thread.start()
def on_signal(signum):
    with lock:
        log.warning("stop asked for by %d", signum)
watch = SignalWatch(on_signal, deadline_s=30); watch.install()
sink = os.open("/dev/null", os.O_WRONLY)
say("ready")
step = 0
while watch.signum is None:
    with lock:
        row = {"step": step, "values": [float(i) for i in range(20)]}
        log.info("step %d", step)
        rows.put(row)
        os.write(sink, repr(row).encode())
    step += 1
rows.put(None); thread.join()
say("saved", step == len(stored))
watch.re_raise()
say("not reached")
"""


def storm(count: int, rng: random.Random, child: Raise = child) -> None:
    width = 4
    for begin in range(0, count, width):
        with ExitStack() as stack:
            group = [
                stack.enter_context(child(RECORDING)) for _ in range(min(width, count - begin))
            ]
            for process in group:
                wait_for(process, "ready")
            for process in group:
                time.sleep(rng.expovariate(200.0))
                process.terminate()
            for process in group:
                assert finish(process) == (-signal.SIGTERM, "saved True\n", "")
    print(f"{count} processes, one SIGTERM each: 0 hangs, {count} true statuses")


@pytest.mark.timeout(1200)
def test_100_sigterms_at_random_moments_never_hang_and_show_their_status(
    rng: random.Random,
) -> None:
    storm(100, rng)


@pytest.mark.long(seconds=150)
@in_parts(10_000)
def test_10_000_sigterms_at_random_moments_never_hang_and_show_their_status(
    rng: random.Random, count: int
) -> None:
    with warm("import logging, queue") as child:
        storm(figure(count), rng, child)


# A real recorder on a real spool, read, synced and emptied by a thread as the writer's do; the
# handler records too.
ROUNDS = """
sys.path.insert(0, "tests/faults")
from pathlib import Path
from line import identity
from qigstore.recording.recorder import Recorder
from qigstore.recording.spool import Spool
from qigstore.recording.spool.reader import SpoolReader
spool = Spool.create(Path(sys.argv[2]), identity(), segment_bytes=1 << 16)
recorder, reader = Recorder(spool), SpoolReader(spool, spool.identity.writer)
steps, handled, over = [0, 0], [0, 0], threading.Event()  # recorded, and read back
def ship():
    while True:
        last = over.is_set()  # asked first: what was recorded until then is in the take
        if (take := reader.take(1000)) is None:
            if last:
                return
            time.sleep(0.001)
            continue
        assert take.gap == 0
        for group in take.groups:
            steps[1] += int((group.step < 10**9).sum())
            handled[1] += int((group.step >= 10**9).sum())
        spool.prepare(); spool.sync(); spool.release(take.last_seq)
thread = threading.Thread(target=ship); thread.start()
def handler(n, f):
    recorder.record(10**9 + handled[0], {"signal": float(n)})
    handled[0] += 1
    say("passed on")
for number in range(int(sys.argv[1])):
    watch = SignalWatch(lambda n: None, deadline_s=60, signals=(signal.SIGUSR1,))
    signal.signal(signal.SIGUSR1, handler)
    watch.install()
    say("armed")
    while watch.signum is None:
        recorder.record(steps[0], {"loss": 0.5, "phi": 0.5} if steps[0] % 7 else {"loss": 0.5})
        steps[0] += 1
    watch.re_raise()
over.set(); thread.join()
spool.remove()
say("kept", *steps, *handled, spool.dropped)
"""


def rounds(count: int, folder: Path, rng: random.Random) -> None:
    """One process, a fresh watch a round, one signal each at a random moment of `record()`."""
    with child(ROUNDS, str(count), str(folder / "spool")) as process:
        for _ in range(count):
            wait_for(process, "armed")
            time.sleep(rng.expovariate(2000.0))
            process.send_signal(signal.SIGUSR1)
            wait_for(process, "passed on")
        status, out, err = finish(process)
        assert (status, err) == (0, "")
    recorded, read, handled, read_of_them, dropped = map(int, out.split()[1:])
    print(f"{count} signals in record(): {recorded} rows, {handled} of the handler, {dropped} lost")
    assert (recorded, handled, count) == (read, read_of_them, handled)
    assert dropped == 0
    assert recorded > count


def test_1_000_signals_in_one_process_deadlock_nothing(tmp_path: Path, rng: random.Random) -> None:
    rounds(1000, tmp_path, rng)


@pytest.mark.long
def test_10_000_signals_in_one_process_deadlock_nothing(tmp_path: Path, rng: random.Random) -> None:
    rounds(figure(10_000), tmp_path, rng)
