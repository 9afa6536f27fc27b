"""A training script as a user would write it: `python -m qigstore.demo.train --session NAME`.

It knows nothing of the acts around it. Killed or stopped, it is started again with the same words
and finds its own way back.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import qigstore
from qigstore.demo.data import load_digits
from qigstore.demo.ledger import Ledger
from qigstore.demo.measures import basin_of, phi_of
from qigstore.errors import QigstoreError

if TYPE_CHECKING:
    from qigstore.demo.model import Network
    from qigstore.demo.torch_model import TorchNetwork

__all__ = ["SETTLE_STEPS", "SPIKE_STEPS", "learning_rate", "main", "train"]

SETTLE_STEPS = 50
"""A checkpoint is healthy when no critical event follows it within so many steps."""
SPIKE_STEPS = 8
"""How long the provoked fault lasts."""
_PEAK, _SPIKE, _WARM_UP_STEPS = 0.1, 40.0, 50


def learning_rate(step: int, steps: int, fault_at: int | None) -> float:
    """Warm-up, then a half cosine; from `fault_at` on, a schedule gone wrong for a few steps."""
    if fault_at is not None and fault_at <= step < fault_at + SPIKE_STEPS:
        return _PEAK * _SPIKE
    return (
        _PEAK * min(1.0, (step + 1) / _WARM_UP_STEPS) * (1 + math.cos(math.pi * step / steps)) / 2
    )


def train(options: argparse.Namespace) -> None:
    """Train; what follows `with` is the loop of any script that uses qigstore."""
    from qigstore.safety.rules import Ewma, Finite, RuleSet, Threshold

    digits = load_digits(options.seed)
    network = _network(options)
    ledger = Ledger(options.ledger)
    rules = RuleSet([
        Finite(action="abort"),
        Ewma("loss", action="abort"),
        Threshold("learning_rate", above=2 * _PEAK, severity="warning"),
    ])  # fmt: skip
    config = {key: value for key, value in vars(options).items() if key != "ledger"}

    with qigstore.session(
        options.session, config=config, rules=rules, settle_steps=SETTLE_STEPS
    ) as run:
        run.set_reference_basin(basin_of(network.hidden(digits.probe)))
        network.load(run.recover(default=network.state))
        for step in run.steps(network.step, options.steps):
            rate = learning_rate(step, options.steps, options.fault_at)
            loss, accuracy, grad_norm = network.train(*digits.batch(step), rate)
            hidden = network.hidden(digits.probe)
            phi, phi_nats = phi_of(hidden)
            with ledger.around(run.attempt, step, loss):
                run.record(
                    step,
                    loss=loss,
                    accuracy=accuracy,
                    grad_norm=grad_norm,
                    learning_rate=rate,
                    phi=phi,
                    phi_nats=phi_nats,
                    basin=basin_of(hidden),
                    test_accuracy=network.accuracy(digits.test_x, digits.test_y),
                )
            run.checkpoint(network.state(), step=step, every=options.every)
            if step % 100 == 0:
                print(f"step {step}: loss {loss:.4f}", flush=True)  # noqa: T201


def _network(options: argparse.Namespace) -> Network | TorchNetwork:
    if options.torch:
        from qigstore.demo.torch_model import TorchNetwork

        return TorchNetwork(options.seed)
    from qigstore.demo.model import Network

    return Network(options.seed)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--session", required=True, help="name of the session")
    parser.add_argument("--steps", type=int, default=2000, help="steps to train")
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="split, initial weights, order")
    parser.add_argument("--fault-at", type=int, help="step at which the schedule goes wrong")
    parser.add_argument("--torch", action="store_true", help="train with PyTorch")
    parser.add_argument(
        "--ledger", type=Path, default=Path(os.devnull), help="file for our own count of rows"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script; an error we know is one line, and the status tells what kind it is."""
    from qigstore.cli import exit_code

    try:
        train(_options(arguments))
    except (QigstoreError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
