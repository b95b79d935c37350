"""Edits that are each made by itself: what is said of them without a gate and behind one, and the drift.

Behind a gate that shows a prompt one edit (`gated-editor` with k=1) it is answered by the model that holds
that edit alone, or by the base. So each edit is made by itself and asked its own prompts, and a memory of all
edits is asked which of them it opens for: gates are compared on the same answers, and an editor that forgets
by training again, as fine-tuning does, can stand behind one too. What is said is kept in files.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import editing
import numpy as np

from uptake.lm.causal import Causal
from uptake.methods.contract.method import Context, Evidence, Method
from uptake.methods.gated_memory.scope import Scope
from uptake.sealed import write_whole
from uptake.tasks.asking import generate
from uptake.tasks.edit_asking import drift
from uptake.tasks.edit_marks import Asking, askings, leaks, same_words, starts_with
from uptake.tasks.edits import Edit
from uptake.text.types import Document, Found

TOKENS = 8  # of an answer
PROBES = 2  # rephrases and neighbours that are asked of each edit
ROWS = 25  # edits side by side
KINDS = ("edit", "rephrase", "neighbour")
NAMES = {"edit": "success", "rephrase": "tight", "loose": "loose"}
KL_EDITS, KL_TEXTS = 8, 4
KL_RATES, KL_TRIES, KL_NEAR = (1e-6, 1e-2), 7, 0.1  # within a tenth it is the same
Figures = dict[str, dict[str, Any]]
Asks = list[tuple[int, Asking]]  # each with the place of its edit


def asked_of(edits: Sequence[Edit], kinds: Sequence[str] = KINDS) -> Asks:
    """Return what is asked of edits: their own prompts, rephrases and neighbours."""
    return [
        (place, one)
        for place, edit in enumerate(edits)
        for one in askings(edit, place + 1, PROBES)
        if one.kind in kinds
    ]


def made_alone(method: Method[Any], model: Causal, edits: Sequence[Edit]) -> Any:
    """Return an LM whose row i holds edit i alone."""
    evidence = [Evidence(Found((edit.passage(),), (0.0,)), edit.prompt) for edit in edits]
    states = method.adapt([method.init(model) for _ in edits], model, evidence, Context(continues=False))
    return method.adapted(states, model)


def opened(scope: Scope, model: Causal, edits: Sequence[Edit], prompts: Sequence[str]) -> list[int | None]:
    """Return for each prompt the place of the edit that a memory of all of them opens for, if any."""
    memory, places = scope.memory([edit.passage() for edit in edits], model), _places(edits)
    found = [memory.find(prompt, 1) for prompt in prompts]
    return [places[some[0].document] if some else None for some in found]


def behind(name: str, gate: str) -> str:
    """Return what an editor is called behind a gate, or without one."""
    return f"{name} behind {gate}" if gate else name


def _places(edits: Sequence[Edit]) -> dict[str, int]:
    return {edit.id: place for place, edit in enumerate(edits)}


@dataclass
class Alone:
    """Measures editors on some edits; `about` are those that are asked about, the first of those in memory.

    `folder` keeps what was said and the drifts by the name of an editor, so that an interrupted run goes on.
    """

    model: Causal
    edits: Sequence[Edit]
    about: int
    folder: Path
    texts: Sequence[Document]
    gates: Mapping[str, Scope]
    kinds: tuple[str, ...] = KINDS
    batch: int = 64
    marks: dict[str, dict[str, list[list[bool]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.asked = asked_of(self.edits[: self.about], self.kinds)
        prompts = [one.prompt for _, one in self.asked]
        with Kept(self.folder / "base.json") as kept:
            if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in kept.values]:
                kept.values |= zip(new, generate(self.model, new, TOKENS, self.batch), strict=True)
            self.base = [kept.values[prompt] for prompt in prompts]
        self.ways: dict[str, list[int | None]] = {"": [place for place, _ in self.asked]}
        self.closed: dict[str, dict[str, Any]] = {}
        others = [text.text for text in self.texts]
        for name, gate in self.gates.items():
            found = opened(gate, self.model, self.edits, [*prompts, "", *others])
            self.ways[name] = found[: len(prompts)]
            empty, *elsewhere = found[len(prompts) :]
            # A text is read behind no prompt: where that opens for no edit it is the base's, bit for bit.
            self.closed[name] = {
                "kl": 0.0 if empty is None else None,
                "opens_elsewhere": sum(place is not None for place in elsewhere),
                "elsewhere": len(elsewhere),
            }

    @property
    def wanted(self) -> set[tuple[int, int]]:
        """Which edit is to be asked which prompt, by its place and the prompt's."""
        return {(at, n) for way in self.ways.values() for n, at in enumerate(way) if at is not None}

    def of_base(self) -> dict[str, Any]:
        """Return the figures of the base, the control of all others."""
        return self._figures("base", [None] * len(self.asked), {}) | {"kl": 0.0}

    def of(self, name: str, method: Method[Any], kept: str = "", drifts: bool = True) -> Figures:
        """Return the figures of an editor by itself and behind each gate, by the name of each.

        `kept` is what its replies are kept as, if not its name.
        """
        kept = kept or name
        said = self._said(kept, method, self.wanted)
        found: Figures = {}
        for gate, places in self.ways.items():
            told = behind(name, gate)
            found[told] = self._figures(told, places, said) | self.closed.get(gate, {})
        if drifts:
            found[name]["kl"] = self.kl(kept, method)
        return found

    def kl(self, name: str, method: Method[Any]) -> float:
        """Return how far single edits drift on unrelated text, in nats a token."""
        with Kept(self.folder / "kl.json") as kept:
            if name not in kept.values:
                kept.values[name] = kl_of(method, self.model, self.edits[: self.about], self.texts)
            return float(kept.values[name])

    def ahead(self, one: str, other: str, gate: str = "") -> dict[str, Any]:
        """Return how far one editor is ahead of another by each mark, paired by edit; both behind a gate."""
        mine, theirs = self.marks[behind(one, gate)], self.marks[behind(other, gate)]
        return {mark: apart(mine[mark], theirs[mark]) for mark in mine}

    def _said(
        self, name: str, method: Method[Any], wanted: set[tuple[int, int]]
    ) -> dict[tuple[int, int], str]:
        """Return what edit `at`, made by itself, says to prompt n, by (at, n)."""
        keys = {pair: f"{self.edits[pair[0]].id}: {self.asked[pair[1]][1].prompt}" for pair in wanted}
        with Kept(self.folder / f"{name}.json") as kept:
            new = sorted(pair for pair in wanted if keys[pair] not in kept.values)
            rows = sorted({at for at, _ in new})
            for start in range(0, len(rows), ROWS):
                some = rows[start : start + ROWS]
                adapted = made_alone(method, self.model, [self.edits[at] for at in some])
                pairs = [pair for pair in new if pair[0] in some]
                prompts = [self.asked[n][1].prompt for _, n in pairs]
                answers = generate(adapted, prompts, TOKENS, self.batch, [some.index(at) for at, _ in pairs])
                kept.values |= {keys[pair]: said for pair, said in zip(pairs, answers, strict=True)}
                kept.write()
                print(f"{name}: {start + len(some)} of {len(rows)} edits", file=sys.stderr)
            return {pair: kept.values[key] for pair, key in keys.items()}

    def _figures(
        self, told: str, places: Sequence[int | None], said: Mapping[tuple[int, int], str]
    ) -> dict[str, Any]:
        kinds = [name for kind, name in NAMES.items() if kind in self.kinds]
        marks: dict[str, list[list[bool]]] = {
            name: [[] for _ in range(self.about)] for name in (*kinds, "same", "leak")
        }
        for n, ((own, one), at) in enumerate(zip(self.asked, places, strict=True)):
            answer = self.base[n] if at is None else said[at, n]
            if one.leaks:
                marks["same"][own].append(same_words(answer, self.base[n]))
                marks["leak"][own].append(leaks(answer, one.target))
            else:
                marks[NAMES[one.kind]][own].append(starts_with(answer, one.target, one.old))
        self.marks[told] = marks
        return {name: share(lists) for name, lists in marks.items()} | {"edits": self.about}


@dataclass
class Kept:
    """Values in a file, written once more where a block that uses them ends."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> "Kept":
        self.values = json.loads(self.path.read_text()) if self.path.exists() else {}
        return self

    def __exit__(self, *raised: object) -> None:
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, json.dumps(self.values).encode())


def share(lists: Sequence[Sequence[bool]], draws: int = 2000) -> dict[str, Any]:
    """Return the share of all marks, with its 95 % interval by edit."""
    return _ratio([(sum(own), len(own)) for own in lists if own], draws)


def apart(
    mine: Sequence[Sequence[bool]], theirs: Sequence[Sequence[bool]], draws: int = 2000
) -> dict[str, Any]:
    """Return how far two shares of marks of the same prompts are apart, with the interval by edit."""
    pairs = zip(mine, theirs, strict=True)
    return _ratio([(sum(one) - sum(other), len(one)) for one, other in pairs if one], draws)


def _ratio(each: Sequence[tuple[int, int]], draws: int) -> dict[str, Any]:
    if not each:
        return {"share": None, "interval": None}
    counts = np.array(each, dtype=float)
    drawn = counts[np.random.default_rng(0).integers(len(counts), size=(draws, len(counts)))].sum(1)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    whole = counts.sum(0)
    return {"share": round(whole[0] / whole[1], 4), "interval": [round(low, 4), round(high, 4)]}


def kl_of(method: Method[Any], model: Causal, edits: Sequence[Edit], texts: Sequence[Document]) -> float:
    """Return how far single edits drift on unrelated text, in nats a token."""
    adapted = made_alone(method, model, edits[:KL_EDITS])
    values = [
        value
        for row in range(len(edits[:KL_EDITS]))
        for text in texts[:KL_TEXTS]
        for value in drift(model, adapted.at([row]), text.text).kl
    ]
    return sum(values) / len(values)


def finetune(rate: float) -> Method[Any]:
    """Return plain fine-tuning as `recipes/editing.py` does it, at another learning rate."""
    return editing.EDITORS["finetune"].spec([f"optimizer.learning_rate={rate}"]).method


def rate_at(
    wanted: float, kl: Callable[[float], float], between: Sequence[float] = KL_RATES, tries: int = KL_TRIES
) -> tuple[float, list[list[float]]]:
    """Return the learning rate whose drift is nearest to the one wanted, and each rate tried with its own.

    Drift grows with the rate, at first as its square: a straight line through logarithms says where to look.
    """
    low, high = between
    rate, tried, goal = (low * high) ** 0.5, list[list[float]](), _log(wanted)
    for _ in range(tries):
        found = kl(rate)
        print(f"learning rate {rate:.3g}: KL {found:.5f}, wanted {wanted:.5f}", file=sys.stderr)
        tried.append([rate, found])
        off = _log(found) - goal
        if abs(math.expm1(off)) <= KL_NEAR:
            break
        low, high = (rate, high) if off < 0 else (low, rate)
        slope = 2.0
        if len(tried) > 1:
            (a, kl_a), (b, kl_b) = tried[-2:]
            slope = (_log(kl_b) - _log(kl_a)) / math.log(b / a)
        rate = rate * math.exp(-off / slope) if slope > 0 else 0.0
        if not low < rate < high:
            rate = (low * high) ** 0.5
    return min(tried, key=lambda one: abs(_log(one[1]) - goal))[0], tried


def _log(drift: float) -> float:
    return math.log(max(drift, 1e-12))
