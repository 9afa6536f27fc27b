"""PyTorch: the ranks of a `torch.distributed` job stop at one step, with one checkpoint.

::

    torch.distributed.init_process_group("gloo")
    with qigstore.session("ddp", ranks=ranks()) as run:
        ...

Each rank records its own rows; rank 0 claims the session, chooses what to recover and saves.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from qigstore.errors import ConfigurationError, RankError
from qigstore.safety.ranks import Ranks

__all__ = ["ranks"]

_ASK_EVERY = timedelta(seconds=1)
_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "timed out")
"""What gloo says, in an ordinary RuntimeError, where the other end of a pair is gone or silent."""


def ranks(*, every: int = 1, limit_s: float = 120.0) -> Ranks:
    """The ranks of the process group; called by all of them, before `qigstore.session`.

    They exchange one number over gloo, in a group of their own, so that neither a GPU nor the
    training's own collectives wait for it.

    Args:
        every: steps between two exchanges. limit_s: how long a rank waits for the others at a
            step's end and at the start: longer than any step, evaluation and save of one rank
            alone may take, and than rank 0 may need to ship what dead processes left.

    Raises:
        ConfigurationError: `torch.distributed` is not initialised, or a number out of its range.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigurationError(
            "ranks(): torch.distributed is not initialised. Start the program with torchrun and "
            "call torch.distributed.init_process_group first; a process alone needs no ranks."
        )
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=limit_s))
    # Else its threads, which C++ ends with an abort, may give the process another exit status.
    atexit.register(_leave)
    return Ranks(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        most=lambda number, waits: _most(group, number, waits),
        tell=lambda text, source: _tell(group, text, source),
        broke=_broke,
        mark=_mark,
        every=every,
        limit_s=limit_s,
    )


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _most(group: Any, number: int, waits: Callable[[], bool]) -> int:
    held = torch.tensor([number], dtype=torch.int64)
    try:
        work = dist.all_reduce(held, op=dist.ReduceOp.MAX, group=group, async_op=True)
    except RuntimeError as error:
        raise _lost(error) from error
    while True:
        try:
            work.wait(_ASK_EVERY)
            return int(held)
        except RuntimeError as error:
            if work.is_completed():
                raise _lost(error) from error
            if not waits():
                raise RankError("a rank did not come to the end of its step in time") from error


def _tell(group: Any, text: str, source: int) -> str:
    sent = text.encode()
    length = torch.tensor([len(sent)], dtype=torch.int64)
    try:
        dist.broadcast(length, src=source, group=group)
        held = torch.zeros(int(length), dtype=torch.uint8)
        if sent and dist.get_rank() == source:
            held = torch.frombuffer(bytearray(sent), dtype=torch.uint8)
        dist.broadcast(held, src=source, group=group)
    except RuntimeError as error:
        raise _lost(error) from error
    return bytes(held.tolist()).decode()


def _broke(error: BaseException) -> bool:
    """Whether a collective failed because of its other end."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and _words(error) is not None
    )


def _words(error: BaseException) -> str | None:
    text = str(error).lower()
    return next((words for words in _GONE if words.lower() in text), None)


def _lost(error: RuntimeError) -> RankError:
    return RankError(f"a rank is gone: {_words(error) or error}")


def _mark(state: Any) -> object:
    """The version counters of a state's tensors, which every write raises, and its plain values.

    None where it holds anything whose changes leave no trace, such as a NumPy array.
    """
    marks = tuple(_marks(state))
    return None if None in marks else marks


def _marks(state: Any) -> Iterator[object]:
    if isinstance(state, torch.Tensor):
        yield id(state), state._version
    elif isinstance(state, Mapping):
        for name, value in state.items():
            yield repr(name)
            yield from _marks(value)
    elif isinstance(state, Sequence) and not isinstance(state, (str, bytes)):
        for value in state:
            yield from _marks(value)
    elif state is None or isinstance(state, (bool, int, float, str, bytes)):
        yield repr(state)
    else:
        yield None
