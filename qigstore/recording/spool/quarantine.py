"""Rows that the database refuses: kept as text beside the spool, one JSON object a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from qigstore.recording.spool.segment import Disk

if TYPE_CHECKING:
    from qigstore.recording.spool.reader import Rows

__all__ = ["Quarantine"]


class Quarantine:
    """The file `<spool root>/quarantine-<writer>.jsonl`; it outlives the spool.

    A row that comes again, because a process died between writing it here and settling it in the
    database, is not written twice.
    """

    def __init__(self, root: Path, writer: UUID) -> None:
        self.path = root / f"quarantine-{writer}.jsonl"

    def add(self, rows: Rows, reason: str) -> None:
        """Write rows down, durably.

        Raises:
            OSError: the disk refuses; then they stay in the spool.
        """
        known = self._known()
        lines = [
            json.dumps(
                {
                    "seq": int(rows.seq[i]),
                    "step": int(rows.step[i]),
                    "time_ns": int(rows.time_ns[i]),
                    "regime": int(rows.regime[i]),
                    "metrics": dict(zip(rows.names, rows.values[i].tolist(), strict=True)),
                    "basin": None if rows.basins is None else rows.basins[i].tolist(),
                    "reason": reason,
                }
            )
            for i in range(len(rows.seq))
            if int(rows.seq[i]) not in known
        ]  # fmt: skip
        # A torn last line, from a death in the middle of it, is closed by the first newline.
        with self.path.open("ab") as file:
            file.write("".join(f"\n{line}\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
        Disk().sync_folder(self.path.parent)

    def _known(self) -> set[int]:
        if not self.path.exists():
            return set()
        found = set()
        for line in self.path.read_bytes().splitlines():
            try:
                found.add(int(json.loads(line)["seq"]))
            except (ValueError, KeyError, TypeError):
                continue  # torn: the row comes again and is written whole
        return found
