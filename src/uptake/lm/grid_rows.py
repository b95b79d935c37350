"""A row of a grid: what is its own in a pass over the base, and what its predictions go through afterwards.

A row may mix what the model predicts with what is found by the keys of its places, as kNN-LM does: the grid
gives the keys of all such rows out of the one pass, and lets them be searched for together.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from torch import Tensor

from uptake.adaptation.delta import Delta, LowRank, Part
from uptake.adaptation.delta.scale import Scale
from uptake.adaptation.side_by_side import stacking
from uptake.lm.base import LM, Cache, Wrapper
from uptake.lm.capabilities import FeedForwardKeys
from uptake.lm.causal import Causal
from uptake.lm.experts import Experts, FixedShare
from uptake.lm.side_by_side import SideBySide
from uptake.lm.wrappers import Prefixed, Routed

if TYPE_CHECKING:
    from uptake.lm.grid_table import Table


class RowMixture(Wrapper):
    """An LM whose rows mix what `inner` predicts with what is found by the keys of `key_model`."""

    key_model: FeedForwardKeys

    @property
    @abstractmethod
    def follows(self) -> bool:
        """Whether what is mixed at a place depends on the places before it."""

    @classmethod
    @abstractmethod
    def mixed(cls, rows: "Sequence[Heard[Self]]") -> list[tuple[Tensor, Any]]:
        """Return what follows the last place of each row, [vocabulary], and where the row goes on from.

        No bit of a row depends on the others.
        """


MixtureT = TypeVar("MixtureT", bound=RowMixture, covariant=True)


@dataclass(frozen=True, slots=True)
class Heard(Generic[MixtureT]):
    """Consecutive places of one row: their tokens, what `inner` predicts there, and their keys."""

    mixture: MixtureT
    log_probs: Tensor  # [time, vocabulary]
    keys: Tensor  # [time, width]
    ids: Tensor  # [time]
    before: Any  # where the places before left off, None at the beginning


@dataclass(frozen=True)
class Own:
    """All that is a row's own in a pass over the base: low rank and scales, and tokens before its text.

    `mixture` is what its predictions go through afterwards. A row of `experts` has a seat for each of them,
    and `sharing` says how their predictions are weighed.
    """

    parts: Mapping[str, Part] = field(default_factory=dict)
    prefix: tuple[int, ...] = ()
    mixture: RowMixture | None = None
    experts: "tuple[Own, ...]" = ()
    sharing: FixedShare | None = None

    @property
    def behind(self) -> int:
        """How many tokens stand before its text, at most."""
        return max([len(self.prefix), *(each.behind for each in self.experts)])

    @property
    def kind(self) -> "Kind":
        """What has to be alike for two rows to share a pass: what changes, by which rank, or which of it."""
        return tuple(sorted((path, _size(part)) for path, part in self.parts.items()))


Kind = tuple[tuple[str, str], ...]


def _size(part: Part) -> str:
    if isinstance(part, LowRank):
        return str(part.down.shape[0])
    assert isinstance(part, Scale)
    return f"{part.on} {part.ranges}"


class Unmerged(Wrapper):
    """A base whose deltas are kept apart, never laid over its weights: `own` has no use for merged ones."""

    def __init__(self, inner: Causal, deltas: tuple[Delta, ...] = ()) -> None:
        super().__init__(inner)
        self.base, self.deltas = inner, deltas

    def around(self, inner: LM) -> Self:
        raise NotImplementedError("only a base itself keeps its deltas apart")

    def at(self, rows: Sequence[int]) -> LM:
        return self

    def overlay(self, delta: Delta) -> LM:
        delta.check(self.fingerprint)
        return Unmerged(self.base, (*self.deltas, delta))

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        raise NotImplementedError("weights that were not merged answer nothing: ask for what is a row's own")


def own(lm: LM, row: int = 0) -> Own | None:
    """Return what makes up row `row` of an LM; None where it is more than a pass over the base can have."""
    if type(lm) is Prefixed:
        inner = own(lm.inner, row)
        if inner is None or inner.prefix or inner.mixture is not None or inner.experts:
            return None
        return Own(inner.parts, tuple(lm.prefixes[row]))
    if isinstance(lm, RowMixture):
        inner, mixture = own(lm.inner, row), lm.at([row])
        if inner is None or inner.mixture is not None or not isinstance(mixture, RowMixture) or inner.experts:
            return None
        return replace(inner, mixture=mixture)
    if type(lm) is Experts:
        experts = [own(each, row) for each in lm.experts]
        found = tuple(each for each in experts if each and each.mixture is None and not each.experts)
        return Own(experts=found, sharing=lm.sharing) if len(found) == len(experts) else None
    if type(lm) is Routed:
        return own(lm.parts[row])
    if type(lm) is SideBySide:
        return _of(lm.deltas[row])
    if isinstance(lm, Causal | Unmerged) and type(lm) in (Causal, Unmerged) and lm.deltas is not None:
        return _of(sum(lm.deltas, Delta(lm.fingerprint)))
    return None


def _of(delta: Delta) -> Own | None:
    parts = stacking(delta)
    return None if parts is None else Own(parts)


@dataclass(frozen=True, eq=False)
class Beginning:
    """What was read for a row that has no seat yet: the tokens, what follows them, and keys and values."""

    ids: tuple[int, ...]
    length: int  # with what stands before the tokens
    log_probs: Tensor  # [vocabulary]
    past: Sequence[tuple[Tensor, Tensor]]  # [heads, length, size] of each layer


@dataclass(eq=False)
class Seat:
    """One row of a grid: it has read `length` tokens, and `log_probs` [vocabulary] say what follows.

    Of one that is `keyed`, `keys` [width] are those of the last token. A row that mixes, and is changed, has
    the base's keys from a second seat, `beside` it; one of experts sits at the seats of its `members`.
    `failed` says why a row cannot go on.
    """

    own: Own
    log_probs: Tensor
    length: int
    table: "Table | None" = None
    place: int = 0
    keyed: bool = False
    keys: Tensor | None = None
    beside: "Seat | None" = None
    before: Any = None
    members: "tuple[Seat, ...]" = ()
    failed: Exception | None = None
