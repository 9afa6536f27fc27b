"""What a stream answers to bad input: one documented code each, and nothing of the stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from places import new_database, short_folder
from rest import PROBLEM, Rest, served
from starlette.testclient import WebSocketDenialResponse

from qigstore.database.engine import Database
from qigstore.repository import Store
from qigstore.server.stream import admission, endpoints

URL, SSE = "ws://127.0.0.1:8720/v1/stream", "/v1/stream/sse"


@pytest.fixture(scope="module")
def rest(server_dsn: str, template: str) -> Iterator[Rest]:
    with (
        new_database(server_dsn, template) as dsn,
        short_folder() as home,
        Store(Database(dsn)) as store,
        served(store, home, token_streams_max=2) as found,
    ):
        store.sessions.open("ocean", {})
        yield found


def answer(rest: Rest, first: Any, *, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """What comes first after the first message: an envelope, or a close."""
    with rest.client.websocket_connect(URL, headers=headers or {}) as socket:
        if isinstance(first, bytes):
            socket.send_bytes(first)
        elif isinstance(first, str):
            socket.send_text(first)
        else:
            socket.send_json(first)
        return dict(socket.receive())


def wishes(rest: Rest, *scopes: str, of: str | None = None, **more: Any) -> dict[str, Any]:
    return {"token": rest.token(*(scopes or ("read",)), sessions=of), **more}


def test_a_token_that_reads_is_let_in_by_message_or_header(rest: Rest) -> None:
    assert answer(rest, wishes(rest))["type"] == "websocket.send"
    bearer = {"Authorization": f"Bearer {rest.token('read')}"}
    assert answer(rest, {}, headers=bearer)["type"] == "websocket.send"


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ({}, 4401),
        ({"token": "qs_" + "0" * 32 + "_" + "A" * 43}, 4401),
        ({"token": 7}, 4401),
        ("no json", 4400),
        ("[" * 30_000, 4400),
        ("[1]", 4400),
        (b"\xff\xfe", 4400),
        ('{"token": "' + "x" * 70_000 + '"}', 1009),
    ],
)
def test_no_token_and_no_sense(rest: Rest, first: Any, code: int) -> None:
    closed = answer(rest, first)
    assert (closed["type"], closed["code"]) == ("websocket.close", code)


@pytest.mark.parametrize(
    ("scopes", "of", "more", "code"),
    [
        (("write",), None, {}, 4403),
        (("read",), "lake-*", {"sessions": ["ocean"]}, 4403),
        (("read",), "lake-*", {"sessions": ["unheard-of"]}, 4403),
        (("read",), None, {"sessions": ["unheard-of"]}, 4404),
        (("read",), None, {"sessions": ["a\u0000b"]}, 4422),
        (("read",), None, {"session": ["ocean"]}, 4422),
        (("read",), None, {"rate": 10**9}, 4422),
        (("read",), None, {"after": "xyz"}, 4422),
        (("read",), None, {"after": {"a": 1}}, 4422),
    ],
)
def test_what_a_token_may_not_have_or_nobody_can(
    rest: Rest, scopes: tuple[str, ...], of: str | None, more: dict[str, Any], code: int
) -> None:
    closed = answer(rest, wishes(rest, *scopes, of=of, **more))
    assert (closed["type"], closed["code"]) == ("websocket.close", code)
    assert len(closed["reason"].encode()) <= 123


def test_a_second_message_ends_a_stream(rest: Rest) -> None:
    with rest.client.websocket_connect(URL) as socket:
        socket.send_json(wishes(rest))
        assert socket.receive_json()["kind"] == "health"
        socket.send_json({"rate": 1})
        assert socket.receive()["code"] == 4400


def test_a_client_that_says_nothing_is_closed(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "_FIRST_MESSAGE_S", 0.05)
    with rest.client.websocket_connect(URL) as socket:
        assert socket.receive()["code"] == 4408


def test_a_revoked_token_ends_its_streams(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "WELCOME_S", 0.0)
    token, secret = rest.store.tokens.create("short", ["read"])
    with rest.client.websocket_connect(URL) as socket:
        socket.send_json({"token": secret})
        assert socket.receive_json()["kind"] == "health"
        rest.store.tokens.revoke(token.name)
        rest.fill("lake")
        while (message := socket.receive())["type"] == "websocket.send":
            pass
        assert message["code"] == 4401


def test_one_token_has_a_number_of_streams(rest: Rest) -> None:
    with rest.client.websocket_connect(URL) as one, rest.client.websocket_connect(URL) as two:
        for socket in (one, two):
            socket.send_json(wishes(rest))
            assert socket.receive_json()["kind"] == "health"
        assert answer(rest, wishes(rest))["code"] == 4503
        refused = rest.get(SSE, "read")
        assert (refused.status_code, refused.headers["content-type"]) == (503, PROBLEM)
        assert answer(rest, wishes(rest, "admin"))["type"] == "websocket.send"
    assert answer(rest, wishes(rest))["type"] == "websocket.send"


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("", {"Origin": "https://evil.example"}, 403),
        ("?token=x", {}, 400),
        ("?access_token=x", {}, 400),
        ("", {"Host": "evil.example"}, 421),
    ],
)
def test_the_gate_stands_before_both_ways(
    rest: Rest, query: str, headers: dict[str, str], status: int
) -> None:
    with pytest.raises(WebSocketDenialResponse) as denied:
        rest.client.websocket_connect(URL + query, headers=headers).__enter__()
    assert denied.value.status_code == status
    assert rest.get(SSE + query, "read", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("query", "scopes", "of", "status"),
    [
        ("", ("write",), None, 403),
        ("?session=ocean", ("read",), "lake-*", 403),
        ("?session=unheard-of", ("read",), None, 404),
        ("?rate=fast", ("read",), None, 422),
        ("?rate=nan", ("read",), None, 422),
        ("?kind=health", ("read",), None, 422),
        ("?after=xyz", ("read",), None, 422),
    ],
)
def test_server_sent_events_are_refused_by_a_problem_document(
    rest: Rest, query: str, scopes: tuple[str, ...], of: str | None, status: int
) -> None:
    refused = rest.get(SSE + query, *scopes, sessions=of)
    assert (refused.status_code, refused.headers["content-type"]) == (status, PROBLEM)


def test_server_sent_events_need_a_token(rest: Rest) -> None:
    assert rest.client.get(SSE).status_code == 401
