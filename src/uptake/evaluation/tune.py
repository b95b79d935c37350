"""Choose a method's settings on validation text, under a budget of CPU seconds a query.

For each choice of trainable weights, the learning rate climbs by factors of three while the gain does;
then the other settings are tried one after another from the best so far. A method that names its own
`choices` has those tried instead, a group after another. Every number of neighbours is measured in
the same pass. Nothing here ever sees test text.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from uptake.codec import Malformed, load, plain
from uptake.errors import BadInput
from uptake.evaluation.checks import check
from uptake.evaluation.climb import climb
from uptake.evaluation.defaults import queries_together
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocol import Protocol
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.run import run
from uptake.lm.pretrained import Pretrained
from uptake.methods.contract.naming import method_specs
from uptake.report.metrics import gain
from uptake.report.scored.rows import Scored
from uptake.sealed import from_json, to_json, write_whole
from uptake.store.datastore import Datastore
from uptake.text.types import Document

FORMAT = "uptake recipe 1"


@dataclass(frozen=True)
class Trial:
    """What one choice of settings gave on the validation documents."""

    settings: tuple[str, ...]
    k: int
    gain: float  # share of the base's bits saved
    seconds: float  # CPU seconds a query: find, train, score
    queries: int

    def beats(self, other: "Trial") -> bool:
        """Whether it gains as much at no more cost, and one of the two strictly."""
        as_good = self.gain >= other.gain and self.seconds <= other.seconds
        return as_good and (self.gain > other.gain or self.seconds < other.seconds)


@dataclass(frozen=True)
class Recipe:
    """A method with chosen settings, as `eval`, `compare` and `generate` take it from a file."""

    method: str
    k: int
    settings: tuple[str, ...]
    chosen: dict[str, object] = field(default_factory=dict)  # on what, at what gain and cost

    def write(self, path: str | Path) -> None:
        """Write the recipe as JSON. Raises BadInput where the file cannot be written."""
        write_whole(path, to_json({"format": FORMAT, **plain(self)}))

    @classmethod
    def read(cls, path: str | Path) -> "Recipe":
        """Read what `write` wrote. Raises BadInput where it cannot be read or is another file, Damaged."""
        try:
            found = from_json(Path(path).read_bytes(), path, "recipe", "give a file that `uptake tune` wrote")
            if found.pop("format", None) != FORMAT:
                raise Malformed(f'it has no "format": "{FORMAT}"')
            return load(cls, found)
        except OSError as error:
            raise BadInput(
                f"recipe {path} cannot be read ({error.strerror}): give a file `uptake tune` wrote"
            ) from None
        except Malformed as error:
            raise BadInput(f"{path} is no recipe ({error}): give a file that `uptake tune` wrote") from None


@dataclass(frozen=True)
class Space:
    """What is tried. Learning rates are climbed from `start` by `factor`, at most `climbs` times each way."""

    trainable: tuple[str, ...] = ("all", "top(layers=2)", "lora(rank=16)")
    start: float = 1e-4
    factor: float = 3.0
    climbs: int = 4
    ks: tuple[int, ...] = (1, 5, 20)
    others: tuple[str, ...] = ("order=farthest-first", "own_prefix=true", "chunk_tokens=128")
    choices: tuple[tuple[str, ...], ...] = ()  # instead of all that, where there are any


@dataclass
class Tuning:
    """A search under way: every trial made, by its settings."""

    measure: Callable[[tuple[str, ...]], list[Trial]]
    space: Space
    budget: float | None = None
    trials: dict[tuple[str, ...], list[Trial]] = field(default_factory=dict)

    def run(self) -> Trial:
        """Search, and return the best trial within the budget; BadInput if none is."""
        if self.space.choices:
            self._try(())
            for group in self.space.choices:
                before = self.best().settings
                for choice in group:
                    self._try((*before, choice))
            return self.best()
        for trainable in self.space.trainable:
            self._climb(trainable)
        for other in self.space.others:
            self._try((*self.best().settings, other))
        return self.best()

    def best(self) -> Trial:
        """Return the trial with the largest gain among those the budget allows, the cheaper one of equals."""
        every = [trial for trials in self.trials.values() for trial in trials]
        allowed = [trial for trial in every if self.budget is None or trial.seconds <= self.budget]
        if not allowed:
            least = min(trial.seconds for trial in every)
            raise BadInput(f"no setting keeps to {self.budget} s a query: the cheapest took {least:.2f} s")
        return max(allowed, key=lambda trial: (trial.gain, -trial.seconds))

    def frontier(self) -> list[Trial]:
        """Return the trials that no other beats, cheapest first."""
        every = [trial for trials in self.trials.values() for trial in trials]
        kept = [trial for trial in every if not any(other.beats(trial) for other in every)]
        return sorted(kept, key=lambda trial: trial.seconds)

    def _climb(self, trainable: str) -> None:
        space = self.space
        climb(lambda rate: self._at(trainable, rate), space.start, space.factor, space.climbs)

    def _at(self, trainable: str, rate: float) -> float:
        return self._try((f"trainable={trainable}", f"learning_rate={rate:.3g}"))

    def _try(self, settings: tuple[str, ...]) -> float:
        if settings not in self.trials:
            self.trials[settings] = self.measure(settings)
        allowed = [t.gain for t in self.trials[settings] if self.budget is None or t.seconds <= self.budget]
        return max(allowed, default=float("-inf"))


def _trial(changed: tuple[str, ...], k: int, rows: Sequence[Scored]) -> Trial:
    spent = [row.retrieve_seconds + row.train_seconds + row.score_seconds for row in rows]
    saved = gain([row.bits for row in rows], [row.base_bits for row in rows])
    # Weights that blew up are no candidate, whatever a comparison with nan would say.
    saved = saved if math.isfinite(saved) else float("-inf")
    return Trial(changed, k, saved, sum(spent) / len(spent), len(rows))


def _changes(space: Space) -> list[tuple[str, ...]]:
    """Return every setting that a search may try, one at a time; of learning rates the first."""
    if space.choices:
        return [(), *((choice,) for group in space.choices for choice in group)]
    rate = f"learning_rate={space.start:.3g}"
    return [*((f"trainable={each}", rate) for each in space.trainable), *((each,) for each in space.others)]


def tune(
    model: Pretrained,
    documents: Iterable[Document],
    name: str = "ttt-nn",
    *,
    store: Datastore,
    settings: Sequence[str] = (),
    space: Space | None = None,
    budget: float | None = None,
    protocol: Protocol | None = None,
    batch: int | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, Trial], None] = lambda made, best: None,
) -> tuple[Recipe, Tuning]:
    """Return a recipe chosen on `documents`, which must be no test documents, and all trials.

    `budget` bounds CPU seconds a query, `settings` stand throughout. Raises BadInput where no
    setting keeps to the budget.
    """
    space = space or Space()
    if not space.choices:
        space = replace(space, choices=method_specs([name], settings)[name].method.tuning_choices)
    validation = Inputs.of(documents)
    if batch is None:
        batch = queries_together(model, method_specs([name], settings))
    # What cannot be tried is told of now, and not after hours of what can.
    for changed in _changes(space):
        specs = method_specs([name], [*settings, *changed])
        check(model, Plan(specs, protocol or PerQuery(), space.ks, seed, batch), store)

    def measure(changed: tuple[str, ...]) -> list[Trial]:
        plan = Plan(
            method_specs([name], [*settings, *changed]), protocol or PerQuery(), space.ks, seed, batch
        )
        every = run(model, plan, validation, store, workers=workers).of(Scored)
        trials = [
            _trial(changed, k, [row for row in every if row.k == k]) for k in sorted({r.k for r in every})
        ]
        made = len(search.trials) + 1
        progress(
            made, max((t for each in [*search.trials.values(), trials] for t in each), key=lambda t: t.gain)
        )
        return trials

    search = Tuning(measure, space, budget)
    best = search.run()
    chosen: dict[str, object] = {
        "gain": best.gain,
        "cpu_seconds_per_query": best.seconds,
        "queries": best.queries,
        "model": model.fingerprint,
        "store": store.contents,
        "budget": budget,
        "seed": seed,
    }
    # A method that reads no passages gives the same at every k, but with k at 0 it would not retrieve.
    return Recipe(name, max(best.k, 1), (*settings, *best.settings), chosen), search
