"""The five lines, around a toy that learns the mean of a few numbers.

Run it, kill it (`kill -9` too), run it again: it continues, and no row is missing or doubled.
"""

from __future__ import annotations

import os
import random
from typing import Any

import qigstore


def fresh_state() -> dict[str, Any]:
    return {"step": 0, "guess": 0.0}


def train_step(state: dict[str, Any]) -> tuple[dict[str, Any], float]:
    sample = random.Random(state["step"]).gauss(mu=4.0, sigma=1.0)  # noqa: S311 - a toy
    error = sample - state["guess"]
    return {"step": state["step"] + 1, "guess": state["guess"] + 0.05 * error}, error * error


def main() -> None:
    with qigstore.session(os.environ.get("SESSION", "minimal"), config={"rate": 0.05}) as run:
        state = run.recover(default=fresh_state)
        for step in run.steps(state["step"], 500):
            state, loss = train_step(state)
            # Checkpoints are ranked by phi: here, how near the guess is.
            run.record(step, loss=loss, phi=1.0 / (1.0 + abs(4.0 - state["guess"])))
            run.checkpoint(state, step=step, every=100)
    print(f"step {state['step']}: the mean is about {state['guess']:.2f}")


if __name__ == "__main__":
    main()
