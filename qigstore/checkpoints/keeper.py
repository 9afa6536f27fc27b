"""The checkpoints of one session as training sees them: save behind its back, load the best.

`save` copies the state and returns; a background thread writes it. At most one save is in flight:
the next one waits for it, up to a limit, so that there is one copy in memory. That thread is no
daemon: an interpreter that ends waits for it. A second thread inserts rows and removes what no
role keeps, so that a database that is slow or gone holds up neither training nor a save.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from mmap import mmap
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from qigstore.checkpoints.base import BaseStore
from qigstore.checkpoints.info import SaveInfo
from qigstore.checkpoints.pruning import prune
from qigstore.checkpoints.ranking import finite, judge
from qigstore.checkpoints.retention import Retention
from qigstore.checkpoints.rows import CheckpointRows, RowPost
from qigstore.checkpoints.tree import Part
from qigstore.errors import CheckpointCorrupt, CheckpointError, NotFound, StoreError
from qigstore.records import Candidate, Checkpoint, CheckpointKind

if TYPE_CHECKING:
    from qigstore.checkpoints.payload import Staged

__all__ = ["CheckpointKeeper"]

_ERRORS_MAX = 100
_ROW_WAIT_S = 10.0
"""How long `wait` waits for the database; a row that is later still comes by itself."""


class CheckpointKeeper:
    """Save, find, load and remove the checkpoints of one session.

    Args:
        store: the folders.
        checkpoints: the repository's rows; None: work on the folders alone.
        session_id, session_name, attempt: whose checkpoints they are.
        retention: what to keep (newest 3 and best 3 unless told otherwise).
        keep_top_k: short for a retention that keeps that many best ones.
        phi_floor: least Φ of a healthy checkpoint; None: any finite Φ.
        save_wait_s: how long a save waits for the one before it.
        on_error: told of a save that failed, at once, from the background thread. Without it the
            next `save` raises the error (after its own copy is under way).
    """

    def __init__(
        self,
        store: BaseStore,
        checkpoints: CheckpointRows | None,
        *,
        session_id: int,
        session_name: str,
        attempt: int,
        retention: Retention | None = None,
        keep_top_k: int | None = None,
        phi_floor: float | None = None,
        save_wait_s: float = 300.0,
        on_error: Callable[[UUID, int, Exception], None] | None = None,
    ) -> None:
        retention = retention or Retention()
        if keep_top_k is not None:
            retention = replace(retention, keep_best=keep_top_k)
        self.store, self.retention, self.phi_floor = store, retention, phi_floor
        self.session_id, self.session_name, self.attempt = session_id, session_name, attempt
        self._rows, self._save_wait_s, self._on_error = checkpoints, save_wait_s, on_error
        self._pid = os.getpid()
        self._saving = threading.Lock()  # one caller stages at a time
        self._state = threading.Lock()  # guards what follows
        self._thread: threading.Thread | None = None
        self._thread_step = 0
        self._tidier: threading.Thread | None = None
        self._tidy_wanted = False
        self._buffer: mmap | None = None
        self._prepared = False
        self._closed = False
        self._index: dict[UUID, Checkpoint] = {}
        self._protected: set[UUID] = set()
        self._last: UUID | None = None
        self.last_step = -1
        self._errors: list[tuple[str, Exception, UUID | None]] = []  # of which save, if of one
        self._post = RowPost(checkpoints, self._note_away)
        self._counts = {"saved": 0, "failed": 0, "pruned": 0}
        self._last_error: str | None = None

    # ------------------------------------------------------------ saving

    def save(
        self,
        state: Any,
        *,
        step: int,
        phi: float | None = None,
        kappa_eff: float | None = None,
        regime: str | None = None,
        kind: CheckpointKind = "regular",
        metadata: Mapping[str, Any] | None = None,
        checkpoint_id: UUID | None = None,
        wait: bool = False,
    ) -> UUID:
        """Copy the state and save it behind the caller's back; a low Φ is no reason not to.

        `checkpoint_id` names it beforehand; without one it gets a random id.

        Returns:
            The checkpoint's id; it is committed when `wait` says so (with `wait=True`: now).

        Raises:
            CheckpointError: this state cannot be saved; or, where nobody else was told (see
                `on_error`), an earlier save failed: this one is then under way all the same.
        """
        with self._turn(step):
            info = self._info(
                step=step,
                phi=phi,
                kappa_eff=kappa_eff,
                regime=regime,
                kind=kind,
                metadata=metadata or {},
                checkpoint_id=checkpoint_id,
            )
            staged = self.store.stage(state, reuse=self._buffer)
            self._buffer, self.last_step = staged.buffer, info.step
            thread = threading.Thread(
                target=self._work, args=(staged, info), name="qigstore-checkpoint", daemon=False
            )
            self._thread, self._thread_step = thread, info.step
            thread.start()
        if wait:
            self.wait()
        elif self._on_error is None:
            self._raise_errors(but_of=info.id)
        return info.id

    def save_by(self, commit: Callable[[SaveInfo], Checkpoint], *, step: int, **known: Any) -> UUID:
        """Save now, by a way of committing of the caller's own (see `CheckpointStore.commit_by`).

        `known` is as for `save`. On a full disk it is called again once something was pruned.

        Raises:
            CheckpointError: it was not saved; `on_error` was told as well.
        """
        with self._turn(step):
            info = self._info(step=step, **known)
            self.last_step = info.step
            self._finish(info, partial(commit, info))
        return info.id

    @contextmanager
    def _turn(self, step: int) -> Iterator[None]:
        """One caller at a time, once the save before it has ended."""
        self._check_usable()
        deadline = time.monotonic() + self._save_wait_s
        if not self._saving.acquire(timeout=self._save_wait_s):
            raise self._still_saving(step)
        try:
            self._join(deadline, step)
            yield
        finally:
            self._saving.release()

    def _info(self, *, checkpoint_id: UUID | None = None, **known: Any) -> SaveInfo:
        return SaveInfo(
            session_name=self.session_name,
            session_id=self.session_id,
            attempt=self.attempt,
            parent=self._last,
            id=checkpoint_id or uuid4(),
            **known,
        )

    def prepare(self, state: Any, *, wait: bool = True) -> None:
        """Take the memory of a save now, so that the first one blocks no longer than the others.

        `wait=False`: behind the caller's back, once, and not where a save has taken it already;
        a save that comes meanwhile waits for it. It is as much as the state takes, until `close`.

        Raises:
            CheckpointError: such a state cannot be saved.
        """
        if not wait and (self._prepared or self._buffer is not None):
            return
        self._check_usable()
        size = self.store.size_of(state)
        self._prepared = True
        if wait:
            self._reserve(size)
            return
        thread = threading.Thread(
            target=self._reserve_first, args=(size,), name="qigstore-buffer", daemon=True
        )
        with suppress(RuntimeError):  # no thread to be had: then the first save takes its memory
            thread.start()

    def _reserve(self, size: int) -> None:
        with self._saving:
            self._buffer = self.store.reserve(size, reuse=self._buffer)

    def _reserve_first(self, size: int) -> None:
        """Take the memory if no save has done so; the first save says it where there is none."""
        with self._saving, suppress(OSError):
            if self._buffer is None and not self._closed:
                self._buffer = self.store.reserve(size)
            if self._closed:
                self._buffer = None

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until the save in flight is committed, and a little for its row.

        Raises:
            CheckpointError: it took longer, or a save since the last report failed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
            if thread.is_alive():
                raise CheckpointError(
                    f"the checkpoint of step {self._thread_step} is still being written after "
                    f"{timeout_s:g} s"
                )
        tidier = self._tidier
        if tidier is not None:
            left = _ROW_WAIT_S if deadline is None else deadline - time.monotonic()
            tidier.join(min(max(left, 0.0), _ROW_WAIT_S))
        self._raise_errors()

    def close(self, timeout_s: float | None = 300.0) -> None:
        """Wait for the save in flight and give the buffer back; safe to repeat.

        Raises:
            CheckpointError: as for `wait`.
        """
        self._closed = True
        try:
            self.wait(timeout_s)
        finally:
            if self._thread is None or not self._thread.is_alive():
                self._buffer = None

    def _check_usable(self) -> None:
        if self._closed:
            raise CheckpointError("this checkpoint manager is closed")
        if os.getpid() != self._pid:
            raise CheckpointError(
                "this checkpoint manager belongs to another process; a forked child does not save"
            )

    def _join(self, deadline: float, step: int) -> None:
        if self._thread is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
            if self._thread.is_alive():
                raise self._still_saving(step)
            self._thread = None

    def _still_saving(self, step: int) -> CheckpointError:
        return CheckpointError(
            f"the checkpoint of step {self._thread_step} is still being written after "
            f"{self._save_wait_s:g} s, so step {step} was not saved. Save less often, or look at "
            f"the disk below {self.store.root}."
        )

    def _work(self, staged: Staged, info: SaveInfo) -> None:
        """The background thread of one save."""
        try:
            self._finish(info, partial(self.store.commit, staged, info))
        except Exception as error:
            self._noted(f"saving the checkpoint of step {info.step}: {error}", error, info.id)

    def _finish(self, info: SaveInfo, commit: Callable[[], Checkpoint]) -> None:
        """Commit, and see to it that whoever should know does."""
        try:
            checkpoint = self._with_room(commit)
        except Exception as error:
            with self._state:
                self._counts["failed"] += 1
                self._last_error = f"saving the checkpoint of step {info.step}: {error}"
            if self._on_error is not None:
                self._report(info, error)
            raise
        with self._state:
            self._counts["saved"] += 1
            self._last = checkpoint.id
            self._index[checkpoint.id] = checkpoint
        self._post.note_saved(checkpoint)
        self._tidy()

    def _tidy(self) -> None:
        """Row and retention in a thread of their own: a save never waits for the database.

        It is a daemon: a process whose database hangs can end, and `reconcile` finds the rest.
        """
        with self._state:
            self._tidy_wanted = True
            if self._tidier is not None and self._tidier.is_alive():
                return
            thread = threading.Thread(target=self._tidy_up, name="qigstore-rows", daemon=True)
            self._tidier = thread
            try:
                thread.start()
                return
            except RuntimeError:
                self._tidier = None  # the interpreter ends, and waits for this thread
        self._tidy_up()

    def _tidy_up(self) -> None:
        while True:
            with self._state:
                if not self._tidy_wanted:
                    self._tidier = None
                    return
                self._tidy_wanted = False
            try:
                self._post.ship()
                self.prune()
            except Exception as error:
                self._noted(f"tidying up after a save: {error}", error)

    def _with_room(self, commit: Callable[[], Checkpoint]) -> Checkpoint:
        """Commit; on a full disk once more, where something could be removed."""
        try:
            return commit()
        except CheckpointError as error:
            cause = error.__cause__
            full = isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}
            if not full or not (self.store.clean(self.session_name) or self.prune()):
                raise
        return commit()

    def _noted(self, text: str, error: Exception, save: UUID | None = None) -> None:
        with self._state:
            self._last_error = text
            self._errors = [*self._errors[1 - _ERRORS_MAX :], (text, error, save)]

    def _report(self, info: SaveInfo, error: Exception) -> None:
        assert self._on_error is not None
        try:
            self._on_error(info.id, info.step, error)
        except Exception as second:
            self._noted(f"on_error failed: {second!r}", second)

    def _raise_errors(self, *, but_of: UUID | None = None) -> None:
        """Raise what went wrong; `but_of`: of a save that may have failed already, the next one."""
        with self._state:
            kept = [one for one in self._errors if but_of is not None and one[2] == but_of]
            errors, self._errors = [one for one in self._errors if one not in kept], kept
        if errors:
            raise CheckpointError("; ".join(text for text, _, _ in errors)) from errors[0][1]

    # ------------------------------------------------------------ rows

    def _note_away(self, error: StoreError) -> None:
        with self._state:
            self._last_error = f"the database was not told: {error}"

    def reconcile(self) -> list[Checkpoint]:
        """Give every committed folder of the session its row, and remove what dead saves left.

        Returns:
            The checkpoints that had no row.

        Raises:
            StoreError: the database is away.
        """
        self.store.clean(self.session_name)
        return self._post.insert(self.known().values())

    def candidates(self, *, limit: int = 10_000, by_age: bool = False) -> list[Candidate]:
        """The checkpoints of the session and whether each is fit to recover from, at most `limit`
        of either kind, the highest Φ first (`by_age`: the newest).

        Raises:
            StoreError: the database is away.
        """
        if self._rows is None:
            known = self.known().values()
            measured = any(finite(item.phi) is not None for item in known)
            return [judge(item, phi_floor=self.phi_floor, measured=measured) for item in known]
        return self._rows.candidates(
            self.session_id,
            settle_steps=self.retention.settle_steps,
            phi_floor=self.phi_floor,
            limit=limit,
            by_age=by_age,
        )

    def known(self) -> dict[UUID, Checkpoint]:
        """The committed folders: listed each time, read once (a committed one never changes)."""
        ids = self.store.ids(self.session_name)
        with self._state:
            found = {key: item for key, item in self._index.items() if key in ids}
        for key in sorted(ids - set(found)):
            path = self.store.locate(self.session_name, key)
            # A damaged one is no checkpoint; `store.survey` names it, with what is wrong.
            with suppress(CheckpointError, NotFound, OSError):
                found[key] = self.store.record(path, session_id=self.session_id)
        with self._state:
            self._index = found
        return dict(found)

    # ------------------------------------------------------------ putting away

    def protect(self, checkpoint_id: UUID) -> None:
        """Keep this one whatever retention says; a resumed run protects where it came from."""
        with self._state:
            self._protected.add(checkpoint_id)
            if self._last is None:
                self._last = checkpoint_id

    def protected(self) -> set[UUID]:
        """What `protect` named."""
        with self._state:
            return set(self._protected)

    def prune(self) -> list[UUID]:
        """Remove what has no role (see `retention`); nothing while the database is away.

        Raises:
            CheckpointError, OSError: one could not be removed.
        """
        if len(self.known()) <= self.retention.keep_newest:
            return []
        try:
            return prune(self)[0]
        except StoreError:
            return []  # who is healthy is not known now: everything stays

    def remove(self, checkpoint_id: UUID, reason: str) -> bool:
        """Remove one, folder first, then row; False where it is not there (any more).

        Raises:
            CheckpointError: it cannot be proved to be ours.
        """
        path = self.store.locate(self.session_name, checkpoint_id)
        try:
            self.store.delete(path)
        except NotFound:
            return False  # another manager of the session was faster
        except CheckpointCorrupt:
            if self.store.has(path):
                raise
            return False  # it was, and had removed the manifest when we read it
        finally:
            with self._state:
                self._index.pop(checkpoint_id, None)
        with self._state:
            self._counts["pruned"] += 1
        self._post.tell_status(checkpoint_id, "deleted", reason)
        return True

    def quarantine(self, checkpoint_id: UUID, reason: str) -> None:
        """Put a checkpoint aside, folder and row; it is never loaded again, nor deleted."""
        try:
            self.store.quarantine(self.store.locate(self.session_name, checkpoint_id), reason)
        finally:
            with self._state:
                self._index.pop(checkpoint_id, None)
        self._post.tell_status(checkpoint_id, "quarantined", reason)

    # ------------------------------------------------------------ loading

    def load(
        self,
        checkpoint_id: UUID | str,
        *,
        verify: bool = True,
        part: Part = (),
        into: Any = None,
    ) -> Any:
        """The state of a checkpoint of this session, or a part of it, every digest verified; nobody
        removes it meanwhile.

        Raises:
            NotFound, CheckpointCorrupt, CheckpointFormatError: see `CheckpointStore.load`.
        """
        path = self.store.locate(self.session_name, checkpoint_id)
        with self.store.in_use(path):
            return self.store.load(path, verify=verify, part=part, into=into)

    def progress(self) -> dict[str, Any]:
        """Saved, failed and removed so far, what is under way, and what went wrong last."""
        with self._state:
            return {
                **self._counts,
                "in_flight": self._thread is not None and self._thread.is_alive(),
                "rows_pending": len(self._post),
                "past_cache": self.store.past_cache,
                "last_error": self._last_error,
            }
