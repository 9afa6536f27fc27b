"""The five acts, in order; what each one claims is asked of the store and counted as a check."""

from __future__ import annotations

import math
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qigstore.demo.plan import Plan
from qigstore.demo.processes import Child, Interrupts, Processes, Terminated
from qigstore.demo.questions import Questions
from qigstore.demo.screen import Check, Screen
from qigstore.demo.training import Training, Watch
from qigstore.errors import EXIT_EMERGENCY

if TYPE_CHECKING:
    from uuid import UUID

    from qigstore.repository import Store

__all__ = ["TOLERANCE", "Demo", "run_demo"]

TOLERANCE = 0.02
"""How much lower the test accuracy may be than the undisturbed run's."""


class Demo:
    """One performance; `play` returns the report."""

    def __init__(self, plan: Plan, screen: Screen, store: Store, training: Training) -> None:
        self.plan, self.screen, self._training = plan, screen, training
        self.ask = Questions(store, plan.session, screen.note)
        self.control = Questions(store, plan.control, screen.note)
        self.command = "qigstore"
        """How the user calls it, for the hints at the end."""
        self.checks: list[Check] = []
        self.facts: dict[str, Any] = {}
        self._act = ""

    def play(self) -> dict[str, Any]:
        """All five acts."""
        from qigstore.demo.summary import summarise

        began = time.monotonic()
        control = self._training.start_undisturbed()
        first = self._train()
        second = self._kill_and_restart(first)
        self._fault(second)
        self._recover(control)
        summary = summarise(self)
        return {
            "ok": all(check.ok for check in self.checks),
            "session": self.plan.session,
            "undisturbed": self.plan.control,
            "plan": asdict(self.plan),
            "wall_s": round(time.monotonic() - began, 3),
            "checks": [asdict(check) for check in self.checks],
            **self.facts,
            **summary,
        }

    # -- the acts -----------------------------------------------------------------------------

    def _train(self) -> Child:
        self._heading("a", "train and checkpoint")
        plan, watch = self.plan, self._training.watch
        child = self._training.begin()
        # Given a slow database and a fast training, a little later; long before the fault anyhow.
        latest = plan.kill_at + plan.every
        self._training.follow_until(
            child, lambda rows: rows > plan.kill_at and (watch.rows > 0 or rows > latest)
        )
        # At once, before anything is asked: an answer may be slow, and the training is not.
        child.send(signal.SIGKILL)
        self._check(
            "readable",
            watch.rows > 0,
            f"while it trained, SQL already read {watch.rows:,} of its rows",
        )
        if saved := self.saved():
            self._judge_saved(saved)
        else:
            self.screen.note(
                "The store has heard of no checkpoint yet: they are on the disk, and the next "
                "start of the training tells of them."
            )
        return child

    def _judge_saved(self, saved: list[dict[str, Any]]) -> None:
        self._check(
            "checkpoints",
            sum(c["healthy"] for c in saved) > 0,
            f"{len(saved)} checkpoints are committed, the best with Φ {_phi(saved)}",
        )

    def _kill_and_restart(self, first: Child) -> Child:
        self._heading("b", "kill -9 in the middle, then start again")
        status = first.wait()
        noted = self._training.noted(1)
        at_kill = self._attempt(1).get("rows", 0)
        last = max(noted.recorded)
        self._check(
            "killed",
            status == -signal.SIGKILL,
            f"killed at step {last}: {len(noted.recorded):,} rows recorded, {at_kill:,} stored, "
            f"{max(len(noted.recorded) - at_kill, 0)} still in its spool",
        )
        second = self._training.begin()
        self._compare(1)
        if not any(check.name == "checkpoints" for check in self.checks):
            self._judge_saved(self.saved())
        lost = self._attempt(1)
        self._check(
            "lost",
            lost.get("status") == "lost",
            f"attempt {lost.get('number')} is marked {lost.get('status')}: {lost.get('reason')}",
        )
        decision = self._decision(2)
        self._check(
            "resumed",
            decision.get("step") is not None and decision["step"] <= max(noted.begun),
            f"attempt {decision.get('attempt')} resumed from step {decision.get('step')}: "
            f"{decision.get('reason')}",
        )
        self.facts["kill"] = {"step": last, "recorded": len(noted.recorded), "stored": at_kill}
        return second

    def _fault(self, child: Child) -> None:
        plan = self.plan
        self._heading("c", f"a fault: at step {plan.fault_at} the learning rate jumps fortyfold")
        status = self._training.follow_to_the_end(child)
        self._check(
            "exit status",
            status == EXIT_EMERGENCY,
            f"the run stopped itself with exit status {status}",
        )
        if self._delivered():
            self._judge_fault()

    def _delivered(self) -> bool:
        """Whether the store holds what the second life recorded; else the next start brings it."""
        rows = int(self._attempt(2).get("rows", 0))
        events = any(e["severity"] == "critical" for e in self.ask.events())
        saved = any(c["kind"] == "emergency" for c in self.saved())
        if rows >= len(self._training.noted(2).recorded) and events and saved:
            return True
        self.screen.note(
            "The store has not everything of this attempt yet: the rest waits on the disk, and "
            "the next start of the training delivers it."
        )
        return False

    def _judge_fault(self, *, late: bool = False) -> None:
        plan = self.plan
        critical = [e for e in self.ask.events() if e["severity"] == "critical"]
        event = critical[0] if critical else {}
        self._check(
            "event",
            len(critical) == 1
            and event["attempt"] == self._training.attempt(2)
            and plan.fault_at <= event["step"] < plan.fault_at + 10,
            f"the rule {event.get('rule')!r} fired at step {event.get('step')}: "
            f"{event.get('message')}",
        )
        emergency = [c for c in self.saved() if c["kind"] == "emergency"]
        saved = emergency[0] if emergency else {}
        self._check(
            "emergency checkpoint",
            len(emergency) == 1
            and saved["attempt"] == self._training.attempt(2)
            and saved["step"] >= plan.fault_at,
            f"the state at step {saved.get('step')} was saved as an emergency checkpoint",
        )
        ended = self._attempt(2)
        told = ended.get("status"), ended.get("exit_status")
        # Without a database at its end, an attempt cannot say how it ended, and counts as lost.
        self._check(
            "aborted",
            told == ("aborted", EXIT_EMERGENCY) or (late and told == ("lost", None)),
            f"the store knows: attempt {ended.get('number')} {told[0]}, exit status {told[1]}",
        )
        self._compare(2)

    def _recover(self, control: Child) -> None:
        self._heading("d", "start again: back to the best healthy checkpoint, round the fault")
        child = self._training.begin()
        if not any(check.name == "event" for check in self.checks):
            self._act = "c"
            self._judge_fault(late=True)
            self._act = "d"
        status = self._training.follow_to_the_end(child)
        self._check("completed", status == 0, f"the run ended with exit status {status}")
        self._judge_decision()
        self._compare(3)
        if control.status is None:
            self.screen.note("waiting for the undisturbed run")
        self._training.await_undisturbed(control)
        last = self.plan.steps - 1
        found, expected = self.ask.accuracy(last), self.control.accuracy(last)
        self._check(
            "accuracy",
            found is not None and expected is not None and found >= expected - TOLERANCE,
            f"test accuracy {_percent(found)}; undisturbed {_percent(expected)} "
            f"(allowed: {TOLERANCE * 100:.0f} points less)",
        )
        apart = self.ask.difference(self.plan.control, self.plan.fault_at)
        self.screen.note(
            f"against the undisturbed run, over the {apart['steps']:,} steps before the fault, the "
            f"loss differs by {apart['largest']:.2g} at most"
        )
        self.facts["accuracy"] = {
            "recovered": found, "undisturbed": expected, "tolerance": TOLERANCE,
        }  # fmt: skip
        self.facts["difference"] = apart

    def _judge_decision(self) -> None:
        decision = self._decision(3)
        stored = decision.get("candidates") or ()
        reasons = {c["checkpoint"]["id"]: c["reason"] for c in stored}
        # Some of them retention has removed by now; what was sound then is told by the same rows.
        before = [c for c in self.checkpoints() if str(c["id"]) in reasons]
        fit = [c for c in before if c["healthy"]]
        newest = max((c for c in before if c["kind"] == "regular"), key=_age, default=None)
        chosen: UUID | None = decision.get("checkpoint_id")
        self._check(
            "best healthy",
            bool(fit) and chosen == fit[0]["id"],
            f"it came back from step {decision.get('step')}: {decision.get('reason')}",
        )
        for kind, refused in (
            ("emergency", next((c for c in before if c["kind"] == "emergency"), None)),
            ("newest", newest),
        ):
            name = "the emergency one" if kind == "emergency" else "the newest regular one"
            self._check(
                f"not the {kind}",
                refused is not None and not refused["healthy"] and chosen != refused["id"],
                f"not {name}, step {refused and refused['step']}: "
                f"{reasons.get(str(refused and refused['id']))}",
            )
        first, last = decision.get("skip_first"), decision.get("skip_last")
        mine = {row["step"] for row in self.ask.rows() if row["attempt"] == decision.get("attempt")}
        spike = range(self.plan.fault_at, self.plan.fault_at + _spike_steps())
        skipped = range(first, last + 1) if first is not None and last is not None else range(0)
        expected = set(range(decision.get("step", 0) + 1, self.plan.steps)) - set(skipped)
        self._check(
            "skipped",
            set(spike) <= set(skipped) and mine == expected,
            f"it left out steps {first} to {last}, the fault among them, and trained all others up "
            f"to step {max(mine, default=-1)}",
        )

    # -- what the acts share ------------------------------------------------------------------

    def _heading(self, letter: str, title: str) -> None:
        self._act = letter
        self.screen.act(letter, title)

    def _check(self, name: str, ok: bool, claim: str) -> None:
        check = Check(self._act, name, bool(ok), claim)
        self.checks.append(check)
        self.screen.check(check)

    def checkpoints(self) -> list[dict[str, Any]]:
        """Checkpoints by Φ, removed ones too, each with whether it is (or was) healthy."""
        from qigstore.demo.train import SETTLE_STEPS

        return self.ask.checkpoints(SETTLE_STEPS)

    def saved(self) -> list[dict[str, Any]]:
        """Those of them that are there."""
        return [c for c in self.checkpoints() if c["status"] == "committed"]

    def _decision(self, life: int) -> dict[str, Any]:
        number = self._training.attempt(life)
        return next((d for d in self.ask.decisions() if d["attempt"] == number), {})

    def _attempt(self, life: int) -> dict[str, Any]:
        number = self._training.attempt(life)
        return next((a for a in self.ask.attempts() if a["number"] == number), {})

    def _compare(self, life: int) -> None:
        """The script's own count against the store's rows, by step and by value."""
        noted, number = self._training.noted(life), self._training.attempt(life)
        found = {r["step"]: r["loss"] for r in self.ask.rows() if r["attempt"] == number}
        writer = self._attempt(life)
        missing = sum(step not in found for step in noted.recorded)
        strange = sum(step not in noted.begun for step in found)
        other = sum(not _same(found[s], loss) for s, loss in noted.begun.items() if s in found)
        doubled = int(writer.get("repeated_rows") or 0)
        doubled += int(writer.get("acked_seq") or 0) - len(found)
        self._check(
            f"rows of attempt {life}",
            bool(noted.recorded) and missing == strange == other == doubled == 0,
            f"attempt {number}: {len(noted.recorded):,} rows recorded, {len(found):,} stored; "
            f"{missing} missing, {doubled} doubled, {other} changed",
        )
        if len(found) == len(noted.recorded) + 1:
            self.screen.note("(the one more was being recorded when it died, and is whole)")


def run_demo(plan: Plan, *, quiet: bool = False, command: str = "qigstore") -> dict[str, Any]:
    """Play the demo on the store that the settings name; the report of what it found.

    Args:
        plan: what to play.
        quiet: show nothing.
        command: how the user calls `qigstore`, for the hints at the end.

    Raises:
        DemoFailed: an act could not be played to its end.
        StoreUnavailable: no database answers.
        SystemExit: Ctrl-C (130) or SIGTERM (143); every process it started has ended.
    """
    from qigstore.repository import open_store

    screen = Screen(quiet=quiet)
    screen.write(f"qigstore demo · session {plan.session}", "bold")
    screen.note(f"{plan.steps:,} steps of a small network learning handwritten digits", "dim")
    with Interrupts() as interrupts:
        stack = ExitStack()
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="qigstore-demo-"))
            store = stack.enter_context(open_store())
            processes = stack.enter_context(Processes(interrupts, Path(folder)))
            watch = Watch(Questions(store, plan.session, screen.note))
            stack.callback(watch.close)
            demo = Demo(plan, screen, store, Training(plan, screen, processes, watch))
            demo.command = command
            return demo.play()
        except (KeyboardInterrupt, Terminated) as stop:
            with interrupts.held():
                stack.close()
                interrupts.pending = None
            sys.stderr.write(
                "\nqigstore: interrupted; every process of the demo has ended. What was recorded "
                f"stays: {command} sessions show {plan.session}\n"
            )
            raise SystemExit(143 if isinstance(stop, Terminated) else 130) from None
        finally:
            with interrupts.held():
                stack.close()
                interrupts.pending = None


def _phi(saved: list[dict[str, Any]]) -> str:
    return f"{saved[0]['phi']:.3f}" if saved and saved[0]["phi"] is not None else "not measured"


def _age(checkpoint: dict[str, Any]) -> tuple[int, int]:
    return checkpoint["attempt"], checkpoint["step"]


def _same(one: float | None, other: float) -> bool:
    return one is not None and (one == other or (math.isnan(one) and math.isnan(other)))


def _percent(value: float | None) -> str:
    return "not recorded" if value is None else f"{value * 100:.2f} %"


def _spike_steps() -> int:
    from qigstore.demo.train import SPIKE_STEPS

    return SPIKE_STEPS
