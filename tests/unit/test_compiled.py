"""What is written in C is compiled where it can be, and its twins in Python pass the same tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from qigstore.compiled import all_compiled

COMPILED = all_compiled()
PURE = bool(os.environ.get("QIGSTORE_PURE_PYTHON"))


def test_where_there_is_a_compiler_everything_is_compiled() -> None:
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    if shutil.which("cc") is None or not headers.exists():
        pytest.skip("no C compiler, or no headers of Python")
    assert COMPILED or PURE, "install the package again: its parts in C were not compiled"


@pytest.mark.skipif(not COMPILED, reason="the twins are in use already")
@pytest.mark.parametrize(
    "names",
    [("cursor", "frames", "short_way", "recorder", "spool"), ("check", "statistic", "rules")],
)
def test_the_twins_in_python_pass_the_same_tests(names: tuple[str, ...]) -> None:
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        check=False,
        env={**os.environ, "QIGSTORE_PURE_PYTHON": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
