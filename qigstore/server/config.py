"""What a server is told when it starts: where it listens, whom it answers, and its limits."""

from __future__ import annotations

import ipaddress
import platform
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from qigstore.errors import ConfigurationError
from qigstore.settings import Settings

__all__ = ["ServerConfig", "is_loopback"]

_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Every limit of a server; each has a name, a unit and a test.

    Attributes:
        settings: where checkpoints lie, and when one is healthy.
        host, port: where it listens.
        origins: pages of other origins that may ask it (`https://grafana.example:3000`).
        hosts: further names it is known by; an address or this machine's name always will do.
        body_bytes_max: of a request.
        requests_per_s, burst: of one token: in the long run, and at once after a pause.
        refusals_per_s, refusals_burst: the same of requests without a valid token, of one address.
        threads: requests at work at the same time; each holds at most one database connection.
        requests_max: requests open at the same time, those that wait for a thread included.
        streams_max, token_streams_max: streams open at the same time, of all and of one token.
        readers_max: checkpoints read whole at the same time (verify, recover).
    """

    settings: Settings = field(default_factory=Settings)
    host: str = "127.0.0.1"
    port: int = 8720
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    body_bytes_max: int = 1 << 20
    requests_per_s: float = 100.0
    burst: int = 200
    refusals_per_s: float = 5.0
    refusals_burst: int = 50
    threads: int = 16
    requests_max: int = 256
    streams_max: int = 1_000
    token_streams_max: int = 100
    readers_max: int = 2

    def __post_init__(self) -> None:
        for origin in self.origins:
            parts = urlsplit(origin)
            if (
                parts.scheme not in {"http", "https"}
                or origin != f"{parts.scheme}://{parts.netloc}"
            ):
                raise ConfigurationError(
                    f"origin {origin!r} cannot be used; expected https://name or https://name:port "
                    "without a path: what a browser sends as Origin."
                )

    def knows_host(self, given: str) -> bool:
        """Whether a Host header names this server: a page of another name that a DNS server turned
        into our address (rebinding) does not."""
        name = host_name(given)
        return name in {*_LOCAL_NAMES, platform.node().lower(), *map(str.lower, self.hosts)} or (
            _is_address(name)
        )

    def allows_origin(self, origin: str, host: str) -> bool:
        """Whether a page of that origin may ask: our own pages, and those named."""
        return origin in self.origins or urlsplit(origin).netloc.lower() == host.lower()


def host_name(given: str) -> str:
    """The name in a Host header, without its port."""
    name, mark, port = given.rpartition(":")
    return (name if mark and port.isdigit() else given).lower()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address or name."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
