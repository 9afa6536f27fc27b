"""The REST server and its stream: `qigstore serve`. It owns no logic of the store's own.

gate        refuses unread: a token in a URL, foreign hosts and origins, bodies too large; the log
auth        who asks: tokens, scopes, the sessions a token is for
limits      how fast one may ask
problems    every error as a problem document (RFC 9457)
app         the application
api/        the endpoints, one file a noun
meters      what it counts of itself

It needs the extra `server` (`pip install 'qigstore[server]'`).
"""

from __future__ import annotations

from qigstore.server.app import create_app
from qigstore.server.auth import Principal, authenticate_token, require
from qigstore.server.config import ServerConfig
from qigstore.server.problems import Problem

__all__ = [
    "Principal",
    "Problem",
    "ServerConfig",
    "authenticate_token",
    "create_app",
    "require",
]
