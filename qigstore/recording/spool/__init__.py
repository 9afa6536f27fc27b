"""The spool: rows on their way to PostgreSQL, safe from the moment `record()` returned."""

from __future__ import annotations

from qigstore.recording.spool.identity import SpoolIdentity
from qigstore.recording.spool.spool import Spool

__all__ = ["Spool", "SpoolIdentity"]
