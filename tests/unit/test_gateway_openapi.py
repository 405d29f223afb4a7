"""The description of the gateway's API says what the gateway does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from events.codec import decode_event
from events.errors import InvalidCode, InvalidEvent
from ingest_api.app import create_gateway_app
from ingest_api.gateway import Gateway
from ingest_api.publish_openapi import event_schema
from ingest_api.refusal import STATUS, Reason
from ingest_api.settings import IngestSettings
from tests.support.producer import MemoryProducer


def document() -> dict[str, Any]:
    return create_gateway_app(Gateway(MemoryProducer(), IngestSettings())).openapi()


def publish_operation() -> dict[str, Any]:
    operation: dict[str, Any] = document()["paths"]["/publish"]["post"]
    return operation


def test_every_reason_for_a_refusal_has_a_status() -> None:
    assert STATUS.keys() == set(Reason)


def test_every_status_is_described_with_an_example() -> None:
    responses = publish_operation()["responses"]
    assert responses.keys() == {"200", "207", "500", *map(str, STATUS.values())}
    for status, response in responses.items():
        (media_type,) = response["content"]
        assert media_type == ("application/json" if status < "300" else "application/problem+json")
        if status != "500":
            (media,) = response["content"].values()
            assert media.get("example") or media.get("examples")


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_an_example_problem(reason: Reason) -> None:
    media = publish_operation()["responses"][str(STATUS[reason])]["content"]["application/problem+json"]
    example = media["examples"][reason]["value"]
    assert (example["code"], example["status"]) == (reason, STATUS[reason])


def test_waiting_time_is_described_where_it_is_sent() -> None:
    assert "Retry-After" in publish_operation()["responses"]["503"]["headers"]


def test_every_reference_resolves() -> None:
    description = document()
    names = set(description["components"]["schemas"])
    text = json.dumps(description)
    used = {piece.split('"')[0] for piece in text.split("#/components/schemas/")[1:]}
    assert used <= names
    assert "HTTPValidationError" not in names


def test_schema_of_the_event_agrees_with_the_decoder() -> None:
    schema = event_schema()
    (example,) = schema["examples"]
    assert decode_event(json.dumps(example).encode()).topic == example["topic"]
    assert schema["required"] == list(schema["properties"])
    for field, rule in schema["properties"].items():
        without = {name: value for name, value in example.items() if name != field}
        assert refused_as(without) is InvalidCode.SCHEMA
        if "maxLength" in rule:
            assert refused_as({**example, field: "x" * rule["maxLength"]}) is None
            assert refused_as({**example, field: "x" * (rule["maxLength"] + 1)}) is InvalidCode.SCHEMA
            assert refused_as({**example, field: ""}) is InvalidCode.SCHEMA
    assert refused_as({**example, "other": 1}) is InvalidCode.SCHEMA


def refused_as(event: dict[str, Any]) -> InvalidCode | None:
    try:
        decode_event(json.dumps(event).encode())
    except InvalidEvent as error:
        return error.code
    return None


def test_limits_of_the_settings_are_in_the_description() -> None:
    settings = IngestSettings(max_events=77, max_body_bytes=7_777)
    app = create_gateway_app(Gateway(MemoryProducer(), settings))
    body = app.openapi()["paths"]["/publish"]["post"]["requestBody"]
    assert "7,777 bytes" in body["description"]
    assert body["content"]["application/json"]["schema"]["oneOf"][1]["maxItems"] == 77
