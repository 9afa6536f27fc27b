"""Role × endpoint × owner, complete: every route of the application has its row here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from rest import Filled, Rest
from sqlalchemy import text
from starlette.websockets import WebSocketDisconnect

from qigstore.records import Scope
from qigstore.repository.tokens import SCOPES

Row = tuple[str, str]
OPEN = "nobody's"
"""Needs no token."""

MATRIX: dict[Row, str] = {
    ("GET", "/v1/sessions"): "read",
    ("GET", "/v1/latest"): "read",
    ("GET", "/v1/sessions/{session}"): "read",
    ("GET", "/v1/sessions/{session}/latest"): "read",
    ("GET", "/v1/sessions/{session}/regimes"): "read",
    ("GET", "/v1/sessions/{session}/curve"): "read",
    ("GET", "/v1/compare"): "read",
    ("GET", "/v1/sessions/{session}/trajectory"): "read",
    ("POST", "/v1/nearest"): "read",
    ("GET", "/v1/sessions/{session}/rows"): "read",
    ("GET", "/v1/sessions/{session}/events"): "read",
    ("GET", "/v1/sessions/{session}/events/{event}"): "read",
    ("POST", "/v1/sessions/{session}/events/{event}/ack"): "write",
    ("GET", "/v1/sessions/{session}/checkpoints"): "read",
    ("GET", "/v1/sessions/{session}/checkpoints/best"): "read",
    ("GET", "/v1/sessions/{session}/checkpoints/{checkpoint}"): "read",
    ("POST", "/v1/sessions/{session}/checkpoints/{checkpoint}/verify"): "checkpoint",
    ("GET", "/v1/sessions/{session}/checkpoints/{checkpoint}/download"): "checkpoint",
    ("GET", "/v1/sessions/{session}/recover"): "checkpoint",
    ("POST", "/v1/sessions/{session}/abort"): "abort",
    ("GET", "/v1/sessions/{session}/attempts"): "read",
    ("POST", "/v1/sessions/{session}/attempts"): "write",
    ("POST", "/v1/sessions/{session}/attempts/{attempt}/heartbeat"): "write",
    ("POST", "/v1/sessions/{session}/attempts/{attempt}/close"): "write",
    ("GET", "/v1/sessions/{session}/attempts/{attempt}/writers/{writer}"): "write",
    ("POST", "/v1/sessions/{session}/ingest"): "write",
    ("GET", "/v1/audit"): "admin",
    ("GET", "/metrics"): "read",
    ("GET", "/v1/health"): OPEN,
    ("GET", "/openapi.json"): OPEN,
    ("GET", "/docs"): OPEN,
}
STREAMS: dict[Row, str] = {("WEBSOCKET", "/v1/stream"): "read", ("GET", "/v1/stream/sse"): "read"}
"""They have no end: asked in a way of their own."""
QUERIES = {
    "/v1/sessions/{session}/curve": "?metric=loss",
    "/v1/compare": "?session={session}&metric=loss",
    "/v1/latest": "?session={session}",
}


def routes_of(app: Any) -> Iterator[Any]:
    """Every route, those of included routers too."""
    for route in app.routes:
        included = getattr(route, "original_router", None)
        yield from [route] if included is None else routes_of(included)


def test_every_route_has_its_row(rest: Rest) -> None:
    found = {
        (method, route.path)
        for route in routes_of(rest.app)
        for method in getattr(route, "methods", None) or {"WEBSOCKET"}
    }
    assert found == set(MATRIX) | set(STREAMS)


def scopes_needed(dependant: Any) -> set[str]:
    """The scopes that a route's dependencies ask for."""
    own = {scope} if (scope := getattr(dependant.call, "scope", None)) else set()
    return own.union(*map(scopes_needed, dependant.dependencies))


def test_every_route_asks_for_the_scope_of_its_row(rest: Rest) -> None:
    for route in routes_of(rest.app):
        for method in getattr(route, "methods", ()):
            if (method, route.path) in MATRIX:
                needed = MATRIX[method, route.path]
                expected = set() if needed == OPEN else {needed}
                assert scopes_needed(route.dependant) == expected, route.path


def refusal_of_streams(rest: Rest, secret: str, session: str | None) -> tuple[int, int]:
    """What a WebSocket closes with and server-sent events answer, for a token that is refused."""
    wishes = {"token": secret} | ({} if session is None else {"sessions": [session]})
    with rest.client.websocket_connect("ws://127.0.0.1:8720/v1/stream") as socket:
        socket.send_json(wishes)
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
    query = "" if session is None else f"?session={session}"
    answer = rest.client.get(f"/v1/stream/sse{query}", headers=bearer(secret) if secret else {})
    return closed.value.code, answer.status_code


def test_streams_refuse_as_the_rest_does(rest: Rest, filled: Filled) -> None:
    _, revoked = rest.store.tokens.create("revoked", SCOPES)
    rest.store.tokens.revoke("revoked")
    for secret in ("", revoked, f"qs_{uuid4().hex}_{'A' * 43}"):
        assert refusal_of_streams(rest, secret, None) == (4401, 401)
    others = [scope for scope in SCOPES if scope not in {"read", "admin"}]
    assert refusal_of_streams(rest, rest.token(*others), None) == (4403, 403)
    for session in ("ocean-7", "ocean-8"):
        foreign = rest.token("admin", sessions="lake-*")
        assert refusal_of_streams(rest, foreign, session) == (4403, 403)


def body_of(rest: Rest, filled: Filled, path: str) -> dict[str, Any] | None:
    if path.endswith("/attempts"):
        return {"attempt": str(filled.attempt), "writer": str(filled.writer), "host": "node"}
    if path.endswith("/ingest"):
        writer = rest.store.writers.state(filled.writer)
        return {
            "writer": str(filled.writer), "epoch": 1, "attempt": 1, "rank": 0,
            "first_seq": writer.acked_seq + 1, "rows": [{"step": writer.acked_seq}],
        }  # fmt: skip
    if path.endswith("/close"):
        return {"status": "completed"}
    if path == "/v1/nearest":
        return {"basin": [0.3, 0.2, 0.5], "session": filled.session}
    return {} if path.endswith("/abort") else None


def ask(rest: Rest, filled: Filled, row: Row, bearer: dict[str, str]) -> Any:
    method, path = row
    address = path + QUERIES.get(path, "")
    for name in ("session", "event", "attempt", "writer"):
        address = address.replace(f"{{{name}}}", str(getattr(filled, name)))
    address = address.replace("{checkpoint}", str(filled.checkpoints[1]))
    return rest.client.request(method, address, headers=bearer, json=body_of(rest, filled, path))


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture
def filled(rest: Rest) -> Filled:
    rest.fill("lake-1", steps=2)
    return rest.fill("ocean-7")


def closes_last(row: Row) -> bool:
    """What ends the attempt comes after what needs it."""
    return row[1].endswith("/close")


ROWS = sorted(MATRIX, key=closes_last)


def test_nobody_without_a_valid_token_gets_anything(rest: Rest, filled: Filled) -> None:
    _, revoked = rest.store.tokens.create("revoked", SCOPES)
    _, expired = rest.store.tokens.create("expired", SCOPES)
    rest.store.tokens.revoke("revoked")
    with rest.store.database.begin() as connection:
        end = "UPDATE qigstore.token SET expires_at = now() WHERE name = 'expired'"
        connection.execute(text(end))
    unknown = f"qs_{uuid4().hex}_{'A' * 43}"
    for row in ROWS:
        for given in ({}, bearer(revoked), bearer(expired), bearer(unknown)):
            answer = ask(rest, filled, row, given)
            assert answer.status_code == (200 if MATRIX[row] == OPEN else 401), row
            assert MATRIX[row] == OPEN or "ocean" not in answer.text


def test_every_other_scope_together_is_not_enough(rest: Rest, filled: Filled) -> None:
    for row in ROWS:
        needed = MATRIX[row]
        others = [scope for scope in SCOPES if scope not in {needed, "admin"}]
        answer = ask(rest, filled, row, bearer(rest.token(*others)))
        assert answer.status_code == (200 if needed == OPEN else 403), row
        if needed != OPEN:
            assert answer.json()["type"].endswith(":forbidden")


@pytest.mark.parametrize("sessions", [None, "ocean-*"])
def test_the_scope_alone_is_enough_and_so_is_admin(
    rest: Rest, filled: Filled, sessions: str | None
) -> None:
    for row in ROWS:
        if MATRIX[row] == OPEN:
            continue
        scope: Scope = MATRIX[row]  # type: ignore[assignment]
        for given in {(scope,), ("admin",)}:
            answer = ask(rest, filled, row, bearer(rest.token(*given, sessions=sessions)))
            if row == ("GET", "/v1/audit") and sessions is not None:
                assert answer.status_code == 403, "it is of every session"
            else:
                assert answer.status_code in {200, 201, 202}, (row, answer.text)


@pytest.mark.parametrize("sessions", ["lake-*", "ocean", "OCEAN-7"])
def test_another_owners_token_sees_and_does_nothing(
    rest: Rest, filled: Filled, sessions: str
) -> None:
    before = rest.store.sessions.attempts(rest.store.sessions.get("ocean-7").id)
    for row in ROWS:
        if MATRIX[row] == OPEN:
            continue
        answer = ask(rest, filled, row, bearer(rest.token("admin", sessions=sessions)))
        if "{session}" in row[1] + QUERIES.get(row[1], "") or row[1] in {
            "/v1/nearest",
            "/v1/audit",
        }:
            assert answer.status_code == 403, row
        else:
            assert answer.status_code == 200, row
        assert filled.session not in answer.text.replace(f"named {sessions}", ""), row
    assert rest.store.sessions.attempts(before[0].session_id) == before
    assert rest.store.events.get(filled.event).acknowledged_at is None


def test_of_all_sessions_a_token_sees_its_own(rest: Rest, filled: Filled) -> None:
    def names(answer: Any) -> set[str]:
        return {item.get("name") or item.get("session") for item in answer.json()}

    for path in ("/v1/sessions", "/v1/latest"):
        assert names(rest.get(path, "read")) == {"lake-1", "ocean-7"}
        assert names(rest.get(path, "read", sessions="lake-*")) == {"lake-1"}
        assert names(rest.get(path, "read", sessions="sea-*")) == set()
    figures = rest.get("/metrics", "read", sessions="lake-*").text
    assert 'session="lake-1"' in figures
    assert "ocean" not in figures
    anywhere = {"basin": [0.3, 0.2, 0.5]}
    assert rest.post("/v1/nearest", "read", json=anywhere).json()["found"]
    assert rest.post("/v1/nearest", "read", sessions="lake-*", json=anywhere).status_code == 403


def test_whether_a_foreign_session_exists_is_not_told(rest: Rest, filled: Filled) -> None:
    answers = [
        rest.get(f"/v1/sessions/{name}", "read", sessions="lake-*")
        for name in ("ocean-7", "ocean-8")
    ]
    assert [answer.status_code for answer in answers] == [403, 403]
    assert answers[0].text == answers[1].text
    near = rest.get("/v1/sessions/lake-2", "read", sessions="lake-*")
    assert near.status_code == 404
    assert "near" not in near.json()
    assert rest.get("/v1/sessions/lake-2", "read").json()["near"] == ["lake-1"]


def test_an_id_of_another_session_is_not_found(rest: Rest, filled: Filled) -> None:
    """The id is right, the session is the token's own: only together they would be an answer."""
    mine = {"sessions": "lake-*"}
    paths = [
        ("GET", f"events/{filled.event}"),
        ("POST", f"events/{filled.event}/ack"),
        ("GET", f"checkpoints/{filled.checkpoints[0]}"),
        ("POST", f"checkpoints/{filled.checkpoints[0]}/verify"),
        ("GET", f"checkpoints/{filled.checkpoints[0]}/download"),
        ("POST", f"attempts/{filled.attempt}/heartbeat"),
        ("POST", f"attempts/{filled.attempt}/close"),
        ("GET", f"attempts/{filled.attempt}/writers/{filled.writer}"),
    ]
    for method, path in paths:
        body = {"json": {"status": "failed"}} if path.endswith("/close") else {}
        answer = rest.ask(method, f"/v1/sessions/lake-1/{path}", **mine, **body)
        assert answer.status_code == 404, path
        assert "near" not in answer.json()
    stolen = {**filled.claimed, "session": "lake-1"}
    assert rest.record(stolen, [{"step": 77}], first_seq=21).status_code == 422
    assert rest.store.writers.state(filled.writer).acked_seq == 20
    other = {"attempt": str(filled.attempt), "writer": str(uuid4()), "host": "node"}
    claimed = rest.post("/v1/sessions/lake-1/attempts", json=other, **mine)
    assert claimed.status_code == 422


def test_a_takeover_needs_the_right_to_abort(rest: Rest, filled: Filled) -> None:
    wanted = {"attempt": str(uuid4()), "writer": str(uuid4()), "host": "n", "takeover": True}
    path = f"/v1/sessions/{filled.session}/attempts"
    assert rest.post(path, "write", json=wanted).status_code == 403
    assert rest.post(path, "write", "abort", json=wanted).status_code == 201
