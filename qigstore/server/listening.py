"""The socket a server listens at: bound before anything is said, so that what is said is so."""

from __future__ import annotations

import socket

from qigstore.errors import ConfigurationError
from qigstore.server.config import ServerConfig

__all__ = ["listen", "url_of"]

_BACKLOG = 512
STUCK_S = 30.0
"""A client that takes nothing of what is sent for so long is cut off by the kernel: nobody else
could do it, where neither an end nor the connection's own buffer gets through (Linux)."""


def listen(config: ServerConfig) -> socket.socket:
    """A listening socket at the configured address.

    Raises:
        ConfigurationError: there is no such address here, or its port is taken.
    """
    host = config.host.strip("[]")
    try:
        found = socket.getaddrinfo(host, config.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                limit_ms = int(STUCK_S * 1000)
                bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)
            bound.bind(address)
            bound.listen(_BACKLOG)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen at {config.host} port {config.port}: {error.strerror or error}. "
            "Name another --host or --port (0: any free port)."
        ) from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Where a listening socket is reached."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
