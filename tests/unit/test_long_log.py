"""The log of `make test-long`: what stands in it, side by side and resumed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
TINY = """
import os, pytest
from pathlib import Path

def tell(words):
    with Path(os.environ["SEEN"]).open("a") as file:
        file.write(words + " ")

@pytest.mark.long
def test_short():
    tell("short")
    print("3 kills, 0 lost")

@pytest.mark.long(seconds=9)
def test_slow():
    tell("slow")

@pytest.mark.long(seconds=99)
@pytest.mark.alone
def test_alone():
    tell("alone")

@pytest.mark.long(seconds=5)
def test_breaks():
    tell("breaks")
    print("7 cuts, 1 lost")
    assert Path(os.environ["SEEN"]).with_name("mended").exists()
"""
SETTINGS = """[pytest]
addopts = --strict-markers -p no:cacheprovider
markers =
    long
    alone
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with one file of tests."""
    place = tmp_path / "tree"
    place.mkdir()
    (place / "test_tiny.py").write_text(TINY)
    (place / "pytest.ini").write_text(SETTINGS)
    (place / ".gitignore").write_text("long.log\n__pycache__\n")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e",
                                                 "commit", "-q", "-m", "tests"]):  # fmt: skip
        subprocess.run(["git", *words], cwd=place, check=True)
    return place


def run(folder: Path, *options: str, share: str = "1") -> tuple[int, str, list[str]]:
    """Exit status, what was shown, and the tests that began, in their order."""
    seen = folder.parent / "seen"
    seen.write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "long_log", "--long-log=long.log",
         *options],
        cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(TESTS), "SEEN": str(seen),
                          "QIGSTORE_TEST_SHARE": share, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr, seen.read_text().split()


def verdicts(folder: Path) -> dict[str, str]:
    """By test, as the log has them."""
    lines = re.findall(
        r"^(passed|failed) +[\d.]+ s  test_tiny.py::test_(\w+)$",
        (folder / "long.log").read_text(),
        re.MULTILINE,
    )
    return {name: verdict for verdict, name in lines}


WITH_A_FAILURE = {"slow": "passed", "short": "passed", "breaks": "failed", "alone": "passed"}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_verdict_and_figure_is_in_the_log_and_is_shown(folder: Path, workers: str) -> None:
    status, shown, seen = run(folder, f"-n{workers}", "--dist=load", "--maxschedchunk=1")
    assert status == 1
    assert verdicts(folder) == WITH_A_FAILURE
    assert sorted(seen) == sorted(WITH_A_FAILURE)
    if workers == "0":
        assert seen == ["slow", "breaks", "short", "alone"], "longest first, alone last"
    log = (folder / "long.log").read_text()
    assert re.match(r"commit [0-9a-f]{40}, share 1\nbegan \d{4}-.* UTC\n", log)
    for figure in ("    3 kills, 0 lost\n", "    7 cuts, 1 lost\n"):
        assert figure in log
        assert figure in shown
    assert "    E       AssertionError" in log
    assert "1 failed, 3 passed; 0.0 minutes of tests, 0 of them in an earlier run" in shown
    assert str(folder / "long.log") in shown


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_passed_is_not_run_again_and_stays_in_the_log(folder: Path, workers: str) -> None:
    run(folder)
    (folder.parent / "mended").touch()
    status, shown, seen = run(folder, "--resume", f"-n{workers}")
    assert (status, seen) == (0, ["breaks"]), shown
    assert verdicts(folder) == dict.fromkeys(WITH_A_FAILURE, "passed")
    assert "    3 kills, 0 lost\n" in shown
    assert "4 passed; 0.0 minutes of tests, 3 of them in an earlier run" in shown
    assert len(run(folder)[2]) == 4, "without --resume everything runs anew"


def test_of_another_tree_or_share_everything_runs_again(folder: Path) -> None:
    run(folder)
    assert len(run(folder, "--resume", share="0.5")[2]) == 4
    (folder / "more.py").write_text("1")
    assert len(run(folder, "--resume", share="0.5")[2]) == 4
    assert run(folder, "--resume", share="0.5")[2] == ["breaks"]
    (folder / "more.py").write_text("2")
    assert len(run(folder, "--resume", share="0.5")[2]) == 4


def test_a_log_without_what_the_tests_print_is_refused(folder: Path) -> None:
    status, shown, seen = run(folder, "-s")
    assert (status, seen) == (4, [])
    assert "leave out -s" in shown


def test_a_worker_that_dies_is_a_failure_and_the_rest_is_done(folder: Path) -> None:
    tiny = folder / "test_tiny.py"
    tiny.write_text(tiny.read_text().replace('tell("slow")', "os._exit(1)"))
    status, _, _ = run(folder, "-n2")
    assert status == 1
    assert verdicts(folder) == WITH_A_FAILURE | {"slow": "failed"}
    assert "crashed" in (folder / "long.log").read_text()
