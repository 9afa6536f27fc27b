"""The ways into PostgreSQL that are no call of a training loop: COPY, and a spool left over."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from shutil import which
from time import perf_counter
from typing import Any, TypeAlias

from benchmarks.recording_subjects import Place, new_spool, open_store
from qigstore.database.schema import CUSTOM_COLUMNS
from qigstore.records import STANDARD_METRICS

__all__ = ["COPY", "RATES"]

Rate: TypeAlias = Callable[[Place, list[dict[str, float]]], float | str]
COPY = "floor: psycopg copy.write_row, binary"
_TABLE = "bench_copy"
_COLUMNS = (
    "writer", "step", "seq", "recorded_at", *STANDARD_METRICS[:10], *CUSTOM_COLUMNS[:10],
)  # fmt: skip
_TYPES = ("int4", "int8", "int8", "timestamptz", *["float8"] * 20)


def _make_table(connection: Any) -> None:
    connection.execute(f"DROP TABLE IF EXISTS {_TABLE}")
    connection.execute(f"CREATE TABLE {_TABLE} (LIKE qigstore.telemetry INCLUDING ALL)")
    connection.commit()


def write_row_rate(place: Place, data: list[dict[str, float]]) -> float:
    """Steps a second of `copy.write_row` in binary, into a table made as ours is."""
    import psycopg

    now = datetime.now(UTC)
    with psycopg.connect(place.dsn) as connection, connection.cursor() as cursor:
        _make_table(connection)
        began = perf_counter()
        query = f"COPY {_TABLE} ({', '.join(_COLUMNS)}) FROM STDIN (FORMAT BINARY)"
        with cursor.copy(query) as copy:
            copy.set_types(_TYPES)
            for step, row in enumerate(data):
                values = list(row.values())
                copy.write_row((1, step, None, now, *values))
        connection.commit()
        return len(data) / (perf_counter() - began)


def _find_psql() -> Path | None:
    from qigstore.database.embedded_binaries import find_binaries
    from qigstore.errors import QigstoreError

    try:
        own = find_binaries(Path("/")).folder / "psql"
    except QigstoreError:
        own = Path()
    found = str(own) if own.is_file() else which("psql")
    return Path(found) if found else None


def psql_rate(place: Place, data: list[dict[str, float]]) -> float | str:
    r"""Steps a second of `psql \copy` of the same rows from a binary file; the rows are COPY's."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    psql = _find_psql()
    if psql is None:
        return "no psql beside the server's programs nor on PATH"
    told: dict[str, Any] = dict(conninfo_to_dict(place.dsn))
    secret = os.environ | {"PGPASSWORD": str(told.pop("password", ""))}
    command = [str(psql), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]
    command += [f"--dbname={make_conninfo(**told)}", "--command"]
    file, columns = place.folder / "rows.bin", ", ".join(_COLUMNS)

    def copy(way: str) -> float:
        began = perf_counter()
        text = f"\\copy {_TABLE} ({columns}) {way} '{file}' (FORMAT BINARY)"
        subprocess.run([*command, text], env=secret, check=True)
        return perf_counter() - began

    copy("TO")
    with psycopg.connect(place.dsn) as connection:
        _make_table(connection)
    taken = copy("FROM")
    file.unlink()
    return len(data) / taken


def backlog_rate(place: Place, data: list[dict[str, float]]) -> float:
    """Steps a second from a left-over spool to PostgreSQL, with nobody recording meanwhile."""
    from qigstore.recording.drain import drain_leftovers
    from qigstore.recording.recorder import Recorder

    spool = new_spool(place)
    recorder: Recorder[Any] = Recorder(spool)
    for step, row in enumerate(data):
        recorder.record(step, row)
    spool.close()
    with open_store(place.dsn) as store:
        store.sessions.open(place.name, {})  # connected already, as COPY is
        began = perf_counter()
        reports = drain_leftovers(spool.folder.parent, store)
        taken = perf_counter() - began
    assert sum(report.rows for report in reports) == len(data)
    return len(data) / taken


RATES: Mapping[str, Rate] = {
    "left-over spool to PostgreSQL": backlog_rate,
    COPY: write_row_rate,
    r"floor: psql \copy from a binary file": psql_rate,
}
