"""Methods made of other methods: one that wraps another, several on one model, or several as a mixture.

It knows no method by name. `combine` makes the spec of `A+B`, `mix` that of `A/B`.
"""

import dataclasses
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self, TypeVar

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.experts import Experts, FixedShare
from uptake.methods.contract.input_tokens import check_input_tokens
from uptake.methods.contract.method import Context, Evidence, Method, MethodSpec, State, same_length
from uptake.methods.contract.select_per_method import select_per_method
from uptake.text.types import Source

StateT = TypeVar("StateT", bound=State)


class MethodWrapper(Method[StateT]):
    """A method that passes on to another, `wrapped`, whatever it does not define itself."""

    @property
    @abstractmethod
    def wrapped(self) -> Method[StateT]:
        """The method that it wraps."""

    @property
    def sequential(self) -> bool:
        return self.wrapped.sequential

    @property
    def separate(self) -> bool:
        return self.wrapped.separate

    @property
    def private(self) -> bool:
        return self.wrapped.private

    @property
    def incremental(self) -> bool:
        return self.wrapped.incremental

    @property
    def views(self) -> tuple[str, ...]:
        return self.wrapped.views

    def check(self, lm: LM, source: Source | None = None) -> None:
        super().check(lm, source)
        self.wrapped.check(lm, source)

    def init(self, lm: LM) -> StateT:
        return self.wrapped.init(lm)

    def adapt(
        self,
        states: Sequence[StateT],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[StateT]:
        return self.wrapped.adapt(states, lm, evidence, context, donate)

    def adapted(self, states: Sequence[StateT], lm: LM) -> LM:
        return self.wrapped.adapted(states, lm)

    def next_state(self, state: StateT, lm: LM) -> StateT:
        return self.wrapped.next_state(state, lm)


class FrozenModelMethod(Method[StateT]):
    """A method that trains no weight of the model, and so can be combined with one that does."""

    in_network: ClassVar[bool] = False  # True: it adds modules inside the network

    def under(self, lm: LM) -> LM:
        """Return the LM whose weights another method may train: `lm`, unless this method has its own base."""
        return lm

    @abstractmethod
    def around(self, states: Sequence[StateT], lm: LM, base: LM) -> LM:
        """Return `lm`, `under(base)` or an adapted version of it, wrapped with these states."""

    def adapted(self, states: Sequence[StateT], lm: LM) -> LM:
        return self.around(states, self.under(lm), lm)


@dataclass(frozen=True, kw_only=True)
class CombinedState(State):
    """The state of each part, in a field of the part's name."""


class Together(Method[CombinedState]):
    """Several methods, the parts, each of which reads what its own selection found.

    A class of this kind is made for the methods' names, each part a setting under its name.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        settings = {name: value for name, value in _settings(self) if not isinstance(value, Method)}
        return _rebuilt, (type(self).__bases__[0], type(self).__name__, dict(self.parts), settings)

    @classmethod
    def example(cls) -> Self:
        parts = [part for part in dataclasses.fields(cls) if isinstance(part.type, type)]  # type: ignore[arg-type]
        return cls(**{part.name: part.type.example() for part in parts if issubclass(part.type, Method)})  # type: ignore[arg-type, union-attr]

    @property
    def parts(self) -> list[tuple[str, Method[Any]]]:
        """The parts, each with the name of its setting and of its field in a state."""
        return [(name, value) for name, value in _settings(self) if isinstance(value, Method)]

    @property
    def sequential(self) -> bool:
        return any(part.sequential for _, part in self.parts)

    @property
    def separate(self) -> bool:
        return any(part.separate for _, part in self.parts)

    @property
    def private(self) -> bool:
        """No: raises BadInput where a part is, since what stands beside it reads the same text openly."""
        if private := [name for name, part in self.parts if part.private]:
            raise BadInput(
                f"{private[0]} under privacy, and others beside it that read the same text openly: name it "
                "alone, or leave privacy out"
            )
        return False

    @property
    def incremental(self) -> bool:
        return all(part.incremental for _, part in self.parts)

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(sorted({view for _, part in self.parts for view in part.views}))

    def check(self, lm: LM, source: Source | None = None) -> None:
        for _, part, base in self._bases(lm):
            part.check(base, source)
        super().check(lm, source)

    def init(self, lm: LM) -> CombinedState:
        return self.joined([part.init(lm) for _, part in self.parts], lm)

    def joined(self, states: Sequence[State], lm: LM) -> CombinedState:
        """Return the state that has these as its parts', with an empty history of its own."""
        named = {name: state for (name, _), state in zip(self.parts, states, strict=True)}
        kind = _state_kind(type(self).__name__, tuple((name, type(state)) for name, state in named.items()))
        made: CombinedState = kind(base=lm.fingerprint, **named)
        return made

    def adapt(
        self,
        states: Sequence[CombinedState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[CombinedState]:
        same_length(states, evidence)
        changes: list[dict[str, Any]] = [{} for _ in states]
        for place, (name, part, base) in enumerate(self._bases(lm)):
            own = [dataclasses.replace(each, found=each.found.of(place)) for each in evidence]
            before = [getattr(state, name) for state in states]
            for row, after in enumerate(part.adapt(before, base, own, context, donate)):
                changes[row][name] = after
        rows = zip(states, evidence, changes, strict=True)
        return [
            state
            if all(getattr(state, name) is part for name, part in change.items())
            else state.after(read, context, **change)
            for state, read, change in rows
        ]

    def forget(
        self, state: CombinedState, lm: LM, ids: Sequence[int], context: Context | None = None
    ) -> CombinedState:
        parts = {
            name: part.forget(getattr(state, name), base, ids, context)
            for name, part, base in self._bases(lm)
        }
        return dataclasses.replace(state, history=state.history_without(ids), **parts)

    def next_state(self, state: CombinedState, lm: LM) -> CombinedState:
        following = [part.next_state(getattr(state, name), base) for name, part, base in self._bases(lm)]
        return self.joined(following, lm)

    def _bases(self, lm: LM) -> Iterator[tuple[str, Method[Any], LM]]:
        """Yield each part's name, method and base."""
        for name, part in self.parts:
            yield name, part, lm


class Combined(Together):
    """Several methods on one model: the first may train its weights, the others leave the weights frozen.

    The first part's LM is the innermost, then methods with modules inside the network, then the others in
    their order.
    """

    def check(self, lm: LM, source: Source | None = None) -> None:
        check_input_tokens(dict(self.parts))
        super().check(lm, source)

    def adapted(self, states: Sequence[CombinedState], lm: LM) -> LM:
        rest = self.parts
        answering = self._under(lm)
        if not isinstance(rest[0][1], FrozenModelMethod):
            (name, trained), *rest = rest
            answering = trained.adapted([getattr(state, name) for state in states], answering)
        beside = [(name, part) for name, part in rest if isinstance(part, FrozenModelMethod)]
        for name, part in sorted(beside, key=lambda each: not each[1].in_network):
            answering = part.around([getattr(state, name) for state in states], answering, lm)
        return answering

    def _under(self, lm: LM) -> LM:
        """Return the LM underneath all methods that train no weights."""
        for _, part in self.parts:
            lm = part.under(lm) if isinstance(part, FrozenModelMethod) else lm
        return lm

    def _bases(self, lm: LM) -> Iterator[tuple[str, Method[Any], LM]]:
        # Weights are trained underneath the other methods.
        for name, part in self.parts:
            yield name, part, lm if isinstance(part, FrozenModelMethod) else self._under(lm)


@dataclass(frozen=True)
class Mixture(Together):
    """The base and several methods as experts of one mixture, weighed by how well each predicts the text.

    The base begins with `base_weight`, the methods with the rest in equal parts: a text costs at most
    log2(len(shares) / base_weight) bits more than under the base, whatever was read. `shares` are the
    candidates for the share of the weight dealt out anew at each token, as `FixedShare` says.
    """

    base_weight: float = 0.5
    shares: tuple[float, ...] = (0.0, 0.01, 0.1)

    def __post_init__(self) -> None:
        if not 0 < self.base_weight < 1:
            raise BadInput(f"base weight {self.base_weight}: use a probability between 0 and 1")
        self._sharing()

    def adapted(self, states: Sequence[CombinedState], lm: LM) -> LM:
        parts = [part.adapted([getattr(state, name) for state in states], lm) for name, part in self.parts]
        return Experts([lm, *parts], self._sharing())

    def _sharing(self) -> FixedShare:
        count = len(self.parts)
        return FixedShare((self.base_weight, *[(1 - self.base_weight) / count] * count), self.shares)


def combine(specs: Mapping[str, MethodSpec]) -> MethodSpec:
    """Return the spec of several methods on one model, each with its own settings and its own selection.

    Raises BadInput, with the reason, where they cannot stand together.
    """
    whole = "+".join(specs)
    _check(whole, {name: spec.method for name, spec in specs.items()})
    return _together(Combined, whole, specs)


def mix(specs: Mapping[str, MethodSpec]) -> MethodSpec:
    """Return the spec of the base and several methods as a mixture, each with its own settings and selection.

    Raises BadInput for a method that must read in pieces what it scores.
    """
    whole = "/".join(specs)
    for name, spec in specs.items():
        if not spec.method.reads:
            raise BadInput(f"{whole}: the base is part of every mixture: leave {name} out")
        if spec.segment is not None:
            raise BadInput(
                f"{whole}: {name} reads a text in pieces while it is scored, a mixture weighs whole texts: "
                "mix methods that read before they answer, such as in-context and ttt-nn"
            )
    return _together(Mixture, whole, specs)


def _together(kind: type[Together], whole: str, specs: Mapping[str, MethodSpec]) -> MethodSpec:
    parts = {_field(name): spec for name, spec in specs.items()}
    selects = tuple(spec.select for spec in specs.values())
    select = selects[0] if len(set(selects)) == 1 else select_per_method(tuple(parts), selects)
    segments = [spec.segment for spec in specs.values() if spec.segment is not None]
    method = _rebuilt(kind, whole, {name: spec.method for name, spec in parts.items()}, {})
    return MethodSpec(method, select, min(segments, default=None))


def _field(name: str) -> str:
    """Return a method's name as that of a setting: `ttt-nn+in-context` is `ttt_nn_and_in_context`."""
    return name.replace("+", "_and_").replace("-", "_")


def _check(whole: str, methods: Mapping[str, Method[Any]]) -> None:
    trains = [name for name, method in methods.items() if method.trains_weights_only]
    inside = [name for name, method in methods.items() if getattr(method, "in_network", False)]
    if len(trains) > 1:
        raise BadInput(
            f"{whole}: {' and '.join(trains)} both train the model's weights: name only one of them"
        )
    if len(inside) > 1:
        raise BadInput(
            f"{whole}: {' and '.join(inside)} both add modules to the network: name only one of them"
        )
    for name, method in methods.items():
        if not method.trains_weights_only and not isinstance(method, FrozenModelMethod):
            raise BadInput(
                f"{whole}: {name} cannot be combined with other methods: name first one that trains "
                "only weights, such as ttt-nn, then any that train none, such as in-context, knn-lm or retro"
            )
    if trains and trains[0] != next(iter(methods)):
        order = "+".join([*trains, *(name for name in methods if name not in trains)])
        raise BadInput(f"{whole}: the method that trains weights comes first: write {order}")


Kinds = tuple[tuple[str, type[Any]], ...]


@cache
def _kind(kind: type[Together], name: str, parts: Kinds) -> type[Any]:
    fields = [(each, part, dataclasses.field(default_factory=part)) for each, part in parts]
    return dataclasses.make_dataclass(name, fields, bases=(kind,), frozen=True)


@cache
def _state_kind(name: str, parts: Kinds) -> type[Any]:
    # The codec writes code that defines functions by the class's name: it has to be one that Python takes.
    called = "StateOf_" + re.sub(r"\W", lambda mark: {"+": "_and_", "/": "_or_"}.get(mark[0], "_"), name)
    return dataclasses.make_dataclass(called, parts, bases=(CombinedState,), frozen=True, kw_only=True)


# Classes made for names are found in no module: what is sent to another process is made there again.
def _rebuilt(
    kind: type[Together], name: str, parts: Mapping[str, Method[Any]], settings: Mapping[str, Any]
) -> Together:
    kinds = tuple((each, type(part)) for each, part in parts.items())
    made: Together = _kind(kind, name, kinds)(**parts, **settings)
    return made


def _settings(method: Method[Any]) -> list[tuple[str, Any]]:
    return [(each.name, getattr(method, each.name)) for each in dataclasses.fields(method)]  # type: ignore[arg-type]
