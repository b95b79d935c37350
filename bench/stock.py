"""Stock Starlette, behind BaseHTTPMiddleware: how long work goes on whose client has left."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from uptake.server.serving import listening


def after_leaving(step: float, steps: int) -> dict[str, float]:
    """Return the milliseconds that work goes on for after its client left, at so many seconds a step."""
    last = 0.0

    async def work() -> AsyncIterator[str]:
        nonlocal last
        for _ in range(steps):
            await asyncio.to_thread(time.sleep, step)
            last = time.monotonic()
            yield "x"

    async def whole(_: Request) -> Response:
        return JSONResponse({"text": "".join([each async for each in work()])})

    async def stream(_: Request) -> Response:
        return StreamingResponse(work())

    async def named(request: Request, call_next: Any) -> Response:
        found: Response = await call_next(request)
        return found

    routes = [Route("/whole", whole), Route("/stream", stream)]
    app = Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=named)])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    at = listening("127.0.0.1", 0)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[at])), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url, found = f"http://127.0.0.1:{at.getsockname()[1]}", {}
    for name in ("whole", "stream"):
        with httpx.Client(timeout=10 * step) as http:
            try:
                with http.stream("GET", f"{url}/{name}") as answer:
                    next(answer.iter_raw())
            except httpx.TimeoutException:
                pass
        left = time.monotonic()
        time.sleep(step * steps)
        found[name] = max(0.0, last - left) * 1000
    server.should_exit = True
    thread.join(10)
    at.close()
    return found
