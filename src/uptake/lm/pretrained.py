"""A network of transformers' as an LM: frozen, with deltas over it, and named by its weights.

What it computes with the network is not known here: lm/causal.py and lm/seq2seq.py do.
"""

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from uptake.adaptation.delta import Delta, fingerprint, skeleton
from uptake.adaptation.trainable import Trainable, TrainableCopy
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.model_checks import check_model
from uptake.preparation import preparing
from uptake.text.tokenizer import Tokenizer

MadeT = TypeVar("MadeT")


class Pretrained(LM):
    """A language model that is one network with its tokenizer; the network is frozen and never changed.

    `name` is what it was loaded by, "" where it was not; `quantisation` that of the file its weights come
    from. Copies of one model share its fingerprint, `base`: it names the base a delta belongs to.
    """

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Tokenizer,
        name: str = "",
        base: str | None = None,
        quantisation: str = "",
    ) -> None:
        self._base = base
        self._replaced: dict[str, Tensor] | None = None
        self._derived: dict[Hashable, Any] = {}
        # The deltas that were laid over the base; None where its weights differ in some other way.
        self.deltas: tuple[Delta, ...] | None = () if base is None else None
        if base is None:
            check_model(module, tokenizer.inner, f"model {name!r}" if name else type(module).__name__)
        self.module = module.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.quantisation = quantisation
        first = next(module.parameters())
        self.device, self.dtype = first.device, first.dtype
        if base is None:
            module.requires_grad_(False)
            module.generation_config = None  # type: ignore[assignment]  # sampling is ours; a copy need not carry it

    @abstractmethod
    def around(self, module: nn.Module) -> Self:
        """Return this LM with the weights of another module, a private one, in place of its own."""

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        return self._base or fingerprint(self.module)

    @cached_property
    def weights_fingerprint(self) -> str:
        """Names the weights as they are; `fingerprint` names those of the base, adapted or not."""
        return fingerprint(self.module) if self._base else self.fingerprint

    def derived(self, key: Hashable, make: Callable[[], MadeT]) -> MadeT:
        """Return what `make` makes of this model alone, made once: `key` says what, and by which settings."""
        if key not in self._derived:
            with preparing():
                self._derived[key] = make()
        found: MadeT = self._derived[key]
        return found

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> Self:
        # For as long as it runs, functional_call puts the tensors into the module: not into the base's.
        copy = self.around(self.module if self._base else skeleton(self.module))
        copy._replaced = dict(parameters)
        return copy

    def overlay(self, delta: Delta) -> Self:
        over = self.around(delta.over(self.module, self.fingerprint))
        over.deltas = None if self.deltas is None else (*self.deltas, delta)
        return over

    def trainable_copy(
        self, trainable: Trainable, start: Delta, generator: torch.Generator
    ) -> tuple[LM, TrainableCopy]:
        start.check(self.fingerprint)
        opened = trainable.copy(self.module, start, generator)
        return self.around(opened.module), opened

    def _call(self, module: nn.Module, arguments: Mapping[str, Any], prefix: str = "") -> Any:
        """Return what a module, `prefix` its place in the whole, gives for these arguments."""
        # On a bfloat16 base, weights that train are float32: autocast lets the two meet.
        mixed = self.dtype.itemsize < 4
        with torch.autocast(self.device.type, self.dtype) if mixed else contextlib.nullcontext():
            if self._replaced is None:
                return module(**arguments)
            replaced = {
                name.removeprefix(prefix): t for name, t in self._replaced.items() if name.startswith(prefix)
            }
            # Fused attention has no second derivative.
            with sdpa_kernel(SDPBackend.MATH):
                return functional_call(module, replaced, (), dict(arguments))


def most_tokens(config: Any, tokenizer: Tokenizer) -> int:
    """Return the most tokens a model takes: what its configuration says, else what its tokenizer does."""
    most = next(
        (found for name in ("max_position_embeddings", "n_positions")
         if (found := getattr(config, name, None)) is not None), None,
    )  # fmt: skip
    if most is not None and (not isinstance(most, int) or most < 1):
        raise BadInput(
            f"max_position_embeddings {most!r} in config.json: put back the model's own number of tokens"
        )
    if most is None:
        most = tokenizer.inner.model_max_length
    # A tokenizer that knows no limit answers with a number of thirty digits.
    if most > 1 << 30:
        raise BadInput(
            "the model names no longest input: set `model_max_length` in its tokenizer_config.json"
        )
    return int(most)
