"""The methods that recipes/reading_from_neighbours.py compares; their settings, chosen on validation text.

A query is asked under many methods whose parts are the same: what a part has learnt is kept, so that each
is trained once. kNN-LM's shares, temperatures and numbers of neighbours are tried on one search a query,
over the model as it is and over the trained ones.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.trainable import Top
from uptake.evaluation.queries import Query
from uptake.evaluation.records import RecordFile
from uptake.lm.base import Scores, Segment
from uptake.lm.causal import Causal
from uptake.lm.examples import encode, rolling_windows
from uptake.methods.contract.composed import Combined, combine
from uptake.methods.contract.method import Context, Evidence, Method, MethodSpec, State
from uptake.methods.finetune import Finetune
from uptake.methods.in_context import InContext
from uptake.methods.knn_lm import KnnLm
from uptake.methods.knn_lm.weights import Constant, DistanceDecay
from uptake.store.datastore import Datastore
from uptake.text.types import Found, Source, Tokens, stable_hash

DRAWS = ("nearest", "random")
RATES = (3e-4, 1e-3)
NEIGHBOURS = (64, 256, 512)
TEMPERATURES = (3.0, 10.0, 30.0, 100.0)
SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
REACHES = (30.0, 100.0, 300.0)
REFRESH = 64  # tokens; more often costs a pass each time
POINTERS = 16
BOTH, BESIDE = "ttt-nn and knn-lm", "ttt-nn in context"
COMBINED = (BOTH, BESIDE)  # the methods that are two in one


@dataclass(frozen=True)
class Drawn:
    """A source that finds random passages, other ones for every text; its tokens are all there are."""

    inner: Source
    text: str = ""

    def again(self, text: str) -> "Drawn":
        return Drawn(self.inner, text)

    def search(self, k: int) -> Found:
        return self.sample(k, np.random.default_rng(stable_hash("drawn", self.text)))

    def sample(self, k: int, generator: np.random.Generator) -> Found:
        return self.inner.sample(k, generator)

    def tokens(self, fingerprint: str) -> Tokens:
        return self.inner.tokens(fingerprint)


@dataclass(frozen=True)
class Subject:
    """A method under its settings; it reads the `passages` that are nearest, or random ones."""

    name: str
    method: Method[Any]
    passages: str = "nearest"
    controls: tuple[str, ...] = ()
    told: str = ""  # what was chosen for it
    gained: float = 0.0  # on validation text


class Asked:
    """One query: what is found for it, what the base makes of it, and what parts of methods have learnt."""

    def __init__(self, model: Causal, store: Datastore, query: Query, k: int) -> None:
        self.model, self.store, self.query, self.k = model, store, query, k
        self.segment = Segment(query.target, query.context)
        self.forget()

    def forget(self) -> None:
        """Let go of all that was learnt and found."""
        self._states: dict[str, tuple[Any, float]] = {}
        for name in ("base", "source", "found"):
            self.__dict__.pop(name, None)

    @cached_property
    def base(self) -> tuple[Scores, float]:
        """What the model alone makes of the query, and the CPU seconds of that."""
        started = time.process_time()
        return self.model.score([self.segment])[0], time.process_time() - started

    @cached_property
    def source(self) -> Source:
        document = self.query.document
        return self.store.source(
            self.query.search, document_id=document.id, group=document.group, whole_text=document.text
        )

    @cached_property
    def found(self) -> dict[str, Found]:
        generator = np.random.default_rng(stable_hash("0", "choose", self.query.id))
        return {"nearest": self.source.search(self.k), "random": self.source.sample(self.k, generator)}

    def key(self, subject: Subject | None) -> str:
        """Name all that decides what a method, or the base, makes of the query."""
        if subject is None:
            return "base"
        # Of passages in context the window holds a few; tokens come from the whole store.
        own = isinstance(subject.method, Finetune | Combined)
        return f"{subject.passages}{f' {self.k}' if own else ''} {subject.method!r}"

    def scored(self, subject: Subject) -> tuple[Scores, float]:
        """Return a method's scores of the query, and its CPU seconds, those of cached parts included."""
        state, taking = self.state(subject.method, subject.passages)
        started = time.process_time()
        scores = subject.method.adapted([state], self.model).score([self.segment])[0]
        return scores, taking + time.process_time() - started

    def state(self, method: Method[Any], passages: str) -> tuple[State, float]:
        """Return what a method knows after reading, and the CPU seconds of that."""
        if isinstance(method, Combined):
            states, seconds = zip(*(self.state(part, passages) for _, part in method.parts), strict=True)
            return method.joined(states, self.model), sum(seconds)
        # Nothing of tokens depends on the passages.
        key = repr((method, passages if not isinstance(method, KnnLm) else ""))
        if key not in self._states:
            source: Any = self.source if passages == "nearest" else Drawn(self.source)
            evidence = Evidence(self.found[passages], self.query.own, source, self.query.context)
            started = time.process_time()
            (state,) = method.adapt([method.init(self.model)], self.model, [evidence], Context())
            self._states[key] = state, time.process_time() - started
        return self._states[key]


FINETUNES = {rate: Finetune(trainable=Top(2), optimizer=AdamW(learning_rate=rate)) for rate in RATES}


def both(weights: Finetune, beside: InContext | KnnLm) -> Method[Any]:
    """Return what trains weights with another method beside it."""
    name = "knn-lm" if isinstance(beside, KnnLm) else "in-context"
    return combine({"ttt-nn": MethodSpec(weights), name: MethodSpec(beside)}).method


@dataclass(frozen=True)
class Mixture:
    """Settings of kNN-LM."""

    neighbours: int
    temperature: float
    share: float
    reach: float | None  # of a share that fades; None: the same everywhere

    def method(self, draw: str, pointers: int = 0) -> KnnLm:
        weight = Constant(self.share) if self.reach is None else DistanceDecay(self.share, self.reach)
        return KnnLm(self.neighbours, self.temperature, weight, pointers, draw=draw)  # type: ignore[arg-type]

    def __str__(self) -> str:
        share = f"share {self.share}" if self.reach is None else f"share {self.share}, reach {self.reach}"
        return f"neighbours {self.neighbours}, temperature {self.temperature}, {share}"


class Observed:
    """The scored tokens of some queries, with their neighbours' distances and which of these were right."""

    def __init__(self, asked: Sequence[Asked], draw: str) -> None:
        self._found: dict[int, tuple[NDArray[np.float64], NDArray[np.bool_]]] = {}
        # The nearest few are the first of more; as many drawn at random are others.
        for count in NEIGHBOURS if draw == "random" else NEIGHBOURS[-1:]:
            method = KnnLm(neighbours=count, draw=draw)  # type: ignore[arg-type]
            parts = [part for one in asked for part in _searched(one, method)]
            losses, right = (np.concatenate(each) for each in zip(*parts, strict=True))
            for fewer in NEIGHBOURS if draw == "nearest" else (count,):
                self._found[fewer] = losses[:, :fewer], right[:, :fewer]
        self._masses: dict[tuple[int, float], NDArray[np.float64]] = {}

    def mass(self, neighbours: int, temperature: float) -> NDArray[np.float64]:
        """Return the neighbours' probability of each token."""
        key = neighbours, temperature
        if key not in self._masses:
            losses, right = self._found[neighbours]
            weights = np.exp(-(losses - losses[:, :1]) / temperature)
            self._masses[key] = (weights * right).sum(1) / weights.sum(1)
        return self._masses[key]

    def best(self, own: NDArray[np.float64], reaches: Sequence[float | None]) -> tuple[float, Mixture]:
        """Return the fewest nats that a mixture of these reaches needs, and which; `own` are the model's."""
        found: list[tuple[float, Mixture]] = []
        for each in product(NEIGHBOURS, TEMPERATURES, SHARES, reaches):
            mixture = Mixture(*each)
            share: Any = mixture.share
            if mixture.reach is not None:
                share = mixture.share * np.exp(-self._found[mixture.neighbours][0][:, 0] / mixture.reach)
            mixed = share * self.mass(mixture.neighbours, mixture.temperature) + (1 - share) * np.exp(own)
            found.append((-float(np.log(mixed).sum()), mixture))
        return min(found, key=lambda pair: pair[0])


def _searched(one: Asked, method: KnnLm) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    model, (state, _) = one.model, one.state(method, "nearest")
    example = encode(model.tokenizer, one.query.context, one.query.target)
    for window in rolling_windows(example, model.window):
        with torch.no_grad():
            keys = model.keys(torch.tensor([window.inputs]))[0, -len(window.target) :]
        near = state.view.search(keys.numpy(), method.neighbours)  # type: ignore[attr-defined]
        right = near.values == np.array(window.target)[:, None]
        yield near.distances.astype(np.float64), right & (near.places >= 0)


@dataclass
class Tried:
    """What validation queries came to under subjects; a journal keeps what was done."""

    asked: Sequence[Asked]
    journal: RecordFile
    done: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.done = {row["key"]: row["log_probs"] for row in self.journal.start(dict)}

    def own(self, subject: Subject | None) -> NDArray[np.float64]:
        """Return every scored token's log-probability under a subject, or the base."""
        return np.concatenate([self._one(one, subject) for one in self.asked])

    def _one(self, one: Asked, subject: Subject | None) -> NDArray[np.float64]:
        if subject is None:
            return np.asarray(one.base[0].log_probs)
        key = f"{one.query.id} {one.key(subject)}"
        if key not in self.done:
            self.done[key] = one.scored(subject)[0].log_probs.tolist()
            self.journal.keep({"key": key, "log_probs": self.done[key]})
        return np.array(self.done[key])


def choose(asked: Sequence[Asked], journal: RecordFile) -> list[Subject]:
    """Return every method and its controls, with the settings that need fewest bits on validation text."""
    tried = Tried(asked, journal)
    base = tried.own(None)
    before = -float(base.sum())
    subjects = [
        *_pair("in-context", ", random passages", InContext()),
        *_pair("found anew", ", random passages", InContext(refresh=REFRESH)),
    ]  # nothing is left to choose
    for name, less, beside in (
        ("ttt-nn", ", random passages", None),
        (BESIDE, ", both random", InContext()),
    ):
        options = {rate: both(weights, beside) if beside else weights for rate, weights in FINETUNES.items()}
        for passages, called, controls in (("nearest", name, [name + less]), ("random", name + less, [])):
            every = [
                Subject(called, m, passages, tuple(controls), f"rate {rate}", 1 + float(nats.sum()) / before)
                for rate, m in options.items()
                for nats in [tried.own(Subject(called, m, passages))]
            ]
            subjects.append(max(every, key=lambda subject: subject.gained))
    observed = {draw: Observed(asked, draw) for draw in DRAWS}
    for name, reaches, pointers in (
        ("knn-lm", (None,), 0), ("knn-lm, adaptive share", REACHES, 0), ("retomaton", (None,), POINTERS)
    ):  # fmt: skip
        control = f"{name}, random tokens"
        for draw, called, controls in (("nearest", name, [control]), ("random", control, [])):
            nats, mixture = observed[draw].best(base, reaches)
            # RetoMaton's settings are those of kNN-LM, and so is the gain that is told.
            subjects.append(
                Subject(
                    called,
                    mixture.method(draw, pointers),
                    "nearest",
                    tuple(controls),
                    str(mixture),
                    1 - nats / before,
                )
            )
    names = {
        ("nearest", "nearest"): BOTH, ("random", "nearest"): f"{BOTH}, random passages",
        ("nearest", "random"): f"{BOTH}, random tokens", ("random", "random"): f"{BOTH}, both random",
    }  # fmt: skip
    for (passages, draw), name in names.items():
        others = tuple(other for other in names.values() if other != name) if name == BOTH else ()
        found = []
        for rate, weights in FINETUNES.items():
            nats, mixture = observed[draw].best(tried.own(Subject("", weights, passages)), (None, *REACHES))
            method = both(weights, mixture.method(draw))
            told, gained = f"rate {rate}, {mixture}", 1 - nats / before
            found.append(Subject(name, method, passages, others, told, gained))
        subjects.append(max(found, key=lambda subject: subject.gained))
    for one in asked:
        one.forget()
    return subjects


def _pair(name: str, less: str, method: Method[Any]) -> tuple[Subject, Subject]:
    """Return a method that reads passages, and its control."""
    return Subject(name, method, "nearest", (name + less,)), Subject(name + less, method, "random")
