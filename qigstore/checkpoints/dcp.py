"""Our files under `torch.distributed.checkpoint` (DCP), which divides tensors among ranks.

DCP plans who writes what and, on the way back, which parts of which chunks a rank needs, however
many ranks saved. Its own storage keeps the plan's description as a pickle; ours is in the manifest,
so that nothing that was read from a disk is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.checkpoint import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    StorageReader,
    StorageWriter,
)
from torch.distributed.checkpoint import load as dcp_load
from torch.distributed.checkpoint import save as dcp_save
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from qigstore.checkpoints.arrays import torch_restore
from qigstore.checkpoints.format import Manifest
from qigstore.checkpoints.opened import OpenCheckpoint
from qigstore.checkpoints.portions import Portion
from qigstore.checkpoints.tree import Reference
from qigstore.errors import CheckpointError

__all__ = ["Chunks", "load_chunks", "save_chunks"]

Chunks = Mapping[str, tuple[str, tuple[int, ...], Any]]
"""What one rank writes: by its name in the file the array's name, the chunk's offsets, the data."""

_BATCH_BYTES = 256 << 20


def save_chunks(
    tensors: Mapping[str, Portion], group: Any, put: Callable[[Chunks], Any]
) -> list[Any]:
    """Have DCP divide tensors among the ranks; `put` writes what falls to this one.

    Returns:
        On rank 0 what `put` returned on every rank; elsewhere nothing.

    Raises:
        CheckpointError: on every rank, where one of them raised.
        RuntimeError: a rank is gone.
    """
    writer = _Writer(put)
    # Without `flatten_…`: the state was taken apart by us, and holds tensors alone.
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with _in_words("saved"):
        dcp_save(
            {name: portion.tensor for name, portion in tensors.items()},
            storage_writer=writer,
            planner=planner,
            process_group=group,
        )
    return writer.told


def load_chunks(
    tensors: Mapping[str, Portion],
    group: Any,
    opened: OpenCheckpoint,
    saved: Mapping[str, Reference],
) -> None:
    """Fill tensors in place; every chunk that is read is verified.

    Raises:
        CheckpointError: on every rank, where one of them could not read its part.
        RuntimeError: a rank is gone.
    """
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with _in_words("loaded"):
        dcp_load(
            {name: portion.tensor for name, portion in tensors.items()},
            storage_reader=_Reader(tensors, opened, saved),
            planner=planner,
            process_group=group,
        )


class _in_words:
    """DCP's error, which carries every rank's, as one of ours."""

    def __init__(self, done: str) -> None:
        self._done = done

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, CheckpointException):
            said = [f"rank {rank}: {failure[0]}" for rank, failure in error.failures.items()]
            raise CheckpointError(f"not {self._done}: {'; '.join(said)}") from error


@contextmanager
def _plainly() -> Iterator[None]:
    """An error of ours with its words alone: DCP sends it to the other ranks."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(str(error)) from None


class _Writer(StorageWriter):  # type: ignore[misc]
    def __init__(self, put: Callable[[Chunks], Any]) -> None:
        self._put = put
        self.told: list[Any] = []

    @classmethod
    def validate_checkpoint_id(cls, _checkpoint_id: Any) -> bool:
        return True

    def reset(self, checkpoint_id: Any = None) -> None:
        assert checkpoint_id is None

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **__: Any) -> None:
        assert isinstance(is_coordinator, bool)

    def prepare_local_plan(self, plan: Any) -> Any:
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        return plans

    def write_data(self, plan: Any, planner: Any) -> Any:
        chunks = {}
        for item in plan.items:
            if item.type is WriteItemType.BYTE_IO:
                raise CheckpointError(f"{item.index.fqn!r:.80} is no tensor")  # DCP would pickle it
            name, offsets = item.index.fqn, tuple(item.tensor_data.chunk.offsets)
            key = _chunk_name(name, item.tensor_data)
            chunks[key] = (name, offsets, planner.resolve_data(item))
        with _plainly():
            told = self._put(chunks)
        future = Future()
        future.set_result([WriteResult(MetadataIndex(""), 0, told)])
        return future

    def finish(self, metadata: Any, results: list[list[Any]]) -> None:
        assert metadata is not None
        self.told = [result.storage_data for told in results for result in told]


def _chunk_name(name: str, data: Any) -> str:
    """``weight`` where the chunk is all of it, else as a slice: ``weight[0:4,2:4]``."""
    if tuple(data.chunk.sizes) == tuple(data.size):
        return name
    pairs = zip(data.chunk.offsets, data.chunk.sizes, strict=True)
    return f"{name}[{','.join(f'{at}:{at + size}' for at, size in pairs)}]"


class _Reader(StorageReader):  # type: ignore[misc]
    def __init__(
        self,
        tensors: Mapping[str, Portion],
        opened: OpenCheckpoint,
        saved: Mapping[str, Reference],
    ) -> None:
        self._tensors, self._opened, self._saved = tensors, opened, saved
        self._keys = {
            (name, offsets[: portion.tensor.ndim]): key
            for name, portion in tensors.items()
            for key, offsets in opened.manifest.arrays[name].chunks.items()
        }

    @classmethod
    def validate_checkpoint_id(cls, _checkpoint_id: Any) -> bool:
        return True

    def reset(self, checkpoint_id: Any = None) -> None:
        assert checkpoint_id is None

    def read_metadata(self) -> Any:
        manifest = self._opened.manifest
        found = {name: _metadata(name, p, manifest) for name, p in self._tensors.items()}
        return Metadata(found)

    def set_up_storage_reader(self, metadata: Any, is_coordinator: bool) -> None:
        assert metadata is not None
        assert isinstance(is_coordinator, bool)

    def prepare_local_plan(self, plan: Any) -> Any:
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        return plans

    def read_data(self, plan: Any, planner: Any) -> Any:
        by_chunk: dict[str, list[Any]] = {}
        for item in plan.items:
            key = self._keys[item.storage_index.fqn, tuple(item.storage_index.offset)]
            by_chunk.setdefault(key, []).append(item)
        with _plainly():
            for keys in self._batches(sorted(by_chunk)):
                for key, stored in self._opened.stored(keys).items():
                    for item in by_chunk[key]:
                        node = dict(self._saved[item.storage_index.fqn].node)
                        chunk = torch_restore(stored, node | {"grad": False, "parameter": False})
                        _copy(chunk, item, planner)
        future = Future()
        future.set_result(None)
        return future

    def _batches(self, keys: list[str]) -> Iterator[list[str]]:
        """Chunks in groups of some megabytes, so that no rank holds its part twice."""
        batch: list[str] = []
        room = _BATCH_BYTES
        for key in keys:
            size = self._opened.size_of(key)
            if batch and size > room:
                yield batch
                batch, room = [], _BATCH_BYTES
            batch.append(key)
            room -= size
        if batch:
            yield batch


def _metadata(name: str, portion: Portion, manifest: Manifest) -> Any:
    whole, ndim = manifest.arrays[name], portion.tensor.ndim
    chunks = [
        ChunkStorageMetadata(
            torch.Size(offsets[:ndim]), torch.Size(manifest.tensors[key].shape[:ndim])
        )
        for key, offsets in whole.chunks.items()
    ]
    properties = TensorProperties(dtype=portion.tensor.dtype)
    return TensorStorageMetadata(properties, torch.Size(whole.shape[:ndim]), chunks)


def _copy(chunk: Any, item: Any, planner: Any) -> None:
    for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
        chunk = chunk.narrow(dim, start, length)
    target = planner.resolve_tensor(item).detach()
    target.copy_(chunk)
    planner.commit_tensor(item, target)
