"""Sends a COPY stream to the server while other threads run.

A thread that waits for its socket needs the interpreter's lock again after each wait, and a busy
training thread gives it up only every 5 ms. psycopg waits as often as the socket's buffer fills,
several times a megabyte; with that most of a batch's time is waiting for the lock. On a local
socket each block is therefore one blocking call, during which the lock is free, and the kernel
keeps as much of it as it allows (`net.core.wmem_max`) while the server is behind. Elsewhere libpq
sends, as it may have to encrypt.

Nothing is read from the server meanwhile. One that takes no byte for `_STUCK_S` is given up: it
hangs, or waits itself for somebody to read thousands of notices (of a trigger that is not ours).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.copy import LibpqWriter

from qigstore.repository import copy_binary as wire

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["copy_in"]

_LOCAL = getattr(socket, "AF_UNIX", None)
_SMALL_BYTES = 1 << 18
_STUCK_S = 30


def copy_in(
    cursor: psycopg.Cursor[Any],
    table: str,
    columns: Sequence[str],
    parts: Iterable[tuple[Sequence[wire.Field], int]],
    meanwhile: Callable[[], None] | None = None,
) -> None:
    """Store the rows of each part; call `meanwhile` once they are on their way.

    Raises:
        psycopg.Error: the server refuses them, or is gone.
    """
    statement = f"COPY qigstore.{table} ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)"
    writer = _LocalWriter(cursor) if _local(cursor.connection) else None
    with cursor.copy(statement, writer=writer) as copy:
        for block in wire.stream(parts):
            copy.write(block)
        del block  # a few MB, which what is done meanwhile may need
        if meanwhile is not None:
            meanwhile()


def _local(connection: psycopg.Connection[Any]) -> bool:
    """Whether its socket is a local one; it then has a limit on waiting, and room for a block."""
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as same:
        if same.family != _LOCAL:
            return False
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _STUCK_S, 0))
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, wire.BLOCK_BYTES)
        return True


class _LocalWriter(LibpqWriter):
    """Writes CopyData messages to the socket itself; libpq begins and ends the COPY."""

    def __init__(self, cursor: psycopg.Cursor[Any]) -> None:
        super().__init__(cursor)
        self._pgconn = cursor.connection.pgconn
        self._held = b""

    def write(self, data: Buffer) -> None:
        """Send a block; a few bytes wait for the next one."""
        block = memoryview(data).cast("B")
        if len(self._held) + len(block) <= _SMALL_BYTES:
            self._held += block
        else:
            self._send(block)

    def finish(self, exc: BaseException | None = None) -> None:
        """End the COPY; as a failure where there was one."""
        if self._held and exc is None:
            self._send(memoryview(b""))
        super().finish(exc)

    def _send(self, block: memoryview) -> None:
        held, self._held = self._held, b""
        head = struct.pack(">ci", b"d", 4 + len(held) + len(block)) + held
        if self._pgconn.flush():
            raise psycopg.InternalError("libpq has bytes of its own left to send before COPY data")
        descriptor = self._pgconn.socket
        os.set_blocking(descriptor, True)
        try:
            sent = os.writev(descriptor, [head, block])
            while sent < len(head) + len(block):  # a signal cut the call short
                rest = memoryview(head)[sent:] or block[sent - len(head) :]
                sent += os.write(descriptor, rest)
        except OSError as error:
            raise psycopg.OperationalError(f"sending failed: {error}") from error
        finally:
            os.set_blocking(descriptor, False)
