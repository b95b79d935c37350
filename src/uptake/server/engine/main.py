"""The engine's process: frames in, frames out, and between them one thread that computes.

    python -m uptake.server.engine.main FD

FD is the number of an open socket to the door, which sends the configuration first.
"""

import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from uptake.errors import UptakeError
from uptake.lm import loading
from uptake.lm.causal import Causal
from uptake.lm.grid import Grid
from uptake.retrievers.query_encoder import load_query_encoder
from uptake.server.config import Config, StoreAt
from uptake.server.engine.adapting import Adapter
from uptake.server.engine.embedding import Embedder
from uptake.server.engine.encoder import Encoder, EncoderProcess
from uptake.server.engine.jobs import Jobs
from uptake.server.engine.keeper import Keeper
from uptake.server.engine.plans import Plans
from uptake.server.engine.rows import Writer
from uptake.server.engine.states import Made
from uptake.server.errors import ApiError, not_found, of
from uptake.server.link import Link
from uptake.store.datastore import Datastore


class Engine:
    """One model, what adapts it, and the requests that it answers."""

    def __init__(self, config: Config, link: Link) -> None:
        """Load everything. Raises UptakeError where something cannot be used."""
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config, self._link = config, link
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.encoding = None
        if config.embedder:  # it loads while this does
            self.encoding = EncoderProcess(config.embedder, config.device, config.threads)
        self._stores: dict[str, Datastore] = {}
        for at in config.stores:
            self._stores[at.name] = opened(at, config.device)
        self.lm = loading.load_causal(config.model, config.device, config.dtype, "the server")
        self.lm.name = config.name
        self.outcome, self.grid = checked(self.lm, config.grid)
        self._running = False
        # Stores are searched and changed in one thread, one thing after another.
        thread = ThreadPoolExecutor(1, "keeper")
        if self.encoding is not None:
            self.encoding.wait()
        self.embedder = None if self.encoding is None else Embedder(Encoder(self.encoding.link), self._send)
        self.keeper = None
        if config.data:
            self.keeper = Keeper(
                Path(config.data), thread, self._forget, self._drop, self.encoding, self.lm, config
            )
        self.plans = Plans(config, self.lm, lambda name: self._store_of("", name))
        self.adapter = Adapter(
            self.lm, self.grid, self._store_of, self._inbox.put, config.state_bytes, thread, self._is_kept
        )
        self.writer = Writer(self.lm, self.grid, config.rows)
        self.jobs = Jobs(
            self.lm, self.plans, self.adapter, self.writer, self._send, self.keeper, self._inbox.put
        )
        if self.keeper is not None:
            self.keeper.resume()
        # While somebody writes, adapting and scoring have at most as much time as writing.
        self._spent = {"write": 0.0, "adapt": 0.0}

    def _send(self, *frames: dict[str, Any]) -> None:
        try:
            self._link.send(*map(self._shown, frames))
        except OSError:
            self.take(None)  # the door is gone

    def _shown(self, frame: dict[str, Any]) -> dict[str, Any]:
        if frame["event"] != "error":
            return frame
        told = frame["error"]
        return {**frame, "error": {**told, "message": self._without_places(told["message"])}}

    def _without_places(self, message: str) -> str:
        """Return a message in which the operator's folders bear the names that clients know them by."""
        named = {at.path: at.name for at in self.config.stores}
        named |= {at.query_encoder: "the query encoder" for at in self.config.stores}
        named |= {self.config.model: self.config.name, self.config.data: "the server's folder"}
        places = {each: name for path, name in named.items() for each in (path, str(Path(path).absolute()))}
        for place in sorted(places, key=len, reverse=True):
            # A model may be named as clients know it, or by a word: only what is a path is hidden.
            if os.sep in place and place != str(Path().absolute()):
                message = message.replace(place, places[place])
        return message

    def hello(self) -> dict[str, Any]:
        """Return what the door has to know."""
        tokenizer: Any = self.lm.tokenizer.inner
        return {
            "event": "hello",
            "models": self.plans.listed(),
            "window": self.lm.window,
            "fingerprint": self.lm.fingerprint,
            "grid": self.outcome,
            "tokenizer": tokenizer.backend_tokenizer.to_str(),
            "opening": self.lm.tokenizer.opening,
            "end": self.lm.tokenizer.end,
            "chat_template": tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
            "notes": self.plans.notes,
            "embedder": None if self.embedder is None else self.embedder.about(self.config.embedder_name),
        }

    def take(self, frame: dict[str, Any] | None) -> None:
        """Let the thread that computes act on a frame; None ends it. Any thread may call this."""
        self._inbox.put(None if frame is None else lambda: self._act(frame))

    def run(self) -> None:
        """Compute until the door is gone."""
        self._running = True
        while True:
            idle = not (self.writer.busy or self.adapter.busy or self.jobs.scorer.busy)
            if idle:
                self._spent = {"write": 0.0, "adapt": 0.0}
            try:
                act = self._inbox.get(block=idle)
            except queue.Empty:
                self._tick()
                continue
            if act is None:
                self._running = False
                return
            act()

    def _tick(self) -> None:
        if self.writer.busy:
            self._timed("write", self.jobs.tick)
        for other in (self.jobs.scorer, self.adapter):
            if other.busy and (not self.writer.busy or self._spent["adapt"] <= self._spent["write"]):
                self._timed("adapt", other.tick)

    def _timed(self, name: str, do: Callable[[], None]) -> None:
        started = time.monotonic()
        do()
        self._spent[name] += time.monotonic() - started

    def _act(self, frame: dict[str, Any]) -> None:
        number = frame["id"]
        try:
            match frame["op"]:
                case "generate":
                    self.jobs.begin(frame)
                case "score":
                    self.jobs.score(frame)
                case "cancel":
                    self.jobs.cancel(number)
                    if self.embedder is not None:
                        self.embedder.cancel(number)
                case "embed" if self.embedder is not None:
                    self.embedder.begin(frame)
                case "keep" if self.keeper is not None:
                    self._keep(self.keeper, frame)
                case "facts":
                    self._send({"id": number, "event": "answer", "answer": self.facts()})
                case _:
                    raise ApiError(404, "there is no such operation", "not_found")
        except Exception as error:
            if not isinstance(error, UptakeError | ApiError):
                traceback.print_exc()
            self.jobs.cancel(number)
            self._send({"id": number, "event": "error", "error": of(error).plain()})

    def _keep(self, keeper: Keeper, frame: dict[str, Any]) -> None:
        """Let the keeper do something, and answer once it is done."""

        def do() -> None:
            try:
                answer = keeper.act(frame["do"], frame["tenant"], frame["asked"])
                self._send({"id": frame["id"], "event": "answer", "answer": answer})
            except Exception as error:
                if not isinstance(error, UptakeError | ApiError):
                    traceback.print_exc()
                self._send({"id": frame["id"], "event": "error", "error": of(error).plain()})

        keeper.begin(frame["do"], do)

    def _is_kept(self, made: Made) -> bool:
        return self.keeper is not None and self.keeper.states.has(made.tenant, made.name)

    def _drop(self, key: str) -> None:
        """Drop a state from memory, after what is being done with it now."""
        if self._running:
            self._inbox.put(lambda: self.adapter.states.drop(key))

    def _forget(self, tenant: str, store: str, mine: Callable[[str], bool]) -> dict[str, int]:
        """Drop what was made of documents, in the thread that computes, and wait until it has gone."""
        if not self._running:
            return {}
        counts, gone = dict[str, int](), threading.Event()

        def drop() -> None:
            states, held = self.adapter.forget(tenant, store, mine)
            counts.update(states=states, requests=self.jobs.forget(held))
            gone.set()

        self._inbox.put(drop)
        while not gone.wait(0.1):
            if not self._running:  # the door is gone, and all states go with this process
                break
        return counts

    def close(self) -> None:
        """End what runs beside the thread that computes."""
        if self.keeper is not None:
            self.keeper.close()
        if self.embedder is not None and self.encoding is not None:
            self.embedder.close()
            self.encoding.close()

    def facts(self) -> dict[str, Any]:
        """Return counts of what the engine holds now."""
        states = self.adapter.states
        return {
            "rows": len(self.writer.rows),
            "rows_waiting": len(self.writer.waiting),
            "requests": len(self.jobs.open),
            "adapting": self.adapter.open,
            "kv_bytes": self.grid.bytes if self.grid else 0,
            "states": len(states),
            "state_bytes": states.bytes(),
            "state_hits": states.hits,
            "state_evictions": states.evictions,
        }

    def _store_of(self, tenant: str, name: str) -> Datastore:
        if name in self._stores:
            return self._stores[name]
        if tenant and self.keeper is not None and name.startswith(("vs_", "pe_")):
            return self.keeper.store_of(tenant, name)
        raise not_found(f"store {name[:100]!r}", "uptake.store")


def opened(at: StoreAt, device: str) -> Datastore:
    """Return one of the operator's stores, searched as they said. Raises UptakeError where it cannot be."""
    return Datastore.open(
        at.path,
        encoder=at.encoder,
        device=device,
        search_by=at.search_by,
        vector_weight=at.vector_weight,
        query_encoder=load_query_encoder(at.query_encoder, device) if at.query_encoder else None,
    )


def checked(lm: Causal, known: str = "") -> tuple[str, Grid | None]:
    """Return what the self-test of this machine gave, and the grid, or None where rows go one by one.

    `known` is what it gave an engine before this one: where no neighbour changed a bit, it is not run again.
    """
    grid = Grid(lm)
    if known == "grid":
        return known, grid
    try:
        outcome = grid.check()
    except Exception as error:  # a model of another build fails in a manner of its own
        return f"one by one: {type(error).__name__}", None
    if outcome and not outcome.startswith("pinned"):
        return f"one by one: {outcome}", None
    return outcome or "grid", grid


def serve(link: Link) -> None:
    """Be the engine of whoever is at the other end of a link, until it is gone."""
    first = link.receive()
    if first is None:
        return
    try:
        engine = Engine(Config.of(first), link)
    except UptakeError as error:
        link.send({"event": "failed", "message": str(error)})
        return
    link.send(engine.hello())

    def listen() -> None:
        try:
            while (frame := link.receive()) is not None:
                engine.take(frame)
        finally:  # an engine that nobody speaks to would keep its folder for ever
            engine.take(None)

    threading.Thread(target=listen, daemon=True).start()
    engine.run()
    engine.close()


def main() -> None:
    """Serve the door at the other end of the socket that the argument names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the door says when to end
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve(Link(socket.socket(fileno=int(sys.argv[1]))))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(
        0
    )  # threads of libraries may wait for each other at an orderly end, and nothing is left to write


if __name__ == "__main__":
    main()
