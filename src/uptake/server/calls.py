"""The door's side of the engine: it is started, watched and started again, and calls go to and fro."""

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from uptake.errors import BadInput
from uptake.server import link
from uptake.server.config import Config
from uptake.server.errors import ApiError

log = logging.getLogger("uptake.server")
LONGEST_PAUSE = 30.0  # seconds between two starts of an engine that dies at once


@dataclass(eq=False)
class Call:
    """One request to the engine, and what has come of it so far."""

    id: int
    ended: bool = False
    _came: list[dict[str, Any]] = field(default_factory=list)
    _waiting: asyncio.Future[None] | None = None

    def put(self, frame: dict[str, Any]) -> None:
        """Take what came."""
        self._came.append(frame)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def take(self) -> list[dict[str, Any]]:
        """Return all that has come, once there is something. One task may wait."""
        if not self._came:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        found, self._came = self._came, []
        return found


class EngineProcess:
    """The engine as a process of its own. Used from one event loop."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.hello: dict[str, Any] = {}
        self.ready = False
        self.failed = ""  # why it could not begin
        self.restarts = 0
        self.process: asyncio.subprocess.Process | None = None
        self._link: link.Frames | None = None
        self._greeting: asyncio.Future[dict[str, Any]] | None = None
        self._calls: dict[int, Call] = {}
        self._count = 0
        self._closing, self._pause = False, 0.0  # seconds before the next start
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the engine and wait until it can answer. Raises BadInput where it cannot begin."""
        await self._spawn()
        self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """End the engine."""
        self._closing = True
        if self._link is not None:
            self._link.close()
        if self.process is not None and self.process.returncode is None:
            try:
                await asyncio.wait_for(self.process.wait(), 5)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def call(self, frame: dict[str, Any]) -> Call:
        """Send a request. Raises ApiError while there is no engine."""
        if not self.ready or self._link is None:
            raise ApiError(503, "the engine is starting: try again soon", "starting", retry_after=2)
        self._count += 1
        call = Call(self._count)
        self._calls[call.id] = call
        self._link.send({**frame, "id": call.id})
        return call

    def cancel(self, call: Call) -> None:
        """Let the engine drop a request that has not ended."""
        if self._calls.pop(call.id, None) and not call.ended and self.ready and self._link is not None:
            self._link.send({"id": call.id, "op": "cancel"})

    async def events(self, call: Call) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield what comes of a call, all that is there at once, up to its end.

        Raises the ApiError that it ends with.
        """
        try:
            while not call.ended:
                found = await call.take()
                call.ended = found[-1]["event"] in ("end", "error", "answer")
                error = found.pop()["error"] if found[-1]["event"] == "error" else None
                if found:
                    yield found
                if error is not None:
                    raise ApiError(**error)
        finally:
            self.cancel(call)

    async def answer(self, frame: dict[str, Any]) -> Any:
        """Send a request that has one answer, and return it."""
        async for (found,) in self.events(self.call(frame)):
            return found["answer"]
        raise AssertionError("a call ends with an answer or an error")

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            await self._begin(theirs)
        loop = asyncio.get_running_loop()
        greeting = self._greeting = loop.create_future()
        _, found = await loop.create_unix_connection(lambda: link.Frames(self._came), sock=ours)
        found.send({**self._config.plain(), "grid": self.hello.get("grid", "")})
        await asyncio.wait({greeting, found.gone}, return_when=asyncio.FIRST_COMPLETED)
        first = greeting.result() if greeting.done() else None
        if first is None or first.get("event") != "hello":
            found.close()
            self.failed = (
                first["message"] if first else "the engine ended before it could answer; see its log"
            )
            raise BadInput(self.failed)
        self._link, self.hello, self.ready = found, first, True

    def _came(self, frame: dict[str, Any]) -> None:
        """Hand out what the engine says; the first of it is its greeting."""
        if self._greeting is not None and not self._greeting.done():
            self._greeting.set_result(frame)
            return
        self._pause = 0.0  # one that has answered is followed at once
        call = self._calls.get(frame.get("id", 0))
        if call is not None:
            call.put(frame)

    async def _begin(self, end: socket.socket) -> None:
        """Start an engine that has this end of a socket."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "uptake.server.engine.main",
            str(end.fileno()),
            pass_fds=[end.fileno()],
            stdin=asyncio.subprocess.DEVNULL,
        )

    async def _keep(self) -> None:
        """Where the engine dies, tell all who wait and start another."""
        while True:
            assert self._link is not None
            await self._link.gone
            self.ready = False
            lost, self._calls = self._calls, {}
            told = ApiError(
                500, "the engine was restarted: send it again", "engine_restarted", retry=True
            ).plain()
            for call in lost.values():
                call.put({"event": "error", "error": told})
            if self._closing:
                return
            while True:
                self.restarts += 1
                log.error("the engine ended; starting it again in %.1f seconds", self._pause)
                await asyncio.sleep(self._pause)
                self._pause = min(LONGEST_PAUSE, max(0.5, self._pause * 2))
                try:
                    await self._spawn()
                    break
                except BadInput as error:
                    log.error("the engine cannot start: %s", error)
