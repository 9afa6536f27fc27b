"""A REST server in this process, on a store of the test's own, with something in it to ask for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
from starlette.testclient import TestClient

from qigstore.checkpoints import CheckpointStore
from qigstore.checkpoints.info import SaveInfo
from qigstore.records import Event
from qigstore.repository import Store
from qigstore.server import ServerConfig, create_app
from qigstore.settings import Settings

BASE = "http://127.0.0.1:8720"
PROBLEM = "application/problem+json"


@dataclass
class Rest:
    """A server and its clients.

    Attributes:
        client: sends what it is told to; `get` and `post` add a token.
    """

    store: Store
    config: ServerConfig
    client: TestClient
    tokens: dict[tuple[Any, ...], str] = field(default_factory=dict)

    @property
    def app(self) -> Any:
        """The application."""
        return self.client.app

    def token(self, *scopes: str, sessions: str | None = None) -> str:
        """A token of these scopes (`admin` where none is named), made when first asked for."""
        key = (scopes or ("admin",), sessions)
        if key not in self.tokens:
            name = f"{'-'.join(key[0])} {sessions or '*'} {uuid4().hex[:6]}"
            _, self.tokens[key] = self.store.tokens.create(name, key[0], sessions=sessions)
        return self.tokens[key]

    def ask(
        self,
        method: str,
        path: str,
        scopes: Sequence[str] = ("admin",),
        *,
        sessions: str | None = None,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> Any:
        """A request with a token of these scopes."""
        bearer = {"Authorization": f"Bearer {self.token(*scopes, sessions=sessions)}"}
        return self.client.request(method, path, headers=bearer | (headers or {}), **more)

    def get(self, path: str, *scopes: str, **more: Any) -> Any:
        """A GET."""
        return self.ask("GET", path, scopes or ("admin",), **more)

    def post(self, path: str, *scopes: str, **more: Any) -> Any:
        """A POST."""
        return self.ask("POST", path, scopes or ("admin",), **more)

    # ------------------------------------------------------------ something to ask for

    def claim(self, session: str, **more: Any) -> dict[str, Any]:
        """Open an attempt as a training node does."""
        wanted = {"attempt": str(uuid4()), "writer": str(uuid4()), "host": "node", **more}
        answer = self.post(f"/v1/sessions/{session}/attempts", json=wanted)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def record(
        self, claimed: dict[str, Any], rows: Sequence[dict[str, Any]], first_seq: int = 1
    ) -> Any:
        """Send rows as a training node does."""
        batch = {
            "writer": claimed["writer"]["id"], "epoch": claimed["writer"]["epoch"],
            "attempt": claimed["attempt"]["number"], "rank": claimed["rank"],
            "first_seq": first_seq, "rows": list(rows),
        }  # fmt: skip
        return self.post(f"/v1/sessions/{claimed['session']}/ingest", json=batch)

    def fill(self, session: str = "ocean-7", steps: int = 20) -> Filled:
        """A session with rows, an event and a checkpoint of each kind."""
        claimed = self.claim(session)
        rows = [
            {
                "step": step,
                "metrics": {"loss": 1 / (step + 1), "phi": 0.5 + step / 100, "mine": float(step)},
                "regime": "linear",
                "basin": [0.25 + step / 100, 0.25 - step / 100, 0.5],
            }
            for step in range(steps)
        ]
        assert self.record(claimed, rows).status_code == 200
        info = self.store.sessions.get(session)
        event = Event(
            id=uuid4(), session_id=info.id, attempt=1, rank=0, step=3, rule="finite",
            severity="warning", message="loss is NaN", raised_at=datetime.now(UTC), metric="loss",
            value=float("nan"),
        )  # fmt: skip
        self.store.events.add(event)
        folders = CheckpointStore(self.config.settings.checkpoint_root)
        saved = []
        for step, phi in ((5, 0.6), (9, 0.7), (12, None)):
            told = SaveInfo(session_name=session, session_id=info.id, attempt=1, step=step, phi=phi)
            state = {"step": step, "w": np.arange(50.0) * step}
            saved.append(folders.save(state, info=told))
            self.store.checkpoints.add(saved[-1])
        return Filled(
            session, UUID(claimed["attempt"]["id"]), UUID(claimed["writer"]["id"]), event.id,
            [item.id for item in saved], [item.path for item in saved], claimed,
        )  # fmt: skip


@dataclass(frozen=True)
class Filled:
    """What `fill` made."""

    session: str
    attempt: UUID
    writer: UUID
    event: UUID
    checkpoints: list[UUID]
    folders: list[Path]
    claimed: dict[str, Any]


@contextmanager
def served(store: Store, home: Path, **limits: Any) -> Iterator[Rest]:
    """A server on this store; what it answers with 500 is an answer, not an exception here."""
    chosen = {"requests_per_s": 1e6, "burst": 10**6, "refusals_per_s": 1e6} | limits
    config = ServerConfig(settings=Settings(home=home), **chosen)
    app = create_app(store, config)
    with TestClient(app, base_url=BASE, raise_server_exceptions=False) as client:
        yield Rest(store, config, client)
