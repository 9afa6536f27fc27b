"""Several processes train one model on scikit-learn's digits and stop together: needs PyTorch.

    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    torchrun --standalone --nproc-per-node 2 --max-restarts 1 examples/ranks.py

(Without the variable, processes that torchrun starts again may look for the dead ones' addresses:
pytorch/pytorch#135712.)

In its first life something breaks on one rank at step 120 (FAULT: a loss that is not finite, "nan";
an exception, "raise"; a kill, "kill"; a silent process, "hang"). All ranks stop at the same step,
rank 0 saves, and torchrun starts them again: they go on from the best checkpoint, and finish.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import qigstore
from qigstore.demo.data import load_digits
from qigstore.safety import Finite

try:
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from qigstore.integrations.torch import ranks
except ImportError:
    sys.exit("this example needs PyTorch: pip install 'qigstore[torch]'")

STEPS, FAULT_AT = int(os.environ.get("STEPS", "240")), int(os.environ.get("FAULT_AT", "120"))
FAULT, FAULT_RANK = os.environ.get("FAULT", "nan"), int(os.environ.get("FAULT_RANK", "1"))
PAUSE_S = float(os.environ.get("PAUSE_S", "0"))  # time to interrupt it by hand


def break_down(loss: torch.Tensor) -> torch.Tensor:
    if FAULT == "raise":
        raise ValueError("this rank's data are unreadable")
    if FAULT == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if FAULT == "hang":
        os.kill(os.getpid(), signal.SIGSTOP)
    return loss * float("nan") if FAULT == "nan" else loss


def main() -> None:
    torch.manual_seed(3)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    digits = load_digits(seed=3)
    net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def state(step: int) -> dict[str, Any]:
        return {
            "step": step, "model": net.state_dict(), "optimizer": optimizer.state_dict()
        }  # fmt: skip

    limit_s = float(os.environ.get("LIMIT_S", "60"))
    name, rules = os.environ.get("SESSION", "ranks"), [Finite("loss", action="abort")]
    with qigstore.session(name, rules=rules, ranks=ranks(limit_s=limit_s), settle_steps=5) as run:
        saved = run.recover(default=lambda: state(0))
        net.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        for step in run.steps(saved["step"], STEPS):
            images, labels = (torch.from_numpy(part[rank::size]) for part in digits.batch(step))
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images.float()), labels)
            if run.attempt == 1 and (rank, step) == (FAULT_RANK, FAULT_AT):
                loss = break_down(loss)
            loss.backward()  # averages the gradients of all ranks
            optimizer.step()
            run.record(step, loss=loss)
            run.checkpoint(state(step + 1), step=step, every=50)
            time.sleep(PAUSE_S)
    with torch.no_grad():
        guessed = net(torch.from_numpy(digits.test_x).float()).argmax(1)
    right = float((guessed == torch.from_numpy(digits.test_y)).float().mean())
    print(f"rank {rank}, step {STEPS}: accuracy {right:.2f}", flush=True)


if __name__ == "__main__":
    main()
