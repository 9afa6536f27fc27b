"""The OpenAPI document, and a page that shows it: made here, without a script or a network."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping
from functools import cache
from hashlib import sha256
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from qigstore.encoding import json_bytes
from qigstore.server.api import route, shapes
from qigstore.server.gate import CONTENT_POLICY

__all__ = ["DESCRIPTION", "add_documents"]

DESCRIPTION = """\
Every request but `/v1/health` and this document carries `Authorization: Bearer qs_…`
(`qigstore token create`); a token in a URL is refused. Numbers that JSON has no word for are the
strings "NaN", "Infinity" and "-Infinity", both ways; times are ISO 8601 in UTC; a metric that was
never measured is missing or null. Steps go from `start` up to, not including, `stop`. Every error
is a problem document (RFC 9457), whose `type` is `urn:qigstore:problem:<kind>`. Answers to GET
carry an ETag: sent back in `If-None-Match`, it saves an answer that has not changed."""

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 0.9em ui-monospace, monospace; }
pre { overflow-x: auto; padding: 0.6rem; border: 1px solid #8886; border-radius: 4px; }
summary { cursor: pointer; padding: 0.2rem 0; }
details { border-bottom: 1px solid #8883; }
th, td { text-align: left; vertical-align: top; padding: 0.1rem 1rem 0.1rem 0; }
"""
_POLICY = f"{CONTENT_POLICY}; style-src 'sha256-{{}}'"


def add_documents(app: FastAPI) -> None:
    """Serve `/openapi.json` and `/docs`; both need no token, and tell nothing of what is stored."""
    routes = APIRouter(route_class=route.Route, include_in_schema=False)

    @cache
    def document() -> dict[str, Any]:
        return _document(app)

    @routes.get("/openapi.json")
    def openapi() -> Response:
        """The document."""
        return Response(json_bytes(document()), media_type="application/json")

    @routes.get("/docs")
    def docs() -> Response:
        """The page."""
        hashed = b64encode(sha256(_STYLE.encode()).digest()).decode()
        policy = {"Content-Security-Policy": _POLICY.format(hashed)}
        return Response(_page(document()), headers=policy, media_type="text/html; charset=utf-8")

    app.include_router(routes)
    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(
        title=app.title, version=app.version, summary=app.summary, description=app.description,
        routes=app.routes, tags=[], servers=[{"url": "/"}],
    )  # fmt: skip
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = shapes.ProblemShape.model_json_schema(mode="serialization")
    for name, schema in schemas.items():
        # The framework leaves out what is null, in examples too, where it says something.
        extra = getattr(getattr(shapes, name, None), "model_config", {}).get("json_schema_extra")
        if extra is not None:
            schema["examples"] = extra["examples"]
    return found


def _page(document: Mapping[str, Any]) -> str:
    body = "\n".join(_body(document))
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f"<title>qigstore: REST</title>\n<style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _body(document: Mapping[str, Any]) -> Iterator[str]:
    info = document["info"]
    yield f"<h1>qigstore {escape(info['version'])}: REST</h1>"
    yield f"<p>{escape(info['description'])}</p>"
    yield '<p>The same for programs: <a href="/openapi.json">/openapi.json</a></p>'
    noun = ""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if operation.get("tags", [""])[0] != noun:
                noun = operation.get("tags", [""])[0]
                yield f"<h2>{escape(noun)}</h2>"
            yield from _operation(path, method.upper(), operation, document)


def _operation(
    path: str, method: str, operation: Mapping[str, Any], document: Mapping[str, Any]
) -> Iterator[str]:
    yield f"<details><summary><code>{method} {escape(path)}</code> "
    yield f"{escape(operation['summary'])}</summary>"
    yield f"<p>{escape(operation.get('description', ''))}</p>"
    yield f"<pre>{escape(_curl(path, method, operation, document))}</pre>"
    if operation.get("parameters"):
        yield "<table>"
        for item in operation["parameters"]:
            need = ", required" if item.get("required") else ""
            yield f"<tr><td><code>{escape(item['name'])}</code></td>"
            yield f"<td>{escape(item['in'] + need)}</td>"
            yield f"<td>{escape(item.get('description', ''))}</td></tr>"
        yield "</table>"
    for status, answer in sorted(operation["responses"].items()):
        yield f"<p><code>{escape(status)}</code> {escape(answer['description'])}</p>"
        example = _example(answer.get("content", {}), document)
        if status.startswith("2") and example is not None:
            yield f"<pre>{escape(json.dumps(example, indent=2, ensure_ascii=False))}</pre>"
    yield "</details>"


def _curl(path: str, method: str, operation: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    for item in operation.get("parameters", ()):
        if item["in"] == "path":
            path = path.replace(f"{{{item['name']}}}", str(item["schema"]["examples"][0]))
    required = [
        p for p in operation.get("parameters", ()) if p["in"] == "query" and p.get("required")
    ]
    query = "&".join(f"{p['name']}={_first(p['schema']['examples'][0])}" for p in required)
    lines = [f"curl -H \"Authorization: Bearer $TOKEN\" '$URL{path}{'?' + query if query else ''}'"]
    if method == "POST":
        lines[0] = lines[0].replace("curl", "curl -X POST", 1)
    body = _example(operation.get("requestBody", {}).get("content", {}), document)
    if body is not None:
        lines.append(f"-H 'Content-Type: application/json' -d '{json.dumps(body)}'")
    return " \\\n  ".join(lines).replace("'$URL", '"$URL"\'')


def _first(example: Any) -> Any:
    return example[0] if isinstance(example, list) else example


def _example(content: Mapping[str, Any], document: Mapping[str, Any]) -> Any:
    """The example of a body's schema, found through its reference."""
    for kind in content.values():
        schema = kind.get("schema", {})
        inner = schema.get("items", schema)
        if "$ref" in inner:
            found = document["components"]["schemas"][inner["$ref"].rpartition("/")[2]]
            example = found.get("examples", [None])[0]
            return [example] if "items" in schema else example
        if "example" in kind:
            return kind["example"]
    return None
