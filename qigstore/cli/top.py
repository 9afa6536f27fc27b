"""`qigstore top`: the sessions that run now, how fast, how far behind, and where Φ is going."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic, sleep
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qigstore.cli.output import Json, print_json, shown
from qigstore.cli.sparkline import sparkline

if TYPE_CHECKING:
    from rich.table import Table

    from qigstore.records import SessionInfo, TelemetryRow
    from qigstore.repository import Store

__all__ = ["top"]

_BARS = 24
_SHOWN = ("loss", "phi")
_SESSIONS_MAX = 200


@dataclass(frozen=True, slots=True)
class Line:
    """One session as a line of the view.

    Attributes:
        rows_a_second: stored since the last frame, or since the attempt began.
        lag_s: age of the newest row.
        values, curves: of loss and Φ: the newest, and means over the whole session.
        open_events: critical ones that nobody acknowledged and nothing resolved.
    """

    session: str
    status: str | None
    attempt: int | None
    step: int | None
    rows: int
    rows_a_second: float | None
    lag_s: float | None
    regime: str | None
    values: dict[str, float]
    curves: dict[str, list[float]]
    open_events: int


class Watch:
    """Looks at the sessions again and again; rates are those between two looks."""

    def __init__(self, store: Store, limit: int, *, ended: bool) -> None:
        self._store, self._limit, self._ended = store, limit, ended
        self._before: dict[str, tuple[float, int]] = {}

    def look(self) -> list[Line]:
        """The sessions as they are now, the newest first."""
        from qigstore import query

        found = self._store.sessions.list(limit=_SESSIONS_MAX)
        wanted = [info for info in found if self._ended or info.status == "running"]
        wanted = wanted[: self._limit]
        latest = query.latest(self._store, [info.name for info in wanted])
        newest = {each.session: each.row for each in latest.rows}
        return [self._line(info, newest.get(info.name)) for info in wanted]

    def _line(self, info: SessionInfo, row: TelemetryRow | None) -> Line:
        from qigstore import query

        counts = self._store.telemetry.counts(info.id)
        rows = sum(count.rows for count in counts)
        present = [name for name in _SHOWN if row is not None and name in row.metrics]
        curves = {
            name: query.curve(self._store, info.name, name, points=_BARS, abandoned=False)
            for name in present
        }
        events = self._store.events.list(info.id, severity="critical", still_open=True)
        return Line(
            session=info.name,
            status=info.status,
            attempt=None if row is None else row.attempt,
            step=info.last_step,
            rows=rows,
            rows_a_second=self._rate(info, rows),
            lag_s=None if row is None else (datetime.now(UTC) - row.recorded_at).total_seconds(),
            regime=None if row is None else row.regime,
            values={name: row.metrics[name] for name in present} if row is not None else {},
            curves={name: found.mean.tolist() for name, found in curves.items()},
            open_events=len(events),
        )

    def _rate(self, info: SessionInfo, rows: int) -> float | None:
        now, before = monotonic(), self._before.get(info.name)
        self._before[info.name] = (now, rows)
        if before is not None and now > before[0]:
            return (rows - before[1]) / (now - before[0])
        attempts = self._store.sessions.attempts(info.id)
        if not attempts or info.last_seen_at is None:
            return None
        newest = attempts[-1]
        mine = sum(c.rows for c in self._store.telemetry.counts(info.id)
                   if c.attempt == newest.number)  # fmt: skip
        lived = (info.last_seen_at - newest.started_at).total_seconds()
        return mine / lived if lived > 0 else None


def top(
    once: Annotated[
        bool, typer.Option("--once", help="Print one frame and leave (as on a pipe).")
    ] = False,
    ended: Annotated[
        bool, typer.Option("--all", help="Sessions that do not run now, too.")
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0.2, max=3600, help="Seconds between two frames.")
    ] = 1.0,
    limit: Annotated[
        int, typer.Option(min=1, max=_SESSIONS_MAX, help="At most so many sessions.")
    ] = 20,
    as_json: Json = False,
) -> None:
    """Watch the running sessions: step, rate, lag, regime, loss and Φ; Ctrl-C leaves.

    lag is the age of the newest stored row; a curve goes over the whole session, and × marks where
    nothing was finite.
    """
    from qigstore.cli.context import opened_store
    from qigstore.settings import load_settings

    with opened_store(load_settings()) as store:
        watch = Watch(store, limit, ended=ended)
        if as_json:
            print_json(watch.look())
        elif once or not sys.stdout.isatty():
            _print(watch.look())
        else:
            _live(watch, interval)


def _print(lines: list[Line]) -> None:
    from qigstore.cli.output import print_table

    print_table(_HEADS, [_cells(line) for line in lines], empty=_EMPTY, whole="session")


def _live(watch: Watch, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live

    # Ctrl-C is how one leaves, so it is no error.
    try:
        with Live(
            _table(watch.look()), console=Console(highlight=False), screen=True, auto_refresh=False
        ) as live:
            while True:
                sleep(interval)
                live.update(_table(watch.look()), refresh=True)
    except KeyboardInterrupt:
        return


_HEADS = ("session", "status", "step", "rows/s", "lag s", "regime", "loss", "", "Φ", "", "open")
_EMPTY = "no session runs now; `qigstore top --all` shows the others"
_STYLES = {"running": "green", "lost": "red", "failed": "red", "aborted": "yellow"}


def _cells(line: Line) -> tuple[Any, ...]:
    drawn: list[Any] = []
    for name in _SHOWN:
        value = line.values.get(name)
        drawn += [None if value is None else f"{value:.4g}", sparkline(line.curves.get(name, []))]
    rate = None if line.rows_a_second is None else f"{line.rows_a_second:.1f}"
    lag = None if line.lag_s is None else f"{line.lag_s:.1f}"
    return (line.session, line.status, line.step, rate, lag, line.regime, *drawn, line.open_events)


def _table(lines: list[Line]) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    now = datetime.now(UTC).strftime("%H:%M:%S UTC")
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"{len(lines)} sessions, {now}",
        caption="" if lines else escape(_EMPTY),
    )
    numbers = {"step", "rows/s", "lag s", "loss", "Φ", "open"}
    for name in _HEADS:
        table.add_column(name, justify="right" if name in numbers else "left", no_wrap=True)
    for line in lines:
        session, status, *rest, events = _cells(line)
        style = _STYLES.get(status, "")
        state = f"[{style}]{escape(shown(status))}[/]" if style else escape(shown(status))
        marked = f"[red]{events}[/]" if events else "0"
        table.add_row(escape(shown(session)), state, *(escape(shown(r)) for r in rest), marked)
    return table
