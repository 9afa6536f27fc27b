"""`run.curve`: what a living run recorded, asked from inside it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import qigstore
from qigstore.errors import ConfigurationError, NotFound, StoreUnavailable


def test_a_run_shows_its_own_curve(dsn: str, home: Path) -> None:
    with qigstore.session("ocean", dsn=dsn, rules={"rules": []}) as run:
        for step in range(100):
            run.record(step, loss=math.nan if step == 50 else 1.0 / (1 + step), phi=0.7)
        run.flush()
        found = run.curve("loss", points=10)
        assert len(found) <= 10
        assert (found.finite.sum(), found.nans.sum()) == (99, 1)
        assert run.curve("phi", start=98).mean.tolist() == [0.7, 0.7]
        with pytest.raises(NotFound, match="metric"):
            run.curve("los")
    with pytest.raises(ConfigurationError, match="not open"):
        run.curve("loss")


def test_a_run_without_a_database_has_no_curve(home: Path) -> None:
    with qigstore.session("ocean", mode="off") as run, pytest.raises(ConfigurationError):
        run.curve("loss")
    with qigstore.session("ocean", mode="offline", quiet=True) as run:
        run.record(0, loss=1.0)
        with pytest.raises(StoreUnavailable, match="without it"):
            run.curve("loss")
