"""A model divided among ranks (FSDP2), saved and recovered by all of them together.

    torchrun --standalone --nproc-per-node 2 examples/sharded.py

Start it again with another number of ranks: it goes on from the same checkpoint. Rank 0 records;
the others' runs are off. Needs `pip install 'qigstore[torch]'` (torch 2.6 or later for FSDP2).
"""

from __future__ import annotations

import os
import sys
from typing import Any

import qigstore

try:
    import torch
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
except ImportError as error:
    sys.exit(f"this example needs PyTorch: pip install 'qigstore[torch]' ({error})")

STEPS = int(os.environ.get("STEPS", "60"))


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.rand(64, 2, generator=order) * 2 - 1
    return x, (x[:, :1] * x[:, 1:] > 0).float()


def main() -> None:
    dist.init_process_group("gloo")
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)

    def state(step: int) -> dict[str, Any]:
        weights, moments = get_state_dict(model, optimizer)
        return {"step": step, "model": weights, "optimizer": moments}

    mode = "online" if rank == 0 else "off"
    with qigstore.session("sharded", mode=mode) as run, run.sharded(limit_s=120) as sharded:
        saved = sharded.recover(into=state(0))
        set_state_dict(
            model, optimizer,
            model_state_dict=saved["model"], optim_state_dict=saved["optimizer"],
        )  # fmt: skip
        for step in range(saved["step"], STEPS):
            x, y = batch(step, rank)
            optimizer.zero_grad()
            scores = model(x)
            torch.nn.functional.binary_cross_entropy_with_logits(scores, y).backward()
            optimizer.step()
            accuracy = ((scores > 0) == (y > 0.5)).float().mean()
            dist.all_reduce(accuracy)
            run.record(step, accuracy=accuracy / mesh.size(), phi=accuracy / mesh.size())
            sharded.checkpoint(state(step + 1), step=step, every=20)
            if sharded.should_stop:
                break
        if rank == 0:
            print(f"began at step {saved['step']}, accuracy {float(accuracy) / mesh.size():.2f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
