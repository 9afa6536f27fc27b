"""The states of the global random generators, as values that a checkpoint holds.

Python's, NumPy's, and of torch its CPU's and every CUDA device's, where torch is loaded. A
`numpy.random.Generator` is the caller's own: save its ``bit_generator.state``; so are JAX's keys,
which are arrays.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from qigstore.errors import CheckpointError

__all__ = ["random_states", "set_random_states"]


def random_states() -> dict[str, Any]:
    """The states now; put them into the state that is saved."""
    found: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state()}  # noqa: NPY002
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch"] = torch.get_rng_state()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            found["cuda"] = list(torch.cuda.get_rng_state_all())
    return found


def set_random_states(states: Mapping[str, Any]) -> None:
    """Go on where `random_states` was taken.

    Raises:
        CheckpointError: they hold torch's and it is not loaded, or there are fewer CUDA devices.
    """
    torch = sys.modules.get("torch")
    if torch is None and {"torch", "cuda"} & set(states):
        raise CheckpointError("these random states hold torch's; `import torch` first")
    if torch is not None and "cuda" in states:
        if len(states["cuda"]) > torch.cuda.device_count():
            raise CheckpointError(
                f"these random states are of {len(states['cuda'])} CUDA devices, here are "
                f"{torch.cuda.device_count()}. Drop `states['cuda']` to go on without them."
            )
        torch.cuda.set_rng_state_all(states["cuda"])
    if torch is not None and "torch" in states:
        torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
