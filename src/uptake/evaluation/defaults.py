"""What settings left open become before a run: what is trained, its learning rate, queries side by side.

What is trained goes by the size of the model (adaptation/by_size.py). The rate is chosen on the store where
neighbours are read from one (rates.py); elsewhere, with explicit texts, a stream of documents or a running
text, it is the optimizer's usual one for the size of the model. A line for the report says which.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from torch import nn

from uptake.adaptation import by_size
from uptake.adaptation.by_size import weights_of
from uptake.adaptation.optimizers import AUTO, EVEN, Optimizer
from uptake.adaptation.trainable import Auto, Top, Trainable
from uptake.adaptation.trainable.places import blocks
from uptake.evaluation.plan import Plan
from uptake.evaluation.queries import QueryProtocol
from uptake.evaluation.rates import ChosenRate, rate_of
from uptake.lm.base import LM
from uptake.lm.number_format import AUTO as AUTO_FORMAT
from uptake.lm.size import module_of
from uptake.methods.contract.learned import UNTRAINED
from uptake.methods.contract.method import Method, MethodSpec
from uptake.report.formatting import many, percent
from uptake.store.datastore import Datastore

ValueT = TypeVar("ValueT")
# n-gram costs next to nothing and helps any other: the mixture is the best that is known (docs/results.md).
_BEST = ("n-gram", "ttt-nn", "in-context+n-gram", "in-context+n-gram/ttt-nn")
SMALL_METHODS = ("base", "random", "in-context", *_BEST)
LARGE_METHODS = ("base", "random", "in-context", "in-context-refreshed", *_BEST)
TOGETHER = 8  # queries side by side, where that helps
Progress = Callable[[str, int, float], None]  # what is chosen, how many rates were tried, the best gain


def choosing(name: str, tried: int, best: float) -> str:
    """Return how far the choice of a learning rate is, in words."""
    return f"learning rate of {name}: {many(tried, 'rate', 'rates')} tried, best {percent(best)}"


def _silent(name: str, tried: int, best: float) -> None:
    """Show nothing."""


def with_defaults(
    lm: LM, plan: Plan, store: Datastore | None, progress: Progress = _silent
) -> tuple[Plan, tuple[str, ...]]:
    """Return the plan with nothing left open, and the lines that say what was settled.

    Methods that train alike get one rate, whatever they read: a control trains as what it controls.
    """
    reads = isinstance(plan.protocol, QueryProtocol) and plan.protocol.reads_neighbours
    chooser = _Chooser(lm, store if reads else None, max(plan.ks), plan.seed, progress)
    if not reads:
        chooser.why = f"--protocol {plan.protocol.name} takes none from a store to choose it on"
    methods = {name: chooser.settled(name, spec) for name, spec in plan.methods.items()}
    return dataclasses.replace(plan, methods=methods), chooser.notes


def with_defaults_of(
    lm: LM,
    name: str,
    spec: MethodSpec,
    store: Datastore | None,
    k: int,
    seed: int = 0,
    progress: Progress = _silent,
) -> tuple[MethodSpec, tuple[str, ...]]:
    """Do for one method what `with_defaults` does for those of a plan."""
    chooser = _Chooser(lm, store, k, seed, progress)
    return chooser.settled(name, spec), chooser.notes


def usual_format(specs: Iterable[MethodSpec]) -> str:
    """Return the number format to load a model in where nobody says: it goes by size and processor.

    But float32 where a method reads what was made for the weights as they are: a network, a view of a store.
    """
    bound = any(
        spec.method.views or any(_made_for_weights(each) for each in _inside(spec.method)) for spec in specs
    )
    return "float32" if bound else AUTO_FORMAT


def _made_for_weights(value: Any) -> bool:
    files = (getattr(value, name, "") for name in ("weights", "statistics"))
    return any(isinstance(each, str) and each not in ("", EVEN, UNTRAINED) for each in files)


def usual_methods(lm: LM) -> tuple[str, ...]:
    """Return what is compared where nobody says: what usually wins on a model of this size, and the controls.

    Small models gain by training on neighbours, larger ones more by reading them (docs/results.md).
    """
    small = weights_of(module_of(lm)) <= by_size.SMALL
    return SMALL_METHODS if small else LARGE_METHODS


def queries_together(lm: LM, specs: Mapping[str, MethodSpec]) -> int:
    """Return how many queries go side by side where nobody says.

    On a CPU it is one, unless low-rank factors are trained, whose rows share passes: more would hold more
    memory and tell of progress less often, and save no time. On a GPU it is eight.
    """
    factors = any(
        isinstance(each, Trainable) and each.stacks for spec in specs.values() for each in _inside(spec)
    )
    return TOGETHER if factors or lm.device.type != "cpu" else 1


@dataclasses.dataclass
class _Chooser:
    """Settles one method after another for one model; nothing is chosen without a store or with k at 0."""

    lm: LM
    store: Datastore | None
    k: int
    seed: int
    progress: Progress
    why: str = "there is no store to choose it on"
    _chosen: list[tuple[Method[Any], ChosenRate | None]] = dataclasses.field(default_factory=list)
    _said: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    _module: nn.Module | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each thing that was settled, with the names of its methods."""
        return tuple(f"{', '.join(dict.fromkeys(names))}: {line}" for line, names in self._said.items())

    def settled(self, name: str, spec: MethodSpec) -> MethodSpec:
        """Return the spec of a method with nothing left open."""
        method = _changed(spec.method, lambda each: self._trained(name, each))
        method = _changed(method, lambda each: self._rated(name, spec, each))
        return spec if method is spec.method else dataclasses.replace(spec, method=method)

    def _trained(self, name: str, value: Any) -> Any:
        if not isinstance(value, Auto):
            return value
        module = self._model()
        chosen = value.of(module)
        if isinstance(chosen, Top):
            _, stack = blocks(module)
            part = weights_of(nn.ModuleList(list(stack)[-chosen.layers :])) / 1e6
            self._say(
                name,
                f"trains the last {chosen.layers} of {len(stack)} blocks, {part:,.1f} of "
                f"{weights_of(module) / 1e6:,.1f} million weights, as is usual for a model of this size",
            )
        return chosen

    def _rated(self, name: str, spec: MethodSpec, value: Any) -> Any:
        """Return a method whose own optimizer is open with its rate in place; anything else as it is."""
        optimizer = getattr(value, "optimizer", None)
        if not isinstance(value, Method) or not isinstance(optimizer, Optimizer):
            return value
        if optimizer.learning_rate != AUTO:
            return value
        chosen, why = None, self.why
        if self.store is not None:
            why = "the method reads no neighbours of a store to choose it on"
            if spec.searches and self.k > 0 and self.store.count:
                chosen = self._choose(name, value, self.store)
                why = "no document of the store has neighbours to choose it on"
        if chosen is None:
            weights = weights_of(self._model())
            rate = optimizer.usual_for(weights)
            size = f"{weights / 1e6:,.1f} million weights"
            self._say(name, f"learning rate {rate:.2g}, the usual one for a model of {size}: {why}")
        else:
            rate = chosen.rate
            self._say(name, f"learning rate {chosen}")
        return dataclasses.replace(value, optimizer=optimizer.at(rate))  # type: ignore[type-var]

    def _choose(self, name: str, method: Method[Any], store: Datastore) -> ChosenRate | None:
        for known, rate in self._chosen:
            if known == method:
                return rate
        found = rate_of(
            self.lm,
            method,
            store,
            self.k,
            self.seed,
            lambda tried, best: self.progress(name, tried, best),
        )
        self._chosen.append((method, found))
        return found

    def _model(self) -> nn.Module:
        if self._module is None:
            self._module = module_of(self.lm)
        return self._module

    def _say(self, name: str, line: str) -> None:
        self._said.setdefault(line, []).append(name)


def _changed(value: ValueT, change: Callable[[Any], Any]) -> ValueT:
    """Return settings with `change` made to them, or else to the settings in them, at any depth."""
    made: Any = change(value)
    if made is not value or not dataclasses.is_dataclass(value) or isinstance(value, type):
        return made  # type: ignore[no-any-return]
    own = {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
    new = {name: _changed(each, change) for name, each in own.items()}
    different = {name: each for name, each in new.items() if each is not own[name]}
    return dataclasses.replace(value, **different) if different else value


def _inside(value: Any) -> Iterator[Any]:
    """Yield settings and the settings in them, at any depth."""
    yield value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for part in dataclasses.fields(value):
            yield from _inside(getattr(value, part.name))
