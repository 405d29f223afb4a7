"""The FastAPI application of every role."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send


class DirectRoute(APIRoute):
    """A route whose endpoint takes the request and returns the response, with nothing in between.

    In an `Application` neither the router nor the layers that FastAPI puts around it see the request, which
    take a good part of the time of a small one; the application's own middlewares do. Its path has no
    parameters, and the endpoint answers its own problems. It is documented like any other.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.methods is None or scope["method"] not in self.methods:
            await super().handle(scope, receive, send)
            return
        response: Response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


class Application(FastAPI):
    """Puts the middlewares outermost, then the direct routes, then all that FastAPI consists of.

    So a middleware sees every request and every answer, and an exception that FastAPI has answered. FastAPI
    makes no telemetry of its own: ours is in `telemetry.metrics` and `telemetry.tracing`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(telemetry={"tracing": False, "metrics": False, "logs": False}, **options)

    def build_middleware_stack(self) -> ASGIApp:
        middlewares, self.user_middleware = self.user_middleware, []
        routes = {route.path: route for route in self.routes if isinstance(route, DirectRoute)}
        app: ASGIApp = _DirectRoutes(super().build_middleware_stack(), routes)
        for middleware, arguments, options in reversed(middlewares):
            app = middleware(app, *arguments, **options)
        return app


class _DirectRoutes:
    def __init__(self, app: ASGIApp, routes: dict[str, DirectRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is None or route.methods is None or scope["method"] not in route.methods:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        await route.handle(scope, receive, send)
