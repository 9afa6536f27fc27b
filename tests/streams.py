"""For tests of the stream: a server in a process of its own, and a ledger of what a client had."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from processes import REPOSITORY

from qigstore.database.embedded import kept_port

TIMEOUT_S = 60
Key = tuple[str, int, int]


class Served:
    """`qigstore serve` at a port of its own, kept for it; can be killed and started again."""

    def __init__(self, env: Mapping[str, str], *options: str) -> None:
        self._kept = ExitStack()
        self.port = self._kept.enter_context(kept_port())
        self._env, self._options = env, options
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Of the WebSocket."""
        return f"ws://127.0.0.1:{self.port}/v1/stream"

    @property
    def sse(self) -> str:
        """Of the server-sent events."""
        return f"http://127.0.0.1:{self.port}/v1/stream/sse"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        command = [sys.executable, "-m", "qigstore", "serve", "--port", str(self.port)]
        command += ["--statement-timeout", "60"]  # nor may it be silent amid one for long
        self.process = subprocess.Popen(
            [*command, *self._options], cwd=REPOSITORY, env=dict(self._env), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert re.search(rf":{self.port}\b", line), f"it does not listen: {line!r}"

    def leave(self) -> None:
        """Give the port back."""
        self._kept.close()

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(TIMEOUT_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        assert self.process is not None
        self.process.terminate()
        status = self.process.wait(TIMEOUT_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


@contextmanager
def serving(env: Mapping[str, str], *options: str) -> Iterator[Served]:
    """A server, killed at the end if it still lives."""
    served = Served(env, *options)
    try:
        served.start()
        yield served
    finally:
        if served.process is not None and served.process.poll() is None:
            served.kill()
        served.leave()


@dataclass
class Ledger:
    """What one client had, held against what a stream promises.

    Attributes:
        last: `seq` of the last envelope. reached: the last record of each writer.
        rows: of those that came one by one, the metrics by writer and step.
        changes: the last `change` of each event and checkpoint. versions: all of them.
        gaps, repeats: what must not be.
    """

    last: str | None = None
    reached: dict[Key, int] = field(default_factory=dict)
    rows: dict[Key, dict[int, dict[str, Any]]] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    versions: set[tuple[str, int]] = field(default_factory=set)
    gaps: list[Any] = field(default_factory=list)
    repeats: list[Any] = field(default_factory=list)
    envelopes: int = 0
    kinds: dict[str, int] = field(default_factory=dict)

    def take(self, text: str | bytes) -> dict[str, Any]:
        """Note an envelope."""
        one: dict[str, Any] = json.loads(text)
        assert set(one) == {"seq", "kind", "data"}
        self.envelopes += 1
        self.kinds[one["kind"]] = self.kinds.get(one["kind"], 0) + 1
        if one["kind"] == "telemetry":
            for part in one["data"]["parts"]:
                self._part(part)
        elif one["kind"] in {"event", "checkpoint"}:
            self._change(one["data"])
        self.last = one["seq"]
        return one

    def _part(self, part: dict[str, Any]) -> None:
        key = (part["session"], part["attempt"], part["rank"])
        known = self.reached.get(key, 0)
        first, last = part["first_seq"], part["last_seq"]
        if first > known + 1:
            self.gaps.append((key, known, first))
        if first <= known:
            self.repeats.append((key, known, first))
        self.reached[key] = last
        seqs = [row["seq"] for row in part.get("rows", ())]
        assert seqs == sorted(set(seqs))
        assert all(first <= seq <= last for seq in seqs)
        for row in part.get("rows", ()):
            self.rows.setdefault(key, {})[row["step"]] = row["metrics"]

    def _change(self, data: dict[str, Any]) -> None:
        version = (data["id"], data["change"])
        if version in self.versions:
            self.repeats.append(version)
        self.versions.add(version)
        self.changes[data["id"]] = data["change"]
