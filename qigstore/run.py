"""`Run`, the live handle on one attempt of a session; wires the rooms together, owns no logic.

Opening: settings → database (or none yet) → what dead processes left → session, attempt, writer →
recorder and background writer → checkpoints → signals. Closing goes the other way round and is a
barrier: what was recorded is stored, or the error says where it waits.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from qigstore.errors import (
    EXIT_EMERGENCY,
    CheckpointError,
    CheckpointUnsupported,
    ConfigurationError,
    EmergencyStop,
    QigstoreError,
)
from qigstore.settings import Settings, load_settings

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from qigstore.checkpoints.sharded import ShardedCheckpoints
    from qigstore.query import Curve
    from qigstore.recording import Health
    from qigstore.records import AttemptStatus, Checkpoint, Decision, Location
    from qigstore.recovery import Policy
    from qigstore.rooms import Rooms
    from qigstore.safety.ranks import Ranks
    from qigstore.safety.rules import Rule, RuleSet

__all__ = ["Run", "session"]

Rules: TypeAlias = "RuleSet | str | Path | Mapping[str, Any] | Sequence[Rule] | None"
_POLICIES = ("best", "newest", "best_recent")
# As a library should: what is logged goes where the program's own logging sends it.
logging.getLogger("qigstore").addHandler(logging.NullHandler())


def session(
    name: str,
    *,
    config: Mapping[str, Any] | None = None,
    rules: Rules = None,
    policy: Policy = "best",
    takeover: bool = False,
    ranks: Ranks | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Name a training effort; `with` opens its next attempt.

    Args:
        name: 1 to 200 printable characters; the same name continues the same session.
        config: what the run was started with; JSON values; stored with the attempt.
        rules: what to watch: a `RuleSet`, a preset's name, declared rules, a TOML file's path or
            its mapping; None: the file that the settings name, else every metric finite, and jumps
            and drifts of `loss`.
        policy: which healthy checkpoint `recover` takes: "best", "newest" or "best_recent".
        takeover: shut out another living process that records this session.
        ranks: the processes that train one state together, such as
            `qigstore.integrations.torch.ranks()` makes; each of them opens the session, and they
            stop together, between two steps of `steps`.
        quiet: do not print the recovery's decision to stderr.
        settings: any field of `qigstore.Settings`, such as `dsn`, `home`, `settle_steps`; `mode`
            is "online", "offline" (no database is asked; rows wait in the spool for a later
            process) or "off" (nothing is recorded).

    Raises:
        ConfigurationError: a setting or argument that cannot be used.

    >>> with session("ocean-7", mode="off") as run:
    ...     run.record(0, loss=1.0)
    """
    if policy not in _POLICIES:
        raise ConfigurationError(f"policy={policy!r}; expected one of {', '.join(_POLICIES)}")
    return Run(
        name,
        config=dict(config or {}),
        rules=rules,
        policy=policy,
        takeover=takeover,
        ranks=ranks,
        quiet=quiet,
        settings=load_settings(**settings),
    )


class Run:
    """One attempt of a session, while its process lives.

    Use it as a context manager. Leaving the block stores everything, closes the attempt, and then
    tells how it ended: silently when the work was done, with `EmergencyStop` after an emergency,
    with the signal itself after SIGTERM or SIGINT.
    """

    def __init__(
        self,
        name: str,
        *,
        config: Mapping[str, Any],
        rules: Rules,
        policy: Policy,
        takeover: bool,
        ranks: Ranks | None,
        quiet: bool,
        settings: Settings,
    ) -> None:
        self.name = name
        self.config = config
        self.settings = settings
        self.decision: Decision | None = None
        self._rules = rules
        self._policy = policy
        self._takeover = takeover
        self._ranks = ranks
        # Rank 0 speaks for all.
        self._quiet = quiet or (ranks is not None and ranks.rank != 0)
        self._rooms: Rooms | None = None
        self._offered: tuple[Any, int, object] | None = None
        self._saved_step: int | None = None

    # -- opening and closing ------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(error)

    def open(self) -> Self:
        """Open the next attempt (what `with` does).

        A database that is away, refuses the password or has an outdated schema is no error here:
        one warning says so, rows wait in the spool, and they are stored once it can be had.

        Raises:
            SessionBusy: another living process records this session.
            SpoolFull: the disk has no room for the first rows.
            ConfigurationError: the data folder cannot be used.
            RankError: another rank could not open it, or does not answer.
        """
        if self._rooms is not None:
            raise ConfigurationError(f"the run {self.name!r} is open already")
        if self.settings.mode != "off":
            from qigstore.opening import open_rooms

            self._rooms = open_rooms(
                self.settings,
                self.name,
                self.config,
                rules=self._rules,
                takeover=self._takeover,
                ranks=self._ranks,
            )
        return self

    def close(self, error: BaseException | None = None) -> None:
        """Store everything, close the attempt, and say how it ended.

        Raises:
            NotStored: recorded rows still wait in the spool (the database is away).
            EmergencyStop: the run was stopped by a rule or by request.
        """
        rooms = self._rooms
        if rooms is None or rooms.link.spool.forked:
            self._rooms = None
            return  # a forked child has nothing of its parent's run to close
        if error is not None and self._broke_off(rooms, error):
            error = None  # another rank's end, not this one's own failure
        self._rooms = None
        rooms.heed_signal()
        status, reason, code = _outcome(rooms, error)
        try:
            with rooms.watched("closing the run"):
                rooms.close(status, reason, code)
        except BaseException as waiting:
            if not isinstance(waiting, QigstoreError) or (error is None and status == "completed"):
                rooms.signals.restore()
                raise
            # How the run ended matters more; this must not hide it, nor be hidden.
            warnings.warn(f"on closing the run: {waiting}", RuntimeWarning, stacklevel=3)
        if self.settings.mode == "offline" and not self._quiet:
            sys.stderr.write(_waiting(rooms))
        stop = rooms.emergency.stop
        if error is not None or (stop.requested and stop.signum is None):
            # A signal that comes once it leaves for another reason changes nothing.
            rooms.signals.restore()
        else:
            rooms.signals.re_raise()
        if error is None and stop.requested:
            raise EmergencyStop(stop.reason or "asked to stop", event=stop.event)

    def _broke_off(self, rooms: Rooms, error: BaseException) -> bool:
        """Whether the training broke off because another rank is gone; then save and leave."""
        together = rooms.together
        if together is None or not isinstance(error, Exception):
            return False
        if not together.ranks.broke(error):
            rooms.report_failure(error)
            return False
        rooms.lose_rank(error)
        if self._offered is not None and rooms.saves:
            state, step, mark = self._offered
            if mark is None or together.ranks.mark(state) != mark:
                rooms.report_unsaved(step, "it may have been written to since it was offered")
                return True
            try:
                self._save_on_stop(rooms)
            except CheckpointError as refused:
                rooms.report_unsaved(step, str(refused))
        return True

    def _opened(self) -> Rooms | None:
        """The rooms; None in mode "off".

        Raises:
            ConfigurationError: nothing could be recorded, and the caller does not know it.
        """
        if self._rooms is None and self.settings.mode != "off":
            raise ConfigurationError(
                f"the run {self.name!r} is not open (not yet, or not any more): use it in a `with` "
                "block, or between open() and close()"
            )
        return self._rooms

    # -- the loop -----------------------------------------------------------------------------

    def recover(self, *, default: Any = None) -> Any:
        """Return the state of the best healthy checkpoint, or the default.

        Args:
            default: the state of a fresh start, or a callable that makes it; None: there must be
                a checkpoint.

        Raises:
            NoHealthyCheckpoint: nothing fit to load and no default; names every candidate.
        """
        rooms = self._opened()
        if rooms is None:
            return default() if callable(default) else default
        state, chosen = self._recover(rooms, has_default=default is not None)
        if chosen is not None:
            return state
        return default() if callable(default) else default

    def _recover(
        self, rooms: Rooms, *, has_default: bool, load: bool | Callable[[Location], Any] = True
    ) -> tuple[Any, Checkpoint | None]:
        policy = self._policy
        state, self.decision = rooms.recover(policy=policy, has_default=has_default, load=load)
        if not self._quiet:
            from qigstore.recovery import explain

            sys.stderr.write(explain(self.decision))
        chosen = self.decision.chosen
        if chosen is not None:
            self._saved_step = chosen.step
        return state, chosen

    def steps(self, start: int, stop: int) -> Iterator[int]:
        """Yield the steps from `start` up to `stop`, ending early at a safe point when asked to.

        Steps that recovery advises to leave out (`run.decision.skip_steps`) are left out. When a
        stop is asked for, the state last offered to `checkpoint` is saved before the loop ends.
        """
        skip = self.decision.skip_steps if self.decision is not None else None
        for step in range(start, stop):
            if self._rooms is not None:
                self._rooms.meet(step)
                if self._rooms.reset_if_wanted(step):
                    self._offered = None  # the state that was left behind
            if self.should_stop:
                break
            if skip is not None and skip[0] <= step <= skip[1]:
                continue
            yield step
        if self._rooms is not None:
            self._rooms.meet(stop, last=True)
            self._save_on_stop(self._rooms)

    def _save_on_stop(self, rooms: Rooms) -> None:
        if self._offered is not None and rooms.saves_on_stop:
            state, step, _ = self._offered
            if step != self._saved_step:
                self._save(state, step)
        if rooms.should_stop:
            rooms.tell_saved()

    def on_soft_reset(
        self, take_in: Callable[[Any], object], *, cooldown_s: float = 60.0, resets_max: int = 3
    ) -> None:
        """Let rules with the action `soft_reset` put this run back to a healthy checkpoint.

        The state goes back, the steps go on: `steps` calls `take_in(state)` between two steps, and
        the data in between is left out. Without this call such a rule stops the run, and the next
        start goes back.

        Args:
            take_in: puts a state into the living model.
            cooldown_s: between two resets at least.
            resets_max: so many in a row without progress; then the run stops.

        Raises:
            ConfigurationError: a number out of its range; or there are other ranks, which would
                not go back: then such a rule stops all of them.
        """
        if self._ranks is not None:
            raise ConfigurationError("on_soft_reset: ranks go back together, by their next start")
        if (rooms := self._opened()) is not None:
            rooms.arm_soft_reset(take_in, self._policy, cooldown_s, resets_max)

    def record(self, step: int, row: Mapping[str, Any] | None = None, /, **metrics: Any) -> None:
        """Record one step; microseconds, and it survives the death of the process.

        Args:
            step: from 0; a repeated step replaces the earlier row of this attempt.
            row: metrics that are in a mapping already, or whose names are no Python names. Handing
                it over is cheaper than `**row`, which alone costs as much as half of the rest.
            metrics: real scalars by name (Python, NumPy, 0-d tensors); `basin` takes a
                distribution, `regime` a regime's name. None means: not measured.

        Raises:
            InvalidInput: a value that cannot be recorded, by name; nothing of the row was kept.
        """
        rooms = self._rooms
        if rooms is None:
            self._opened()
            return
        if row is None:
            row = metrics
        elif metrics:
            row = {**row, **metrics}
        alarms = rooms.recorder.record(step, row)
        if alarms:
            rooms.raise_alarms(alarms)

    def checkpoint(self, state: Any, *, step: int, every: int = 1) -> bool:
        """Save `state` after each `every` steps, and at once when a stop asks for it.

        The state is copied before this returns; writing, hashing and ranking happen behind. The
        first call takes the memory for that copy, as much as the state's arrays, also behind.

        Of several ranks, which hold the same state, rank 0 saves.

        Returns:
            Whether this call saved.

        Raises:
            CheckpointError: this state cannot be saved; told at the first call, due or not.
        """
        rooms = self._opened()
        if rooms is None:
            return False
        due = _due(rooms, step, every)
        mark = None if rooms.together is None else rooms.together.ranks.mark(state)
        self._offered = (state, step, mark)
        if not rooms.saves:
            return False
        if due:
            self._save(state, step)
        else:
            rooms.checkpoints.prepare(state, wait=False)
        return due

    def sharded(self, *, limit_s: float = 600.0) -> ShardedCheckpoints:
        """Checkpoints that all ranks of `torch.distributed` save and load together.

        Call it on every rank. Rank 0's run chooses what to recover, and knows when to save and to
        stop; those of the others may be in mode "off". Where its own is, nothing is done.

        Args:
            limit_s: how long a rank waits for the slowest other one.

        Raises:
            CheckpointUnsupported: torch is not installed.
            CheckpointError: `torch.distributed` is not initialised.
        """
        try:
            from qigstore.checkpoints.sharded import Leader, ShardedCheckpoints
        except ImportError as error:
            raise CheckpointUnsupported(
                f"saving with several ranks needs torch (`pip install 'qigstore[torch]'`): {error}"
            ) from error
        rooms = self._opened()
        if rooms is None or not rooms.saves:
            return ShardedCheckpoints(None, limit_s=limit_s)

        def recover(load: Callable[[Location], Any]) -> int | None:
            chosen = self._recover(rooms, has_default=True, load=load)[1]
            return chosen.step if chosen is not None else None

        def save(commit: Any, step: int) -> None:
            self._save(commit, step, by=rooms.checkpoints.save_by)

        def due(step: int, every: int) -> tuple[bool, bool]:
            return _due(rooms, step, every), rooms.should_stop

        leader = Leader(rooms.checkpoints.store, save, recover, due)
        return ShardedCheckpoints(leader, limit_s=limit_s)

    def _save(self, state: Any, step: int, *, by: Callable[..., UUID] | None = None) -> None:
        assert self._rooms is not None
        with self._rooms.watched("saving its state"):
            self._rooms.save(state, step, by=by)
        self._saved_step = step

    # -- the state of things ------------------------------------------------------------------

    @property
    def should_stop(self) -> bool:
        """Whether a rule, a signal or a person asked this run to stop.

        With other ranks: once all of them have agreed to, which they do in `steps`.
        """
        return self._rooms is not None and self._rooms.should_stop

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1; 0 in mode "off".

        A guess while no database knows the attempt: it is numbered when one hears of it.
        """
        return self._rooms.link.attempt.number if self._rooms is not None else 0

    @property
    def health(self) -> Health | None:
        """How far the database is behind: lag, dropped rows, last error; None in mode "off".

        Offline, and while no database could be had since the start, nothing is stored and
        `last_error` says why.
        """
        return self._rooms.writer.health if self._rooms is not None else None

    def set_reference_basin(self, basin: Any) -> None:
        """Measure `basin_distance` from this distribution, not from the first one recorded."""
        if (rooms := self._opened()) is not None:
            rooms.recorder.set_reference_basin(basin)

    def stop(self, reason: str) -> None:
        """Ask this run to stop at its next safe point."""
        if (rooms := self._opened()) is not None:
            rooms.emergency.request_stop(reason)

    def flush(self, *, timeout_s: float = 30.0, durable: bool = False) -> None:
        """Wait until everything recorded is stored (`durable`: and on the disk before that).

        In mode "offline" nothing is stored here: then it waits until all is on the disk.

        Raises:
            NotStored: the database did not take everything in time.
        """
        if (rooms := self._opened()) is not None:
            rooms.writer.flush(timeout_s, durable=durable)

    def curve(self, metric: str, **what: Any) -> Curve:
        """A metric of this session as far as it is stored, as at most `points` buckets.

        Args:
            metric: its name.
            what: as for `qigstore.query.curve`: `points`, `start`, `stop`, `attempt`, `rank`, `by`.

        Raises:
            StoreUnavailable: no database knows the session (yet).
            NotFound: the session never stored such a metric.
            ConfigurationError: the run is not open, or in mode "off".
        """
        rooms = self._opened()
        if rooms is None:
            raise ConfigurationError(f"the run {self.name!r} is in mode 'off': it has no curves")
        from qigstore.query import curve

        return curve(rooms.link.needed(), self.name, metric, **what)

    def wait(self, *, timeout_s: float = 300.0) -> None:
        """Wait until the checkpoint in flight is committed.

        Raises:
            CheckpointError: it could not be saved.
        """
        if (rooms := self._opened()) is not None:
            rooms.checkpoints.wait(timeout_s)


def _due(rooms: Rooms, step: int, every: int) -> bool:
    """Whether that step is to be saved."""
    if every < 1:
        raise ConfigurationError(f"every={every}; expected a number of steps, at least 1")
    if rooms.should_stop:
        return rooms.saves_on_stop
    return (step + 1) % every == 0 or bool(rooms.checkpoint_wanted)


def _waiting(rooms: Rooms) -> str:
    """Where the rows of an offline run are, for whoever wonders."""
    spool = rooms.link.spool
    return (
        f"qigstore: {spool.seq} rows of session {spool.identity.session!r} wait in {spool.folder}; "
        "the next run that reaches the database ships them, or `qigstore spool drain`\n"
    )


def _outcome(
    rooms: Rooms, error: BaseException | None
) -> tuple[AttemptStatus, str | None, int | None]:
    """How the attempt ended: status, reason, exit status."""
    stop = rooms.emergency.stop
    if stop.requested:
        return "aborted", stop.reason, 128 + stop.signum if stop.signum else EXIT_EMERGENCY
    if error is None:
        return "completed", None, 0
    if isinstance(error, KeyboardInterrupt):
        return "aborted", "KeyboardInterrupt", 130
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        return ("failed" if code else "completed"), f"SystemExit({error.code!r})", code
    return "failed", f"{type(error).__name__}: {error}"[:2000], 1
