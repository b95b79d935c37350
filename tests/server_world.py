"""A server for tests: the real door on a real socket, its engine a thread of this process, a toy model."""

import asyncio
import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import openai
import uvicorn
from transformers import PreTrainedTokenizerFast

import toys
from uptake.lm import loading
from uptake.server.admit import Admission, House
from uptake.server.app import Door, make_app
from uptake.server.calls import EngineProcess
from uptake.server.config import Config, Recipe, StoreAt
from uptake.server.engine import encoder, encoder_process, intake
from uptake.server.engine.main import serve
from uptake.server.keys import Keys
from uptake.server.link import Link
from uptake.server.serving import Server, listening, options
from uptake.store.datastore import Datastore
from uptake.text.types import Document

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TEXTS = ("the cat sat on the mat. ", "a dog ran over the hill.", "one fish, two fish, red fish.")
LORA = ("trainable=lora(rank=2)", "learning_rate=1e-2")


ROOT = Path(__file__).parent.parent


class EngineThread(EngineProcess):
    """An engine in a thread, which is there at once."""

    async def _begin(self, end: socket.socket) -> None:
        link = Link(end.dup())
        threading.Thread(target=serve, args=[link], daemon=True).start()


class ChildThread:
    """A process of the engine's in a thread, which cannot be killed: it is waited for."""

    def __init__(self, module: str, files: Sequence[int] = ()) -> None:
        ours, theirs = socket.socketpair()
        self.link = Link(ours)
        serve, theirs_too = importlib.import_module(module).serve, [os.dup(each) for each in files]

        def run() -> None:
            serve(Link(theirs), *([theirs_too] if theirs_too else []))
            for each in theirs_too[:1]:  # the lock; the other is a socket, which its owner closes
                os.close(each)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    @property
    def lives(self) -> bool:
        return self._thread.is_alive()

    def kill(self) -> None:
        self.link.close()
        self._thread.join()


class Running:
    """A server that runs, and clients of it."""

    def __init__(self, url: str, door: Door) -> None:
        self.url, self.door = url, door
        self.http = httpx.Client(base_url=url, timeout=60)

    def openai(self, key: str = "none", **more: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, **more)

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return self.http.post(path, json=body, **more)


def saved_model(folder: Path, shape: str = "llama", window: int = 256, seed: int = 0) -> Path:
    """Write a toy with a chat template, and return its folder."""
    toys.module(shape, seed=seed, window=window).save_pretrained(folder)
    tokenizer: PreTrainedTokenizerFast = toys.tokenizer()
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def saved_store(path: Path) -> Path:
    store = Datastore.create(path, retriever="lexical")
    store.add([Document(f"d{number}", text) for number, text in enumerate(TEXTS)])
    return path


def config(folder: Path, **more: Any) -> Config:
    model, store = folder / "toy", folder / "notes.store"
    if not model.exists():
        saved_model(model)
    if not store.exists():
        saved_store(store)
    recipes = (
        Recipe("notes", "ttt-nn", 2, LORA, "notes"),
        Recipe("read", "in-context", 2, (), "notes"),
        Recipe("whole", "ttt-nn", 2, ("learning_rate=1e-3",), "notes"),
    )
    stores = (StoreAt("notes", str(store)),)
    return Config(str(model), "toy", threads=1, stores=stores, recipes=recipes, **more)


@contextlib.contextmanager
def running(
    config: Config,
    keys: Keys | None = None,
    house: House | None = None,
    engine: type[EngineProcess] = EngineThread,
) -> Iterator[Running]:
    """Around a server: yield it once it answers."""
    with patched() if engine is EngineThread else contextlib.nullcontext():
        yield from _running(config, keys, house, engine)


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Around an engine in a thread: the processes that it starts are threads as well."""
    with contextlib.ExitStack() as stack:
        for module in (intake, encoder):
            stack.enter_context(mock.patch.object(module, "Child", ChildThread))
        # Two models that load in one process disturb each other: transformers changes PyTorch's own number
        # format meanwhile, for all threads.
        one = threading.Lock()
        for where, name in ((encoder_process, "make_encoder"), (loading, "load_causal")):
            stack.enter_context(mock.patch.object(where, name, in_turn(getattr(where, name), one)))
        yield


def in_turn(call: Callable[..., Any], lock: threading.Lock) -> Callable[..., Any]:
    def held(*arguments: Any, **named: Any) -> Any:
        with lock:
            return call(*arguments, **named)

    return held


def _running(
    config: Config, keys: Keys | None, house: House | None, engine: type[EngineProcess]
) -> Iterator[Running]:
    door = Door(config, keys, engine(config), admission=Admission(house))
    at = listening("127.0.0.1", 0)
    server = Server(uvicorn.Config(make_app(door), **options()), door)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[at])), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        thread.join(0.01)
    assert server.started, door.engine.failed
    found = Running(f"http://127.0.0.1:{at.getsockname()[1]}", door)
    try:
        yield found
    finally:
        found.http.close()
        server.should_exit = True
        thread.join(20)
        at.close()
        assert not thread.is_alive()


class Process:
    """`uptake serve` on a free port."""

    def __init__(self, folder: Path, *more: object) -> None:
        own = config(folder)
        store = own.stores[0].path
        words = ["serve", "-m", own.model, "-s", store, "--port", 0, "--threads", 1, *more]
        words += ["--set", LORA[0], "--set", LORA[1], "-k", 2]
        program = "from uptake.cli.main import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, words)], stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if " at http" in line:
                self.url = line.split(" at ")[1].split("/v1")[0]
                break
        else:
            raise AssertionError("it did not start: " + "".join(said))
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def children(self) -> list[int]:
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(each) for each in found.split()]

    def again(self, restarts: int) -> None:
        """Wait until the engine was started so many times more and answers."""
        for _ in range(3000):
            found = self.http.get("/health/ready")
            if found.status_code == 200 and found.json()["restarts"] >= restarts:
                return
            time.sleep(0.1)
        raise AssertionError("the engine did not come back")

    def close(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0
