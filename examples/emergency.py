"""A training that stops itself in an emergency and comes back; needs scikit-learn.

Run it: in its first life the learning rate goes wrong at step 300; a rule notices the loss, the
state is saved, and the process ends with status 75. Run it again: it takes the best checkpoint from
before the fault, leaves the bad steps out and finishes. While it runs, `qigstore abort emergency`
or Ctrl-C ends it at a safe point just as well.
"""

from __future__ import annotations

import os
import time

import qigstore
from qigstore.demo.data import load_digits
from qigstore.demo.model import Network
from qigstore.safety import Ewma, Finite, PageHinkley

STEPS, FAULT_AT = int(os.environ.get("STEPS", "600")), 300
PAUSE_S = float(os.environ.get("PAUSE_S", "0"))  # time to interrupt it by hand

RULES = [
    Finite(action="abort"),
    Ewma("loss", action="abort"),  # a jump, at once
    PageHinkley("loss", severity="critical", action="abort"),  # a slow rise
]


def main() -> None:
    digits, network = load_digits(seed=3), Network(seed=3)
    name = os.environ.get("SESSION", "emergency")
    with qigstore.session(name, rules=RULES, settle_steps=20) as run:
        network.load(run.recover(default=network.state))
        for step in run.steps(network.step, STEPS):
            wrong = run.attempt == 1 and step >= FAULT_AT
            loss, accuracy, _ = network.train(*digits.batch(step), 4.0 if wrong else 0.1)
            run.record(step, loss=loss, accuracy=accuracy)
            run.checkpoint(network.state(), step=step, every=50)
            time.sleep(PAUSE_S)
    print(f"step {network.step}: accuracy {network.accuracy(digits.test_x, digits.test_y):.2f}")


if __name__ == "__main__":
    main()
