"""Where the time to a first token goes within the engine, in CPU ms, which a busy machine changes little.

One request after another: of the base, of a state that is made, and of one that is kept.
"""

import queue
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from bench.served import ROOT, WAY, spread
from uptake import Datastore, read
from uptake.lm.grid import Grid
from uptake.server.config import Config, Recipe, StoreAt
from uptake.server.engine.adapting import Adapter
from uptake.server.engine.answering import Answering
from uptake.server.engine.main import Engine
from uptake.server.engine.prompts import Prompts

RUNS = 5
ASKED = {"tenant": "t", "state_bytes": 1 << 28, "store_bytes": 1 << 28, "temperature": 0.0, "top_p": 1.0}
ASKED |= {"op": "generate", "n": 1, "stop": [], "seed": 1, "uptake": None, "echo": False, "logprobs": None}
STEPS = (
    (Prompts, "of", "prompt"),
    (Adapter, "_find", "search"),
    (Answering, "of", "who_answers"),
    (Answering, "tried", "tried_on_the_prompt"),
    (Grid, "join", "seat"),  # with reading the prompt, where that was not tried before
)


class Asking:
    """An engine in this process, and what it says."""

    def __init__(self, config: Config) -> None:
        link: Any = self
        self.engine, self.said = Engine(config, link), list[dict[str, Any]]()
        self.spent: dict[str, float] = {}

    def send(self, *frames: dict[str, Any]) -> None:
        self.said += frames

    def first(self, model: str, prompt: str) -> dict[str, float]:
        """Return what each step took until the first token, and `all` of it but adapting."""
        self.said, self.spent = [], {}
        before = time.process_time()
        self.engine._act({**ASKED, "id": 1, "model": model, "prompts": [prompt], "max_tokens": 4})
        self._until("tokens")
        whole = (time.process_time() - before) * 1000
        found = {**self.spent, "all": whole - self.spent.get("adapting", 0.0)}
        self._until("end")
        return found

    def _until(self, event: str) -> None:
        while not any(frame["event"] == event for frame in self.said):
            busy = self.engine.writer.busy or self.engine.adapter.busy
            try:
                act: Callable[[], None] | None = self.engine._inbox.get(block=not busy)
            except queue.Empty:
                act = self.engine._tick
            assert act is not None
            act()

    @contextmanager
    def timed(self, owner: type, name: str, label: str) -> Iterator[None]:
        """Around calls of a method: what they take is added up."""
        inner = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            before = time.thread_time()
            try:
                return inner(*arguments, **named)
            finally:
                took = (time.thread_time() - before) * 1000
                self.spent[label] = self.spent.get(label, 0.0) + took

        with mock.patch.object(owner, name, call):
            yield


def first(model: Path, large: bool) -> dict[str, Any]:
    """Take first tokens apart."""
    found: dict[str, dict[str, list[float]]] = {"base": {}, "made": {}, "hit": {}}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        store = Path(folder) / "docs.store"
        Datastore.create(store, retriever="lexical").add(read(str(ROOT / "docs" / "methods")))
        recipe = Recipe("docs", "ttt-nn", 5, WAY, "docs")
        stores = (StoreAt("docs", str(store)),)
        asking = Asking(Config(str(model), "m", threads=1, stores=stores, recipes=(recipe,)))
        method = type(asking.engine.plans._recipes["m+docs"][1].method)
        for owner, name, label in (*STEPS, (method, "adapt", "adapting")):
            stack.enter_context(asking.timed(owner, name, label))
        for run in range(RUNS + 1):
            for kind in found:
                prompt = f"The method of run {run}, number {run * 7}, "
                took = asking.first("m" if kind == "base" else "m+docs", prompt)
                for label, value in took.items():
                    if run:  # what is done for the first time costs more
                        found[kind].setdefault(label, []).append(value)
    return {kind: {label: spread(values) for label, values in own.items()} for kind, own in found.items()}
