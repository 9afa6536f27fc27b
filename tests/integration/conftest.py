"""Patience with a server that other tests keep busy: no verdict here is about how long it takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from places import CONNECT_S, STATEMENT_S

from qigstore.database.engine import Database


@pytest.fixture
def home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder, and time enough for runs and processes of this test."""
    monkeypatch.setenv("QIGSTORE_CONNECT_TIMEOUT_S", str(CONNECT_S))
    monkeypatch.setenv("QIGSTORE_STATEMENT_TIMEOUT_S", str(STATEMENT_S))
    return home


@pytest.fixture
def database(dsn: str) -> Iterator[Database]:
    """A migrated, empty database of this test's own, opened."""
    opened = Database(dsn, connect_timeout_s=CONNECT_S, statement_timeout_s=STATEMENT_S)
    yield opened
    opened.dispose()
