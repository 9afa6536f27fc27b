"""Recovery, asked beforehand: what it would choose, from what, and why."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from qigstore.place import Place, folders_only
from qigstore.recovery import Policy, recover
from qigstore.server.api import route
from qigstore.server.api.checkpoints import reading_slot, shown_candidate, shown_checkpoint
from qigstore.server.api.route import ReadsCheckpoints, answers, encoded
from qigstore.server.api.shapes import DecisionShape, shaped

__all__ = ["routes"]

routes = route.router("recovery")

_Policy = Annotated[
    Policy, Query(description="Which healthy checkpoint to take.", examples=["best"])
]
_Recent = Annotated[
    int,
    Query(
        description="Among how many of the newest `best_recent` chooses.",
        examples=[5],
        ge=1,
        le=1000,
    ),
]


@routes.get(
    "/sessions/{session}/recover", responses=answers("not-found"), response_model=DecisionShape
)
def recover_dry(at: ReadsCheckpoints, policy: _Policy = "best", recent: _Recent = 5) -> Response:
    """What recovery would choose now: verified, but not loaded; nothing is moved or stored.

    `chosen` is null where no checkpoint is fit; the candidates say why.
    """
    at.session()
    place = folders_only(at.wiring.config.settings)
    place = Place(place.settings, place.folders, place.catalog, at.store)
    with reading_slot(at):
        manager = place.manager(at.name)
        try:
            _, found = recover(
                manager, at.store, policy=policy, recent=recent, has_default=True, dry_run=True,
                load=False,
            )  # fmt: skip
        finally:
            manager.close()
    chosen = None if found.chosen is None else shown_checkpoint(found.chosen)
    candidates = [shown_candidate(item) for item in found.candidates]
    told = shaped(DecisionShape, found, session=at.name, chosen=chosen, candidates=candidates)
    return encoded(told)
