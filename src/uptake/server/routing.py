"""Routes of the door: what answers a method at a path, called with the request and what the path holds."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

Answering = Callable[..., Awaitable[Response]]


class Endpoint:
    """What answers one route; requests are counted by its `path`."""

    def __init__(self, path: str, do: Answering) -> None:
        self.path, self._do = path, do

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        response = await self._do(request, **request.path_params)
        await response(scope, receive, send)


class Routes:
    """Routes as they are added, each by the name of its method."""

    def __init__(self) -> None:
        self.all: list[Route] = []

    def get(self, path: str) -> Callable[[Answering], Answering]:
        return self._adding("GET", path)

    def post(self, path: str) -> Callable[[Answering], Answering]:
        return self._adding("POST", path)

    def delete(self, path: str) -> Callable[[Answering], Answering]:
        return self._adding("DELETE", path)

    def _adding(self, method: str, path: str) -> Callable[[Answering], Answering]:
        def add(do: Answering) -> Answering:
            endpoint: Any = Endpoint(path, do)
            route = Route(path, endpoint, methods=[method])
            route.methods = {method}  # Starlette adds HEAD to GET
            self.all.append(route)
            return do

        return add
