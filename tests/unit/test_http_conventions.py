"""What every HTTP application here shares: request ids, problem documents, one log line per request."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Query, Request, Response
from pydantic import AwareDatetime, BaseModel
from structlog.testing import capture_logs

from telemetry.api_page import install_api_page
from telemetry.application import Application, DirectRoute
from telemetry.health import Readiness, health_router
from telemetry.http import Problem, install_problem_responses, problem_responses


class Filter(BaseModel, extra="forbid"):
    name: str


def application() -> FastAPI:
    app = Application(docs_url=None, redoc_url=None)

    @app.get("/items/{item_id}", responses=problem_responses(404))
    async def item(
        item_id: str,
        limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
        since: AwareDatetime | None = None,
    ) -> dict[str, Any]:
        if item_id == "busy":
            raise Problem(503, "busy", "Come back later.", retry_after=1.2, extra={"queue": 3})
        if item_id == "broken":
            raise RuntimeError("secret")
        return {"limit": limit}

    @app.post("/filters")
    async def filters(body: Filter) -> None: ...

    direct = APIRouter(route_class=DirectRoute)

    @direct.post("/direct")
    async def answer(request: Request) -> Response:
        if "fail" in request.query_params:
            raise RuntimeError("secret")
        return Response("done")

    app.router.routes[:0] = direct.routes
    app.include_router(health_router(lambda: Readiness(ready=True, status="ready")))
    install_api_page(app)
    install_problem_responses(app)
    return app


def client(app: FastAPI | None = None) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app or application()), base_url="http://test.invalid"
    )


async def end_of_turn() -> None:
    """Until the lines of the requests of this turn are logged."""
    await asyncio.sleep(0)


async def test_problem_has_its_members_headers_and_extras() -> None:
    async with client() as http:
        response = await http.get("/items/busy", headers={"x-request-id": "r-1"})
    assert response.json() == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "Come back later.",
        "code": "busy",
        "retryable": True,
        "request_id": "r-1",
        "queue": 3,
    }
    assert response.headers["retry-after"] == "2"
    assert response.headers["content-type"] == "application/problem+json"


async def test_unexpected_exception_is_logged_with_its_request_and_not_told_to_the_caller() -> None:
    async with client() as http:
        with capture_logs() as logged:
            response = await http.get("/items/broken")
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "secret" not in response.text
    failures = [line for line in logged if line.get("exc_info")]
    assert [line["log_level"] for line in failures] == ["error"]


@pytest.mark.parametrize(
    ("query", "field", "rule"),
    [
        ("limit=0", "limit", "must be at least 1"),
        ("limit=1001", "limit", "must be at most 1000"),
        ("limit=hunter2", "limit", "must be an integer"),
        ("since=hunter2", "since", "must be an RFC 3339 timestamp"),
        ("since=2026-01-31T12:00:00", "since", "must have an offset"),
        ("since=%ff", "since", "must be an RFC 3339 timestamp"),
    ],
)
async def test_parameter_that_breaks_a_rule_is_named_with_the_rule_and_never_echoed(
    query: str, field: str, rule: str
) -> None:
    async with client() as http:
        response = await http.get(f"/items/x?{query}")
    document = response.json()
    assert (response.status_code, document["code"]) == (422, "invalid_request")
    assert document["errors"][0]["field"] == field
    assert document["errors"][0]["message"].startswith(rule)
    assert f"`{field}` {rule}" in document["detail"]
    assert "hunter2" not in response.text


@pytest.mark.parametrize(
    "body", [b'{"\\ud800": 1}', b'{"name": "\\ud800", "x": NaN}', b"[]", b"nonsense", b'{"name": 1e999}']
)
async def test_hostile_body_is_422_and_never_500(body: bytes) -> None:
    async with client() as http:
        response = await http.post("/filters", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert response.json()["code"] == "invalid_request"


async def test_direct_route_is_answered_behind_the_middlewares_and_documented_like_any_other() -> None:
    async with client() as http:
        with capture_logs() as logged:
            response = await http.post("/direct", headers={"x-request-id": "r-1"})
            wrong = await http.get("/direct")
            await end_of_turn()
    assert (response.status_code, response.text, response.headers["x-request-id"]) == (200, "done", "r-1")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert [line["http.route"] for line in logged] == ["/direct", "/direct"]
    assert logged[0]["request_id"] == "r-1"
    assert "post" in application().openapi()["paths"]["/direct"]


async def test_direct_route_that_fails_is_500_with_its_request_id() -> None:
    async with client() as http:
        response = await http.post("/direct?fail", headers={"x-request-id": "r-1"})
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert response.json()["request_id"] == response.headers["x-request-id"] == "r-1"


async def test_one_line_is_logged_per_request_with_the_route_and_never_the_path() -> None:
    async with client() as http:
        with capture_logs() as logged:
            await http.get("/items/some-identity?limit=5")
            await end_of_turn()
    (line,) = logged
    assert (line["event"], line["log_level"]) == ("request", "info")
    assert line["http.route"] == "/items/{item_id}"
    assert (line["http.request.method"], line["http.response.status_code"]) == ("GET", 200)
    assert line["duration_s"] >= 0
    assert "some-identity" not in str(line)


async def test_problem_code_is_in_the_log_line() -> None:
    async with client() as http:
        with capture_logs() as logged:
            await http.get("/items/busy")
            await end_of_turn()
    assert (logged[-1]["error.type"], logged[-1]["log_level"]) == ("busy", "warning")


@pytest.mark.parametrize("path", ["/livez", "/healthz", "/readyz"])
async def test_probes_are_logged_at_debug_only(path: str) -> None:
    async with client() as http:
        with capture_logs() as logged:
            assert (await http.get(path)).status_code == 200
            await end_of_turn()
    assert [line["log_level"] for line in logged] == ["debug"]


async def test_not_ready_is_503_with_the_dependencies_on_request() -> None:
    app = FastAPI()
    state = Readiness(ready=False, status="draining", dependencies={"store": {"status": "ok"}})
    app.include_router(health_router(lambda: state))
    async with client(app) as http:
        response = await http.get("/readyz")
        assert (response.status_code, response.json()) == (503, {"status": "draining"})
        for query in ("verbose", "verbose=1"):
            assert (await http.get(f"/readyz?{query}")).json()["dependencies"] == {"store": {"status": "ok"}}


async def test_openapi_describes_problems_under_their_media_type() -> None:
    schema = application().openapi()
    responses = schema["paths"]["/items/{item_id}"]["get"]["responses"]
    for status in ("404", "422", "500"):
        assert list(responses[status]["content"]) == ["application/problem+json"]
    assert list(responses["200"]["content"]) == ["application/json"]


async def test_api_page_shows_every_route_without_scripts() -> None:
    async with client() as http:
        response = await http.get("/docs")
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    assert "<script" not in response.text
    for path in application().openapi()["paths"]:
        assert path in response.text
