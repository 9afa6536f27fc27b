"""The one envelope of a stream, the same on a WebSocket and as server-sent events.

    {"seq": "...", "kind": "telemetry", "data": {...}}

`seq` is opaque: sent back as `after`, it names everything up to this envelope.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from qigstore.encoding import as_json, fields_of
from qigstore.repository.feed import Change

__all__ = ["Envelope", "change_data", "envelope"]


class Envelope(NamedTuple):
    """An envelope as it is sent; `text` is shared by all who get it."""

    seq: str
    kind: str
    text: str

    @property
    def server_sent(self) -> str:
        """The same as a server-sent event."""
        return f"id: {self.seq}\nevent: {self.kind}\ndata: {self.text}\n\n"


def envelope(seq: str, kind: str, data: Any) -> Envelope:
    """Write one; NaN and ±inf become strings, as everywhere (`qigstore.encoding`)."""
    whole = {"seq": seq, "kind": kind, "data": data}
    try:
        text = json.dumps(whole, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError):  # such a number is in it, or a type that JSON has not
        text = json.dumps(as_json(whole), allow_nan=False, separators=(",", ":"))
    return Envelope(seq, kind, text)


def change_data(change: Change) -> dict[str, Any]:
    """An event or a checkpoint as it was then; the same `id` and `change` come once."""
    record = fields_of(change.record)
    record.pop("session_id")
    record.pop("path", None)  # a folder of the machine that trains is nobody else's business
    return {"session": change.session, "change": change.transaction, **record}
