"""Every command as a table and as JSON, its errors and its exit statuses, on the real store."""

from __future__ import annotations

import json
import math
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from commands import data, environment, process, run
from places import new_database, short_folder
from processes import wait_until

import qigstore
from qigstore.cli import EXIT_CODES, exit_code
from qigstore.cli.output import as_json
from qigstore.compiled import all_compiled
from qigstore.safety.rules import RuleSet, Threshold

NAME = "ocean 7"


@pytest.fixture(scope="module")
def world(server_dsn: str, template: str) -> Iterator[dict[str, str]]:
    """A store with one session that has rows, a NaN, an event and checkpoints; its environment."""
    with short_folder() as home, new_database(server_dsn, template) as dsn:
        rules = RuleSet([Threshold("loss", above=9.5, name="loss too high")])
        with qigstore.session(
            NAME, config={"lr": 0.1}, rules=rules, dsn=dsn, home=home, settle_steps=5, quiet=True
        ) as run:
            state = run.recover(default=lambda: {"step": 0, "w": 1.0})
            for step in run.steps(state["step"], 40):
                odd = math.nan if step == 3 else step / 40
                run.record(step, loss=9.9 if step == 38 else 1.0, phi=0.5 + step / 100, odd=odd)
                run.checkpoint({"step": step + 1, "w": 1.0}, step=step, every=10)
        yield environment(home, dsn, QIGSTORE_SETTLE_STEPS="5")


def test_sessions_list_as_table_and_json(world: dict[str, str]) -> None:
    table = run(world, "sessions", "list")
    assert table.returncode == 0
    assert table.stdout.splitlines()[0].split()[0] == "session"
    assert table.stdout.splitlines()[1].startswith(NAME)
    (found,) = data(world, "sessions", "list")
    assert (found["name"], found["status"], found["last_step"]) == (NAME, "completed", 39)
    assert found["created_at"].endswith("+00:00")
    assert data(world, "sessions", "list", "--offset", "1") == []


def test_sessions_show_as_words_and_json(world: dict[str, str]) -> None:
    words = run(world, "sessions", "show", NAME)
    assert words.returncode == 0, words.stderr
    for shown in (NAME, "completed", "40", '{"lr": 0.1}', "the start"):
        assert shown in words.stdout
    found = data(world, "sessions", "show", NAME)
    assert (found["rows"], found["events"], found["checkpoints"]) == (40, 1, 3)
    assert found["attempts"][0]["rows"] == 40
    assert found["latest"]["metrics"]["odd"] == 39 / 40


def test_checkpoints_are_listed_healthy_first_with_whole_ids(world: dict[str, str]) -> None:
    found = data(world, "checkpoints", "list", NAME)
    # Step 39 follows the event at step 38; step 29 is out of its reach.
    assert [(c["step"], c["healthy"]) for c in found] == [
        (39, True), (29, True), (19, True)
    ]  # fmt: skip
    removed = data(world, "checkpoints", "list", NAME, "--all")[3:]
    assert [(c["step"], c["status"], c["healthy"]) for c in removed] == [(9, "deleted", False)]
    table = run(world, "checkpoints", "list", NAME).stdout
    for checkpoint in found:
        assert checkpoint["id"] in table
        assert str(UUID(checkpoint["id"])) == checkpoint["id"]


def test_checkpoints_show_takes_the_start_of_an_id(world: dict[str, str]) -> None:
    whole = data(world, "checkpoints", "list", NAME)[0]
    found = data(world, "checkpoints", "show", whole["id"][:8])
    assert found["id"] == whole["id"]
    assert found["reason"]
    words = run(world, "checkpoints", "show", whole["id"])
    assert whole["id"] in words.stdout
    assert whole["digest"] in words.stdout


def test_recover_dry_run_explains_and_changes_nothing(world: dict[str, str]) -> None:
    before = data(world, "sql", "-c", "select * from recovery_history")
    words = run(world, "recover", NAME, "--dry-run")
    assert words.returncode == 0, words.stderr
    assert "chosen" in words.stdout
    found = data(world, "recover", NAME, "--dry-run", "--policy", "newest")
    chosen = found["chosen"]["id"]
    assert found["policy"] == "newest"
    assert chosen in {c["checkpoint"]["id"] for c in found["candidates"] if c["healthy"]}
    assert data(world, "sql", "-c", "select * from recovery_history") == before


def test_recover_without_dry_run_opens_no_attempt(world: dict[str, str]) -> None:
    before = data(world, "sessions", "show", NAME)["attempts"]
    done = run(world, "recover", NAME)
    assert done.returncode == 0, done.stderr
    assert "run.recover()" in done.stdout
    assert data(world, "sessions", "show", NAME)["attempts"] == before
    assert data(world, "sql", "-c", "select * from recovery_history")[0]["rows"] != []


def test_events_are_listed_of_one_session_and_of_all(world: dict[str, str]) -> None:
    (event,) = data(world, "events", "list", NAME)
    assert (event["rule"], event["step"], event["value"]) == ("loss too high", 38, 9.9)
    assert data(world, "events", "list") == [event]
    assert data(world, "events", "list", "--severity", "info") == []
    table = run(world, "events", "list")
    assert event["id"] in table.stdout
    nothing = run(world, "events", "list", "--severity", "info")
    assert (nothing.stdout, nothing.stderr) == ("", "no events\n")


def test_sql_runs_statements_from_the_option_and_from_stdin(world: dict[str, str]) -> None:
    query = "select session, rows from session_stats"
    (result,) = data(world, "sql", "-c", query)
    assert result == {"columns": ["session", "rows"], "rows": [[NAME, 40]], "status": "SELECT 1"}
    assert data(world, "sql", stdin=query) == [result]
    two = data(world, "sql", stdin=f"{query};\nselect 1 as one;")
    assert two[0] == result
    assert two[1]["rows"] == [[1]]
    assert run(world, "sql", "-c", query).stdout.splitlines() == ["session  rows", "ocean 7    40"]
    assert run(world, "sql", stdin="").returncode == 0


def test_json_is_strict_also_for_what_json_has_no_word_for(world: dict[str, str]) -> None:
    query = (
        "select 'NaN'::float8, '-Infinity'::float8, 'Infinity'::numeric, now(), null, 2::numeric, "
        "'{1,NaN}'::float8[], '{\"a\": 1}'::jsonb, '\\x00ff'::bytea, interval '90 s', 'Φ', true"
    )
    (row,) = data(world, "sql", "-c", query)[0]["rows"]
    assert row[:3] == ["NaN", "-Infinity", "Infinity"]
    assert row[3].endswith("+00:00")
    assert row[4:] == [None, 2, [1, "NaN"], {"a": 1}, "00ff", 90, "Φ", True]
    nan = "select value from telemetry_metric where name = 'odd' and step = 3"
    assert data(world, "sql", "-c", nan)[0]["rows"] == [["NaN"]]
    assert json.dumps(as_json({"a": (math.inf, b"\0")}), allow_nan=False)


def test_sql_is_read_only_unless_asked_and_reports_refusals(world: dict[str, str]) -> None:
    make = "create table public.scratch (a int)"
    refused = run(world, "sql", "-c", make)
    assert refused.returncode == 1
    assert "--write" in refused.stderr
    assert run(world, "sql", "--write", "-c", make).returncode == 0
    assert run(world, "sql", "--write", "-c", "drop table public.scratch").stdout == "DROP TABLE\n"
    wrong = run(world, "sql", "-c", "select * from nowhere")
    assert wrong.returncode == 1
    assert wrong.stderr == 'qigstore: relation "nowhere" does not exist\n'
    # One transaction: what came before the wrong statement is undone.
    half = run(world, "sql", "--write", "-c", f"{make}; select * from nowhere")
    assert half.returncode == 1
    assert data(world, "sql", "-c", "select to_regclass('public.scratch')")[0]["rows"] == [[None]]


def test_version_needs_no_database(tmp_path: Path) -> None:
    env = environment(tmp_path, "postgresql://nobody@127.0.0.1:1/none")
    assert run(env, "version").stdout.startswith(f"qigstore {qigstore.__version__} ")
    told = data(env, "version")
    assert (told["qigstore"], told["compiled"]) == (qigstore.__version__, all_compiled())
    pure = process({**env, "QIGSTORE_PURE_PYTHON": "1"}, "version")
    assert "pure Python" in pure.stdout


def test_db_current_speaks_json_through_the_global_options(world: dict[str, str]) -> None:
    env = {k: v for k, v in world.items() if k != "QIGSTORE_DSN"}
    done = run(env, "--dsn", world["QIGSTORE_DSN"], "db", "current", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["found"] == found["needed"]


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("sessions", "show", "ocean 8"),
        ("checkpoints", "list", "ocean 8"),
        ("checkpoints", "show", "00000000-0000-0000-0000-000000000000"),
        ("events", "list", "ocean 8"),
        ("recover", "ocean 8", "--dry-run"),
    ],
)
def test_what_is_not_there_is_status_5_in_one_line(
    world: dict[str, str], words: tuple[str, ...]
) -> None:
    done = (process if words[0] == "sessions" else run)(world, *words)
    assert done.returncode == 5
    assert done.stdout == ""
    assert done.stderr.startswith("qigstore: no ")
    assert done.stderr.count("\n") == 1
    if "ocean 8" in words:
        assert NAME in done.stderr, "the nearest name is told"


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("sessions", "list", "--limit", "0"),
        ("sessions", "list", "--limit", "many"),
        ("events", "list", "--severity", "dreadful"),
        ("recover", NAME, "--dry-run", "--policy", "luck"),
        ("demo", "--steps", "5"),
        ("sql", "--nonsense"),
    ],
)
def test_wrong_words_are_status_2(world: dict[str, str], words: tuple[str, ...]) -> None:
    done = (process if words == ("nonsense",) else run)(world, *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_an_unusable_setting_is_status_2(world: dict[str, str]) -> None:
    done = run({**world, "QIGSTORE_POOL_SIZE": "many"}, "sessions", "list")
    assert done.returncode == 2
    assert "pool_size" in done.stderr


@pytest.mark.parametrize("words", [("sessions", "list"), ("sql", "-c", "select 1"), ("demo",)])
def test_no_database_is_status_3_without_the_password(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    dsn = "postgresql://someone:hunter2@127.0.0.1:1/none"
    done = process(environment(tmp_path, dsn), *words)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "127.0.0.1:1" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout


def test_an_outdated_schema_is_status_4_and_names_the_command(
    tmp_path: Path, empty_dsn: str
) -> None:
    env = environment(tmp_path, empty_dsn)
    done = run(env, "sessions", "list")
    assert done.returncode == 4
    assert "qigstore db upgrade" in done.stderr
    assert run(env, "db", "upgrade").returncode == 0
    assert run(env, "sessions", "list").returncode == 0


def test_no_healthy_checkpoint_is_status_6(home: Path, dsn: str) -> None:
    with qigstore.session("bare", dsn=dsn, home=home, quiet=True) as bare:
        bare.record(0, loss=1.0)
    done = run(environment(home, dsn), "recover", "bare", "--dry-run")
    assert done.returncode == 6
    assert "no healthy checkpoint" in done.stderr


def test_a_traceback_is_shown_only_when_asked_for(tmp_path: Path) -> None:
    env = environment(tmp_path, "mysql://x")
    assert "Traceback" not in run(env, "sessions", "list").stderr
    assert "Traceback" in process({**env, "QIGSTORE_DEBUG": "1"}, "sessions", "list").stderr


def test_a_reader_that_leaves_early_is_no_error_message(world: dict[str, str]) -> None:
    command = f"{sys.executable} -m qigstore sql -c 'select generate_series(1, 200000)' | head -1"
    done = subprocess.run(
        ["bash", "-c", command], check=False, env=world, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr


def test_ctrl_c_is_status_130(world: dict[str, str]) -> None:
    waiting = subprocess.Popen(
        [sys.executable, "-m", "qigstore", "sql", "-c", "select pg_sleep(30)"],
        env=world, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    asked = "SELECT FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'select pg_sleep%'"
    with psycopg.connect(world["QIGSTORE_DSN"], autocommit=True) as watching:
        wait_until(lambda: watching.execute(asked).rowcount, "the query runs", 120)
    waiting.send_signal(signal.SIGINT)
    _, errors = waiting.communicate(timeout=60)
    assert waiting.returncode == 130, errors
    assert "Traceback" not in errors


def test_ctrl_c_while_modules_load_is_status_130(world: dict[str, str], tmp_path: Path) -> None:
    """Out of text that a module executes: CPython then ends `python -m` by the signal itself."""
    (tmp_path / "typer.py").write_text("exec('raise KeyboardInterrupt')")
    done = process({**world, "PYTHONPATH": str(tmp_path)}, "version")
    assert (done.returncode, done.stderr) == (130, "qigstore: interrupted\n")


def test_help_lists_every_exit_status(tmp_path: Path) -> None:
    text = run(environment(tmp_path, COLUMNS="120"), "--help").stdout
    for code, meaning in EXIT_CODES.items():
        assert f"{code:>3}  {meaning}" in text


def test_each_error_has_a_documented_status() -> None:
    from qigstore import errors

    kinds = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)]
    assert {exit_code(kind.__new__(kind)) for kind in kinds} <= set(EXIT_CODES)


# -- terminals ---------------------------------------------------------------------------------


@contextmanager
def terminal(env: dict[str, str], *words: str) -> Iterator[tuple[int, Any]]:
    """The command on a terminal of 80 columns: its descriptor and its process."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "qigstore", *words],
        env={k: v for k, v in env.items() if k != "COLUMNS"} | {"TERM": "dumb", "PAGER": "cat"},
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        yield ours, process
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(descriptor: int, words: str, limit_s: float = 120.0) -> str:
    end, text = time.monotonic() + limit_s, b""
    while words.encode() not in text or not words:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"it never said {words!r}: {text.decode(errors='replace')}"
        try:
            text += os.read(descriptor, 65536)
        except OSError:  # the other side is closed
            break
    return text.decode(errors="replace")


def test_a_terminal_of_80_columns_shows_whole_ids(world: dict[str, str]) -> None:
    found = data(world, "checkpoints", "list", NAME)
    with terminal(world, "checkpoints", "list", NAME) as (descriptor, _):
        text = read_until(descriptor, "")
    for checkpoint in found:
        assert checkpoint["id"] in text


def test_the_prompt_answers_when_there_is_no_psql(world: dict[str, str], tmp_path: Path) -> None:
    with terminal({**world, "PATH": str(tmp_path)}, "sql") as (descriptor, process):
        read_until(descriptor, "qigstore=> ")
        os.write(descriptor, b"select 6 *\n")
        read_until(descriptor, "-> ")
        os.write(descriptor, b"7 as answer;\n")
        assert "42" in read_until(descriptor, "qigstore=> ")
        os.write(descriptor, b"\\d\n")
        assert "session_stats" in read_until(descriptor, "qigstore=> ")
        os.write(descriptor, b"select * from nowhere;\n")
        assert "does not exist" in read_until(descriptor, "qigstore=> ")
        os.write(descriptor, b"\\q\n")
        assert process.wait(120) == 0


def test_psql_of_the_embedded_server_opens_read_only(home: Path) -> None:
    env = environment(home)
    with terminal(env, "sql") as (descriptor, process):
        first = read_until(descriptor, "qigstore=")
        if "Statements end with a semicolon" in first:
            pytest.skip("the server's programs hold no psql, and the PATH neither")
        os.write(descriptor, b"select count(*) + 42 as n from session_stats;\n")
        assert "42" in read_until(descriptor, "(1 row)")
        os.write(descriptor, b"create table t ();\n")
        read_until(descriptor, "read-only")
        os.write(descriptor, b"\\q\n")
        assert process.wait(120) == 0


def test_completion_names_sessions_and_starts_no_server(
    world: dict[str, str], tmp_path: Path
) -> None:
    asked = {
        "_QIGSTORE_COMPLETE": "complete_bash",
        "COMP_WORDS": "qigstore sessions show oc",
        "COMP_CWORD": "3",
    }

    def answered() -> bool:
        """A shell does not wait: a database that takes longer than a moment has no names."""
        return NAME in process({**world, **asked}).stdout.splitlines()

    wait_until(answered, "the name of a session", 120)
    idle = process({**environment(tmp_path), **asked})
    assert idle.returncode == 0
    assert idle.stdout.strip() == ""
    assert not (tmp_path / "postgres").exists()
