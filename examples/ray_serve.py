"""Several engines behind one address, by Ray Serve: a tenant always reaches the one that keeps its states.

    pip install 'uptake[server,ray]'
    uptake keys add ada --keys keys.db
    python examples/ray_serve.py --model gpt2 --store notes.store --keys keys.db --data stored --engines 2

Each engine is a replica that Ray starts where there is room, watches, and starts again: a whole server of
Uptake at an address of its own. Before them stands a door that looks the tenant of a key up and passes bytes
to and fro. On many machines the model, the store, the keys and `--data` lie on a disk that all of them see.
"""

import argparse
import asyncio
import hashlib
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import ray
import uvicorn
from ray import serve
from ray.exceptions import RayError
from starlette.requests import Request
from starlette.responses import Response

from uptake.server.answers import DONE, event
from uptake.server.app import Door, make_app
from uptake.server.calls import EngineProcess
from uptake.server.config import Config, Recipe, StoreAt
from uptake.server.errors import ApiError
from uptake.server.generating import refused
from uptake.server.keys import Keys
from uptake.server.serving import Server, listening, options

WAY = ("trainable=lora", "learning_rate=3e-4")
HOP = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade"}
BODY = {"content-length", "transfer-encoding"}
# What is told where an engine cannot be reached, and where it ends meanwhile: as the server itself does.
STARTING = (503, "the engine is starting: try again soon", "starting")
RESTARTED = (500, "the engine was restarted: send it again", "engine_restarted")


@serve.deployment(health_check_period_s=2, max_ongoing_requests=1000)
class Engine:
    """One model, in the place that Ray gave it."""

    async def __init__(self, config: Config, keys: str) -> None:
        host = ray.util.get_node_ip_address()
        self._door = Door(config, Keys(Path(keys)), EngineProcess(config))
        self._at = listening(host, 0)
        self._server = Server(uvicorn.Config(make_app(self._door), **options()), self._door)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._at]))
        while not self._server.started:
            if self._task.done():
                raise RuntimeError(self._door.engine.failed or "the server could not start")
            await asyncio.sleep(0.05)
        self._url = f"http://{host}:{self._at.getsockname()[1]}"

    async def url(self) -> str:
        """Where it answers."""
        return self._url

    async def check_health(self) -> None:
        """Raise where Ray should start another. An engine process that died, the server itself follows."""
        if self._task.done():
            raise RuntimeError("the server has ended")

    async def __del__(self) -> None:
        self._server.should_exit = True
        await self._task


def place_of(tenant: str, engines: int) -> int:
    """Return the engine of a tenant, by rendezvous hashing: one more moves those alone that go to it."""
    return max(range(engines), key=lambda each: hashlib.sha256(f"{each} {tenant}".encode()).digest())


@serve.deployment(max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0})
class Routing:
    """The door: whose key it is decides which engine answers."""

    def __init__(self, keys: str, *engines: Any) -> None:
        self._keys, self._engines = Keys(Path(keys)), engines
        self._http = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None))

    async def __call__(self, request: Request) -> Response:
        secret = request.headers.get("authorization", "").partition(" ")[2].strip()
        key = self._keys.find(secret)
        place = place_of(key.tenant if key else "", len(self._engines))
        try:
            url = await self._engines[place].url.remote()  # another one once it was started again
        except RayError:
            return told(*STARTING)
        asked = self._http.build_request(
            request.method,
            f"{url}{request.url.path}?{request.url.query}",
            headers=[(name, value) for name, value in request.headers.items() if name not in HOP],
            content=request.stream() if BODY & {*request.headers} else None,
        )
        return Passed(self._http, asked, place)


class Passed(Response):
    """What an engine answers, byte for byte, as it comes; it ends once its client has left.

    A body goes on as it comes as well, however large: nothing of it is kept here. Whether the client is still
    there is asked once it has sent all of it; one that leaves before ends it by that.
    """

    def __init__(self, http: httpx.AsyncClient, asked: httpx.Request, place: int) -> None:
        super().__init__()
        self._http, self._asked, self._place = http, asked, place

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        sent = asyncio.Event()
        self._asked.stream = Ending(self._asked.stream, sent)
        work = asyncio.create_task(self._pass(scope, receive, send))
        gone = asyncio.create_task(_left(receive, sent))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _pass(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            found = await self._http.send(self._asked, stream=True)
        except httpx.TransportError as error:
            why = STARTING if isinstance(error, httpx.ConnectError) else RESTARTED
            await told(*why)(scope, receive, send)
            return
        try:
            headers = [(n.lower().encode(), v.encode()) for n, v in found.headers.items() if n not in HOP]
            headers.append((b"x-uptake-engine", str(self._place).encode()))
            await send({"type": "http.response.start", "status": found.status_code, "headers": headers})
            try:
                async for part in found.aiter_raw():
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            except httpx.TransportError:
                if "event-stream" not in found.headers.get("content-type", ""):
                    raise  # what has come is a part of an answer, and its length says so
                error = ApiError(*RESTARTED, retry=True)
                await send(
                    {"type": "http.response.body", "body": event(error.body()) + DONE, "more_body": True}
                )
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await found.aclose()


class Ending(httpx.AsyncByteStream):
    """A body that says when it has ended."""

    def __init__(self, parts: Any, ended: asyncio.Event) -> None:
        self._parts, self._ended = parts, ended

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._parts:
            yield part
        self._ended.set()


async def _left(receive: Any, sent: asyncio.Event) -> None:
    """Return once the client is gone, who has sent its body before."""
    await sent.wait()
    while (await receive())["type"] != "http.disconnect":
        pass


def told(status: int, message: str, code: str) -> Response:
    """Return an error in the shape that all of the server's have."""
    return refused(ApiError(status, message, code, retry_after=2, retry=True))


def application(configs: Sequence[Config], keys: str) -> Any:
    """Return what `serve.run` runs: an engine for each configuration, and the door before them."""
    engines = [Engine.options(name=f"engine-{n}").bind(config, keys) for n, config in enumerate(configs)]
    return Routing.bind(keys, *engines)


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--keys", required=True)
    parser.add_argument("--data", required=True, help="each engine keeps a folder of its own in it")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    asked = parser.parse_args()
    store = StoreAt("docs", str(Path(asked.store).absolute()))
    configs = [
        Config(
            asked.model,
            "m",
            threads=1,
            stores=(store,),
            recipes=(Recipe("docs", "ttt-nn", 5, WAY, "docs"),),
            data=str(Path(asked.data).absolute() / f"engine-{number}"),
        )
        for number in range(asked.engines)
    ]
    serve.start(http_options={"host": asked.host, "port": asked.port})
    serve.run(application(configs, str(Path(asked.keys).absolute())))
    print(f"{asked.engines} engines at http://{asked.host}:{asked.port}/v1", flush=True)
    try:
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
