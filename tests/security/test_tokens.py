"""Tokens: 256 bits, shown once, kept as a digest, compared in constant time, revoked at once."""

from __future__ import annotations

import hmac
import logging
import random
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import commands
import psycopg
import pytest
from rest import Rest
from roles import as_role
from sqlalchemy import text

from qigstore.database.engine import Database
from qigstore.errors import InvalidInput, NotFound
from qigstore.repository import Store, tokens
from qigstore.repository.tokens import SCOPES, TOKEN_PATTERN, matches

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def everything_stored(store: Store) -> str:
    with store.database.begin() as connection:
        parts = [
            str(connection.execute(text(f"SELECT t::text FROM qigstore.{name} t")).all())
            for name in ("token", "audit")
        ]
    return "".join(parts)


def test_the_secret_is_shown_once_and_stored_nowhere(store: Store) -> None:
    token, secret = store.tokens.create("dashboard", ["read"])
    assert TOKEN_PATTERN.fullmatch(secret)
    hidden = secret.rpartition("_")[2] if secret.count("_") == 2 else secret[36:]
    assert len(hidden) == 43, "43 characters of base64 are 256 bits"
    shown = (
        everything_stored(store) + repr(token) + repr(store.tokens.list()) + str(store.audit.list())
    )
    assert hidden not in shown
    assert sha256(secret.encode()).hexdigest() in everything_stored(store)


def test_two_secrets_differ(store: Store) -> None:
    secrets = {store.tokens.create(f"t{i}", ["read"])[1] for i in range(20)}
    assert len(secrets) == 20


def test_a_secret_that_differs_anywhere_is_refused(store: Store, rng: random.Random) -> None:
    _, secret = store.tokens.create("dashboard", ["read"])
    assert store.tokens.identify(secret) is not None
    for place in range(len(secret)):
        other = rng.choice([c for c in ALPHABET if c != secret[place]])
        assert store.tokens.identify(secret[:place] + other + secret[place + 1 :]) is None
    for wrong in (
        "",
        "qs_",
        secret[:-1],
        f"{secret}A",
        f" {secret}",
        secret.upper(),
        "\0",
        "é" * 79,
    ):
        assert store.tokens.identify(wrong) is None


def test_digests_are_compared_in_constant_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared, constant_time = [], hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return constant_time(one, other)

    _, secret = store.tokens.create("dashboard", ["read"])
    monkeypatch.setattr(tokens.hmac, "compare_digest", compare)  # type: ignore[attr-defined]
    assert store.tokens.identify(secret) is not None
    assert store.tokens.identify(f"{secret[:-1]}{'A' if secret[-1] != 'A' else 'B'}") is None
    assert store.tokens.identify(f"qs_{'0' * 32}{secret[35:]}") is None, "no such id"
    assert len(compared) == 3
    assert {len(part) for pair in compared for part in pair} == {32}


def test_a_revoked_token_is_refused_at_once(rest: Rest) -> None:
    _, secret = rest.store.tokens.create("gone", ["read"])
    bearer = {"Authorization": f"Bearer {secret}"}
    assert rest.client.get("/v1/sessions", headers=bearer).status_code == 200
    found = rest.store.tokens.revoke("gone")
    assert found.status() == "revoked"
    answer = rest.client.get("/v1/sessions", headers=bearer)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert rest.store.tokens.revoke(str(found.id)).revoked_at == found.revoked_at, "once is enough"


def test_an_expired_token_is_refused(store: Store) -> None:
    end = datetime.now(UTC) + timedelta(days=1)
    token, secret = store.tokens.create("a day", ["read"], expires_at=end)
    assert token.status() == "active"
    assert token.status(end) == "expired"
    with store.database.begin() as connection:
        connection.execute(text("UPDATE qigstore.token SET expires_at = now() - interval '1 s'"))
    assert store.tokens.identify(secret) is None


@pytest.mark.parametrize(
    ("name", "scopes", "more"),
    [
        ("", ["read"], {}),
        ("a\nb", ["read"], {}),
        ("x" * 201, ["read"], {}),
        ("a", [], {}),
        ("a", ["read", "root"], {}),
        ("a", ["READ"], {}),
        ("a", ["read"], {"sessions": ""}),
        ("a", ["read"], {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}),
    ],
)
def test_what_no_token_can_be_is_refused(
    store: Store, name: str, scopes: list[str], more: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput):
        store.tokens.create(name, scopes, **more)
    assert store.tokens.list() == []


def test_a_name_is_taken_for_good(store: Store) -> None:
    store.tokens.create("a", ["read"])
    store.tokens.revoke("a")
    with pytest.raises(InvalidInput, match="no token has or had"):
        store.tokens.create("a", ["read"])
    with pytest.raises(NotFound):
        store.tokens.revoke("b")


def test_a_pattern_means_the_same_here_and_in_the_database(
    store: Store, rng: random.Random
) -> None:
    letters = "ab*_%\\.[é/"
    names = {
        "".join(rng.choices(letters.replace("*", "x"), k=rng.randint(1, 4))) for _ in range(60)
    }
    for name in names:
        store.sessions.open(name, {})
    for _ in range(60):
        pattern = "".join(rng.choices(letters, k=rng.randint(1, 4)))
        found = {one.name for one in store.sessions.list(1000, like=pattern)}
        assert found == {name for name in names if matches(pattern, name)}, pattern
    assert matches(None, "anything")


def test_its_use_is_noted_once_an_hour_and_its_refusal_too(store: Store) -> None:
    token, secret = store.tokens.create("t", ["read"])
    for _ in range(5):
        assert store.tokens.identify(secret, address="10.0.0.7") is not None
    lines = [line for line in store.audit.list() if line.action == "token.use"]
    assert [(line.token_id, line.address) for line in lines] == [(token.id, "10.0.0.7")]
    assert store.tokens.list()[0].last_used_at is not None
    store.tokens.revoke("t")
    with store.database.begin() as connection:
        connection.execute(text("UPDATE qigstore.token SET last_used_at = now() - interval '2 h'"))
    for _ in range(3):
        assert store.tokens.identify(secret) is None
    refused = [line for line in store.audit.list() if line.action == "token.refused"]
    assert [line.detail for line in refused] == [{"why": "revoked"}]


def test_the_audit_says_who_asked_for_what(rest: Rest) -> None:
    filled = rest.fill()
    asked = rest.post(f"/v1/sessions/{filled.session}/abort", "abort", json={"reason": "too hot"})
    assert asked.status_code == 202
    missing = rest.post("/v1/sessions/ocean-8/abort", "abort", json={})
    assert missing.status_code == 404
    lines = rest.get("/v1/audit?limit=1000").json()
    aborts = [line for line in lines if line["action"] == "abort"]
    assert [(line["session"], line["detail"]["reason"]) for line in aborts] == [
        (filled.session, "too hot")
    ]
    (token,) = [t for t in rest.store.tokens.list() if str(t.id) == aborts[0]["token_id"]]
    assert token.name == aborts[0]["actor"]
    actions = {line["action"] for line in lines}
    assert {"attempt.open", "token.create", "token.use"} <= actions
    ids = [line["id"] for line in lines]
    assert ids == sorted(ids, reverse=True)
    older = rest.get(f"/v1/audit?before={ids[1]}&limit=1000").json()
    assert [line["id"] for line in older] == ids[2 : 2 + len(older)]


def test_no_token_is_in_a_log(rest: Rest, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = rest.token("read")
    bearer = {"Authorization": f"Bearer {secret}"}
    for path in ("/v1/sessions", "/v1/sessions/ocean-7", f"/v1/sessions/{secret}", f"/{secret}?a",
                 f"/v1/sessions?x={secret}", f"/v1/sessions?token={secret[:20]}"):  # fmt: skip
        rest.client.get(path, headers=bearer)
    rest.client.get("/v1/sessions", headers={"Authorization": f"Basic {secret}"})
    ours = [record for record in caplog.records if record.name.startswith("qigstore")]
    told = "\n".join(record.getMessage() for record in ours)
    assert "GET /v1/sessions 200" in told
    assert secret[36:] not in told
    assert secret[:20] not in told


def test_the_command_makes_lists_and_revokes(dsn: str, home: Path) -> None:
    env = commands.environment(home, dsn)
    asked = "grafana --scope read --scope checkpoint --sessions ocean-* --days 30"
    made = commands.run(env, "token", "create", *asked.split())
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    assert TOKEN_PATTERN.fullmatch(secret)
    assert "not shown again" in made.stderr
    (listed,) = commands.data(env, "token", "list")
    assert listed["scopes"] == ["read", "checkpoint"]
    assert (listed["sessions"], listed["status"]) == ("ocean-*", "active")
    assert secret not in str(listed)
    assert secret not in commands.run(env, "token", "list").stdout
    assert commands.data(env, "token", "revoke", "grafana")["status"] == "revoked"
    assert "revoked" in commands.run(env, "token", "list").stdout
    assert commands.run(env, "token", "revoke", "nobody").returncode == 5
    bad = commands.run(env, "token", "create", "x", "--scope", "root")
    assert bad.returncode == 2
    assert all(scope in bad.stderr for scope in SCOPES)


@pytest.mark.parametrize("rights", ["reader", "writer"])
def test_no_role_of_the_database_reads_or_changes_a_token(
    dsn: str, store: Store, role: str, rights: Any
) -> None:
    store.tokens.create("t", ["read"])
    mine = as_role(dsn, store.database, role, rights)
    statements = [
        "SELECT digest FROM qigstore.token",
        "SELECT count(*) FROM qigstore.token",
        "INSERT INTO qigstore.token (id, name, digest, scopes) VALUES "
        "(gen_random_uuid(), 'x', sha256('x'), '{admin}')",
        "UPDATE qigstore.token SET scopes = '{admin}'",
        "SELECT * FROM qigstore.audit",
        "UPDATE qigstore.audit SET actor = 'nobody'",
        "DELETE FROM qigstore.audit",
    ]
    for statement in statements:
        with psycopg.connect(mine) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.commit()
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
    if rights == "writer":  # that it asked a run to stop is noted
        with Store(Database(mine)) as theirs:
            theirs.audit.add("abort", "somebody@here", session="ocean-7")
        assert store.audit.list()[0].actor == "somebody@here"
