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
    events: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    ended: bool = False


class EngineProcess:
    """The engine as a process of its own. Used from one event loop."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.hello: dict[str, Any] = {}
        self.ready = False
        self.failed = ""  # why it could not begin
        self.restarts = 0
        self.process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._calls: dict[int, Call] = {}
        self._count = 0
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the engine and wait until it can answer. Raises BadInput where it cannot begin."""
        reader = await self._spawn()
        self._task = asyncio.create_task(self._keep(reader))

    async def close(self) -> None:
        """End the engine."""
        self._closing = True
        if self._writer is not None:
            self._writer.close()
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
        if not self.ready or self._writer is None:
            raise ApiError(503, "the engine is starting: try again soon", "starting", retry_after=2)
        self._count += 1
        call = Call(self._count)
        self._calls[call.id] = call
        self._writer.write(link.packed({**frame, "id": call.id}))
        return call

    def cancel(self, call: Call) -> None:
        """Let the engine drop a request that has not ended."""
        if self._calls.pop(call.id, None) and not call.ended and self.ready and self._writer is not None:
            self._writer.write(link.packed({"id": call.id, "op": "cancel"}))

    async def events(self, call: Call) -> AsyncIterator[dict[str, Any]]:
        """Yield what comes of a call, up to its end. Raises the ApiError that it ends with."""
        try:
            while not call.ended:
                found = await call.events.get()
                call.ended = found["event"] in ("end", "error", "answer")
                if found["event"] == "error":
                    raise ApiError(**found["error"])
                yield found
        finally:
            self.cancel(call)

    async def answer(self, frame: dict[str, Any]) -> Any:
        """Send a request that has one answer, and return it."""
        async for found in self.events(self.call(frame)):
            return found["answer"]
        raise AssertionError("a call ends with an answer or an error")

    async def _spawn(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        with theirs:
            await self._begin(theirs)
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=1 << 20)
        writer.write(link.packed({**self._config.plain(), "grid": self.hello.get("grid", "")}))
        first = await link.receive(reader)
        if first is None or first.get("event") != "hello":
            writer.close()
            self.failed = (
                first["message"] if first else "the engine ended before it could answer; see its log"
            )
            raise BadInput(self.failed)
        self._writer, self.hello, self.ready = writer, first, True
        return reader

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

    async def _keep(self, reader: asyncio.StreamReader) -> None:
        """Hand out what the engine says; where it dies, tell all who wait and start another."""
        pause = 0.0
        while True:
            while (found := await link.receive(reader)) is not None:
                pause = 0.0  # one that has answered is followed at once
                call = self._calls.get(found.get("id", 0))
                if call is not None:
                    call.events.put_nowait(found)
            self.ready = False
            lost, self._calls = self._calls, {}
            told = ApiError(
                500, "the engine was restarted: send it again", "engine_restarted", retry=True
            ).plain()
            for call in lost.values():
                call.events.put_nowait({"event": "error", "error": told})
            if self._closing:
                return
            while True:
                self.restarts += 1
                log.error("the engine ended; starting it again in %.1f seconds", pause)
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE, max(0.5, pause * 2))
                try:
                    reader = await self._spawn()
                    break
                except BadInput as error:
                    log.error("the engine cannot start: %s", error)
