"""A session: one base model adapted for one request, which reads, answers and forgets.

A session never changes the model it is given, so any number of them may share one, in threads of their own:
each gives bit for bit what it gives alone. Whatever is random in it comes from its seed.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from uptake import arguments
from uptake.errors import BadInput
from uptake.evaluation.defaults import Progress, with_defaults_of
from uptake.evaluation.failures import finite
from uptake.evaluation.queries import neighbours
from uptake.lm.base import LM, Scores, Segment
from uptake.lm.examples import Example
from uptake.lm.generation import Decoding, Token
from uptake.methods.contract.method import Context, Evidence, MethodSpec, State
from uptake.methods.contract.naming import method_specs
from uptake.methods.contract.spending import Budget, Ledger, Stop
from uptake.methods.contract.state import load_state, save_state
from uptake.report.results import Neighbour
from uptake.store.datastore import Datastore
from uptake.text.overlap import LeakFilter
from uptake.text.types import Found, Passage, stable_hash

CHECKED = 32  # tokens of a prompt that an adapted model must have finite log-probabilities for


class Session:
    """A base model adapted for one person or request, step by step; the model itself stays as it is.

    `method` is a name, with `settings` as on the command line, or a method spec, `called` so in notes. What
    it leaves open, such as the learning rate, is settled first, on the `store` if there is one
    (evaluation/defaults.py), and `notes` say how; `progress(name, tried, best)` is told of each rate that is
    tried.
    `adapt` reads what `store` holds near a prompt and `read` any text; `generate`, `stream` and `score`
    answer from all of it, and `forget` takes passages back. `budget` bounds all readings of the session
    together. A session that does not `continue` reads once and answers: the optimizer state, for AdamW on all
    weights twice the memory of the model, is dropped.

    What ended a reading early stands in `stopped`: after a divergence the session answers as if that text
    had never been read. Every method may be called from any thread, and readings wait for each other.
    """

    def __init__(
        self,
        model: LM,
        method: str | MethodSpec = "ttt-nn",
        *,
        settings: Sequence[str] = (),
        store: Datastore | None = None,
        k: int = 20,
        seed: int = 0,
        budget: Budget | None = None,
        leak: LeakFilter | None = None,
        continues: bool = True,
        called: str = "",
        progress: Progress = lambda name, tried, best: None,
    ) -> None:
        arguments.model(model)
        arguments.store(store)
        arguments.several("settings", settings)
        arguments.budget(budget)
        if not isinstance(method, str | MethodSpec):
            raise BadInput(f"method {method!r}: give its name, such as 'ttt-nn', or a MethodSpec")
        if isinstance(method, MethodSpec) and settings:
            raise BadInput(f"settings {', '.join(settings)}: set them in the method spec, or give a name")
        self.model = model
        spec = method if isinstance(method, MethodSpec) else method_specs([method], settings)[method]
        name = called or (method if isinstance(method, str) else type(spec.method).__name__.lower())
        self.spec, self.notes = with_defaults_of(model, name, spec, store, _checked(k), seed, progress)
        self.continues = continues
        self._store, self._k, self._seed, self._leak = store, _checked(k), seed, leak or LeakFilter.off()
        self._cancelled = threading.Event()
        self._reading = threading.RLock()
        self._context = Context(seed, budget or Budget(), [Ledger()], self._cancelled.is_set, continues)
        self._state: State = self.spec.method.init(model)
        self._adapted: LM | None = None
        self._found: list[tuple[int, Neighbour]] = []

    def __reduce__(self) -> NoReturn:
        raise BadInput(
            "a session holds a model and locks and cannot be pickled: make one in each process, and carry "
            "over what it read with save(FILE) and load(FILE)"
        )

    @property
    def state(self) -> State:
        """The state of the method: a plain value that later readings leave as it is."""
        return self._state

    @property
    def ledger(self) -> Ledger:
        """What all readings have spent."""
        return self._context.ledger(0)

    @property
    def stopped(self) -> Stop | None:
        """What ended the latest reading before everything was read, if anything did."""
        return self.ledger.stopped

    @property
    def passages(self) -> list[Passage]:
        """All that was read and not forgotten, in order; their ids are what `forget` takes."""
        return self._state.passages

    @property
    def neighbours(self) -> tuple[Neighbour, ...]:
        """What `adapt` found in the store, in the order found, but what was forgotten."""
        return tuple(neighbour for _, neighbour in self._found)

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """End what the session is doing, between two steps or tokens, and let it begin nothing more."""
        self._cancelled.set()

    def adapt(self, prompt: str, k: int | None = None, *, whole_text: str = "") -> tuple[Neighbour, ...]:
        """Read what the store holds near a prompt, `k` neighbours or the session's; return what was found.

        Passages that overlap too much with `whole_text`, or else the prompt, are withheld by the leak filter,
        if the session has one. Raises BadInput where a store is needed and there is none.
        """
        arguments.text("prompt", prompt)
        k = self._k if k is None else _checked(k)
        with self._one_reading():
            found, source = Found(), None
            if self.spec.searches and k > 0:
                if self._store is None:
                    kind = self.spec.select.name
                    raise BadInput(f"selection {kind!r} searches a store and there is none: give a store")
                # A prompt is no evaluated document: the passage that holds it is what a person wants found.
                source = self._store.source(prompt, whole_text=whole_text, leak=self._leak)
                generator = np.random.default_rng(stable_hash(str(self._seed), "choose", prompt))
                found = self.spec.choose(self.model, source, k, generator)
            shown = neighbours(found)
            self._read(Evidence(found, prompt, source))
            self._found += zip((passage.id for passage in found.passages), shown, strict=True)
        return shown

    def read(self, *texts: str, query: str = "") -> tuple[int, ...]:
        """Read texts, which need not be in any store, for a query if there is one; return their ids."""
        for text in texts:
            arguments.text("text to read", text)
        evidence = Evidence.of(*texts, query=query)
        with self._one_reading():
            self._read(evidence)
        return tuple(passage.id for passage in evidence.passages)

    def score_and_read(self, text: str, context: str = "") -> Scores:
        """Score a text after its context, then read it: no token is scored by a model that has read it."""
        arguments.text("text", text)
        with self._one_reading():
            segments = [Segment(text, context)]
            (scores,), (state,) = self.spec.method.read([self._state], self.model, segments, self._context)
            self._answer_from(state, context + text)
        return scores

    def forget(self, ids: Sequence[int]) -> None:
        """Take passages back: the session answers as if it had never read them, a cancelled one as well.

        Raises BadInput for an id of nothing that was read; then nothing is forgotten.
        """
        arguments.several("ids", ids)
        gone = set(ids)
        with self._reading:
            if unknown := gone - {passage.id for passage in self.passages}:
                raise BadInput(f"id {min(unknown)}: no passage of that id was read; ids stand in `passages`")
            self._state = self.spec.method.forget(self._state, self.model, list(ids), self._context)
            self._found = [pair for pair in self._found if pair[0] not in gone]
            self._adapted = None

    @property
    def adapted(self) -> LM:
        """The model after all that was read: an LM like any other, which later readings leave alone."""
        with self._reading:
            if self._adapted is None:
                self._adapted = self.spec.method.adapted([self._state], self.model)
            return self._adapted

    def score(self, text: str, context: str = "") -> Scores:
        """Score a text after its context."""
        return self.adapted.score([Segment(text, context)])[0]

    def generate(
        self,
        prompt: str,
        tokens: int = 64,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> str:
        """Return the continuation of a prompt, as `LM.generate` does, or what there is when cancelled."""
        return "".join(token.text for token in self.stream(prompt, tokens, temperature, seed, stop))

    def stream(
        self,
        prompt: str,
        tokens: int = 64,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        alternatives: int = 0,
    ) -> Iterator[Token]:
        """Yield token by token what `generate` returns, each with this number of `alternatives`.

        The last says in `finish` what ended the text, `cancelled` where the session was.
        """
        arguments.several("stop", stop)
        decoding = Decoding(
            tokens=tokens,
            temperature=temperature,
            seed=self._seed if seed is None else seed,
            stop=tuple(stop),
            alternatives=alternatives,
        )
        return self.adapted.stream(prompt, decoding, self._cancelled.is_set)

    def save(self, path: str | Path) -> None:
        """Write what was learnt and read into one file. Raises BadInput where it depends on a store."""
        save_state(self._state, Path(path))

    def load(self, path: str | Path) -> None:
        """Go on from what a session of the same method saved. Raises Mismatch, BadInput or Damaged."""
        with self._reading:
            kind = type(self.spec.method.init(self.model))
            self._state, self._adapted, self._found = load_state(kind, Path(path), self.model), None, []

    @contextmanager
    def _one_reading(self) -> Iterator[None]:
        """Around one reading: others wait, the time it takes is charged, and `stopped` is set anew."""
        with self._reading:
            if self._state.history and not self.continues:
                raise BadInput("this session has read and answers: make one with continues=True to read on")
            self.ledger.stopped = None
            with self._context.charging([0], self.model.device):
                yield

    def _read(self, evidence: Evidence) -> None:
        if self.cancelled:
            self.ledger.stop("cancelled", "cancelled before anything was read")
            return
        (state,) = self.spec.method.adapt([self._state], self.model, [evidence], self._context)
        self._answer_from(state, evidence.query)

    def _answer_from(self, state: State, text: str) -> None:
        """Answer from this state from now on, unless its probabilities are not finite."""
        if state is self._state:
            return
        adapted = self.spec.method.adapted([state], self.model)
        if finite(state) and finite_after(adapted, text):
            self._state, self._adapted = state, adapted
        else:
            self.ledger.stop("diverged", "the adapted model gives no numbers: use a smaller learning rate")


def finite_after(lm: LM, text: str) -> bool:
    """Whether an LM has a probability for every token after the end of a text."""
    context, *ids = lm.tokenizer.opened(text)[-min(CHECKED, lm.max_input_tokens(0)) :]
    with torch.no_grad():
        (log_probs,) = lm.predictions([Example((context,), (*ids, context))])  # any token may stand last
    return not bool(torch.isnan(log_probs).any())


def _checked(k: int) -> int:
    arguments.count("k", k)
    if k < 0:
        raise BadInput(f"k = {k}: use 0 or more neighbours")
    return k
