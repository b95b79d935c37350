"""Choose learning rates that are left open, `learning_rate=auto`, on documents of the store itself.

The best rate differs between models, between stores and with what is trained. So a few documents of the
store are taken as if they were queries: their neighbours come from the rest of the store, under the leak
filter, and the rate climbs by factors of three while the gain does. No evaluated text is seen. What was
chosen is kept in this user's cache, under all that it depends on.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from uptake.adaptation.optimizers import AUTO, Optimizer
from uptake.cache import cache_root, private
from uptake.codec import Malformed, load, plain
from uptake.errors import BadInput, Damaged
from uptake.evaluation.climb import climb
from uptake.evaluation.engine import evaluate
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.lm.base import LM
from uptake.methods.contract.method import Method, MethodSpec
from uptake.report.formatting import percent
from uptake.report.metrics import gain
from uptake.report.scored.rows import Scored
from uptake.sealed import from_json, to_json, write_whole
from uptake.settings import describe
from uptake.store.datastore import Datastore
from uptake.text.types import stable_hash

DOCUMENTS = 8  # of the store, that play the query
NEIGHBOURS = 5  # at most, that each of them reads
FACTOR, CLIMBS = 3.0, 6

Progress = Callable[[str, int, float], None]  # what is chosen, how many rates were tried, the best gain


@dataclass(frozen=True)
class ChosenRate:
    """A learning rate, and on what it was chosen: `tried` are all rates with the share of bits each saved."""

    rate: float
    gain: float
    documents: int
    neighbours: int
    cpu_seconds: float
    tried: tuple[tuple[float, float], ...]

    def __str__(self) -> str:
        return (
            f"{self.rate:.2g}, chosen on {self.documents} documents of the store with {self.neighbours} "
            f"neighbours each (saves {percent(self.gain)} there; {len(self.tried)} rates tried, "
            f"{self.cpu_seconds:.0f} CPU seconds)"
        )


def with_rates(
    lm: LM, plan: Plan, store: Datastore | None, progress: Progress = lambda name, tried, best: None
) -> tuple[Plan, tuple[str, ...]]:
    """Return the plan with every open learning rate chosen, and a line on each method for the report.

    Methods that train alike get one rate, whatever they read: a control trains as what it controls. Raises
    BadInput where there is no store, or none of its documents can play the query.
    """
    methods, notes = dict(plan.methods), list[str]()
    for name, spec in plan.methods.items():
        methods[name], more = with_rate(lm, name, spec, store, max(plan.ks), plan.seed, progress)
        notes += more
    return replace(plan, methods=methods), tuple(notes)


def with_rate(
    lm: LM,
    name: str,
    spec: MethodSpec,
    store: Datastore | None,
    k: int,
    seed: int = 0,
    progress: Progress = lambda name, tried, best: None,
) -> tuple[MethodSpec, tuple[str, ...]]:
    """Do for the method `name` alone what `with_rates` does for those of a plan."""
    notes = list[str]()
    for part in dict.fromkeys(_open(spec.method)):
        if store is None:
            raise BadInput(
                f"{name}: learning_rate=auto is chosen on the documents of a store and there is none: give a "
                "store, or a rate, such as learning_rate=1e-4"
            )
        chosen = rate_of(lm, part, store, k, seed, lambda tried, best: progress(name, tried, best))
        spec = replace(spec, method=_filled(spec.method, part, chosen.rate))
        notes.append(f"{name}: learning rate {chosen}")
    return spec, tuple(notes)


def rate_of(
    lm: LM,
    method: Method[Any],
    store: Datastore,
    k: int,
    seed: int = 0,
    progress: Callable[[int, float], None] = lambda tried, best: None,
) -> ChosenRate:
    """Return the learning rate for a method whose optimizer leaves it open, from the cache if it is there."""
    k = max(1, min(k, NEIGHBOURS))
    path = _path(lm, method, store, k, seed)
    if found := _read(path):
        return found
    chosen = _choose(lm, method, store, k, seed, progress)
    if private(path.parent, make=True):
        write_whole(path, to_json({"of": path.stem, **plain(chosen)}))
    return chosen


def _choose(
    lm: LM, method: Any, store: Datastore, k: int, seed: int, progress: Callable[[int, float], None]
) -> ChosenRate:
    protocol = PerQuery()
    draws = np.random.default_rng(stable_hash(str(seed), "rates"))
    documents = store.sample(DOCUMENTS, protocol.prefix + protocol.suffix, draws)
    if not documents:
        raise BadInput(f"{store.path} holds no document to choose a learning rate on: give one with --set")
    tried: dict[float, float] = {}
    started = time.process_time()

    def measure(rate: float) -> float:
        at = replace(method, optimizer=method.optimizer.at(rate))
        plan = Plan({"method": MethodSpec(at)}, protocol, (k,), seed)
        rows = [
            row for row in evaluate(lm, plan, Inputs(tuple(documents)), store).rows if isinstance(row, Scored)
        ]
        saved = gain([row.bits for row in rows], [row.base_bits for row in rows])
        # A rate at which training fails anywhere is none to use, though its row counts as the base's.
        tried[rate] = float("-inf") if any(row.failed for row in rows) else saved
        progress(len(tried), max(tried.values()))
        return tried[rate]

    climb(measure, method.optimizer.usual, FACTOR, CLIMBS)
    best = max(tried, key=lambda rate: (tried[rate], -rate))
    if tried[best] == float("-inf"):
        raise BadInput("learning_rate=auto: training fails at every rate tried; choose what is trained anew")
    spent = time.process_time() - started
    return ChosenRate(best, tried[best], len(documents), k, spent, tuple(sorted(tried.items())))


def _open(value: Any) -> Iterator[Any]:
    """Yield every method in a method, itself among them, whose optimizer has no learning rate yet."""
    if not dataclasses.is_dataclass(value):
        return
    fields = [getattr(value, part.name) for part in dataclasses.fields(value)]
    if isinstance(value, Method) and any(
        isinstance(each, Optimizer) and each.learning_rate == AUTO for each in fields
    ):
        yield value
    else:
        for each in fields:
            yield from _open(each)


def _filled(value: Any, part: Method[Any], rate: float) -> Any:
    """Return a method with this learning rate in the place of `part`'s open one, wherever it stands."""
    if value == part:
        return replace(value, optimizer=value.optimizer.at(rate))
    if not dataclasses.is_dataclass(value) or not any(True for _ in _open(value)):
        return value
    own = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    changed = {name: _filled(each, part, rate) for name, each in own.items()}
    return replace(value, **{name: new for name, new in changed.items() if new is not own[name]})  # type: ignore[type-var]


def _path(lm: LM, method: Method[Any], store: Datastore, k: int, seed: int) -> Path:
    parts: Mapping[str, Any] = describe(method)
    key = stable_hash(lm.fingerprint, store.contents, repr(plain(parts)), str(k), str(seed), str(DOCUMENTS))
    return cache_root() / "rates" / f"{key:016x}.json"


def _read(path: Path) -> ChosenRate | None:
    """Return what was chosen before, None where nothing was, or what is there is damaged."""
    try:
        raw = path.read_bytes() if private(path.parent) else b""
        data = from_json(raw, path, "chosen rate", "it is chosen again") if raw else {}
        return load(ChosenRate, data) if data.pop("of", "") == path.stem else None
    except (OSError, Damaged, Malformed):
        return None
