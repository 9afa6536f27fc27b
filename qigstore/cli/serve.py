"""`qigstore serve`: the REST server on this store, until Ctrl-C."""

from __future__ import annotations

import logging
import signal
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from qigstore.cli.context import opened_store
from qigstore.errors import ConfigurationError

if TYPE_CHECKING:
    from socket import socket

    from qigstore.repository import Store
    from qigstore.server import ServerConfig

__all__ = ["serve"]

_NEEDED = ("fastapi", "uvicorn", "websockets")
_CLOSING_S, _MESSAGE_BYTES_MAX = 10, 1 << 16


def serve(
    *,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8720,
    origin: Annotated[
        list[str] | None,
        typer.Option("--origin", help="Origin of pages that may ask it; again for more."),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="A name it is known by (the Host header); again for more."),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=2, max=128, help="Requests at work at a time, and connections.")
    ] = 16,
    statement_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that one question may take in the database.")
    ] = 10.0,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests a second of one token.")] = 100.0,
) -> None:
    """Serve the store by REST until Ctrl-C: `/v1`, `/docs`, `/openapi.json`, `/metrics`.

    Every request needs a token (`qigstore token create`). It listens on this machine only; at any
    other address it starts only where a token is there, and wants a proxy with TLS before it.
    """
    missing = [module for module in _NEEDED if find_spec(module) is None]
    if missing:
        raise ConfigurationError(
            f"`qigstore serve` needs {', '.join(missing)}, which this environment lacks. "
            "Run `pip install 'qigstore[server]'`."
        )
    from qigstore.server.config import ServerConfig
    from qigstore.settings import load_settings

    # As many connections as threads, so that no thread waits for one: the pool's size is what it
    # keeps, and as many again are made when needed.
    settings = load_settings(pool_size=threads // 2, statement_timeout_s=statement_timeout)
    config = ServerConfig(
        settings=settings, host=host, port=port, origins=tuple(origin or ()),
        hosts=tuple(name or ()), threads=threads // 2 * 2, requests_per_s=rate,
    )  # fmt: skip
    with opened_store(settings) as store:
        _may_listen(store, config)
        _run(store, config)


def _may_listen(store: Store, config: ServerConfig) -> None:
    """Refuse to listen to other machines while nobody could tell friend from stranger."""
    from qigstore.server.config import is_loopback

    if is_loopback(config.host) or store.tokens.any_active():
        return
    raise ConfigurationError(
        f"--host {config.host} is reached from other machines, and the store has no active token. "
        "Make one first (`qigstore token create NAME`), or leave --host out."
    )


def _run(store: Store, config: ServerConfig) -> None:
    import uvicorn

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    from qigstore.server import create_app
    from qigstore.server.listening import listen, url_of
    from qigstore.server.stream import leave

    app = create_app(store, config)

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket] | None = None) -> None:
            leave(app)  # it would wait for the streams, which end by nothing else
            await super().shutdown(sockets)

    with listen(config) as bound:
        typer.echo(
            f"qigstore serves {store.database.address} at {url_of(bound)} (docs at /docs); "
            "`qigstore token create NAME` makes a token"
        )
        made = uvicorn.Config(
            app,
            lifespan="on",
            log_config=None,
            access_log=False,  # its own would hold query strings; the gate's has none
            server_header=False,
            proxy_headers=False,  # anybody can write X-Forwarded-For
            timeout_graceful_shutdown=_CLOSING_S,
            ws_max_size=_MESSAGE_BYTES_MAX,
            # An envelope is written once for all who get it; a compressor each would cost more.
            ws_per_message_deflate=False,
        )
        server = Server(made)

        def stop(*_: object) -> None:
            server.should_exit = True

        # The server takes the signals itself, and sends them again once it is closed: then, too,
        # they mean what they meant, and the store is closed in order.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        server.run(sockets=[bound])
