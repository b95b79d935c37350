"""The routes that make texts tokens and back, as vLLM has them."""

import asyncio
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from uptake.server import wire
from uptake.server.refusals import known_tokens
from uptake.server.routing import Routes

if TYPE_CHECKING:
    from uptake.server.app import Door


def add_tokenizer(routes: Routes, door: "Door") -> None:
    """Add these routes to the server."""

    @routes.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        key = door.key(request, "infer")
        asked = await door.body(request, wire.Tokenize)
        door.admission.visit(key)
        ids = await door.sizes.ids(door.tokenizer, asked.prompt)
        hello = door.engine.hello
        if asked.add_special_tokens:
            ids = [hello["opening"], *ids]
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": hello["window"]})

    @routes.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        key = door.key(request, "infer")
        asked = await door.body(request, wire.Detokenize)
        door.admission.visit(key)
        known_tokens("tokens", asked.tokens, door.tokenizer.get_vocab_size(), "this model")
        text = await asyncio.to_thread(door.tokenizer.decode, asked.tokens, skip_special_tokens=False)
        return JSONResponse({"prompt": text})

    @routes.get("/tokenizer_info")
    async def tokenizer_info(request: Request) -> Response:
        door.key(request, "infer")
        hello, name = door.engine.hello, door.tokenizer.id_to_token
        end = None if hello["end"] is None else name(hello["end"])
        return JSONResponse(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": name(hello["opening"]),
                "eos_token": end,
                "pad_token": end,
                "chat_template": hello["chat_template"],
            }
        )
