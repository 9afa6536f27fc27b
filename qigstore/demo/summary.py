"""Act e: what the store knows of the demo, from its views, and how to look further."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qigstore.demo.plot import text_plot
from qigstore.errors import EXIT_EMERGENCY

if TYPE_CHECKING:
    from qigstore.demo.acts import Demo

__all__ = ["summarise"]

_BEST_SHOWN = 6


def summarise(demo: Demo) -> dict[str, Any]:
    """Show the closing summary; return it as data."""
    demo.screen.act("e", "what the store knows")
    found = {
        "attempts": demo.ask.attempts(),
        "timeline": demo.ask.timeline(),
        "events": demo.ask.events(),
        "checkpoints": demo.saved(),
        "decisions": demo.ask.decisions(),
    }
    rows = demo.ask.rows()
    _attempts(demo, found["attempts"])
    _timeline(demo, found["timeline"])
    _events(demo, found["events"])
    _checkpoints(demo, found["checkpoints"])
    _decisions(demo, found["decisions"])
    _plots(demo, rows, found["events"])
    _further(demo)
    return found


def _attempts(demo: Demo, attempts: Sequence[dict[str, Any]]) -> None:
    demo.screen.table(
        "attempts",
        ("attempt", "rows", "steps", "ended", "status"),
        [
            (a["number"], f"{a['rows']:,}", _span(a["first_step"], a["last_step"]), a["status"],
             "" if a["exit_status"] is None else a["exit_status"])
            for a in attempts
        ],
        right="RR",
    )  # fmt: skip


def _timeline(demo: Demo, parts: Sequence[dict[str, Any]]) -> None:
    demo.screen.table(
        "the canonical timeline: for each step the newest attempt that reached it",
        ("steps", "attempt", "rows", ""),
        [
            (_span(p["first_step"], p["last_step"]), p["attempt"], f"{p['rows']:,}",
             "abandoned: left out after the recovery" if p["abandoned"] else "")
            for p in parts
        ],
        right=" RR",
    )  # fmt: skip


def _events(demo: Demo, events: Sequence[dict[str, Any]]) -> None:
    demo.screen.table(
        "events",
        ("attempt", "step", "severity", "rule"),
        [(e["attempt"], e["step"], e["severity"], e["rule"]) for e in events],
        right="RR",
    )


def _checkpoints(demo: Demo, checkpoints: Sequence[dict[str, Any]]) -> None:
    shown = list(checkpoints[:_BEST_SHOWN])
    shown += [c for c in checkpoints[_BEST_SHOWN:] if not c["healthy"]]
    demo.screen.table(
        f"checkpoints by Φ ({len(shown)} of {len(checkpoints)})",
        ("Φ", "step", "attempt", "kind", "healthy", "id"),
        [
            ("" if c["phi"] is None else f"{c['phi']:.4f}", c["step"], c["attempt"], c["kind"],
             "yes" if c["healthy"] else "no", str(c["id"])[:8])
            for c in shown
        ],
        right="RRR",
    )  # fmt: skip


def _decisions(demo: Demo, decisions: Sequence[dict[str, Any]]) -> None:
    demo.screen.table(
        "recoveries",
        ("attempt", "from step", "left out", "why"),
        [
            (d["attempt"], "the start" if d["step"] is None else d["step"],
             "" if d["skip_first"] is None else _span(d["skip_first"], d["skip_last"]),
             d["reason"])
            for d in decisions
        ],
        right="RR",
    )  # fmt: skip


def _plots(demo: Demo, rows: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]]) -> None:
    marks, before = [], None
    critical = {(e["attempt"], e["step"]) for e in events if e["severity"] == "critical"}
    for place, row in enumerate(rows):
        if before is not None and row["attempt"] != before:
            marks.append((place, "R"))
        if (row["attempt"], row["step"]) in critical:
            marks.append((place, "E"))
        before = row["attempt"]
    demo.screen.write()
    demo.screen.write("  every recorded row, in the order of the attempts", "bold")
    demo.screen.write("  (E critical event · R start of the next attempt)", "dim")
    for title, name, logarithmic in (("Φ", "phi", False), ("loss, logarithmic", "loss", True)):
        for line in text_plot(title, [r[name] for r in rows], marks, logarithmic=logarithmic):
            demo.screen.write(f"  {line}", "cyan" if line[-1:] > "\u2800" else "")


def _further(demo: Demo) -> None:
    screen, plan = demo.screen, demo.plan
    failed = [check for check in demo.checks if not check.ok]
    screen.write()
    if failed:
        screen.write(f"{len(failed)} of {len(demo.checks)} claims do not hold:", "bold red")
        for check in failed:
            screen.check(check)
    else:
        screen.write(f"All {len(demo.checks)} claims hold, checked by SQL.", "bold green")
    if not screen.interactive:
        return
    screen.write()
    screen.write("Look further:", "bold")
    for command in (
        f"sessions show {plan.session}",
        f"checkpoints list {plan.session}",
        f"recover {plan.session} --dry-run",
        "sql -c 'select * from best_checkpoints'",
        "sql",
    ):
        screen.write(f"  {demo.command} {command}", "cyan")
    if os.environ.get("QIGSTORE_DSN") is not None:
        screen.write('  psql "$QIGSTORE_DSN"', "cyan")
    else:
        screen.write(f"  {demo.command} db start", "cyan")
        screen.note("(keeps the server running until Ctrl-C, and prints a line for psql)", "dim")
    screen.note(f"Status {EXIT_EMERGENCY} means: stopped by itself, start it again.", "dim")


def _span(first: Any, last: Any) -> str:
    return "" if first is None else f"{first} to {last}"
