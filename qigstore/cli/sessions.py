"""`qigstore sessions`: what was recorded, session by session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qigstore.cli.context import SessionName, opened_store
from qigstore.cli.output import Json, fields_of, print_json, print_pairs, print_table

if TYPE_CHECKING:
    from qigstore.records import SessionInfo
    from qigstore.repository import Store

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Sessions: training efforts, by name.")


@app.command("list")
def list_sessions(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 50,
    offset: Annotated[int, typer.Option(min=0, help="Leave out so many first.")] = 0,
    as_json: Json = False,
) -> None:
    """List sessions, the newest first."""
    from qigstore.settings import load_settings

    with opened_store(load_settings()) as store:
        found = store.sessions.list(limit=limit, offset=offset)
    if as_json:
        print_json(found)
        return
    rows = [(s.name, s.attempts, s.status, s.last_step, s.last_seen_at) for s in found]
    print_table(
        ("session", "attempts", "status", "last step", "last seen (UTC)"),
        rows,
        empty="no sessions yet; `qigstore demo` makes one",
        whole="session",
    )


@app.command()
def show(session: SessionName, as_json: Json = False) -> None:
    """Show one session: its attempts, its newest row, its events and checkpoints in numbers."""
    from qigstore.settings import load_settings

    with opened_store(load_settings()) as store:
        data = _gather(store, store.sessions.get(session))
    if as_json:
        print_json(data)
    else:
        _print(data)


def _gather(store: Store, info: SessionInfo) -> dict[str, Any]:
    rows = {attempt: count for attempt, rank, count, *_ in store.telemetry.counts(info.id)
            if rank == 0}  # fmt: skip
    attempts = store.sessions.attempts(info.id)
    return {
        "session": info,
        "rows": sum(rows.values()),
        "events": len(store.events.list(info.id, limit=100_000)),
        "checkpoints": len(store.checkpoints.list(info.id, status="committed", limit=100_000)),
        "attempts": [{**fields_of(attempt), "rows": rows.get(attempt.number, 0)}
                     for attempt in attempts],
        "latest": store.telemetry.latest(info.id),
    }  # fmt: skip


def _print(data: dict[str, Any]) -> None:
    info, latest = data["session"], data["latest"]
    pairs = {
        "session": info.name,
        "created (UTC)": info.created_at,
        "status": info.status,
        "rows": data["rows"],
        "events": data["events"],
        "checkpoints": data["checkpoints"],
        "config": dict(info.config) or None,
    }
    if latest is not None:
        values = [f"{name} {value:.4g}" for name, value in latest.metrics.items()]
        pairs["last step"] = f"{latest.step}: " + ", ".join(filter(None, [latest.regime, *values]))
    print_pairs(pairs)
    print_table(
        ("attempt", "status", "rows", "resumed at", "started (UTC)", "exit", "reason"),
        [
            (
                a["number"],
                a["status"],
                a["rows"],
                _resumed(a["resumed_step"]),
                a["started_at"],
                a["exit_status"],
                a["reason"],
            )
            for a in data["attempts"]
        ],
        whole="status",
    )


def _resumed(step: int | None) -> str:
    """Where an attempt began: −1 says that recovery found nothing and started afresh."""
    if step is None:
        return ""
    return "the start" if step < 0 else f"step {step}"
