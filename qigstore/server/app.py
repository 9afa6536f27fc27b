"""The application: routes put together, errors as problems, the gate before all of it.

Endpoints are plain functions in a pool of threads, as the repository is synchronous: `threads` of
them work at a time, each with at most one connection of the store's pool, which `qigstore serve`
makes as large. More requests wait, up to `requests_max`; what is beyond that is told so at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio.to_thread
from fastapi import FastAPI

from qigstore.server import stream
from qigstore.server.api import ROUTES
from qigstore.server.auth import wiring_of
from qigstore.server.config import ServerConfig
from qigstore.server.document import DESCRIPTION, add_documents
from qigstore.server.gate import Gate
from qigstore.server.problems import add_handlers
from qigstore.server.wiring import Wiring

if TYPE_CHECKING:
    from qigstore.repository import Store

__all__ = ["create_app"]


def create_app(store: Store, config: ServerConfig | None = None) -> FastAPI:
    """The REST server on a store; whoever made the store closes it.

    >>> app = create_app(open_store())  # doctest: +SKIP
    """
    from qigstore import __version__

    app = FastAPI(
        title="qigstore",
        summary="Telemetry and checkpoints of training runs",
        description=DESCRIPTION,
        version=__version__,
        lifespan=_lifespan,
        generate_unique_id_function=lambda route: route.name,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.wiring = Wiring.of(store, config or ServerConfig())
    add_handlers(app)
    for routes in ROUTES:
        app.include_router(routes)
    app.include_router(stream.routes)
    add_documents(app)
    app.add_middleware(Gate, wiring=wiring_of(app))
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    threads = wiring_of(app).config.threads
    anyio.to_thread.current_default_thread_limiter().total_tokens = threads
    async with stream.opened(app):
        yield
