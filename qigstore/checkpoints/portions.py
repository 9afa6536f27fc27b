"""A state of which each rank has a part: which tensors it has, and whether it fits a checkpoint.

Tensors are plain (every rank has the same numbers) or DTensors (each rank has its chunk); what is
no tensor is rank 0's word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from qigstore.checkpoints.arrays import Leaf, place, tensor_identity, torch_leaf
from qigstore.checkpoints.format import Manifest
from qigstore.checkpoints.tree import FlatState, Reference, flatten, nearest
from qigstore.errors import CheckpointError

__all__ = [
    "Portion",
    "differences",
    "disagreement",
    "flatten_portions",
    "outside",
    "portions",
    "structure",
]


@dataclass(frozen=True, slots=True)
class Portion:
    """A tensor of which this process may have only a part.

    `code` and `tail` are its dtype in a file and the dimensions that storing it adds there.
    """

    tensor: Any
    code: str
    tail: tuple[int, ...]
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole tensor's shape in files."""
        return (*self.tensor.shape, *self.tail)


class _Portions:
    """The rule by which `flatten` takes them."""

    def identity(self, tensor: Any, /) -> object:
        if isinstance(tensor, DTensor):
            where = (tuple(tensor.shape), str(tensor.placements), str(tensor.device_mesh))
            return tensor_identity(tensor.to_local()), where
        return tensor_identity(tensor)

    def leaf(self, tensor: Any, path: tuple[Any, ...], /) -> tuple[Portion, dict[str, Any]]:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if isinstance(tensor, DTensor) and any(kind.is_partial() for kind in tensor.placements):
            raise CheckpointError(
                f"{place(path)}: a DTensor of partial sums cannot be saved; redistribute it first"
            )
        # No element is needed to know how such tensors are stored; what cannot be is refused here.
        sample, node = torch_leaf(local.detach()[:0] if local.ndim else local.detach(), path)
        node["grad"] = bool(tensor.requires_grad)
        node["parameter"] = isinstance(tensor, torch.nn.Parameter)
        return Portion(tensor, sample.code, sample.shape[local.ndim :], node["dtype"]), node


def flatten_portions(state: Any) -> FlatState:
    """Take a distributed state apart; its tensors become a `Portion` each.

    Raises:
        CheckpointError: something that cannot be saved, by its place.
    """
    return flatten(state, _Portions())


def portions(flat: FlatState) -> dict[str, Portion]:
    """The tensors among its leaves."""
    return {name: leaf for name, leaf in flat.leaves.items() if isinstance(leaf, Portion)}


def outside(flat: FlatState) -> dict[str, Leaf]:
    """The arrays among its leaves that are no tensors of torch."""
    return {name: leaf for name, leaf in flat.leaves.items() if isinstance(leaf, Leaf)}


def structure(flat: FlatState) -> dict[str, list[Any]]:
    """Names, dtypes and shapes of its tensors, in which all ranks must agree."""
    return {name: [p.dtype, *p.shape] for name, p in portions(flat).items()}


def disagreement(structures: Sequence[Mapping[str, list[Any]]]) -> str:
    """The first tensor in which a rank's structure is not rank 0's, in words; empty: none."""

    def said(found: list[Any] | None) -> str:
        return "not there" if found is None else f"{found[0]} {tuple(found[1:])}"

    first = structures[0]
    for rank, other in enumerate(structures):
        for name in {**first, **other}:
            one, two = first.get(name), other.get(name)
            if one != two:
                return f"{name!r} is {said(one)} on rank 0 and {said(two)} on rank {rank}"
    return ""


def differences(
    flat: FlatState, manifest: Manifest, saved: Mapping[str, Reference]
) -> Iterator[str]:
    """Where a state does not fit what a checkpoint says it holds, in words."""
    mine = portions(flat)
    for name, portion in mine.items():
        found = saved.get(name)
        if found is None:
            yield f"{name!r}: not in the checkpoint{nearest(name, saved)}"
            continue
        shape, dtype = manifest.arrays[name].shape, found.node["dtype"]
        if dtype != portion.dtype:
            yield f"{name!r}: dtype: expected {portion.dtype}, found {dtype}"
        elif shape != portion.shape:
            yield f"{name!r}: shape: expected {portion.shape}, found {shape}"
    for name in saved:
        if name not in mine:
            yield f"{name!r}: in the checkpoint only{nearest(name, mine)}"
