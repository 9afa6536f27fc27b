"""Sessions as files and back, exactly: every bit of every number, every time to the microsecond.

=========== ==================================================================================
suffix      holds
=========== ==================================================================================
.jsonl      the whole session: its configuration, attempts, telemetry with basins, events, rows of
            checkpoints, decisions of recovery; one JSON object a line, the telemetry last
.parquet    the same: telemetry as typed columns, the rest in the file's metadata (needs pyarrow)
.csv        the telemetry alone, one row a line, named columns, an empty cell for NULL
=========== ==================================================================================

No file holds the checkpoints themselves (copy their folder), nor the curves, which are computed
again. NaN is one value: its payload bits are not kept by a text file. A file is written beside its
place and renamed, so that it is whole or not there.

With no database in reach, `export_spools` writes what waits in the spools instead.

Importing is behind the fence that recording uses: a file that is imported again, or further after
an interruption, stores nothing twice. Under its own name a session keeps all its ids; under another
name (`--session`) it becomes a session of its own, with ids derived from both, and without the rows
of checkpoints, whose folders belong to the first name.
"""

from __future__ import annotations

from qigstore.exchange.exporter import ExportReport, export_session, export_spools
from qigstore.exchange.importer import ImportReport, import_session

__all__ = [
    "ExportReport",
    "ImportReport",
    "export_session",
    "export_spools",
    "import_session",
]
