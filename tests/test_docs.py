"""What the documents show works: Python blocks run, SQL blocks run, named commands exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text[: match.start()].count("\n") + 1
            found.append((f"{document.name}:{line}", match.group(1)))
    return found


def commands() -> list[str]:
    shown = "\n".join(text for language in ("sh", "bash") for _, text in blocks(language))
    found = set()
    for line in shown.splitlines():
        command = line.split("#")[0].strip()
        if match := re.match(r"qigstore((?: [a-z][a-z-]*)+)", command):
            found.add(match.group(1).strip())
    return sorted(found)


def test_the_documents_show_something() -> None:
    assert blocks("python")
    assert blocks("sql")
    assert commands()


@pytest.mark.parametrize(("where", "code"), blocks("python"), ids=lambda v: v.split("\n")[0][:40])
def test_python_blocks_run(where: str, code: str, dsn: str, home: Path) -> None:
    environment = {**os.environ, "QIGSTORE_DSN": dsn, "QIGSTORE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{where}:\n{done.stderr}"


@pytest.mark.parametrize(("where", "code"), blocks("sql"), ids=lambda v: v.split("\n")[0][:40])
def test_sql_blocks_run(where: str, code: str, dsn: str) -> None:
    import psycopg

    with psycopg.connect(dsn) as connection:
        for statement in filter(str.strip, code.split(";")):
            cursor = connection.execute(statement)
            assert cursor.description is not None, f"{where}: {statement} returns no rows"


@pytest.mark.parametrize("command", commands())
def test_named_commands_exist(command: str) -> None:
    words = [word for word in command.split() if word not in {"my-session", "ocean-7"}]
    done = subprocess.run(
        [sys.executable, "-m", "qigstore", *words, "--help"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_named_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target
        for document in DOCUMENTS
        for target in re.findall(r"`?make ([a-z-]+)", document.read_text())
    }
    assert named <= targets
