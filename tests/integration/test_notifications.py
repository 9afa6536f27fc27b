"""The hook of events in a run: told of an emergency, and never in its way."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import qigstore
from qigstore.safety import Finite

pytestmark = pytest.mark.usefixtures("home")

KEEP = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read())"


def test_an_emergency_is_told_before_the_run_has_left(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = home / "told"
    monkeypatch.setenv("QIGSTORE_NOTIFY_COMMAND", f'{sys.executable} -c "{KEEP}" {told} {{rule}}')
    run = qigstore.session(
        "s", mode="offline", quiet=True, rules=[Finite(action="abort")],
        notify_timeout_s=100.0, abort_deadline_s=120.0,
    ).open()  # fmt: skip
    run.record(7, loss=float("nan"))
    with pytest.raises(qigstore.EmergencyStop):
        run.close()
    event = json.loads(told.read_text())
    assert (event["session"], event["step"], event["value"]) == ("s", 7, "nan")


def test_a_hook_that_cannot_be_used_is_refused_when_the_run_opens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QIGSTORE_NOTIFY_URL", "gopher://nowhere/secret")
    with pytest.raises(qigstore.ConfigurationError, match="notify_url") as refused:
        qigstore.session("s", mode="offline", quiet=True).open()
    assert "secret" not in str(refused.value)
