"""What enters a layer over ordinary text: the covariance of a layer's inputs, taken once a model and kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import skeleton
from uptake.adaptation.delta.overlay import Hook
from uptake.adaptation.editing.closed_form import Factored
from uptake.adaptation.editing.covariance import KeyCovariance
from uptake.errors import BadInput
from uptake.lm.causal import Causal
from uptake.lm.feed_forward import LinearPlace
from uptake.lm.own_text import kept, rows_of


@dataclass(frozen=True)
class OrdinaryText:
    """Text that edits are to leave alone: a UTF-8 file, or what the model samples where none is given.

    A layer's statistics want about ten tokens for each of its inputs. `ridge` times the mean of their
    diagonal is added to it, for directions that the text never used. With no tokens, 0, no text is left alone
    and C is the unit matrix.
    """

    file: str = ""
    tokens: int = 16_384
    length: int = 128  # tokens of a text
    ridge: float = 1e-4

    def __post_init__(self) -> None:
        if self.tokens < 0 or self.length < 2 or not 0 <= self.ridge < float("inf"):
            raise BadInput(
                f"tokens {self.tokens}, length {self.length}, ridge {self.ridge}: use 0 for none or more, 2 "
                "or more, and 0 or a small number"
            )

    def batches(self, lm: Causal) -> list[Tensor]:
        """Return the text as batches of tokens [rows, length]. Raises BadInput where the file has too few."""
        if not self.file:
            return lm.derived(
                ("own text", self.tokens, self.length), lambda: kept(lm, self.tokens, self.length)
            )
        try:
            text = Path(self.file).read_text("utf8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"ordinary text {self.file!r}: {error}; give a file of UTF-8 text") from None
        found = rows_of(lm, text, self.length)
        have, taken = 0, []
        for batch in found:
            if have >= self.tokens:
                break
            taken.append(batch)
            have += batch.numel()
        if have < min(self.tokens, self.length):
            raise BadInput(f"ordinary text {self.file!r} has under {self.length} tokens: give a longer one")
        return taken


def key_covariance(lm: Causal, place: LinearPlace, text: OrdinaryText) -> Tensor:
    """Return C = E[k kᵀ] of what enters a layer, [in, in] float64, with the text's ridge; made once."""
    return lm.derived(("covariance", place.path, text), lambda: _covariance(lm, place, text))


def factored_covariance(lm: Causal, place: LinearPlace, text: OrdinaryText) -> Factored:
    """Return `key_covariance` factored; made once. Raises BadInput where it is singular."""
    return lm.derived(
        ("factored covariance", place.path, text), lambda: Factored.of(key_covariance(lm, place, text))
    )


def _covariance(lm: Causal, place: LinearPlace, text: OrdinaryText) -> Tensor:
    if not text.tokens:
        return torch.eye(place.width_in, dtype=torch.float64)
    module, seen = skeleton(lm.module), _Keys(KeyCovariance.empty(place.width_in))
    module.get_submodule(place.path).register_forward_pre_hook(_Take(seen))
    private = lm.around(module)
    for batch in text.batches(lm):
        with torch.no_grad():
            try:
                private.hidden(batch.to(lm.device))
            except _TakenError:
                continue
    return seen.found.matrix(text.ridge)


@dataclass
class _Keys:
    found: KeyCovariance


class _TakenError(Exception):
    """The pass has reached the layer: the blocks above it need not run."""


@dataclass(frozen=True)
class _Take(Hook):
    keys: _Keys

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        # The opening token stands in every text and its key is of another size than all others: the first of
        # each text is left out, or it would be most of the covariance.
        self.keys.found = self.keys.found.seen(inputs[0][:, 1:].cpu())
        raise _TakenError
