"""Writes what is made from code and from results: the reference pages, and the figures of the README.

`--check` only compares. A test fails when a page differs from what this makes, so the pages cannot drift.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from benchmarks.page import benchmarks_page, three_figures
from cli.openapi import admin_document, gateway_document
from cli.settings import PREFIX, Settings
from telemetry.metric_names import METRICS

REPOSITORY = Path(__file__).resolve().parents[1]
FIGURES = ("<!-- figures: written by `make docs` from benchmarks/results -->", "<!-- end of figures -->")


def pages() -> dict[str, str]:
    """File to content of every generated page, and of the README, of which a part is."""
    return {
        "docs/reference/settings.md": settings_page(),
        "docs/reference/api.md": api_page(),
        "docs/reference/metrics.md": metrics_page(),
        "docs/reference/benchmarks.md": benchmarks_page(),
        "README.md": readme(),
    }


def readme() -> str:
    text = (REPOSITORY / "README.md").read_text()
    begin, end = FIGURES
    before, after = text[: text.index(begin)], text[text.index(end) :]
    return f"{before}{begin}\n{three_figures()}\n{after}"


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        "Every process reads its configuration from environment variables, and refuses to start on an unknown"
        " or contradictory one. `NAME_FILE` in place of `NAME` reads the value from a file, for secrets."
        " `aggregator config show` prints what is in force.",
    ]
    for name, field in Settings.model_fields.items():
        model = _model(field.annotation)
        assert model is not None, name
        lines += [
            "",
            f"## `{PREFIX}{name.upper()}__…`",
            "",
            field.description or "",
            "",
            "| variable | type | default | meaning |",
            "|---|---|---|---|",
            *_rows(model, f"{PREFIX}{name.upper()}__"),
        ]
    return "\n".join(lines) + "\n"


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        variable = prefix + name.upper()
        inner = _model(field.annotation)
        if inner is not None:
            yield from _rows(inner, variable + "__")
        else:
            meaning = (field.description or "").replace("|", "\\|")
            yield f"| `{variable}` | {_type(field.annotation)} | {_default(field)} | {meaning} |"


def _model(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    parts = [part for part in get_args(annotation) if part is not NoneType]
    if parts and get_origin(annotation) not in (list, tuple, set, frozenset):
        return " or ".join(_type(part) for part in parts)
    if annotation is SecretStr:
        return "secret"
    if get_origin(annotation) is not None:
        return "list"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}.get(
        annotation.__name__, annotation.__name__
    )


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    return "unset" if field.default is None else f"`{field.default}`"


def api_page() -> str:
    lines = [
        "# HTTP API",
        "",
        "Errors are `application/problem+json` (RFC 9457) with `code`, `retryable` and `request_id`."
        " Every process serves this as OpenAPI at `/openapi.json`, readable at `/docs`.",
    ]
    for title, document in (
        ("Gateway", gateway_document()),
        ("Admin", admin_document()),
    ):
        lines += ["", f"## {title}"]
        for path, methods in sorted(document["paths"].items()):
            for method, operation in methods.items():
                lines += ["", f"### `{method.upper()} {path}`", "", *_operation(operation, document)]
    return "\n".join(lines) + "\n"


def _operation(operation: dict[str, Any], document: dict[str, Any]) -> Iterator[str]:
    yield operation.get("description") or operation.get("summary") or ""
    parameters = operation.get("parameters", [])
    if parameters:
        yield from ("", "| parameter | in | meaning |", "|---|---|---|")
        for parameter in parameters:
            meaning = parameter.get("description") or parameter.get("schema", {}).get("description", "")
            yield f"| `{parameter['name']}` | {parameter['in']} | {_one_line(meaning)} |"
    yield from ("", "| answer | meaning |", "|---|---|")
    for status, response in sorted(operation["responses"].items()):
        if "$ref" in response:
            response = document["components"]["responses"][response["$ref"].rpartition("/")[2]]
        yield f"| {status} | {_one_line(response.get('description', ''))} |"


def metrics_page() -> str:
    lines = [
        "# Metrics",
        "",
        "Served at `/metrics` by every role, in Prometheus' text format or as OpenMetrics; in embedded mode"
        " all of them on the one port. Reading them asks neither log nor database. `process_…` metrics of the"
        " Prometheus client come on top. [How to use them](../how-to/observe.md).",
        "",
        "| metric | type | labels | roles | meaning |",
        "|---|---|---|---|---|",
    ]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        roles = "every" if len(metric.roles) == 3 else ", ".join(metric.roles)
        lines.append(
            f"| `{metric.name}` | {metric.kind} | {labels} | {roles} | {_one_line(metric.meaning)} |"
        )
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> int:
    differing = []
    for name, content in pages().items():
        path = REPOSITORY / name
        if not path.exists() or path.read_text() != content:
            differing.append(name)
            if "--check" not in sys.argv:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
    if differing:
        sys.stdout.write(("differ: " if "--check" in sys.argv else "written: ") + ", ".join(differing) + "\n")
    return 1 if differing and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
