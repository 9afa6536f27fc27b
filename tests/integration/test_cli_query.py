"""`qigstore curve`, `query`, `show` and `top`, on a session that is there."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from commands import data, environment, process, run
from places import new_database, short_folder
from processes import wait_until

import qigstore
from qigstore.cli.sparkline import sparkline

NAME = "ocean 7"
EVIL = "[red]e\x1b[31mvil[/red]"


@pytest.fixture(scope="module")
def world(server_dsn: str, template: str) -> Iterator[dict[str, str]]:
    """A store with a session that ended, one that a living run records, and their environment."""
    with short_folder() as home, new_database(server_dsn, template) as dsn:
        with qigstore.session(NAME, rules={"rules": []}, dsn=dsn, home=home, quiet=True) as ended:
            for step in range(40):
                ended.record(step, loss=math.nan if step == 3 else 1.0 - step / 40, phi=0.5)
        with qigstore.session(
            "living", rules={"rules": []}, dsn=dsn, home=home, heartbeat_limit_s=3600.0
        ) as living:
            for step in range(10):
                living.record(step, loss=float(step))
            living.flush()
            yield environment(home, dsn)


def test_a_curve_as_table_and_json(world: dict[str, str]) -> None:
    table = run(world, "curve", NAME, "loss", "--points", "5")
    assert table.returncode == 0, table.stderr
    lines = [line.split() for line in table.stdout.splitlines()]
    assert lines[0] == ["start", "stop", "low", "mean", "high", "finite", "nans", "infs"]
    assert [line[0] for line in lines[1:]] == ["0", "8", "16", "24", "32"]
    assert lines[1][5:] == ["7", "1", "0"]
    found = data(world, "curve", NAME, "loss", "--start", "2", "--stop", "5", "--by", "relative")
    assert found["start"] == [2, 3, 4]
    assert found["mean"] == [0.95, "NaN", 0.9]
    assert found["nans"] == [0, 1, 0]
    assert (found["session"], found["metric"], found["by"]) == (NAME, "loss", "relative")
    assert data(world, "curve", NAME, "phi", "--all-ranks", "--points", "1")["finite"] == [40]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("curve", "ocean 8", "loss"), 5, "ocean 7"),
        (("curve", NAME, "los"), 5, "metric"),
        (("curve", NAME, "loss", "--points", "1000000000"), 2, "100,000"),
        (("curve", NAME, "loss", "--start", "5", "--stop", "4"), 2, "stop"),
        (("show", "ocean 8"), 5, "ocean 7"),
        (("query", "select 1", "--csv", "--json"), 2, "choose one"),
        (("query", "selec 1"), 1, "syntax error"),
        (("query", "delete from qigstore.session"), 1, "read-only"),
        (("query", "select 1; select 2"), 1, "multiple commands"),
        (("query", "select pg_sleep(30)", "--timeout", "0.05"), 1, "0.05 s"),
        (("query", "select 1/0"), 1, "division by zero"),
        (("query", " "), 2, "one SQL statement"),
        (("query", "set transaction read write"), 1, "read-write mode"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_a_status(
    world: dict[str, str], words: tuple[str, ...], status: int, said: str
) -> None:
    done = run(world, *words)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def test_show_is_sessions_show(world: dict[str, str]) -> None:
    assert run(world, "show", NAME).stdout == run(world, "sessions", "show", NAME).stdout
    assert data(world, "show", NAME)["session"]["name"] == NAME


def test_a_query_as_table_json_and_csv(world: dict[str, str]) -> None:
    sql = (
        "select step, loss, regime, recorded_at from canonical_telemetry "
        f"where session = '{NAME}' and step in (3, 4) order by step"
    )
    table = run(world, "query", sql)
    assert table.returncode == 0, table.stderr
    assert table.stdout.splitlines()[0].split() == ["step", "loss", "regime", "recorded_at"]
    assert table.stdout.splitlines()[1].split()[:2] == ["3", "nan"]
    found = data(world, "query", sql)
    assert found["columns"] == ["step", "loss", "regime", "recorded_at"]
    assert [row[:3] for row in found["rows"]] == [[3, "NaN", "geometric"], [4, 0.9, "geometric"]]
    assert found["more"] is False
    rows = list(csv.reader(io.StringIO(run(world, "query", sql, "--csv").stdout)))
    assert rows[0] == ["step", "loss", "regime", "recorded_at"]
    assert rows[1][:3] == ["3", "nan", "geometric"]
    assert rows[2][:2] == ["4", "0.9"]
    assert rows[2][3].endswith("+00:00")
    nothing = run(world, "query", "select null as a, '{\"b\": 1}'::jsonb as c", "--csv")
    assert nothing.stdout == 'a,c\n,"{""b"": 1}"\n'
    empty = run(world, "query", f"{sql} limit 0", "--csv")
    assert empty.stdout == "step,loss,regime,recorded_at\n"
    assert run(world, "query", "-", "--csv", stdin="select 1 as a").stdout == "a\n1\n"
    assert run(world, "query", "explain select 1").stdout.startswith("QUERY PLAN")


def test_a_query_takes_no_more_rows_than_its_limit(world: dict[str, str]) -> None:
    endless = "select generate_series(1, 9000000000000) as n"
    done = run(world, "query", endless, "--limit", "3", "--csv")
    assert done.returncode == 0
    assert done.stdout == "n\n1\n2\n3\n"
    assert "only the first 3 rows" in done.stderr
    exact = run(world, "query", "select n from generate_series(1, 3) n", "--limit", "3")
    assert exact.stderr == ""


def test_top_prints_one_frame_on_a_pipe(world: dict[str, str]) -> None:
    frame = run(world, "top", "--once")
    assert frame.returncode == 0, frame.stderr
    head, line = frame.stdout.splitlines()
    assert head.split()[:4] == ["session", "status", "step", "rows/s"]
    assert line.split()[:3] == ["living", "running", "9"]
    assert "▁" in line
    assert "█" in line
    both = data(world, "top", "--all")
    assert [each["session"] for each in both] == ["living", NAME]
    assert len(both[1]["curves"]["loss"]) <= 24
    assert both[0]["lag_s"] >= 0
    assert both[0]["rows"] == 10


def test_top_says_that_nothing_runs(dsn: str) -> None:
    with short_folder() as home:
        done = run(environment(home, dsn), "top")
    assert (done.returncode, done.stdout) == (0, "")
    assert "top --all" in done.stderr


def test_a_session_named_like_markup_is_shown_as_it_is(dsn: str) -> None:
    from qigstore.cli.top import Line, _table

    line = Line(EVIL, "running", 1, 3, 4, 1.0, 0.5, None, {}, {}, 1)
    from rich.console import Console

    console = Console(file=io.StringIO(), width=200, color_system=None)
    with console.capture() as drawn:
        console.print(_table([line]))
    assert "[red]e\\x1b[31mvil[/red]" in drawn.get()
    assert "\x1b" not in drawn.get()


def test_top_lives_on_a_terminal_until_ctrl_c(world: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    env = {**world, "TERM": "xterm", "COLUMNS": "150", "LINES": "20"}
    command = [sys.executable, "-m", "qigstore", "top", "--interval", "0.2"]
    with subprocess.Popen(command, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as child:
        os.close(theirs)
        seen = bytearray()

        def frames() -> int:
            while select.select([ours], [], [], 0)[0] and (more := _read(ours)):
                seen.extend(more)
            return seen.count(b"living")

        try:
            wait_until(lambda: frames() >= 3, "three frames", limit_s=120)
            child.send_signal(signal.SIGINT)
            wait_until(lambda: frames() and child.poll() is not None, "its end", limit_s=60)
            assert child.returncode == 0
        finally:
            child.kill()
            os.close(ours)


def _read(terminal: int) -> bytes:
    """What it shows now; nothing once the other side is closed."""
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that the last process has left the terminal
        return b""


def test_a_sparkline_has_a_bar_a_value() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0]) == "▁"
    assert sparkline([math.nan, math.inf, 1.0, 1.0]) == "××▁▁"
    assert sparkline([-1.7e308, 1.7e308, 0.0])[:2] == "▁█"
    assert sparkline([]) == ""


def test_the_commands_as_processes_of_their_own(world: dict[str, str]) -> None:
    done = process(world, "query", "select count(*) from session_stats", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == [[2]]
