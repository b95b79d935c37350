"""The floor of HTTP: stock Starlette and uvicorn before a process that does the same work, and nothing else.

    python -m bench.server_floor MODEL       # serves on a port that it prints; bench/server.py starts it

The door takes a body by pydantic and streams what the other process says over a socket, as any server that
computes elsewhere must. There are no keys, limits, turns, cancelling or counts, and one request at a time.
"""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel

from uptake.server.link import Link, encode
from uptake.server.serving import listening


class Body(BaseModel):
    """What is asked for."""

    model: str
    prompt: str
    max_tokens: int
    stream: bool
    temperature: float


class Floor:
    """Two processes, and a client of them; `engine` is who works."""

    def __init__(self, model: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.server_floor", str(model)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        port, self.engine = map(int, self.process.stdout.readline().split())
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)

    def close(self) -> None:
        self.http.close()
        self.process.terminate()
        self.process.wait(20)


@contextmanager
def floor(model: Path) -> Iterator[Floor]:
    found = Floor(model)
    try:
        yield found
    finally:
        found.close()


def work(end: socket.socket, model: Path) -> None:
    """Write what is asked for, a frame a token, until nobody is at the other end."""
    from bench.server_rows import InProcess

    link, inside = Link(end), InProcess(model)
    link.send({"ready": True})
    while (asked := link.receive()) is not None:
        inside.write(
            asked["prompt"], asked["tokens"], lambda text, done: link.send({"text": text, "end": done})
        )


def serve(model: Path) -> None:
    """Serve until terminated."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    ours, theirs = socket.socketpair()
    words = [sys.executable, "-m", "bench.server_floor", str(model), str(theirs.fileno())]
    worker = subprocess.Popen(words, pass_fds=[theirs.fileno()])
    theirs.close()
    ends: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def told() -> dict[str, Any]:
        size = int.from_bytes(await ends[0][0].readexactly(4))
        found: dict[str, Any] = json.loads(await ends[0][0].readexactly(size))
        return found

    async def words_of(body: Body) -> AsyncIterator[bytes]:
        raw = encode({"prompt": body.prompt, "tokens": body.max_tokens}).encode()
        ends[0][1].write(len(raw).to_bytes(4) + raw)
        ended = False
        while not ended:
            found = await told()
            ended = found["end"]
            choice = {"index": 0, "text": found["text"], "finish_reason": None, "logprobs": None}
            yield b"data: " + encode({"model": body.model, "choices": [choice]}).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"

    async def completions(request: Request) -> Response:
        body = Body.model_validate_json(await request.body())
        return StreamingResponse(words_of(body), media_type="text/event-stream")

    app = Starlette(routes=[Route("/v1/completions", completions, methods=["POST"])])
    at = listening("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, http="h11", log_config=None, access_log=False))

    async def run() -> None:
        ends.append(await asyncio.open_unix_connection(sock=ours))
        await told()
        print(at.getsockname()[1], worker.pid, flush=True)
        await server.serve(sockets=[at])

    asyncio.run(run())
    worker.terminate()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        work(socket.socket(fileno=int(sys.argv[2])), Path(sys.argv[1]))
    else:
        serve(Path(sys.argv[1]))
