"""Optional abilities of a language model, for the methods that need them: found by name or refused.

`capability(lm, Layers)` returns the LM, or the one underneath that it passes everything on to, as one that
has it. Work with what it returns, its caches among it.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, TypeVar

from torch import Tensor
from torch.nn import functional

from uptake.errors import BadInput
from uptake.lm.base import LM, Cache
from uptake.lm.examples import Example


class Unembedding(NamedTuple):
    """What turns hidden states into logits: weight [vocabulary, width], bias [vocabulary] or None."""

    weight: Tensor
    bias: Tensor | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [..., vocabulary], computed in the weight's precision, in at least float32."""
        logits = functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        return logits.float() if logits.dtype.itemsize < 4 else logits


class Slots(NamedTuple):
    """What `time` places may attend to besides the text, `each` slots apiece, for every layer.

    Each tensor is [batch, heads, time * each, width], the slots of one place side by side.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    each: int


class HiddenStates(LM):
    """An LM that gives its last hidden states, and what turns them into logits."""

    lacking: ClassVar[str] = "one last hidden state: build on the model underneath, {name} around that"

    @abstractmethod
    def hidden(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        """Return the last hidden states [batch, time, width], which `unembedding` turns into logits.

        Otherwise as `step`. Raises BadInput where log-probabilities come about in another way.
        """

    @property
    @abstractmethod
    def unembedding(self) -> Unembedding:
        """What makes logits of the last hidden states. Raises BadInput as `hidden` does."""


class FeedForwardKeys(LM):
    """An LM that gives the input of its last feed-forward, the key by which kNN-LM searches."""

    lacking: ClassVar[str] = "one last feed-forward: use the model underneath it"

    @abstractmethod
    def step_with_keys(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor, Cache]:
        """Return what `step` does and, second, the key of each place: what enters the last feed-forward.

        Keys are [batch, time, width] (Khandelwal et al. 2020: after the norm that stands before it).
        """

    @abstractmethod
    def keys(self, ids: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Return the keys alone, without the cost of log-probabilities."""

    @property
    @abstractmethod
    def weights_fingerprint(self) -> str:
        """Names the weights as they are; `fingerprint` names those of the base, adapted or not."""


class Layers(LM):
    """An LM that gives the output of every layer, and lets tokens attend to more than the text."""

    lacking: ClassVar[str] = "one network of attention whose layers could be read or added to: give its base"

    @property
    @abstractmethod
    def pads(self) -> bool:
        """Whether rows of different length can stand in one pass, padded on the left."""

    @abstractmethod
    def layers(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[tuple[Tensor, ...], Cache]:
        """Return what enters the first layer and leaves each, [batch, time, width], and the cache.

        `lengths` are as in `step`.
        """

    @abstractmethod
    def step_with_slots(self, ids: Tensor, places: Tensor, slots: Slots, cache: Cache) -> Tensor:
        """Return log-probabilities after `ids`, each of which attends to the text and to its own slots.

        `ids`, [batch, n], stand at `places` in a text that `cache`, as `layers` left it, holds in whole;
        the token at t sees the text before t, itself and its slots, and not the others of `ids`. Places count
        from the left of the batch, padding included; no token sees padding. Slots have no place in the text:
        rotary keys come as they are, like those of a token at place 0. The cache stays as it is.
        """


class SelectedPlaces(LM):
    """An LM that predicts what follows some places of a text without the cost of all the others."""

    lacking: ClassVar[str] = "one unembedding whose places could be chosen: use the model underneath it"

    @abstractmethod
    def step_at(self, ids: Tensor, places: Tensor) -> Tensor:
        """Return log-probabilities [batch, places, vocabulary] after these places of `ids` [batch, time]."""


class KeyValueCache(LM):
    """An LM that continues from any key-value cache of transformers' kind.

    `relative` says that tokens know distances alone, so that positions may go beyond the window.
    """

    lacking: ClassVar[str] = "one cache of keys and values: adapt the model underneath it"
    relative: bool


class ApartInputs(LM):
    """An LM whose encoder reads several texts apart, and whose decoder attends to all of them at once."""

    lacking: ClassVar[str] = "encoder that reads texts apart: use an encoder-decoder, such as T5"

    @abstractmethod
    def predictions_apart(
        self, inputs: Sequence[Sequence[Sequence[int]]], examples: Sequence[Example]
    ) -> list[Tensor]:
        """Return log-probabilities [targets, vocabulary] at each place of each example's target.

        `inputs[i]` are the contexts of example i, each as an `Example` has one; its own counts for nothing.
        """


CapabilityT = TypeVar(
    "CapabilityT", HiddenStates, FeedForwardKeys, Layers, SelectedPlaces, KeyValueCache, ApartInputs
)


def capability(lm: LM, kind: type[CapabilityT]) -> CapabilityT:
    """Return the LM as one that has this capability. Raises BadInput where it has not."""
    found = lm.capable(kind)
    if found is None:
        raise BadInput(refusal(lm, kind))
    return found


def refusal(lm: LM, kind: type[CapabilityT]) -> str:
    """Return one line that says what the LM lacks, and the cure."""
    name = type(lm).__name__
    lacking = kind.lacking.format(name=name)
    if not lm.has_step and kind is not ApartInputs:
        what = lacking.partition(":")[0]
        return f"{name} is an encoder-decoder, and has no {what}: use a causal model, or ttt-nn or in-context"
    return f"{name} has no {lacking}"
