"""Checkpoints and recovery with a real database: rows follow folders, decisions are kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from processes import wait_until

from qigstore.checkpoints import CheckpointManager, CheckpointStore, Retention, keeper
from qigstore.checkpoints.disk import Disk
from qigstore.checkpoints.format import PAYLOAD
from qigstore.errors import (
    CheckpointError,
    NoHealthyCheckpoint,
    NotFound,
    StoreUnavailable,
)
from qigstore.records import AttemptInfo, Checkpoint, Event, SessionInfo
from qigstore.recovery import explain, recover
from qigstore.repository import Store


class Away:
    """Rows behind a connection that is cut while `cut` is set; the only seam here."""

    def __init__(self, rows: Any) -> None:
        self.rows, self.cut = rows, False

    def __getattr__(self, name: str) -> Any:
        if self.cut:
            raise StoreUnavailable("postgresql://nowhere", "connection refused")
        return getattr(self.rows, name)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_ROW_WAIT_S", 120.0)  # a row follows at once, or the disk is slow


@pytest.fixture
def session(store: Store) -> SessionInfo:
    return store.sessions.open("ocean", {})


def begin(store: Store, session: SessionInfo) -> AttemptInfo:
    return store.sessions.open_attempt(session.id, uuid4(), host="here", pid=1, config={})


@pytest.fixture
def attempt(store: Store, session: SessionInfo) -> AttemptInfo:
    return begin(store, session)


def manager_of(
    folder: Path, rows: Any, session: SessionInfo, number: int = 1, **options: Any
) -> CheckpointManager:
    given = {"retention": Retention(keep_newest=20, settle_steps=50)} | options
    return CheckpointManager(
        CheckpointStore(folder, disk=given.pop("disk", None)),
        rows,
        session_id=session.id,
        session_name=session.name,
        attempt=number,
        **given,
    )


@pytest.fixture
def manager(
    tmp_path: Path, store: Store, session: SessionInfo, attempt: AttemptInfo
) -> CheckpointManager:
    return manager_of(tmp_path, store.checkpoints, session)


def state(step: int, weight: float = 1.0) -> dict[str, Any]:
    return {"w": np.full(8, weight), "step": step}


def spoil(manager: CheckpointManager, key: UUID) -> None:
    path = manager.store.locate("ocean", key) / PAYLOAD
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def critical(store: Store, session: SessionInfo, step: int, number: int, severity: Any) -> None:
    event = Event(
        id=uuid4(),
        session_id=session.id,
        attempt=number,
        rank=0,
        step=step,
        rule="loss",
        severity=severity,
        message="loss is NaN",
        raised_at=datetime.now(UTC),
    )
    assert store.events.add(event)


# ---------------------------------------------------------------- saving


def test_a_committed_checkpoint_has_its_row(
    manager: CheckpointManager, store: Store, session: SessionInfo
) -> None:
    key = manager.save(
        state(3),
        step=3,
        phi=0.8,
        kappa_eff=64.0,
        regime="geometric",
        metadata={"note": "Φ rises", "loss": float("nan")},
        wait=True,
    )
    row = store.checkpoints.get(key)
    (folder,) = manager.store.scan("ocean", session_id=session.id)
    assert row == folder
    assert store.checkpoints.ranked(session.id) == [row]


def test_training_may_change_its_arrays_as_soon_as_save_returns(
    manager: CheckpointManager,
) -> None:
    weights = np.zeros(1_000_000)
    keys = []
    for step in range(4):
        weights[:] = step
        keys.append(manager.save({"w": weights, "step": step}, step=step, phi=0.5))
        weights[:] = -1  # at once, in place
    manager.wait()
    for step, key in enumerate(keys):
        assert (manager.load(key)["w"] == step).all()


@pytest.mark.parametrize("phi", [None, float("nan"), float("inf"), -1.0, 0.0])
def test_no_phi_is_too_low_to_save(
    manager: CheckpointManager, store: Store, phi: float | None
) -> None:
    key = manager.save(state(1), step=1, phi=phi, wait=True)
    assert store.checkpoints.get(key).status == "committed"


def test_a_state_that_cannot_be_saved_is_refused_at_once(manager: CheckpointManager) -> None:
    with pytest.raises(CheckpointError, match=r"state\['w'\]: builtins.set"):
        manager.save({"w": {1}}, step=1)
    manager.save(state(2), step=2, wait=True)


def test_parents_make_a_chain(manager: CheckpointManager) -> None:
    keys = [manager.save(state(n), step=n, phi=0.5, wait=True) for n in range(3)]
    parents = [manager.store.manifest(manager.store.locate("ocean", k)).parent for k in keys]
    assert parents == [None, keys[0], keys[1]]


def test_while_the_database_is_away_saving_goes_on_and_rows_follow(
    tmp_path: Path, store: Store, session: SessionInfo, attempt: AttemptInfo
) -> None:
    rows = Away(store.checkpoints)
    manager = manager_of(
        tmp_path, rows, session, retention=Retention(keep_newest=1, keep_best=1, settle_steps=0)
    )
    rows.cut = True
    for step in range(4):
        manager.save(state(step), step=step, phi=0.5, wait=True)
    assert len(manager.store.scan("ocean")) == 4  # who is healthy is not known: nothing goes
    assert manager.get_stats()["rows_pending"] == 4
    assert "connection refused" in manager.get_stats()["last_error"]
    rows.cut = False
    manager.save(state(4), step=4, phi=0.5, wait=True)
    assert manager.get_stats()["rows_pending"] == 0
    statuses = {row.step: row.status for row in store.checkpoints.list(session.id)}
    assert set(statuses) == {0, 1, 2, 3, 4}
    assert statuses[4] == "committed"
    assert statuses[0] == "deleted"


def test_a_slow_database_holds_up_no_save(
    tmp_path: Path, store: Store, session: SessionInfo, attempt: AttemptInfo
) -> None:
    gate = threading.Event()

    class Slow(Away):
        def __getattr__(self, name: str) -> Any:
            gate.wait()
            return super().__getattr__(name)

    manager = manager_of(tmp_path, Slow(store.checkpoints), session, save_wait_s=120)
    keys = {manager.save(state(step), step=step, phi=0.5) for step in range(5)}
    wanted = {0, 1, 2, 3, 4}
    wait_until(lambda: set(manager.store.ids("ocean")) >= keys, "five folders", 60)
    assert store.checkpoints.list(session.id) == []
    gate.set()
    manager.close()
    wait_until(lambda: {row.step for row in store.checkpoints.list(session.id)} == wanted,
               "five rows", 60)  # fmt: skip


def test_reconcile_gives_folders_their_rows_and_is_repeatable(
    tmp_path: Path, store: Store, session: SessionInfo, attempt: AttemptInfo
) -> None:
    alone = manager_of(tmp_path, None, session)
    key = alone.save(state(1), step=1, phi=0.7, wait=True)
    manager = manager_of(tmp_path, store.checkpoints, session)
    assert [item.id for item in manager.reconcile()] == [key]
    assert manager.reconcile() == []
    assert store.checkpoints.get(key) == manager.store.scan("ocean", session_id=session.id)[0]


# ---------------------------------------------------------------- retention


def test_what_no_role_keeps_is_deleted_with_its_row_told(
    tmp_path: Path, store: Store, session: SessionInfo, attempt: AttemptInfo
) -> None:
    rule = Retention(keep_newest=2, keep_best=2, settle_steps=0)
    manager = manager_of(tmp_path, store.checkpoints, session, retention=rule)
    phis = [0.1, 0.9, 0.2, 0.8, 0.3, 0.4, None]
    for step, phi in enumerate(phis):
        manager.save(state(step), step=step, phi=phi, wait=True)
    assert {item.step for item in manager.store.scan("ocean")} == {1, 3, 5, 6}
    statuses = {row.step: row.status for row in store.checkpoints.list(session.id)}
    assert {step for step, status in statuses.items() if status == "deleted"} == {0, 2, 4}


def test_the_last_healthy_one_outlives_an_episode(
    tmp_path: Path, store: Store, session: SessionInfo, attempt: AttemptInfo
) -> None:
    rule = Retention(keep_newest=1, keep_best=1, settle_steps=20)
    manager = manager_of(tmp_path, store.checkpoints, session, retention=rule)
    for step in range(0, 101, 10):
        manager.save(state(step), step=step, phi=0.5 + step / 1000, wait=True)
    critical(store, session, 101, 1, "critical")
    assert {item.step for item in manager.store.scan("ocean")} == {80, 90, 100}
    found, _ = recover(manager, store, attempt=begin(store, session))
    assert found["step"] == 80


def test_two_managers_at_once_neither_lose_nor_mix(
    tmp_path: Path, store: Store, session: SessionInfo, attempt: AttemptInfo
) -> None:
    rule = Retention(keep_newest=3, keep_best=3, settle_steps=0)
    managers = [manager_of(tmp_path, store.checkpoints, session, retention=rule) for _ in range(2)]
    problems: list[Exception] = []

    def work(mine: CheckpointManager, offset: int) -> None:
        try:
            for step in range(offset, 20, 2):
                mine.save(state(step), step=step, phi=step / 100, wait=True)
            mine.close()
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(m, i)) for i, m in enumerate(managers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    final = manager_of(tmp_path, store.checkpoints, session, retention=rule)

    def settled() -> bool:
        """A slow database is told later than `close` waits, and pruning may be under way."""
        final.prune()
        return not any(mine.progress()["rows_pending"] for mine in managers) and [
            item.step for item in final.store.scan("ocean")
        ] == [17, 18, 19]

    wait_until(settled, "the newest three, which are the best three", limit_s=120)
    found = final.store.scan("ocean", session_id=session.id)
    for item in found:
        assert final.load(item.id)["step"] == item.step
    assert len(store.checkpoints.list(session.id)) == 20
    committed = store.checkpoints.list(session.id, status="committed")
    assert {row.id for row in committed} == {item.id for item in found}


class Late:
    """Rows that are inserted only after something else has happened to the folder."""

    def __init__(self, rows: Any, before: Callable[[Checkpoint], object]) -> None:
        self.rows, self.before = rows, before

    def add(self, checkpoint: Checkpoint) -> bool:
        self.before(checkpoint)
        found: bool = self.rows.add(checkpoint)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rows, name)


@pytest.mark.parametrize("way", ["save", "reconcile"])
def test_a_checkpoint_that_another_process_removes_before_it_has_its_row_is_deleted_there_too(
    tmp_path: Path, store: Store, session: SessionInfo, attempt: AttemptInfo, way: str
) -> None:
    other = manager_of(tmp_path, store.checkpoints, session)
    late = Late(store.checkpoints, lambda checkpoint: other.remove(checkpoint.id, "no role"))
    mine = manager_of(tmp_path, None if way == "reconcile" else late, session)
    key = mine.save(state(1), step=1, phi=0.5, wait=True)
    mine.close()
    if way == "reconcile":
        manager_of(tmp_path, late, session).reconcile()
    assert mine.known() == {}
    row = store.checkpoints.get(key)
    assert row.status == "deleted"
    assert row.status_reason == "removed before it had its row"


# ---------------------------------------------------------------- the older names


def test_the_older_names_do_what_their_users_know(manager: CheckpointManager) -> None:
    basin = np.full(64, 1 / 64)
    low = manager.save_checkpoint({"w": 1}, 0.1, 60.0, "linear")
    best = manager.save_checkpoint({"w": 2}, 0.9, 64.0, "geometric", basin, {"epoch": 3})
    manager.save_checkpoint({"w": 3}, 0.5, 62.0, "geometric", step=40)
    found, known = manager.load_best_checkpoint()
    assert found == {"w": 2}
    assert (known["checkpoint_id"], known["phi"], known["kappa"]) == (best, 0.9, 64.0)
    assert known["metadata"]["epoch"] == 3
    assert known["basin_coords"] == basin.tolist()
    assert manager.load_checkpoint(low)[0] == {"w": 1}
    assert [item["phi"] for item in manager.get_checkpoint_history()] == [0.9, 0.5, 0.1]
    assert [item["step"] for item in manager.get_checkpoint_history()] == [1, 40, 0]
    assert len(manager.get_checkpoint_history(limit=1)) == 1
    assert manager.delete_checkpoint(best)
    assert not manager.delete_checkpoint(best)
    with pytest.raises(NotFound):
        manager.load_checkpoint(best)
    stats = manager.get_stats()
    assert (stats["total_checkpoints"], stats["best_phi"], stats["worst_phi"]) == (2, 0.5, 0.1)
    assert stats["avg_phi"] == pytest.approx(0.3)
    assert manager.keep_top_k == 3


def test_the_best_one_that_is_corrupt_is_put_aside(
    manager: CheckpointManager, store: Store
) -> None:
    manager.save_checkpoint({"w": np.ones(3)}, 0.5, 64.0, "geometric")
    best = manager.save_checkpoint({"w": np.zeros(3)}, 0.9, 64.0, "geometric")
    spoil(manager, UUID(best))
    assert manager.load_best_checkpoint()[0]["w"].tolist() == [1, 1, 1]
    assert store.checkpoints.get(best).status == "quarantined"


def test_no_healthy_one_is_an_error_that_names_them(manager: CheckpointManager) -> None:
    manager.save_checkpoint({"w": 1}, float("nan"), 64.0, "geometric")
    with pytest.raises(NoHealthyCheckpoint, match="Φ was not measured"):
        manager.load_best_checkpoint()


# ---------------------------------------------------------------- recovery


def test_recovery_loads_the_best_and_stores_decision_and_lineage(
    manager: CheckpointManager, store: Store, session: SessionInfo
) -> None:
    for step, phi in ((10, 0.5), (20, 0.9), (30, 0.7)):
        manager.save(state(step), step=step, phi=phi, wait=True)
    ours = begin(store, session)
    found, decision = recover(manager, store, attempt=ours)
    assert found["step"] == 20
    assert store.decisions.list(session.id) == [decision]
    assert decision.attempt == 2
    lineage = store.sessions.attempts(session.id)[1]
    assert decision.chosen is not None
    assert (lineage.resumed_from, lineage.resumed_step) == (decision.chosen.id, 20)
    assert store.checkpoints.get(decision.chosen.id).verified_at is not None
    assert "resume from step 20" in explain(decision)


def test_a_fresh_start_is_a_decision_too(
    manager: CheckpointManager, store: Store, session: SessionInfo
) -> None:
    ours = begin(store, session)
    assert recover(manager, store, attempt=ours, has_default=True)[0] is None
    (decision,) = store.decisions.list(session.id)
    assert decision.chosen is None
    assert store.sessions.attempts(session.id)[1].resumed_step == -1


def test_a_dry_run_stores_nothing(
    manager: CheckpointManager, store: Store, session: SessionInfo
) -> None:
    spoil(manager, manager.save(state(1), step=1, phi=0.9, wait=True))
    manager.save(state(2), step=2, phi=0.8, wait=True)
    before = store.checkpoints.list(session.id)
    _, told = recover(manager, store, dry_run=True)
    assert told.chosen is not None
    assert told.chosen.step == 2
    assert told.attempt is None
    assert store.decisions.list(session.id) == []
    assert store.checkpoints.list(session.id) == before
    _, decision = recover(manager, store, attempt=begin(store, session))
    assert decision.chosen is not None
    assert decision.chosen.id == told.chosen.id


def test_what_an_event_condemns_is_passed_over_and_its_steps_are_named(
    manager: CheckpointManager, store: Store, session: SessionInfo, attempt: AttemptInfo
) -> None:
    for step, phi in ((100, 0.6), (200, 0.7), (260, 0.8)):
        manager.save(state(step), step=step, phi=phi, wait=True)
    critical(store, session, 275, 1, "warning")
    critical(store, session, 280, 1, "critical")
    manager.save(state(281), step=281, phi=0.9, kind="emergency", wait=True)
    store.sessions.close_attempt(attempt.id, "aborted", reason="loss is NaN")
    found, decision = recover(manager, store, attempt=begin(store, session))
    assert found["step"] == 200
    assert decision.skip_steps == (265, 290)
    reasons = {c.checkpoint.step: c.reason for c in decision.candidates}
    assert "critical event loss at step 280" in reasons[260]
    assert "emergency checkpoint" in reasons[281]
    text = explain(decision)
    assert "leave out steps 265 to 290" in text
    assert "newest, highest Φ, but an emergency checkpoint" in text


def test_a_corrupt_one_is_quarantined_in_folder_and_row(
    manager: CheckpointManager, store: Store, session: SessionInfo
) -> None:
    best = manager.save(state(2), step=2, phi=0.9, wait=True)
    manager.save(state(1), step=1, phi=0.8, wait=True)
    spoil(manager, best)
    found, _ = recover(manager, store, attempt=begin(store, session))
    assert found["step"] == 1
    row = store.checkpoints.get(best)
    assert row.status == "quarantined"
    assert "BLAKE3" in (row.status_reason or "")
    _, again = recover(manager, store, attempt=begin(store, session))
    assert "quarantined" in {c.checkpoint.id: c.reason for c in again.candidates}[best]


def test_a_checkpoint_that_leads_nowhere_three_times_is_passed_over(
    manager: CheckpointManager, store: Store, session: SessionInfo
) -> None:
    manager.save(state(10), step=10, phi=0.5, wait=True)
    best = manager.save(state(20), step=20, phi=0.9, wait=True)
    steps = [recover(manager, store, attempt=begin(store, session))[0]["step"] for _ in range(5)]
    assert steps == [20, 20, 20, 10, 10]
    reason = {c.checkpoint.id: c.reason for c in store.decisions.list(session.id)[0].candidates}
    assert "poison: attempts 2, 3, 4 resumed from it" in reason[best]


def test_a_row_whose_folder_is_elsewhere_is_refused_and_left_alone(
    manager: CheckpointManager, store: Store, session: SessionInfo, tmp_path: Path
) -> None:
    theirs = manager_of(tmp_path / "another machine", store.checkpoints, session)
    away = theirs.save(state(9), step=9, phi=0.9, wait=True)
    manager.save(state(1), step=1, phi=0.5, wait=True)
    found, decision = recover(manager, store, attempt=begin(store, session))
    assert found["step"] == 1
    assert (
        "its folder is not below" in {c.checkpoint.id: c.reason for c in decision.candidates}[away]
    )
    assert store.checkpoints.get(away).status == "committed"


def test_more_bad_ones_than_recovery_looks_at_first_do_not_hide_a_good_one(
    tmp_path: Path, store: Store, session: SessionInfo, attempt: AttemptInfo
) -> None:
    class NoSync(Disk):
        def fsync(self, fd: int) -> None:
            pass

        def fsync_folder(self, path: Path) -> None:
            pass

    manager = manager_of(
        tmp_path, store.checkpoints, session, retention=Retention(keep_newest=99), disk=NoSync()
    )
    manager.save(state(0), step=0, phi=0.1, wait=True)
    for step in range(1, 26):
        spoil(manager, manager.save(state(step), step=step, phi=0.5, wait=True))
    found, decision = recover(manager, store, attempt=begin(store, session))
    assert found["step"] == 0
    assert len(decision.candidates) == 26


def test_checkpoints_of_one_session_are_none_of_another(
    manager: CheckpointManager, store: Store, tmp_path: Path
) -> None:
    manager.save(state(1), step=1, phi=0.9, wait=True)
    other = store.sessions.open("lake", {})
    lake = manager_of(tmp_path, store.checkpoints, other)
    assert lake.candidates() == []
    found: list[Checkpoint] = lake.reconcile()
    assert found == []
    with pytest.raises(NoHealthyCheckpoint, match="there are none"):
        recover(lake, store, attempt=begin(store, other))
