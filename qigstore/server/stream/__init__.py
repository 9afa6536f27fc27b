"""The live stream: `/v1/stream` (WebSocket) and `/v1/stream/sse`, one envelope for both.

    database ─ tail (one thread, one listener) ─ hub ─ channel (one a subscription) ─ clients

position       how far a client came, and the token that says it: `seq`
subscription   what a client asks for
points         rows, or buckets of them
envelope       what is sent
channel        what one subscription gets, written once, a bounded queue for each client
tail           hears the database and reads what is new, once for everybody
hub            joins them
client         a client that comes back, caught up
admission      who may have a stream
endpoints      the WebSocket and the server-sent events

**Nothing missed, nothing twice.** One number would not do as `seq`: writers commit side by side,
and what has the smaller number may commit last. So a place holds the last record of each writer
(whose rows commit in their order), and a snapshot of transactions for events and checkpoints
(`repository.feed`). It is read from the database and from nothing else, so that it holds at any
server, and after any of them is gone. Telemetry comes in parts, of one writer each, which say from
which record to which (`first_seq`, `last_seq`): one begins where the one before it ended. An event
or a checkpoint comes again when it changes, with another `change`; what comes later is later.

**Followed** are the 1,000 writers heard of last. Rows of another one, such as a spool found after
months, are in the database and not in the stream, until it is among them.
"""

from __future__ import annotations

from qigstore.server.stream.endpoints import leave, opened, routes

__all__ = ["leave", "opened", "routes"]
