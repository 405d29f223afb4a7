"""`/docs`: the API description as one page, without scripts and without anything from another server."""

from __future__ import annotations

import json
from html import escape
from typing import Any, Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse

_STYLE: Final = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
code,pre{font-family:ui-monospace,monospace;font-size:.9em}
pre{padding:.8rem;overflow:auto;border:1px solid #8886;border-radius:6px;white-space:pre-wrap}
section{border:1px solid #8886;border-radius:8px;padding:0 1rem 1rem;margin:1.5rem 0}
h2 .method{text-transform:uppercase;margin-right:.5em}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.3rem .6rem .3rem 0;border-bottom:1px solid #8884}
summary{cursor:pointer}
"""
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"


def install_api_page(app: FastAPI) -> None:
    """Serve `/docs`, rendered from the application's own OpenAPI document (`/openapi.json`).

    The application has to be made with `docs_url=None`: FastAPI's own page loads its scripts from a CDN.
    """

    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(render(app.openapi()), headers={"content-security-policy": _POLICY})

    app.add_route("/docs", docs, include_in_schema=False)


def render(schema: dict[str, Any]) -> str:
    """The page for an OpenAPI document."""
    info = schema["info"]
    operations = [
        (path, method, operation)
        for path, methods in schema.get("paths", {}).items()
        for method, operation in methods.items()
    ]
    contents = "".join(
        f'<li><a href="#{_anchor(path, method)}"><code>{method.upper()} {escape(path)}</code></a>'
        f" {escape(operation.get('summary', ''))}</li>"
        for path, method, operation in operations
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(info['title'])}</h1><p>{_text(info.get('description', ''))}</p>"
        f'<p>The same for programs: <a href="openapi.json">openapi.json</a></p><ul>{contents}</ul>'
        + "".join(_operation(path, method, operation, schema) for path, method, operation in operations)
        + "</body></html>"
    )


def _operation(path: str, method: str, operation: dict[str, Any], schema: dict[str, Any]) -> str:
    parts = [
        f'<section id="{_anchor(path, method)}"><h2><span class="method">{method}</span>'
        f"<code>{escape(path)}</code></h2><p>{_text(operation.get('description', ''))}</p>"
    ]
    parameters = operation.get("parameters", [])
    if parameters:
        rows = "".join(
            f"<tr><td><code>{escape(p['name'])}</code></td><td>{escape(p['in'])}"
            f"{', required' if p.get('required') else ''}</td><td>{_constraints(p.get('schema', {}))}</td>"
            f"<td>{_text(p.get('description', ''))}</td></tr>"
            for p in parameters
        )
        parts.append(f"<h3>Parameters</h3><table>{rows}</table>")
    body = operation.get("requestBody")
    if body:
        parts.append(f"<h3>Request body</h3><p>{_text(body.get('description', ''))}</p>")
        parts.extend(_media(name, media, schema) for name, media in body.get("content", {}).items())
    parts.append("<h3>Answers</h3>")
    for status, response in operation.get("responses", {}).items():
        parts.append(f"<h4>{escape(status)}</h4><p>{_text(response.get('description', ''))}</p>")
        parts.extend(_media(name, media, schema) for name, media in response.get("content", {}).items())
    return "".join(parts) + "</section>"


def _media(name: str, media: dict[str, Any], schema: dict[str, Any]) -> str:
    examples = {key: value.get("value") for key, value in media.get("examples", {}).items()}
    if "example" in media:
        examples["example"] = media["example"]
    shown = "".join(f"<p>{escape(key)}</p>{_json(value)}" for key, value in examples.items())
    resolved = _resolve(media.get("schema", {}), schema, 0)
    return (
        f"<details><summary><code>{escape(name)}</code></summary>{shown}"
        f"<p>JSON Schema</p>{_json(resolved)}</details>"
    )


def _resolve(node: Any, schema: dict[str, Any], depth: int) -> Any:
    """The node with references replaced by what they name; a reference to itself ends at some depth."""
    if isinstance(node, list):
        return [_resolve(item, schema, depth) for item in node]
    if not isinstance(node, dict):
        return node
    reference = node.get("$ref")
    if isinstance(reference, str) and depth < 8:
        name = reference.rpartition("/")[2]
        return _resolve(schema.get("components", {}).get("schemas", {}).get(name, {}), schema, depth + 1)
    return {key: _resolve(value, schema, depth) for key, value in node.items() if key != "title"}


def _constraints(parameter: dict[str, Any]) -> str:
    shown = {key: value for key, value in parameter.items() if key not in {"title", "description"}}
    if "anyOf" in shown:
        kinds = [kind for kind in shown.pop("anyOf") if kind.get("type") != "null"]
        shown = {**(kinds[0] if kinds else {}), **shown}
    return escape(", ".join(str(v) if k == "type" else f"{k} {v}" for k, v in shown.items()))


def _json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"


def _text(markdown: str) -> str:
    """Plain text with `code` in it."""
    pieces = escape(markdown).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))


def _anchor(path: str, method: str) -> str:
    return escape(f"{method}{path}".replace("/", "-").replace("{", "").replace("}", ""))
