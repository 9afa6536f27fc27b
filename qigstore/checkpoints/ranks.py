"""The ranks of a distributed training run, as saving and loading together need them.

They talk over connections of their own (a gloo group), so that nothing of it gets between the
collectives of training. What one waits for the others has a limit; and once they have lost each
other the connections are closed, so that nobody waits for who has given up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from qigstore.checkpoints.json_text import canonical_json
from qigstore.errors import CheckpointError, RankError

__all__ = ["Ranks"]

_MESSAGE_BYTES_MAX = 1 << 30


class Ranks:
    """All ranks of the initialised process group; rank 0 leads.

    Attributes:
        rank, size: this one's number, and how many there are.
        group: their group, for collectives between `tell` and `gather`.

    Raises:
        CheckpointError: `torch.distributed` is not initialised.
    """

    def __init__(self, limit_s: float = 600.0) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise CheckpointError(
                "torch.distributed is not initialised: call "
                "`torch.distributed.init_process_group()` first (torchrun sets what it needs)"
            )
        self.limit_s = limit_s
        self.rank: int = dist.get_rank()
        self.size: int = dist.get_world_size()
        self.group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=limit_s))

    def tell(self, message: Any = None) -> Any:
        """What rank 0 says, on every rank; the others say nothing.

        Raises:
            RankError: a rank did not answer within the limit.
        """
        with self.together():
            data = canonical_json(message) if self.rank == 0 else b""
            size = torch.tensor([len(data)], dtype=torch.int64)
            dist.broadcast(size, src=0, group=self.group)
            box = self._box(data, int(size))
            dist.broadcast(box, src=0, group=self.group)
            return json.loads(box.numpy().tobytes())

    def tell_flags(self, flags: tuple[bool, bool]) -> tuple[bool, bool]:
        """Two answers of rank 0, on every rank, in one small message: for every step.

        Raises:
            RankError: a rank did not answer within the limit.
        """
        with self.together():
            box = torch.tensor(flags, dtype=torch.uint8)
            dist.broadcast(box, src=0, group=self.group)
            first, second = box.tolist()
            return bool(first), bool(second)

    def gather(self, message: Any) -> list[Any]:
        """What each rank says, in their order, on every rank.

        Raises:
            RankError: a rank did not answer within the limit.
        """
        with self.together():
            data = canonical_json(message)
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            mine = torch.tensor([len(data)], dtype=torch.int64)
            dist.all_gather(sizes, mine, group=self.group)
            longest = max(int(size) for size in sizes)
            boxes = [self._box(b"", longest) for _ in range(self.size)]
            dist.all_gather(boxes, self._box(data, longest), group=self.group)
            pairs = zip(boxes, sizes, strict=True)
            return [json.loads(box.numpy().tobytes()[: int(size)]) for box, size in pairs]

    @contextmanager
    def together(self) -> Iterator[Any]:
        """Collectives of the group; where one fails, the group is closed for good.

        Raises:
            RankError: a rank did not answer within the limit, or had given up before.
        """
        if self.group is None:
            raise RankError("the ranks lost each other before; start the run again")
        try:
            yield self.group
        except RuntimeError as error:  # torch's own for a peer that is gone, or is late
            self.close()
            raise RankError(
                f"rank {self.rank} of {self.size}: another rank is gone, or did not answer within "
                f"{self.limit_s:g} s: {str(error).splitlines()[0][:300]}. Start the run again."
            ) from error

    def close(self) -> None:
        """Close the connections; safe to repeat, and after the process group is gone."""
        group, self.group = self.group, None
        if group is not None:
            with suppress(RuntimeError, ValueError, AssertionError):
                dist.destroy_process_group(group)

    def _box(self, data: bytes, size: int) -> Any:
        if not 0 <= size <= _MESSAGE_BYTES_MAX:
            raise CheckpointError(f"a message of {size} bytes between ranks; the limit is 1 GiB")
        box = torch.zeros(size, dtype=torch.uint8)
        if data:
            box[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return box
