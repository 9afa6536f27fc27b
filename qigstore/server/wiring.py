"""What an application was made with, in one place: `app.state.wiring`."""

from __future__ import annotations

from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import TYPE_CHECKING

from qigstore.server.config import ServerConfig
from qigstore.server.limits import RateLimit
from qigstore.server.meters import Meters

if TYPE_CHECKING:
    from qigstore.repository import Store

__all__ = ["Wiring"]


@dataclass(frozen=True, slots=True)
class Wiring:
    """The store, the limits and the meters of one application.

    Attributes:
        rates: requests of each token. refusals: those without a valid one, of each address.
        anybody: requests that need no token, of each address.
        readers: places for those who read whole checkpoints.
    """

    store: Store
    config: ServerConfig
    meters: Meters
    rates: RateLimit
    refusals: RateLimit
    anybody: RateLimit
    readers: BoundedSemaphore

    @classmethod
    def of(cls, store: Store, config: ServerConfig) -> Wiring:
        """The wiring of a new application."""
        return cls(
            store,
            config,
            Meters(),
            RateLimit(config.requests_per_s, config.burst),
            RateLimit(config.refusals_per_s, config.refusals_burst),
            RateLimit(config.refusals_per_s, config.refusals_burst),
            BoundedSemaphore(config.readers_max),
        )
