"""The OpenAPI document is complete, its examples are true, and its page needs no network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import jsonschema_rs
import pytest
from rest import Rest

from qigstore.server.problems import KINDS


@pytest.fixture
def document(rest: Rest) -> dict[str, Any]:
    answer = rest.client.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    return dict(answer.json())


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    found = schema
    if "$ref" in schema:
        found = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def test_the_document_is_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(ids) == len(set(ids)) > 25


def test_every_operation_says_what_it_does_takes_and_answers(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        assert operation["tags"], name
        assert operation["summary"], name
        assert len(operation["description"]) > 30, name
        assert "security" in operation or name == "GET /v1/health", name
        for parameter in operation.get("parameters", ()):
            assert len(parameter["description"]) > 7, (name, parameter["name"])
            assert parameter["schema"]["examples"], (name, parameter["name"])
        body = operation.get("requestBody")
        if body is not None:
            schema = resolved(document, body["content"]["application/json"]["schema"])
            assert schema["examples"], name
        good = [status for status in operation["responses"] if status.startswith("2")]
        assert len(good) == 1, name
        (content,) = operation["responses"][good[0]]["content"].values()
        schema = content["schema"]
        if schema.get("type") != "string":
            assert resolved(document, schema.get("items", schema))["examples"], name


def test_every_refusal_is_documented_as_a_problem(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        for status, answer in operation["responses"].items():
            if status.startswith(("4", "5")):
                assert list(answer["content"]) == ["application/problem+json"], (name, status)
                named = re.findall(r"`([a-z-]+)`", answer["description"])
                assert named, (name, status)
                assert {KINDS[kind][0] for kind in named} == {int(status)}, (name, status)
        assert {"400", "401", "403", "413", "421", "422", "429", "503"} <= set(
            operation["responses"]
        )


def test_the_examples_are_of_their_schemas(document: dict[str, Any]) -> None:
    def check(schema: dict[str, Any], example: Any, where: str) -> None:
        whole = {**schema, "components": document["components"]}
        problems = list(jsonschema_rs.validator_for(whole).iter_errors(example))
        assert not problems, (where, problems)

    for name, schema in document["components"]["schemas"].items():
        for example in schema.get("examples", ()):
            check(schema, example, name)
    for name, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            for example in parameter["schema"]["examples"]:
                check(parameter["schema"], example, f"{name} {parameter['name']}")


class Page(HTMLParser):
    """What a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attributes:
            if name in {"src", "href", "action", "data"}:
                self.links.append(str(value))
            if name.startswith("on") or name == "style":
                self.handlers.append(name)


def test_the_page_shows_every_operation_and_fetches_nothing(
    rest: Rest, document: dict[str, Any]
) -> None:
    answer = rest.client.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "style-src 'sha256-" in answer.headers["content-security-policy"]
    page = Page()
    page.feed(answer.text)
    assert not page.tags & {"script", "link", "img", "iframe", "form", "object", "base"}
    assert page.links == ["/openapi.json"]
    assert not page.handlers
    for name, _ in operations(document):
        assert f"<code>{name}</code>" in answer.text
    assert "curl" in answer.text
    assert "<script" not in answer.text


def test_a_name_on_the_page_is_text(rest: Rest) -> None:
    """Whatever a docstring says: nothing of it becomes markup."""

    @rest.app.get("/odd", summary="<script>alert(1)</script>")
    def odd(name: str = "") -> str:
        """<img src=x onerror=alert(1)>"""
        return name

    text = rest.client.get("/docs").text
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text
