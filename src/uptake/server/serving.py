"""The door as a process: uvicorn with deadlines for headers, and an end that lets open requests finish."""

import asyncio
import json
import logging
import socket
from functools import partial
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from uptake.errors import BadInput
from uptake.server.app import CROWDED, Door, make_app
from uptake.server.calls import EngineProcess
from uptake.server.config import Config
from uptake.server.errors import ApiError
from uptake.server.keys import Keys

HEADER_SECONDS = 10.0
HEADER_BYTES = 16 << 10
DRAIN_SECONDS = 30.0
KEPT_SECONDS = 30  # that a connection may idle: clients leave one themselves after 5
MOST_CONNECTIONS = 4096


class Deadlined(H11Protocol):
    """HTTP whose headers come whole within a time, however slowly they trickle.

    A connection beyond `MOST_CONNECTIONS` is told so by the application, and what is no HTTP here: uvicorn
    would refuse either in a shape of its own.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            self.app = partial(_crowded, self.app)
        self._arm()

    def send_400_response(self, msg: str) -> None:
        told = ApiError(400, "this is no HTTP request, or its headers are too long: mend it", "bad_request")
        body = json.dumps(told.body()).encode()
        named = {**told.headers(), "content-type": "application/json", "connection": "close"}
        headers = [(name.encode(), value.encode()) for name, value in named.items()]
        headers.append((b"content-length", str(len(body)).encode()))
        for part in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(part))
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self._late is None and self.conn.their_state is h11.IDLE:
            self._arm()  # the next request of a connection
        super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        if self._late is not None and self.conn.their_state is not h11.IDLE:
            self._late.cancel()
            self._late = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._late = asyncio.get_running_loop().call_later(HEADER_SECONDS, self.transport.close)


async def _crowded(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app({**scope, CROWDED: True}, receive, send)


class Server(uvicorn.Server):
    """A server whose first SIGTERM or SIGINT lets what runs finish, and whose second ends it."""

    def __init__(self, config: uvicorn.Config, door: Door) -> None:
        super().__init__(config)
        self._door = door
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._door.admission.draining:
            self.should_exit = self.force_exit = True
            return
        self._door.admission.draining = True
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        admission, loop = self._door.admission, asyncio.get_running_loop()
        end = loop.time() + DRAIN_SECONDS
        while (admission.running or admission.waiting) and loop.time() < end:
            await asyncio.sleep(0.05)
        # What is left hears of it within its stream, since its engine goes.
        await self._door.engine.close()
        await asyncio.sleep(0.2)
        self.should_exit = True


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises BadInput where the address cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except OSError as error:
        raise BadInput(f"--host {host} --port {port}: {error.strerror}; give another") from None
    return found


def options() -> dict[str, Any]:
    """Return how uvicorn serves: bounded headers, and no log of what people ask."""
    return {
        "http": Deadlined,
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,  # no forwarded header is believed
        "h11_max_incomplete_event_size": HEADER_BYTES,
        "timeout_graceful_shutdown": 5,
        "timeout_keep_alive": KEPT_SECONDS,
        "lifespan": "on",
    }


def serve(config: Config, keys: Keys | None, at: socket.socket, started: Any = None) -> None:
    """Serve until a signal ends it; `started(door)` is called once it answers.

    Raises BadInput where the engine cannot begin.
    """
    door = Door(config, keys, EngineProcess(config))
    app = make_app(door)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    server = Server(uvicorn.Config(app, **options()), door)

    async def run() -> None:
        # Before uvicorn, which would log a refusal as a fault and end with a code of its own.
        await door.engine.start()
        task = asyncio.create_task(server.serve(sockets=[at]))
        while not server.started and not task.done():
            await asyncio.sleep(0.02)
        if server.started and started is not None:
            started(door)
        await task

    asyncio.run(run())
    if not server.started:
        raise BadInput(door.engine.failed or "the server could not start; its log says why")
