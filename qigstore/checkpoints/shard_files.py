"""What the files of several ranks hold together, and how the work on them is divided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qigstore.checkpoints.arrays import ITEM_BYTES, Leaf
from qigstore.checkpoints.format import Sharding, TensorInfo, WholeArray, shard_name
from qigstore.checkpoints.info import Contents
from qigstore.checkpoints.opened import OpenCheckpoint
from qigstore.checkpoints.portions import outside, portions
from qigstore.checkpoints.tree import FlatState
from qigstore.errors import CheckpointError

__all__ = ["Ready", "add_leaves", "bytes_of", "contents_of_ranks", "share_of"]


@dataclass(frozen=True, slots=True)
class Ready:
    """A state that all ranks agreed to save, and what only this one has."""

    flat: FlatState
    own: FlatState


def add_leaves(leaves: dict[str, Leaf], more: Mapping[str, Leaf]) -> None:
    """Put more arrays into a file.

    Raises:
        CheckpointError: one of them has the name of another.
    """
    twice = sorted(leaves.keys() & more.keys())
    if twice:
        raise CheckpointError(f"arrays of the same name: {twice!r:.200}; rename them in the state")
    leaves.update(more)


def bytes_of(ready: Ready, ranks: int) -> int:
    """About how many bytes all files will have together."""
    own: int = sum(leaf.nbytes for leaf in ready.own.leaves.values())
    whole = sum(ITEM_BYTES[p.code] * math.prod(p.shape) for p in portions(ready.flat).values())
    return whole + sum(leaf.nbytes for leaf in outside(ready.flat).values()) + own * ranks


def contents_of_ranks(ready: Ready, reports: Sequence[Mapping[str, Any]], folder: Path) -> Contents:
    """What all ranks' files hold together.

    Raises:
        OSError: a rank could not write its file.
        CheckpointError: two ranks wrote an array of the same name.
    """
    failed = [report for report in reports if "error" in report]
    if failed:
        words = "; ".join(report["error"] for report in failed)
        raise OSError(failed[0]["errno"], words, str(folder))
    tensors: dict[str, TensorInfo] = {}
    arrays: dict[str, WholeArray] = {
        name: WholeArray(leaf.code, leaf.shape, {name: (0,) * len(leaf.shape)})
        for name, leaf in outside(ready.flat).items()
    }
    chunks: dict[str, dict[str, tuple[int, ...]]] = {}
    whole = portions(ready.flat)
    for rank, report in enumerate(reports):
        file = shard_name(rank)
        mine = {
            n: TensorInfo(t.dtype, t.shape, t.blake3, file) for n, t in report["tensors"].items()
        }
        if tensors.keys() & mine.keys():
            raise CheckpointError(
                f"arrays of the same name: {sorted(tensors.keys() & mine.keys())}"
            )
        tensors |= mine
        for key, (name, offsets) in report["chunks"].items():
            chunks.setdefault(name, {})[key] = (*offsets, *(0 for _ in whole[name].tail))
    arrays |= {n: WholeArray(p.code, p.shape, chunks[n]) for n, p in whole.items()}
    return Contents(
        files={shard_name(rank): report["file"] for rank, report in enumerate(reports)},
        tensors=tensors,
        skeleton=ready.flat.skeleton,
        not_finite=[name for report in reports for name in report["not_finite"]],
        sharding=Sharding(arrays, tuple(report["own"] for report in reports)),
    )


def share_of(opened: OpenCheckpoint, rank: int, ranks: int) -> set[str]:
    """The stored arrays that one rank verifies: about as many bytes as any other's."""
    tensors = opened.manifest.tensors
    names = sorted(tensors, key=lambda name: (tensors[name].file, name))
    total, before, mine = sum(map(opened.size_of, names)), 0, set()
    for name in names:
        if before * ranks // max(total, 1) == rank or (total == before and rank == ranks - 1):
            mine.add(name)
        before += opened.size_of(name)
    return mine
