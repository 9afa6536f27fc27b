"""The gate: what is refused unread, and what every answer carries."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from rest import BASE, PROBLEM, Rest, served
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocket

from qigstore.errors import ConfigurationError
from qigstore.repository import Store
from qigstore.server import ServerConfig
from qigstore.server.config import is_loopback

HEADERS = ("content-security-policy", "x-content-type-options", "referrer-policy",
           "x-frame-options", "cross-origin-resource-policy", "cache-control")  # fmt: skip


def kind_of(answer: object) -> str:
    assert answer.headers["content-type"] == PROBLEM, answer.text  # type: ignore[attr-defined]
    document = answer.json()  # type: ignore[attr-defined]
    assert document["status"] == answer.status_code  # type: ignore[attr-defined]
    return str(document["type"]).removeprefix("urn:qigstore:problem:")


PLACES = (
    "/v1/sessions?token={}", "/v1/sessions?access_token=x", "/v1/sessions?limit=1&API_KEY=x",
    "/v1/sessions?Authorization=Bearer%20x", "/v1/sessions/{}", "/v1/sessions?limit={}", "/{}",
    "/v1/sessions?{}",
)  # fmt: skip


def test_a_token_in_the_url_is_refused_whatever_else_is_right(rest: Rest) -> None:
    secret = rest.token("read")
    for shown in (secret, "".join(f"%{ord(c):02x}" for c in secret)):
        for place in PLACES:
            answer = rest.get(place.format(shown), "read")
            assert (answer.status_code, kind_of(answer)) == (400, "token-in-url"), place
            assert "qigstore token revoke" in answer.json()["detail"]


def test_a_host_of_another_name_is_refused(rest: Rest) -> None:
    for host in (
        "evil.example", "evil.example:8720", "127.0.0.1.evil.example", "localhost.evil.example",
        "", "localhost@evil.example", "127.0.0.1:8720:1", "[::1", "xn--local-host",
    ):  # fmt: skip
        answer = rest.get("/v1/sessions", headers={"Host": host})
        assert (answer.status_code, kind_of(answer)) == (421, "wrong-host"), host
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8720", "10.1.2.3"):
        assert rest.get("/v1/sessions", headers={"Host": host}).status_code == 200, host


def test_a_foreign_origin_is_refused(store: Store, home: Path) -> None:
    with served(store, home, origins=("http://pages.example",)) as rest:
        for origin in (
            "http://evil.example", "null", "http://127.0.0.1:9999", "", "file://",
            "http://127.0.0.1:8720.evil.example", "http://pages.example:80",
        ):  # fmt: skip
            answer = rest.get("/v1/sessions", headers={"Origin": origin})
            assert (answer.status_code, kind_of(answer)) == (403, "foreign-origin"), origin
            assert "access-control-allow-origin" not in answer.headers


def test_own_pages_and_those_named_may_ask(store: Store, home: Path) -> None:
    with served(store, home, origins=("http://pages.example",)) as rest:
        assert rest.get("/v1/sessions", headers={"Origin": BASE}).status_code == 200
        named = {"Origin": "http://pages.example"}
        answer = rest.get("/v1/sessions", headers=named)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == named["Origin"]
        assert "Origin" in answer.headers["vary"]
        asked = {**named, "Access-Control-Request-Method": "POST"}
        before = rest.client.options("/v1/nearest", headers=asked)
        assert before.status_code == 204
        assert "Authorization" in before.headers["access-control-allow-headers"]
        assert before.headers["access-control-allow-origin"] == named["Origin"]
        foreign = rest.client.options("/v1/nearest", headers={**asked, "Origin": "http://a.b"})
        assert foreign.status_code == 403


@pytest.mark.parametrize("origin", ["*", "pages.example", "https://pages.example/", "ws://a"])
def test_an_origin_that_no_browser_sends_is_no_configuration(origin: str) -> None:
    with pytest.raises(ConfigurationError, match="origin"):
        ServerConfig(origins=(origin,))


def test_a_body_that_says_it_is_too_large_is_not_read(rest: Rest) -> None:
    def never() -> Iterator[bytes]:
        pytest.fail("it was read")
        yield b""

    headers = {"Content-Length": str(2 << 20), "Content-Type": "application/json"}
    answer = rest.post("/v1/nearest", headers=headers, content=never())
    assert (answer.status_code, kind_of(answer)) == (413, "body-too-large")


@pytest.mark.parametrize("length", [None, "5", "999999999999999999999999"])
def test_a_body_is_counted_as_it_comes(rest: Rest, length: str | None) -> None:
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        while read < 64 << 20:
            read += 1 << 16
            yield bytes(1 << 16)

    told = {} if length is None else {"Content-Length": length}
    headers = {"Content-Type": "application/json", **told}
    answer = rest.post("/v1/nearest", headers=headers, content=endless())
    assert (answer.status_code, kind_of(answer)) == (413, "body-too-large")
    assert answer.headers["connection"] == "close"


def test_a_body_of_the_limit_is_read(rest: Rest) -> None:
    text = '{"basin": [0.5, 0.5]' + " " * ((1 << 20) - 21) + "}"
    headers = {"Content-Type": "application/json"}
    assert rest.post("/v1/nearest", headers=headers, content=text).status_code == 200
    assert rest.post("/v1/nearest", headers=headers, content=text + " ").status_code == 413


def test_every_kind_of_answer_carries_the_headers(
    rest: Rest, caplog: pytest.LogCaptureFixture
) -> None:
    @rest.app.get("/fails")
    def fails() -> None:
        raise RuntimeError("the password is hunter2, in /etc/shadow")

    tag = rest.get("/v1/sessions").headers["etag"]
    answers = [
        rest.get("/v1/sessions"),
        rest.get("/v1/sessions", headers={"If-None-Match": tag}),
        rest.get("/v1/sessions?token=1"),
        rest.client.get("/v1/sessions"),
        rest.get("/v1/sessions", headers={"Origin": "http://evil"}),
        rest.get("/nothing"),
        rest.ask("DELETE", "/v1/sessions"),
        rest.post("/v1/nearest", content=bytes(2 << 20)),
        rest.get("/v1/sessions", headers={"Host": "evil"}),
        rest.get("/v1/sessions?limit=0"),
        rest.get("/fails"),
        rest.client.get("/docs"),
    ]
    expected = [200, 304, 400, 401, 403, 404, 405, 413, 421, 422, 500, 200]
    assert [answer.status_code for answer in answers] == expected
    for answer in answers:
        assert not [name for name in HEADERS if name not in answer.headers], answer.url
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert "server" not in answer.headers
        if answer.status_code >= 400:
            kind_of(answer)
    assert answers[6].headers["allow"] == "GET"
    assert kind_of(answers[10]) == "internal"
    assert "hunter2" not in answers[10].text
    assert "RuntimeError" not in answers[10].text
    assert "hunter2" in caplog.text, "the server's own log says what failed"


def test_more_requests_than_the_limit_are_told_so(rest: Rest) -> None:
    meters = rest.app.state.wiring.meters
    meters.open += rest.config.requests_max
    answer = rest.get("/v1/sessions")
    meters.open -= rest.config.requests_max
    assert (answer.status_code, kind_of(answer)) == (503, "busy")
    assert int(answer.headers["retry-after"]) >= 1
    assert rest.get("/v1/sessions").status_code == 200
    assert meters.open == 0


def test_a_websocket_passes_the_same_gate(rest: Rest) -> None:
    @rest.app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("open")
        await websocket.close()

    host = {"Host": "localhost"}
    with rest.client.websocket_connect("/socket", headers=host) as one:
        assert one.receive_text() == "open"
    for path, headers, kind in (
        ("/socket", {"Origin": "http://evil.example"}, "foreign-origin"),
        ("/socket", {"Host": "evil.example"}, "wrong-host"),
        (f"/socket?token={rest.token('read')}", {}, "token-in-url"),
    ):
        with (
            pytest.raises(WebSocketDenialResponse) as refused,
            rest.client.websocket_connect(path, headers=host | headers),
        ):
            pass
        assert kind_of(refused.value) == kind


def test_a_path_in_the_log_is_one_line(rest: Rest, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qigstore.server.access")
    assert rest.get("/v1/sessions/a?note=hunter2").status_code == 422
    rest.get("/v1/sessions/a%0A2026-01-01%20INFO%20forged?secret=1&password=hunter2")
    rest.get("/v1/sessions/a?note=hunter2")
    lines = [one.getMessage() for one in caplog.records if one.name.startswith("qigstore.server")]
    assert lines
    for line in lines:
        assert "\n" not in line
        assert "hunter2" not in line


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True), ("[::1]", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False), ("", False)],
)  # fmt: skip
def test_what_is_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) is local


def test_any_name_reaches_the_session_it_names(rest: Rest, rng: random.Random) -> None:
    odd = ["a/b", "..", "a%2Fb", "a?b#c", "é Φ", "latest", "a+b", "/", "%", "a//b", "'; DROP--"]
    odd += ["".join(rng.choices("a/%?#+&=.é\\\"'<>[] ", k=6)).strip() or "x" for _ in range(20)]
    for name in odd:
        rest.store.sessions.open(name, {})
        place = "".join(f"%{byte:02X}" for byte in name.encode())
        answer = rest.get(f"/v1/sessions/{place}")
        assert answer.status_code == 200, (name, answer.text)
        assert answer.json()["session"]["name"] == name
        if "." not in name:
            plain = rest.get(f"/v1/sessions/{quote(name, safe='')}")
            assert plain.json()["session"]["name"] == name
    assert rest.get("/v1/sessions/%ff%fe").status_code == 422
