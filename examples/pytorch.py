"""The same around a PyTorch model and its optimizer: needs `pip install 'qigstore[torch]'`.

`state_dict()` of both is the checkpoint; the order of the data follows from the step, so a resumed
run sees what an undisturbed one would have seen.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import qigstore

try:
    import torch
except ImportError:
    sys.exit("this example needs PyTorch: pip install 'qigstore[torch]'")


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.Generator().manual_seed(step)
    x = torch.rand(64, 2, generator=order) * 2 - 1
    return x, (x[:, :1] * x[:, 1:] > 0).float()


def main() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    def state(step: int) -> dict[str, Any]:
        return {
            "step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()
        }  # fmt: skip

    with qigstore.session(os.environ.get("SESSION", "pytorch"), config={"lr": 0.02}) as run:
        saved = run.recover(default=lambda: state(0))
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        for step in run.steps(saved["step"], 400):
            x, y = batch(step)
            optimizer.zero_grad()
            scores = model(x)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, y)
            loss.backward()
            optimizer.step()
            accuracy = ((scores > 0) == (y > 0.5)).float().mean()
            # Without a measure of integration of its own, this run ranks by accuracy.
            run.record(step, loss=loss, accuracy=accuracy, phi=accuracy)
            run.checkpoint(state(step + 1), step=step, every=100)
    x, y = batch(400)
    print(f"accuracy on a fresh batch: {float(((model(x) > 0) == (y > 0.5)).float().mean()):.2f}")


if __name__ == "__main__":
    main()
