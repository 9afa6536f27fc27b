"""The five acts, in order; what each one claims is asked of the store and counted as a check."""

from __future__ import annotations

import math
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qigstore.demo.ledger import Noted, count_recorded, read_ledger
from qigstore.demo.plan import DemoFailed, Plan
from qigstore.demo.processes import Child, Interrupts, Processes, Terminated
from qigstore.demo.questions import Questions
from qigstore.demo.screen import Check, Screen
from qigstore.errors import EXIT_EMERGENCY

if TYPE_CHECKING:
    from uuid import UUID

    from qigstore.repository import Store

__all__ = ["TOLERANCE", "Demo", "run_demo"]

TOLERANCE = 0.02
"""How much lower the test accuracy may be than the undisturbed run's."""
_POLL_S, _ASK_EVERY_S, _STALL_S = 0.02, 0.25, 90.0


class Demo:
    """One performance; `play` returns the report."""

    def __init__(self, plan: Plan, screen: Screen, store: Store, processes: Processes) -> None:
        self.plan, self.screen = plan, screen
        self._processes = processes
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
        control = self._start(self.plan.control)
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
        child = self._start(self.plan.session)
        self._follow(child, lambda recorded: recorded > self.plan.kill_at)
        attempts = self.ask.attempts()
        stored = int(attempts[0]["rows"]) if attempts else 0
        self._check(
            "readable",
            stored > 0 and attempts[0]["status"] == "running",
            f"while it trains, SQL already reads {stored:,} of its steps",
        )
        saved = self.saved()
        self._check(
            "checkpoints",
            sum(c["healthy"] for c in saved) > 0,
            f"{len(saved)} checkpoints are committed, the best with Φ {_phi(saved)}",
        )
        return child

    def _kill_and_restart(self, first: Child) -> Child:
        self._heading("b", "kill -9 in the middle, then start again")
        first.send(signal.SIGKILL)
        status = first.wait()
        noted = self._noted(1)
        at_kill = int(self.ask.attempts()[0]["rows"])
        waiting = len(noted.recorded) - at_kill
        self._check(
            "killed",
            status == -signal.SIGKILL,
            f"killed at step {max(noted.recorded)}: {len(noted.recorded):,} rows recorded, "
            f"{at_kill:,} stored, {max(waiting, 0)} still in its spool",
        )
        second = self._start(self.plan.session)
        self._follow(second, lambda recorded: recorded > len(noted.recorded), shown=False)
        self._compare(1, noted)
        lost = self.ask.attempts()[0]
        self._check(
            "lost",
            lost["status"] == "lost",
            f"attempt 1 is marked {lost['status']}: {lost['reason']}",
        )
        decision = self._decision(2)
        self._check(
            "resumed",
            decision.get("step") is not None and decision["step"] <= max(noted.begun),
            f"attempt 2 resumed from step {decision.get('step')}: {decision.get('reason')}",
        )
        self.facts["kill"] = {
            "step": max(noted.recorded), "recorded": len(noted.recorded), "stored": at_kill,
        }  # fmt: skip
        return second

    def _fault(self, child: Child) -> None:
        plan = self.plan
        self._heading("c", f"a fault: at step {plan.fault_at} the learning rate jumps fortyfold")
        self._follow(child, lambda _: False, running=False)
        status = child.wait()
        self._check(
            "exit status",
            status == EXIT_EMERGENCY,
            f"the run stopped itself with exit status {status}",
        )
        if self._delivered(2):
            self._judge_fault()

    def _delivered(self, attempt: int) -> bool:
        """Whether the store holds what an ended attempt recorded; else the next start brings it."""
        rows = sum(row["attempt"] == attempt for row in self.ask.rows())
        events = any(e["severity"] == "critical" for e in self.ask.events())
        saved = any(c["kind"] == "emergency" for c in self.saved())
        if rows >= len(self._noted(attempt).recorded) and events and saved:
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
            and event["attempt"] == 2
            and plan.fault_at <= event["step"] < plan.fault_at + 10,
            f"the rule {event.get('rule')!r} fired at step {event.get('step')}: "
            f"{event.get('message')}",
        )
        emergency = [c for c in self.saved() if c["kind"] == "emergency"]
        saved = emergency[0] if emergency else {}
        self._check(
            "emergency checkpoint",
            len(emergency) == 1 and saved["attempt"] == 2 and saved["step"] >= plan.fault_at,
            f"the state at step {saved.get('step')} was saved as an emergency checkpoint",
        )
        ended = self.ask.attempts()[1]
        told = ended["status"], ended["exit_status"]
        # Without a database at its end, an attempt cannot say how it ended, and counts as lost.
        self._check(
            "aborted",
            told == ("aborted", EXIT_EMERGENCY) or (late and told == ("lost", None)),
            f"the store knows: attempt 2 {ended['status']}, exit status {ended['exit_status']}",
        )
        self._compare(2, self._noted(2))

    def _recover(self, control: Child) -> None:
        self._heading("d", "start again: back to the best healthy checkpoint, round the fault")
        before = len(self._noted(2).recorded) + len(self._noted(1).recorded)
        child = self._start(self.plan.session)
        if not any(check.name == "event" for check in self.checks):
            self._follow(child, lambda recorded: recorded > before, shown=False)
            self._act = "c"
            self._judge_fault(late=True)
            self._act = "d"
        self._follow(child, lambda _: False, running=False, at_start=before)
        status = child.wait()
        self._check("completed", status == 0, f"attempt 3 ended with exit status {status}")
        self._judge_decision()
        self._compare(3, self._noted(3))
        if control.status is None:
            self.screen.note("waiting for the undisturbed run")
        if control.wait_at_most(_STALL_S) != 0:
            raise DemoFailed(f"the undisturbed run ended with {_ended(control)}")
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
        mine = {row["step"] for row in self.ask.rows() if row["attempt"] == 3}
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

    def _start(self, session: str) -> Child:
        ledger = self._processes.ledger(session)
        return self._processes.start(self.plan.arguments(session, ledger))

    def _noted(self, attempt: int) -> Noted:
        return read_ledger(self._processes.ledger(self.plan.session)).get(attempt, Noted())

    def checkpoints(self) -> list[dict[str, Any]]:
        """Checkpoints by Φ, removed ones too, each with whether it is (or was) healthy."""
        from qigstore.demo.train import SETTLE_STEPS

        return self.ask.checkpoints(SETTLE_STEPS)

    def saved(self) -> list[dict[str, Any]]:
        """Those of them that are there."""
        return [c for c in self.checkpoints() if c["status"] == "committed"]

    def _decision(self, attempt: int) -> dict[str, Any]:
        return next((d for d in self.ask.decisions() if d["attempt"] == attempt), {})

    def _compare(self, attempt: int, noted: Noted) -> None:
        """The script's own count against the store's rows, by step and by value."""
        found = {r["step"]: r["loss"] for r in self.ask.rows() if r["attempt"] == attempt}
        writer = self.ask.attempts()[attempt - 1]
        missing = sum(step not in found for step in noted.recorded)
        strange = sum(step not in noted.begun for step in found)
        other = sum(not _same(found[s], loss) for s, loss in noted.begun.items() if s in found)
        doubled = int(writer["repeated_rows"]) + (int(writer["acked_seq"]) - len(found))
        self._check(
            f"rows of attempt {attempt}",
            bool(noted.recorded) and missing == strange == other == doubled == 0,
            f"attempt {attempt}: {len(noted.recorded):,} rows recorded, {len(found):,} stored; "
            f"{missing} missing, {doubled} doubled, {other} changed",
        )
        if len(found) == len(noted.recorded) + 1:
            self.screen.note("(the one more was being recorded when it died, and is whole)")

    def _follow(
        self,
        child: Child,
        reached: Callable[[int], bool],
        *,
        shown: bool = True,
        running: bool = True,
        at_start: int | None = None,
    ) -> None:
        """Watch a training until the ledger has reached something, or it has ended."""
        ledger = self._processes.ledger(self.plan.session)
        at_start = count_recorded(ledger)[0] if at_start is None else at_start
        with self.screen.progress(self.plan.steps) as progress:
            changed = asked = time.monotonic()
            before, words = -1, ""
            while True:
                status = child.status
                recorded, step = count_recorded(ledger)
                if status is not None:
                    if running or status not in {0, EXIT_EMERGENCY}:
                        raise _died(child)
                    return
                if reached(recorded):
                    return
                moment = time.monotonic()
                if recorded != before:
                    before, changed = recorded, moment
                if moment - changed > _STALL_S:
                    raise DemoFailed(f"the training process {child.pid} makes no progress")
                if moment - asked > _ASK_EVERY_S or not words:
                    asked, words = moment, _standing(self.ask.now(), recorded)
                if shown:
                    progress.show(step + 1, "starting" if recorded == at_start else words)
                time.sleep(_POLL_S)


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
            demo = Demo(plan, screen, store, processes)
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


def _standing(now: dict[str, Any] | None, recorded: int) -> str:
    if now is None:
        return f"{recorded:,} recorded; the database is away, rows wait in the spool"
    if now.get("loss") is None:
        return "starting"
    phi = "" if now["phi"] is None else f"  Φ {now['phi']:.2f}"
    return f"loss {now['loss']:.3f}{phi}  {recorded:,} recorded, {now['rows']:,} stored"


def _died(child: Child) -> DemoFailed:
    status = child.wait()
    known = 2 <= status <= 6  # the same kinds of errors as the command line's own
    return DemoFailed(f"the training process ended with {_ended(child)}", status if known else 1)


def _ended(child: Child) -> str:
    status = child.status
    how = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
    return f"{how}: {child.last_words()}"


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
