"""What the API description says about keys."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI

from access.middleware import OPEN_PATHS
from telemetry.problem import PROBLEM_MEDIA_TYPE

_SCHEME: Final = "key"
_ANSWERS: Final = {
    "401": "There is no key, or it is not a valid one.",
    "403": "The key's role does not allow this; or, without keys, the request was meant for another host or"
    " sent by a web page.",
}


def document_keys(app: FastAPI) -> None:
    """Describe the key, and the answers of `AccessMiddleware`, on every operation it guards. To be called
    after `telemetry.http.install_problem_responses`."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        schemes = schema["components"].setdefault("securitySchemes", {})
        if _SCHEME in schemes:
            return schema
        schemes[_SCHEME] = {
            "type": "http",
            "scheme": "bearer",
            "description": "A key made by `aggregator keys create`. Not needed where the process has no"
            " keyring (`AGGREGATOR_KEYS__PATH`); it then listens on loopback addresses only.",
        }
        for path, operations in schema["paths"].items():
            if path in OPEN_PATHS and path != "/publish":
                continue
            for operation in operations.values():
                operation["security"] = [{}, {_SCHEME: []}]
                for status, description in _ANSWERS.items():
                    operation["responses"].setdefault(status, _problem(description))
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _problem(description: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/ProblemDocument"}
    return {"description": description, "content": {PROBLEM_MEDIA_TYPE: {"schema": schema}}}
