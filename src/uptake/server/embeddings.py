"""`POST /v1/embeddings`: texts as vectors, by the encoder that the server was started with."""

import array
import base64
import sys
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from uptake.server import wire
from uptake.server.errors import ApiError, bad
from uptake.server.generating import Told, Waiting
from uptake.server.routing import Routes

if TYPE_CHECKING:
    from uptake.server.app import Door


def add_embeddings(routes: Routes, door: "Door") -> None:
    """Add this route to the server."""

    @routes.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        key = door.key(request, "infer")
        asked = await door.body(request, wire.Embeddings)
        about = door.engine.hello["embedder"]
        if about is None:
            told = "this server has no encoder: whoever runs it starts it with --embedder"
            raise ApiError(404, told, "model_not_found", "model")
        if asked.model != about["id"]:
            told = f"model {asked.model[:100]!r} gives no embeddings: use {about['id']!r}"
            raise ApiError(404, told, "model_not_found", "model")
        size = about["dimensions"]
        if asked.dimensions not in (None, size):
            told = f"dimensions {asked.dimensions}: vectors of {about['id']} have {size}, and no part of one "
            raise bad(told + "is as near to the whole: leave it out", "dimensions")
        cost = sum(len(each) if isinstance(each, list) else len(each) // 3 + 1 for each in asked.inputs)
        frame = {"op": "embed", "input": asked.inputs, "alone": not asked.many}

        def told_of(found: Any) -> Told:
            vectors = _vectors(found["vectors"], size, asked.encoding_format == "base64")
            used = {"prompt_tokens": found["tokens"], "total_tokens": found["tokens"]}
            rows = [{"object": "embedding", "index": i, "embedding": each} for i, each in enumerate(vectors)]
            body = {"object": "list", "data": rows, "model": about["id"], "usage": used}
            if asked.ignored:
                body["uptake"] = {"ignored": asked.ignored}
            return Told(body, found["tokens"])

        return Waiting(door.turns, door.engine, door.turns.enter(key, cost), frame, told_of)


def _vectors(raw: str, size: int, packed: bool) -> list[Any]:
    """Return each vector as numbers, or as the bytes of float32, the least significant first, in base 64."""
    whole = base64.b64decode(raw)
    rows = [whole[start : start + 4 * size] for start in range(0, len(whole), 4 * size)]
    return [base64.b64encode(row).decode() if packed else _numbers(row) for row in rows]


def _numbers(row: bytes) -> list[float]:
    found = array.array("f", row)
    if sys.byteorder == "big":
        found.byteswap()
    return found.tolist()
