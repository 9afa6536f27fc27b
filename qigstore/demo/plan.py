"""What is to be played: names, lengths, the moments of the kill and of the fault."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from qigstore.errors import ConfigurationError, QigstoreError

__all__ = ["DEFAULT_SEED", "DemoFailed", "Plan"]

DEFAULT_SEED = 3
"""Any seed will do; with this one Φ grows while the network learns."""


class DemoFailed(QigstoreError):
    """An act could not be played to its end.

    Attributes:
        exit_status: what `qigstore demo` ends with.
    """

    def __init__(self, words: str, exit_status: int = 1) -> None:
        self.exit_status = exit_status
        super().__init__(words)


@dataclass(frozen=True)
class Plan:
    """What is played: the sessions' names, how long, when the kill and the fault come."""

    session: str
    steps: int
    every: int
    seed: int
    kill_at: int
    fault_at: int
    torch: bool

    @classmethod
    def of(cls, *, steps: int, seed: int = DEFAULT_SEED, torch: bool = False) -> Self:
        """A plan under a fresh name, with the kill at a random step.

        Raises:
            ConfigurationError: what it needs is not installed.
        """
        needed = {"sklearn": "demo"} | ({"torch": "torch"} if torch else {})
        for module, extra in needed.items():
            if find_spec(module) is None:
                name = {"sklearn": "scikit-learn", "torch": "PyTorch"}[module]
                raise ConfigurationError(
                    f"the demo needs {name}, which is not installed. "
                    f"Run: pip install 'qigstore[{extra}]'"
                )
        every = max(steps // 20, 20)
        random = secrets.SystemRandom()
        return cls(
            session=f"demo-{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(3)}",
            steps=steps,
            every=every,
            seed=seed,
            kill_at=random.randrange(round(0.32 * steps), round(0.42 * steps)),
            # Shortly after a regular checkpoint, so that this one has had no time to prove sound.
            fault_at=round(0.65 * steps / every) * every + min(every, 48) // 4,
            torch=torch,
        )

    @property
    def control(self) -> str:
        """Name of the undisturbed session."""
        return f"{self.session}-undisturbed"

    def arguments(self, session: str, ledger: Path) -> list[str]:
        """The training script's words; the same at each start of a session."""
        words = ["--session", session, "--ledger", str(ledger), "--steps", str(self.steps)]
        words += ["--every", str(self.every), "--seed", str(self.seed)]
        words += ["--fault-at", str(self.fault_at)] if session == self.session else []
        return words + (["--torch"] if self.torch else [])
