"""The routes of the door: who asks is known by a key, what is asked is checked, and the engine answers."""

import asyncio
import contextlib
import ipaddress
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from uptake.server import bodies, wire
from uptake.server.admit import Admission, House
from uptake.server.answers import Answer, Choice
from uptake.server.calls import EngineProcess
from uptake.server.config import Config
from uptake.server.embeddings import add_embeddings
from uptake.server.errors import ApiError, internal
from uptake.server.generating import Generating, Told, Turns, Waiting, refused
from uptake.server.keys import LOCAL, Key, Keys
from uptake.server.lens import add_page
from uptake.server.meter import Meter
from uptake.server.receiving import received
from uptake.server.refusals import known_tokens
from uptake.server.routing import Routes
from uptake.server.sizes import Sizes
from uptake.server.tokenizing import add_tokenizer

log = logging.getLogger("uptake.server")
CROWDED = "uptake.crowded"  # in the scope of a request whose connection is one too many
ShapeT = TypeVar("ShapeT", bound=wire.Shape)


@dataclass
class Door:
    """What the routes share."""

    config: Config
    keys: Keys | None
    engine: EngineProcess
    meter: Meter = field(default_factory=Meter)
    admission: Admission = field(default_factory=lambda: Admission(House()))
    turns: Turns = field(init=False)
    tokenizer: Any = None
    sizes: Sizes = field(default_factory=Sizes)

    def __post_init__(self) -> None:
        self.turns = Turns(self.admission, self.meter)

    def key(self, request: Request, scope: str) -> Key:
        """Return who asks. Raises ApiError for nobody, or for one who may not."""
        if self.keys is None:
            if not _local(request.headers.get("host", "")):
                raise ApiError(
                    403, "a server without keys answers to localhost alone: make keys", "forbidden"
                )
            return LOCAL
        kind, _, secret = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not secret.strip():
            raise ApiError(401, "no key was given: send Authorization: Bearer up-...", "missing_api_key")
        found = self.keys.find(secret.strip())
        if found is None:
            raise ApiError(
                401, "the key is not known here, or was revoked: ask for another", "invalid_api_key"
            )
        if not found.may(scope):
            raise ApiError(403, f"the key lacks the scope {scope!r}: ask for another", "forbidden")
        return found

    def allowed(self, key: Key) -> Callable[[], bool]:
        """Return what says whether a key is still one."""
        keys = self.keys
        return (lambda: True) if keys is None else (lambda: keys.still(key.id))

    async def body(self, request: Request, kind: type[ShapeT]) -> ShapeT:
        """Return the body of a request as its shape. Raises ApiError."""
        given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if given != "application/json":
            raise ApiError(415, "send JSON, and Content-Type: application/json", "unsupported_media_type")
        return wire.read(kind, bodies.parse(await received(request, bodies.MOST_BYTES)))

    async def fits(self, texts: Iterable[str], param: str, room: int | None = None) -> None:
        """Raise ApiError for texts that are far longer than the model's window, or than the room given."""
        most = self.engine.hello["window"] if room is None else room
        await self.sizes.check(self.tokenizer, texts, most, param)

    async def reads(self, uptake: wire.Adaptation | None) -> None:
        """Raise ApiError where a request has more to read than it may train on, or far too long a query."""
        if uptake is not None:
            room = max(self.config.trained_tokens, self.engine.hello["window"])
            texts = [one if isinstance(one, str) else one.prompt + one.target for one in uptake.texts]
            await self.fits(texts, "uptake.texts", room)
            await self.fits([uptake.query or ""], "uptake.query")

    async def keep(self, key: Key, do: str, **asked: Any) -> Any:
        """Let the keeper do something for a tenant, and return its answer. Raises ApiError."""
        self.admission.visit(key)
        frame = {"op": "keep", "do": do, "tenant": key.tenant, "asked": asked}
        return await self.engine.answer(frame)

    @property
    def listed(self) -> list[dict[str, Any]]:
        """The models there are: the base, its recipes, and the encoder."""
        embedder = self.engine.hello["embedder"]
        return [
            *self.engine.hello["models"],
            *([{**embedder, "method": "embeddings"}] if embedder else []),
        ]

    @property
    def fingerprint(self) -> str:
        """What answers depend on beside the request: the weights, and how rows share a pass."""
        hello = self.engine.hello
        return f"fp_{hello['fingerprint']}_{hello['grid'].replace(' ', '_').replace(':', '')}"

    def known(self, model: str) -> None:
        """Raise ApiError for a model that is not there, before anything waits."""
        base, at, _ = model.partition("@")
        if at and base == self.config.name:
            return  # a state that was kept, or not: the engine knows
        if model not in {each["id"] for each in self.engine.hello["models"]}:
            raise ApiError(
                404,
                f"model {model[:100]!r} does not exist: /v1/models lists them",
                "model_not_found",
                "model",
            )


def make_app(door: Door) -> ASGIApp:
    """Return the server as an ASGI application, whose lifespan starts and ends the engine."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        if not door.engine.ready:
            await door.engine.start()
        from tokenizers import Tokenizer

        door.tokenizer = Tokenizer.from_str(door.engine.hello["tokenizer"])
        lag = asyncio.create_task(_lag(door.meter))
        yield
        lag.cancel()
        await door.engine.close()
        if door.keys is not None:
            door.keys.close()

    routes = Routes()

    @routes.get("/health/live")
    async def live(_: Request) -> Response:
        return JSONResponse({"live": True})

    @routes.get("/health/ready")
    async def ready(_: Request) -> Response:
        if not door.engine.ready or door.admission.draining:
            return refused(ApiError(503, "not ready", "starting" if not door.engine.ready else "draining"))
        return JSONResponse(
            {"ready": True, "grid": door.engine.hello["grid"], "restarts": door.engine.restarts}
        )

    @routes.get("/metrics")
    async def metrics(request: Request) -> Response:
        door.key(request, "metrics")
        door.meter.restarts.set(door.engine.restarts)
        if door.engine.ready:
            for name, value in (await door.engine.answer({"op": "facts"})).items():
                door.meter.engine.labels(name).set(value)
        return Response(door.meter.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @routes.get("/v1/models")
    async def models(request: Request) -> Response:
        door.key(request, "infer")
        return JSONResponse({"object": "list", "data": [_model(each) for each in door.listed]})

    @routes.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        door.key(request, "infer")
        found = [_model(each) for each in door.listed if each["id"] == name]
        if not found:
            door.known(name)
        return JSONResponse(found[0])

    @routes.post("/v1/completions")
    async def completions(request: Request) -> Response:
        key = door.key(request, "infer")
        asked = await door.body(request, wire.Completion)
        door.known(asked.model)
        known_tokens("prompt", asked.prompt, door.tokenizer.get_vocab_size(), "this model")
        for prompt in asked.prompts:
            if isinstance(prompt, str):
                await door.fits([prompt], "prompt")
        await door.reads(asked.uptake)
        most = 16 if asked.max_tokens is None else asked.max_tokens
        frame = {"prompts": asked.prompts, "max_tokens": asked.max_tokens, "echo": bool(asked.echo)}
        sizes = [len(each) if isinstance(each, list) else _size(each) for each in asked.prompts]
        return generate(key, asked, "completion", {**frame, "logprobs": asked.logprobs}, sum(sizes), most)

    @routes.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        key = door.key(request, "infer")
        asked = await door.body(request, wire.Chat)
        messages = [{"role": _role(each.role), "content": each.text} for each in asked.messages]
        door.known(asked.model)
        await door.fits([each["content"] for each in messages], "messages")
        await door.reads(asked.uptake)
        most = 256 if asked.most_tokens is None else asked.most_tokens
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        frame = {"messages": messages, "max_tokens": asked.most_tokens, "echo": False, "logprobs": logprobs}
        size = sum(_size(each["content"]) + 8 for each in messages)
        return generate(key, asked, "chat", frame, size, most)

    def generate(
        key: Key, asked: wire.Generation, kind: str, more: dict[str, Any], prompt: int, most: int
    ) -> Response:
        count = asked.n or 1
        if asked.uptake is not None and asked.uptake.keep and not key.may("stores"):
            raise ApiError(403, "the key lacks the scope 'stores', which keep needs", "forbidden")
        seed = secrets.randbits(62) if asked.seed is None else asked.seed
        uptake = None if asked.uptake is None else asked.uptake.model_dump(exclude_unset=True)
        frame = {
            "op": "generate",
            "tenant": key.tenant,
            "state_bytes": key.limits.state_bytes,
            "store_bytes": key.limits.store_bytes,
            "model": asked.model,
            "temperature": 1.0 if asked.temperature is None else float(asked.temperature),
            "top_p": 1.0 if asked.top_p is None else float(asked.top_p),
            "n": count,
            "stop": asked.stops,
            "seed": seed,
            "uptake": uptake,
            **more,
        }
        rows = len(more.get("prompts") or [0]) * count
        ticket = door.turns.enter(key, prompt + most * rows, rows)
        answer = Answer(
            kind,
            asked.model,
            door.fingerprint,
            [Choice(i) for i in range(rows)],
            more["logprobs"] is not None,
        )
        options, limits = asked.stream_options, (uptake or {}).get("budget") or {}
        deadline = limits.get("deadline_ms")
        return Generating(
            door.turns,
            door.engine,
            door.meter,
            ticket,
            frame,
            answer,
            bool(asked.stream),
            options is not None and options.include_usage,
            asked.ignored,
            None if deadline is None else deadline / 1000,
            door.allowed(key),
        )

    @routes.post("/uptake/score")
    async def score(request: Request) -> Response:
        key = door.key(request, "infer")
        asked = await door.body(request, wire.Score)
        compared = asked.compared
        for one in compared:
            door.known(one.model)
        await door.fits([asked.text], "text")
        await door.fits([asked.context], "context")
        for one in compared:
            await door.reads(one.uptake)
        frame = {
            "op": "score",
            "tenant": key.tenant,
            "state_bytes": key.limits.state_bytes,
            "text": asked.text,
            "context": asked.context,
            "compare": [one.model_dump(exclude_unset=True) for one in compared],
        }
        cost = len(compared) * (_size(asked.text) + _size(asked.context))

        def told(found: Any) -> Told:
            return Told(found, cost, sum(each.pop("trained") for each in found["results"]))

        return Waiting(door.turns, door.engine, door.turns.enter(key, cost), frame, told)

    add_page(routes)
    add_embeddings(routes, door)
    add_tokenizer(routes, door)
    if door.config.data:
        from uptake.server.keeping import add_states
        from uptake.server.storing import add_routes

        add_routes(routes, door)
        add_states(routes, door)
    return Outermost(Router(routes.all, lifespan=lifespan), door)


class Outermost:
    """Around everything: a name for each request, a count, and one shape for whatever is refused or fails."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["app"] = self  # then what no route answers is raised here
        name, started = f"req_{secrets.token_hex(12)}", False
        status = 499  # the client left

        async def named(message: Message) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                extra = [(b"x-request-id", name.encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        try:
            if scope.get(CROWDED) and not scope["path"].startswith("/health/"):
                self._door.meter.refused.labels("connections").inc()
                await crowded()(scope, receive, named)
                return
            await self._app(scope, receive, named)
        except Exception as error:
            told = _refusal(error)
            if told.status == 500 or started:
                log.exception("%s failed", name)
            if not started:
                await refused(told)(scope, receive, named)
        finally:
            route = getattr(scope.get("endpoint"), "path", "none")
            self._door.meter.requests.labels(route, str(status)).inc()


def _refusal(error: Exception) -> ApiError:
    """Return what is told of what was raised before anything was answered."""
    if isinstance(error, ApiError):
        return error
    if not isinstance(error, HTTPException):
        return internal()
    told = {404: "there is no such endpoint", 405: "the endpoint has no such method"}
    message = told.get(error.status_code, "the request cannot be read")
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    return ApiError(error.status_code, message, code)


def crowded() -> Response:
    """Return what a connection beyond the most there may be is told, which is closed with it."""
    told = ApiError(503, "too many connections are open: try again later", "connections", retry_after=5)
    found = refused(told)
    found.headers["connection"] = "close"
    return found


def _model(each: dict[str, Any]) -> dict[str, Any]:
    return {"id": each["id"], "object": "model", "created": 0, "owned_by": "uptake", "uptake": each}


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _size(text: str) -> int:
    """Return about as many tokens as a text has, and seldom fewer."""
    return len(text.encode("utf8", "replace")) // 3 + 1


def _local(host: str) -> bool:
    """Whether a Host header names this machine: a page elsewhere cannot make a browser say so."""
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    name = name.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def _lag(meter: Meter) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + 0.5
        await asyncio.sleep(0.5)
        meter.lag.set(max(0.0, loop.time() - due))
