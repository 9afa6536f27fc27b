"""The demo, played by real processes: its claims against SQL, interrupts, and lies to notice."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from places import short_folder
from processes import kill

from qigstore.database import embedded
from qigstore.database.views import REGIMES
from qigstore.demo.ledger import Ledger, count_recorded, read_ledger
from qigstore.demo.plot import text_plot

pytestmark = pytest.mark.timeout(900)  # trainings in processes, several at once

STEPS = 600
ROOT = Path(__file__).parents[2]
CLAIMS = {
    ("a", "readable"), ("a", "checkpoints"), ("b", "killed"), ("b", "rows of attempt 1"),
    ("b", "lost"), ("b", "resumed"), ("c", "exit status"), ("c", "event"),
    ("c", "emergency checkpoint"), ("c", "aborted"), ("c", "rows of attempt 2"),
    ("d", "completed"), ("d", "best healthy"), ("d", "not the emergency"), ("d", "not the newest"),
    ("d", "skipped"), ("d", "rows of attempt 3"), ("d", "accuracy"),
}  # fmt: skip


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("QIGSTORE_")}
    return {
        **kept, "QIGSTORE_HOME": str(home), "QIGSTORE_CONFIG": str(home / "none.toml"), **more
    }  # fmt: skip


def start(home: Path, *words: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "qigstore", "demo", "--steps", str(STEPS), *words],
        env=environment(home, **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def alive(mark: str) -> list[str]:
    """Command lines of the processes, ours excepted, that know the mark; zombies do not count."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            words = folder.joinpath("cmdline").read_bytes()
            known = folder.joinpath("environ").read_bytes() + words
            zombie = folder.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:  # it ended while we looked
            continue
        if mark.encode() in known and not zombie:
            found.append(words.replace(b"\0", b" ").decode())
    return found


def nothing_left(home: Path, limit_s: float = 120.0) -> list[str]:
    """What still runs of this home after a while; the server needs a moment to stop."""
    end = time.monotonic() + limit_s
    while (left := alive(str(home))) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def wait_until(what: Any, limit_s: float = 120.0) -> Any:
    end = time.monotonic() + limit_s
    while not (found := what()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def played() -> Iterator[tuple[Path, dict[str, Any], str]]:
    """Two demos at once in one home: the report of one, the plain output of the other."""
    with short_folder() as home:
        one, other = start(home, "--json"), start(home)
        report, report_errors = one.communicate(timeout=600)
        plain, plain_errors = other.communicate(timeout=600)
        assert one.returncode == 0, report_errors + report
        assert other.returncode == 0, plain_errors + plain
        assert report_errors == plain_errors == ""
        assert nothing_left(home) == []
        yield home, json.loads(report), plain


@pytest.fixture(scope="module")
def connection(played: tuple[Path, dict[str, Any], str]) -> Iterator[psycopg.Connection[Any]]:
    with (
        embedded.EmbeddedServer.start(played[0] / "postgres") as server,
        psycopg.connect(server.dsn(), autocommit=True) as opened,
    ):
        yield opened


def test_every_claim_is_made_and_holds(played: Any) -> None:
    _, report, _ = played
    assert report["ok"]
    assert {(c["act"], c["name"]) for c in report["checks"]} == CLAIMS
    assert all(c["ok"] for c in report["checks"])


def test_the_report_says_what_the_tables_say(played: Any, connection: Any) -> None:
    _, report, _ = played
    found = connection.execute(
        "SELECT a.number, a.status, a.exit_status, a.resumed_step, (SELECT count(*) "
        "FROM qigstore.all_telemetry t WHERE t.session_id = s.id AND t.attempt = a.number) "
        "FROM qigstore.attempt a JOIN qigstore.session s ON s.id = a.session_id "
        "WHERE s.name = %s ORDER BY a.number",
        (report["session"],),
    ).fetchall()
    told = [
        (a["number"], a["status"], a["exit_status"], a["resumed_step"], a["rows"])
        for a in report["attempts"]
    ]
    assert told == found
    assert [row[1:3] for row in found] == [("lost", None), ("aborted", 75), ("completed", 0)]
    assert found[2][3] == report["decisions"][2]["step"]


def test_the_timeline_holds_each_step_once_and_the_fault_only_as_abandoned(
    played: Any, connection: Any
) -> None:
    _, report, _ = played
    rows = connection.execute(
        "SELECT step, abandoned FROM qigstore.canonical_telemetry WHERE session = %s",
        (report["session"],),
    ).fetchall()
    steps = [step for step, _ in rows]
    decision = report["decisions"][2]
    skipped = set(range(decision["skip_first"], decision["skip_last"] + 1))
    fault = report["plan"]["fault_at"]
    assert len(steps) == len(set(steps))
    assert {step for step, abandoned in rows if not abandoned} == set(range(STEPS)) - skipped
    assert {step for step, abandoned in rows if abandoned} <= skipped
    assert set(range(fault, fault + 8)) <= skipped


def test_each_step_has_its_metrics_its_regime_and_its_basin(played: Any, connection: Any) -> None:
    _, report, _ = played
    rows = connection.execute(
        "SELECT t.phi, t.phi_nats, t.loss, t.accuracy, t.grad_norm, t.learning_rate, "
        "t.basin_distance, t.regime, b.root FROM qigstore.all_telemetry t JOIN qigstore.attempt a "
        "ON a.session_id = t.session_id AND a.number = t.attempt JOIN qigstore.writer w "
        "ON w.attempt_id = a.id AND w.rank = t.rank LEFT JOIN qigstore.basin b "
        "ON b.writer = w.number AND b.step = t.step WHERE t.session = %s AND t.attempt = 3",
        (report["session"],),
    ).fetchall()
    assert rows
    for *values, regime, root in rows:
        assert regime in REGIMES
        assert all(value is not None and math.isfinite(value) for value in values)
        assert 0.0 <= values[0] <= 1.0
        assert len(root) == 64
        assert math.isclose(sum(part * part for part in root), 1.0, abs_tol=1e-9)


def test_plain_output_is_at_most_80_columns_without_control_characters(played: Any) -> None:
    *_, plain = played
    lines = plain.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(c.isprintable() for line in lines for c in line)
    assert "claims hold, checked by SQL" in lines[-1]


def test_demos_do_not_mix(played: Any, connection: Any) -> None:
    names = [n for (n,) in connection.execute("SELECT name FROM qigstore.session")]
    assert len(names) == 4
    assert all(name.startswith("demo-") for name in names)
    assert sum(name.endswith("-undisturbed") for name in names) == 2


def heeds(pid: int, number: int) -> bool:
    """Whether a process handles a signal itself: before that, the interpreter still loads."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    (caught,) = [line.split()[1] for line in lines if line.startswith("SigCgt:")] or ["0"]
    return bool(int(caught, 16) >> (number - 1) & 1)


def interrupted(home: Path, number: signal.Signals, delay: float) -> bool:
    """A demo that is interrupted after so long; False: it had played its last act by then."""
    demo = start(home)
    wait_until(lambda: heeds(demo.pid, signal.SIGTERM) or demo.poll() is not None)
    time.sleep(delay)
    demo.send_signal(number)
    out, errors = demo.communicate(timeout=120)
    assert nothing_left(home) == []
    if "claims hold" in out:
        return False
    assert demo.returncode == 128 + number, errors
    assert "Traceback" not in errors
    return True


@pytest.mark.parametrize("number", [*[signal.SIGINT] * 4, signal.SIGTERM])
def test_an_interrupt_at_any_moment_leaves_nothing_running(
    rng: random.Random, number: signal.Signals
) -> None:
    delay = rng.uniform(0.0, 12.0)
    with short_folder() as home:
        while not interrupted(home, number, delay):
            # A quick machine had done it by then: well before that, the next time.
            delay *= rng.uniform(0.2, 0.7)


def test_the_parents_own_sudden_death_ends_the_training_too() -> None:
    with short_folder() as home:
        demo = start(home)
        wait_until(lambda: any("demo.train" in line for line in alive(str(home))))
        demo.kill()
        demo.communicate(timeout=120)
        assert nothing_left(home) == []


THIEF = """
CREATE FUNCTION public.steal() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    DELETE FROM qigstore.telemetry t USING qigstore.session s, qigstore.attempt a, qigstore.writer w
    WHERE t.writer = NEW.writer AND t.step = NEW.step AND w.number = t.writer
    AND a.id = w.attempt_id AND a.number = 1 AND s.id = a.session_id AND s.name !~ 'undisturbed';
    RETURN NULL;
END $$;
CREATE TRIGGER steal AFTER INSERT ON qigstore.telemetry FOR EACH ROW WHEN (NEW.step = 50)
EXECUTE FUNCTION public.steal()
"""


def test_a_missing_row_is_noticed_and_fails_the_demo(dsn: str) -> None:
    with short_folder() as home, psycopg.connect(dsn, autocommit=True) as thief:
        thief.execute(THIEF)
        demo = start(home, "--json", QIGSTORE_DSN=dsn)
        out, errors = demo.communicate(timeout=600)
        assert demo.returncode == 1, errors
        failed = {c["name"]: c["claim"] for c in json.loads(out)["checks"] if not c["ok"]}
        assert set(failed) == {"rows of attempt 1"}
        assert "1 missing" in failed["rows of attempt 1"]


def test_a_server_killed_in_the_middle_costs_no_row(rng: random.Random) -> None:
    delay, killed = rng.uniform(1.0, 8.0), False
    with short_folder() as home:
        while not killed:
            demo, root = start(home, "--json"), home / "postgres"
            wait_until(lambda: any("demo.train" in line for line in alive(str(home))))
            wait_until(lambda root=root: embedded.status(root).server_pid)
            time.sleep(delay)
            server = embedded.status(root).server_pid
            if killed := server is not None and demo.poll() is None:
                kill(server)
            out, errors = demo.communicate(timeout=600)
            failed = [c for c in json.loads(out)["checks"] if not c["ok"]] if out else errors
            if out and [c["name"] for c in failed] == ["readable"]:
                killed = False  # it was away for as long as the first life could wait for it
            else:
                assert demo.returncode == 0, failed
            assert nothing_left(home) == []
            delay *= 0.5  # a quick machine had done it by then


@pytest.mark.parametrize(
    ("dsn", "status", "words"),
    [
        ("postgresql://nobody@127.0.0.1:1/none", 3, "no database at"),
        ("mysql://x", 2, "QIGSTORE_DSN"),
    ],
)
def test_a_wrong_dsn_is_one_clear_line(dsn: str, status: int, words: str) -> None:
    with short_folder() as home:
        demo = start(home, QIGSTORE_DSN=dsn)
        _, errors = demo.communicate(timeout=120)
        assert demo.returncode == status
        assert errors.count("\n") == 1
        assert words in errors


def test_a_home_that_cannot_be_written_is_one_clear_line() -> None:
    with short_folder() as folder:
        folder.joinpath("file").write_text("")
        demo = start(folder / "file" / "home")
        _, errors = demo.communicate(timeout=120)
        assert demo.returncode == 3
        assert errors.count("\n") == 1
        assert str(folder / "file") in errors


@pytest.mark.parametrize(("module", "extra"), [("sklearn", "demo"), ("torch", "torch")])
def test_what_is_not_installed_is_named_with_the_command(
    home: Path, module: str, extra: str
) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from qigstore.cli import main; main(['demo', '--torch'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env=environment(home),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"pip install 'qigstore[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1


# -- its parts --------------------------------------------------------------------------------


def test_a_ledger_knows_what_was_recorded_and_what_was_only_begun(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    with ledger.around(1, 0, 0.1):
        pass
    with pytest.raises(KeyError), ledger.around(1, 1, float("nan")):
        raise KeyError
    with path.open("a") as file:
        file.write("= 1 2 0x1.8p")  # cut short by a kill
    noted = read_ledger(path)[1]
    assert noted.recorded == {0: 0.1}
    assert list(noted.begun) == [0, 1]
    assert math.isnan(noted.begun[1])
    assert read_ledger(tmp_path / "none") == {}
    assert count_recorded(tmp_path / "none") == (0, -1)


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        [],
        [None, None],
        [float("nan")] * 5,
        [1.0],
        [2.0, 2.0, 2.0],
        [0.0, -1.0, float("inf"), None, 1e300],
        [math.sin(i / 50) for i in range(5000)],
    ],
)
def test_a_plot_is_safe_and_narrow_whatever_it_is_given(
    values: Sequence[float | None], logarithmic: bool
) -> None:
    marks = [(0, "E"), (0, "R"), (max(len(values) - 1, 0), "R")]
    lines = text_plot("x", values, marks, logarithmic=logarithmic)
    assert lines[0].startswith("x")
    assert max(map(len, lines)) <= 78


def test_a_plot_keeps_a_spike_of_one_value_among_thousands() -> None:
    flat = [1.0] * 5000
    spiked = [*flat[:2500], 9.0, *flat[2501:]]
    assert text_plot("x", spiked)[1].strip("\u2800 ") != text_plot("x", flat)[1].strip("\u2800 ")
    assert any(c not in "\u2800 " for c in text_plot("x", spiked)[1][9:])


# -- the examples -----------------------------------------------------------------------------


def _example(name: str, home: Path, dsn: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / name)],
        check=False,
        env=environment(home, QIGSTORE_DSN=dsn),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_minimal_example_runs_and_runs_again(home: Path, dsn: str) -> None:
    for _ in range(2):
        done = _example("minimal.py", home, dsn)
        assert done.returncode == 0, done.stderr
        assert "step 500" in done.stdout
    assert "resume from step" in done.stderr


def test_the_pytorch_example_runs_or_says_what_it_needs(home: Path, dsn: str) -> None:
    done = _example("pytorch.py", home, dsn)
    if done.returncode == 1:
        assert done.stderr == "this example needs PyTorch: pip install 'qigstore[torch]'\n"
    else:
        assert done.returncode == 0, done.stderr
        assert "accuracy on a fresh batch" in done.stdout
