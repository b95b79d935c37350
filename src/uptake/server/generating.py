"""One generation from its turn to its last byte: an ASGI response that ends when its client leaves.

A task waits on `receive()` all the while, so a client that goes away frees its place in the queue, its state
and its rows at once. Errors after the first byte come within the stream, and the stream is closed.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from uptake.server.admit import Admission, Ticket
from uptake.server.answers import DONE, FINISH, Answer, Choice, event
from uptake.server.calls import EngineProcess
from uptake.server.errors import ApiError, internal
from uptake.server.keys import Key
from uptake.server.meter import Meter

ASKED_EVERY = 1.0  # seconds after which it is asked again whether a key stands and a client reads
log = logging.getLogger("uptake.server")
HEADERS = {"cache-control": "no-store"}
UNREAD = 30.0  # seconds that a chunk may wait for a client to read


class Turns:
    """Requests that wait for their turn, each on a future of its own."""

    def __init__(self, admission: Admission, meter: Meter) -> None:
        self.admission, self._meter = admission, meter
        self._futures: dict[Ticket, asyncio.Future[None]] = {}

    def enter(self, key: Key, tokens: int, rows: int = 1) -> Ticket:
        """Admit a request. Raises ApiError."""
        try:
            ticket = self.admission.admit(key, tokens, rows)
        except ApiError as error:
            self._meter.refused.labels(error.code).inc()
            raise
        self._futures[ticket] = asyncio.get_running_loop().create_future()
        self.pump()
        return ticket

    async def turn(self, ticket: Ticket) -> None:
        """Wait for the turn of a request."""
        await self._futures[ticket]
        self._meter.queue.observe(time.monotonic() - ticket.begun)

    def leave(self, ticket: Ticket, tokens: int = 0, trained: int = 0) -> None:
        """End a request, and let the next begin."""
        self.admission.done(ticket, tokens, trained)
        self._futures.pop(ticket, None)
        self.pump()

    def pump(self) -> None:
        """Give turns to whoever may have one."""
        while (ticket := self.admission.next()) is not None:
            future = self._futures.get(ticket)
            if future is not None and not future.done():
                future.set_result(None)
        self._meter.waiting.set(self.admission.waiting)
        self._meter.running.set(self.admission.running)


class Generating(Response):
    """The answer to one request for text."""

    def __init__(
        self,
        turns: Turns,
        engine: EngineProcess,
        meter: Meter,
        ticket: Ticket,
        frame: dict[str, Any],
        answer: Answer,
        stream: bool,
        usage: bool,
        ignored: list[str],
        deadline: float | None,
        allowed: Callable[[], bool],
    ) -> None:
        """`allowed` says, now and then, whether the key is still one."""
        super().__init__()
        self._turns, self._engine, self._meter = turns, engine, meter
        self._ticket, self._frame, self._answer = ticket, frame, answer
        self._stream, self._usage, self._ignored = stream, usage, ignored
        self._deadline, self._allowed = deadline, allowed
        self._begun = time.monotonic()
        self._started = False
        self._trained = 0
        self._stage = "queue"
        self._sending: float | None = None  # since when a chunk waits for the client to read
        self.failed: ApiError | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._run(scope, receive, send))
        gone = asyncio.create_task(_disconnected(receive))
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        watch = self._watch(ended)
        try:
            awaited: set[asyncio.Future[Any]] = {work, gone, ended}
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not ended.done():
                self._meter.cancelled.labels(self._stage).inc()
            elif not work.done():
                work.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await work
                if ended.result() == "unread":
                    self._meter.cancelled.labels("unread").inc()
                else:
                    error = ApiError(401, "the key was revoked", "invalid_api_key")
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(UNREAD):
                            await self._fail(scope, receive, send, error)
        finally:
            watch.cancel()
            gone.cancel()
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
            used = self._answer.usage["total_tokens"]
            self._turns.leave(self._ticket, used, self._trained)
            self._meter.whole.observe(time.monotonic() - self._begun)
            for kind, count in (*self._answer.usage.items(), ("trained_tokens", self._trained)):
                if kind != "total_tokens":
                    self._meter.tokens.labels(kind.removesuffix("_tokens")).inc(count)

    def _watch(self, ended: asyncio.Future[str]) -> "_Watch":
        """Ask now and then whether this has to end, and say by `ended` why."""

        def reason() -> str:
            if not self._allowed():
                return "revoked"
            since = self._sending
            return "unread" if since is not None and time.monotonic() - since > UNREAD else ""

        return _Watch(reason, ended)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._deadline):
                await self._turns.turn(self._ticket)
                await self._write(scope, receive, send)
        except TimeoutError:
            told = ApiError(504, "the deadline passed: give more, or ask for less", "deadline", retry=False)
            await self._fail(scope, receive, send, told)
        except ApiError as error:
            await self._fail(scope, receive, send, error)
        except OSError:
            return  # the client is gone
        except Exception:
            log.exception("a request failed")
            await self._fail(scope, receive, send, internal())

    async def _write(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer, self._stage = self._answer, "adapt"
        queued = time.monotonic() - self._begun
        async for frames in self._engine.events(self._engine.call(self._frame)):
            chunks = [chunk for frame in frames for chunk in self._chunks(frame, queued)]
            if not self._stream:
                continue
            if not self._started:
                await self._start(send)
            ended = frames[-1]["event"] == "end"
            if ended:
                chunks += [answer.last()] if self._usage else []
            if chunks or ended:
                raw = b"".join(map(event, chunks))
                await self._send(send, raw + DONE if ended else raw, more=not ended)
        if not self._stream:
            await JSONResponse(answer.whole(), headers=HEADERS)(scope, receive, send)

    def _chunks(self, frame: dict[str, Any], queued: float) -> Iterator[dict[str, Any]]:
        """Take in what the engine says, and yield the chunks that tell it."""
        match frame["event"]:
            case "begun":
                self._stage = "write"
                self._open(frame, queued)
                yield from self._answer.first()
                for choice in self._answer.choices:
                    if choice.text or choice.tokens:
                        yield self._answer.chunk(choice, choice.text, choice.tokens, None, 0)
            case "tokens":
                for number, text, finish, count, tokens in frame["rows"]:
                    choice = self._answer.choices[number]
                    offset, ended = len(choice.text), FINISH[finish] if finish else None
                    self._grow(choice, text, ended, count, tokens or [])
                    if text or tokens or ended:
                        yield self._answer.chunk(choice, text, tokens or [], ended, offset)
            case "end":
                self._trained = frame["trained"]

    def _open(self, found: dict[str, Any], queued: float) -> None:
        answer = self._answer
        answer.prompt_tokens, self._trained = found["prompt_tokens"], found["trained"]
        self._ticket.worked = answer.prompt_tokens + self._trained
        cache = "base"
        if "uptake" in found or self._frame.get("uptake") is not None:
            told = found.get("uptake") or {}
            times = {"queue": round(queued * 1000, 1), **told.get("ms", {})}
            answer.uptake = {**told, "ignored": self._ignored, "ms": times}
            cache = told.get("cache", "several" if "prompts" in told else "base")
            for one in told.get("prompts", [told]):
                if one.get("cache") == "made":
                    self._meter.search.observe(one["ms"]["search"] / 1000)
                    self._meter.adapt.observe(one["ms"]["adapt"] / 1000)
        self._cache = cache
        for place, echo in enumerate(found.get("echo") or []):
            for choice in answer.choices[place * self._frame["n"] : (place + 1) * self._frame["n"]]:
                choice.text, choice.tokens = echo["text"], list(echo["tokens"] or [])

    def _grow(self, choice: Choice, text: str, ended: str | None, count: int, tokens: list[Any]) -> None:
        if not any(each.count for each in self._answer.choices):
            self._meter.first.labels(self._cache).observe(time.monotonic() - self._begun)
        choice.text += text
        choice.tokens += tokens
        choice.count += count
        self._ticket.worked += count
        choice.finish = ended

    async def _start(self, send: Send) -> None:
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "x-accel-buffering": "no",
            **HEADERS,
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._started = True
        await send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _send(self, send: Send, chunk: bytes, more: bool = True) -> None:
        self._sending = time.monotonic()
        await send({"type": "http.response.body", "body": chunk, "more_body": more})
        self._sending = None

    async def _fail(self, scope: Scope, receive: Receive, send: Send, error: ApiError) -> None:
        self.failed = error
        with contextlib.suppress(OSError):
            if not self._started:
                await refused(error)(scope, receive, send)
                return
            await self._send(send, event(error.body()) + DONE, more=False)


class _Watch:
    """Asks now and then for a reason to end, and puts the first one into a future."""

    def __init__(self, reason: Callable[[], str], ended: asyncio.Future[str]) -> None:
        self._reason, self._ended = reason, ended
        self._arm()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(ASKED_EVERY, self._ask)

    def _ask(self) -> None:
        try:
            found = self._reason()
        except Exception:
            log.exception("a key cannot be looked up")
            found = "revoked"  # rather than let a revoked one go on
        if found:
            self._ended.set_result(found)
        else:
            self._arm()

    def cancel(self) -> None:
        self._timer.cancel()


class Waiting(Response):
    """A request that has one answer, and ends when its client leaves."""

    def __init__(
        self,
        turns: Turns,
        engine: EngineProcess,
        ticket: Ticket,
        frame: dict[str, Any],
        told: Callable[[Any], "Told"],
    ) -> None:
        """`told` makes the engine's answer what the client is told."""
        super().__init__()
        self._turns, self._engine, self._ticket = turns, engine, ticket
        self._frame, self._told = frame, told
        self._used = Told({}, 0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._run(scope, receive, send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
            self._turns.leave(self._ticket, self._used.tokens, self._used.trained)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._turns.turn(self._ticket)
            # Where the client leaves now, what the engine will have done is not known: all that was reserved.
            self._used = Told({}, self._ticket.tokens)
            self._used = self._told(await self._engine.answer(self._frame))
        except ApiError as error:
            self._used = Told({}, 0)
            await refused(error)(scope, receive, send)
            return
        await JSONResponse(self._used.body, headers=HEADERS)(scope, receive, send)


@dataclass(frozen=True)
class Told:
    """What a client is told, and what it has used of its limits."""

    body: dict[str, Any]
    tokens: int
    trained: int = 0


def refused(error: ApiError) -> JSONResponse:
    """Return an error as a response."""
    return JSONResponse(error.body(), error.status, error.headers())


async def _disconnected(receive: Receive) -> None:
    """Return once the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
