"""What every store of checkpoints does alike, whether they lie in folders or in an object store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from qigstore.checkpoints.filling import fill
from qigstore.checkpoints.format import Manifest
from qigstore.checkpoints.info import SaveInfo
from qigstore.checkpoints.opened import OpenCheckpoint
from qigstore.checkpoints.payload import Staged, reserve, size_of, stage
from qigstore.checkpoints.tree import Part
from qigstore.errors import CheckpointError, NotFound
from qigstore.records import Checkpoint, Location

__all__ = ["AnyPins", "BaseStore", "Survey"]


@dataclass(frozen=True, slots=True)
class Survey:
    """What a session's folder holds: whole checkpoints, and folders that are none, with why."""

    checkpoints: tuple[Checkpoint, ...]
    damaged: tuple[tuple[Location, Exception], ...]


class AnyPins(Protocol):
    """The pins of one session, wherever they lie."""

    def pin(self, checkpoint_id: UUID, note: str = "") -> bool:
        """Keep a checkpoint until it is unpinned; False where it was pinned already."""

    def unpin(self, checkpoint_id: UUID) -> bool:
        """Take the pin away; False where there was none."""

    def all(self) -> dict[UUID, dict[str, Any]]:
        """Each pinned id, and what was noted."""

    def pruning(self) -> AbstractContextManager[bool]:
        """Hold the right to prune; False where another process has it, or nothing is there."""


class BaseStore(ABC):
    """Checkpoints of any number of sessions below one root."""

    root: Location

    @property
    @abstractmethod
    def id(self) -> UUID | None:
        """The id in the root's marker; None where nothing was saved yet."""

    @property
    def past_cache(self) -> bool | None:
        """Whether the last large payload went past the page cache; None where none went to one."""
        return None

    def save(self, state: Any, *, info: SaveInfo) -> Checkpoint:
        """Save a state; when this returns, it is on the disk, power loss included.

        Raises:
            CheckpointError: it was not saved (`__cause__` says what failed); earlier ones are as
                they were.
        """
        return self.commit(self.stage(state), info)

    def stage(self, state: Any, *, reuse: mmap | None = None) -> Staged:
        """Copy a state, so that training may go on changing it; nothing is written yet."""
        return stage(state, reuse)

    def size_of(self, state: Any) -> int:
        """Bytes that staging such a state takes."""
        return size_of(state)

    def reserve(self, size: int, *, reuse: mmap | None = None) -> mmap:
        """The memory that staging a state of this size takes; `reuse` where that will do."""
        return reserve(size, reuse)

    @abstractmethod
    def commit(self, staged: Staged, info: SaveInfo) -> Checkpoint:
        """Write a staged state; complete or absent, whatever happens.

        Raises:
            CheckpointError: it was not saved (`__cause__` says what failed).
        """

    @abstractmethod
    def folder_of(self, session: str) -> Location:
        """Where a session's checkpoints lie, whatever its name."""

    @abstractmethod
    def locate(self, session: str, checkpoint_id: UUID | str) -> Location:
        """Where a checkpoint lies if this store has it.

        Raises:
            InvalidInput: not an id.
        """

    def load(
        self,
        path: Path | str,
        *,
        verify: bool = True,
        part: Part = (),
        into: Any = None,
    ) -> Any:
        """Read a state back, by default with every digest verified.

        Args:
            path: the checkpoint's folder.
            verify: compare the digest of every array that is read.
            part: keys that lead to a part of the state, ``("model", "encoder")``; only the arrays
                of that part are read.
            into: a state to fill, ``model.state_dict()``: its arrays are overwritten in place,
                after everything was read and compared, and it is returned.

        Raises:
            NotFound: no such folder.
            CheckpointCorrupt: what is there is not what was saved.
            CheckpointFormatError: written by a newer version, or not below this root.
            CheckpointMismatch: it is good and has no such part, or does not fit `into`.
            CheckpointUnsupported: it is good and needs a library that is not installed here.
        """
        with self.open(path) as found:
            state = found.state(part, verify=verify)
        return state if into is None else fill(into, state)

    @abstractmethod
    def open(self, path: Path | str) -> AbstractContextManager[OpenCheckpoint]:
        """Open a checkpoint whose arrays are read one by one, each verified when it is asked for.

        Raises:
            NotFound, CheckpointCorrupt, CheckpointFormatError: as for `load`.
        """

    def verify(self, path: Path | str) -> Manifest:
        """Check every byte of a checkpoint in constant memory and return its manifest.

        Raises:
            NotFound, CheckpointCorrupt, CheckpointFormatError: as for `load`.
        """
        with self.open(path) as found:
            found.check()
            return found.manifest

    @abstractmethod
    def has(self, path: Path | str) -> bool:
        """Whether anything has that name, whole or not."""

    @abstractmethod
    def manifest(self, path: Path | str) -> Manifest:
        """The manifest alone, its own digest verified."""

    @abstractmethod
    def ids(self, session: str) -> set[UUID]:
        """The ids that a session has, by their names alone."""

    @abstractmethod
    def record(self, path: Path | str, *, session_id: int = 0) -> Checkpoint:
        """A checkpoint's record, made from its manifest alone."""

    def scan(self, session: str, *, session_id: int = 0) -> list[Checkpoint]:
        """The committed checkpoints of a session, by attempt, step and id."""
        return list(self.survey(session, session_id=session_id).checkpoints)

    def survey(self, session: str, *, session_id: int = 0) -> Survey:
        """The committed checkpoints of a session, and what stands among them and is none.

        Manifests are verified, payloads are not; nothing is changed.
        """
        whole: list[Checkpoint] = []
        damaged: list[tuple[Location, Exception]] = []
        for key in self.ids(session):
            path = self.locate(session, key)
            try:
                whole.append(self.record(path, session_id=session_id))
            except NotFound:
                continue  # deleted meanwhile
            except (CheckpointError, OSError) as error:
                damaged.append((path, error))
        whole.sort(key=lambda item: (item.attempt, item.step, item.id))
        return Survey(tuple(whole), tuple(damaged))

    @abstractmethod
    def pins(self, session: str) -> AnyPins:
        """What stays whatever retention says."""

    @abstractmethod
    def in_use(self, path: Path | str) -> AbstractContextManager[None]:
        """Keep a checkpoint from being removed while it is read.

        Raises:
            NotFound: it is being removed now.
        """

    @abstractmethod
    def removing(self, path: Path | str) -> AbstractContextManager[bool]:
        """Hold a checkpoint against readers; False where one reads it, or it is gone."""

    @abstractmethod
    def quarantine(self, path: Path | str, reason: str) -> Location:
        """Put a checkpoint aside, with the reason beside it; it is never loaded nor deleted.

        Raises:
            NotFound: there is none.
            OSError: the store refused.
        """

    @abstractmethod
    def delete(self, path: Path | str) -> None:
        """Remove a checkpoint, so that it is never seen half there.

        Raises:
            NotFound: there is none.
            CheckpointError: it cannot be proved to be one of this store; quarantine it instead.
        """

    @abstractmethod
    def clean(self, session: str) -> Iterable[Location]:
        """Remove what dead processes left of unfinished saves and deletions; return what it was.

        Removed is only what is provably ours and nobody's at work.
        """
