"""A language model as a reader of activations, and what was kept as the tensors that blocks take.

Half the bytes of float32 hold them: float16 where the numbers fit, for it keeps three more bits of each than
bfloat16, which has the range of float32.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uptake.adaptation.delta import skeleton
from uptake.adaptation.trainable.places import blocks
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.examples import Example, Piece, encode, training_pieces
from uptake.text.activations import Activation, Activations
from uptake.text.types import Passage

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_FORMAT = "entered 1"


def fingerprint_of(lm: LM, frozen: int, opening: bool, size: int) -> str:
    """Name what enters the block above `frozen` blocks of a model, for pieces of at most `size` inputs.

    `opening` says whether texts begin with the opening token. How the numbers are kept does not count.
    """
    parts = [_FORMAT, _causal(lm).weights_fingerprint, lm.tokenizer.fingerprint, frozen, opening, size]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def entering(kept: Activation, dtype: str, like: torch.dtype) -> Tensor:
    """Return what enters the block, [1, time, width] of type `like`, of what was kept as `dtype`."""
    return torch.from_numpy(kept.hidden).view(DTYPES[dtype]).to(like)[None]


def token_losses(lm: LM, example: Example, kept: Activations | None = None) -> Tensor:
    """Return a model's loss of each token of an example's target, in nats, [targets]: kept, or by a pass."""
    found = kept.find(example.inputs) if kept else None
    if found and found.targets.tolist() == list(example.target):
        return torch.from_numpy(found.losses)
    with torch.no_grad():
        return -lm.token_log_probs([example])[0].float().cpu()


def text_losses(
    whole: Example, cut: Sequence[tuple[int, Example]], losses: Callable[[Example], Tensor]
) -> Tensor:
    """Return a loss for each token of a text that is cut into pieces; 0 where none predicts it."""
    found = torch.zeros(len(whole.target))
    for start, example in cut:
        found[start : start + len(example.target)] = losses(example)
    return found


def likelier(piece: Piece, log_probs: Tensor, losses: Callable[[Example], Tensor]) -> float:
    """Return how much likelier a piece is than the base finds it, in nats a token.

    `log_probs` are those of all its tokens, or of the ones that count alone.
    """
    base = losses(piece.example)
    if len(log_probs) < len(base):
        base = base[piece.weights.cpu() != 0]
    return (base + log_probs.cpu()).mean().item()


class ActivationReader:
    """Reads passages as training of the top `layers` blocks does: what enters them, and the base's losses.

    One pass of the whole model a piece, by itself, so that the numbers are those of training bit for bit;
    they are kept as `dtype`. Raises BadInput for layers that the model has not, or an unknown dtype.
    """

    def __init__(self, lm: LM, layers: int, opening: bool = True, dtype: str = "float16") -> None:
        causal = _causal(lm)
        if dtype not in DTYPES:
            raise BadInput(f"activations as {dtype!r}: use {', '.join(DTYPES)}")
        module = skeleton(causal.module)
        _, stack = blocks(module)
        if not 1 <= layers < len(stack):
            raise BadInput(
                f"layers {layers}: the model has {len(stack)} blocks, keep what enters the top 1 to "
                f"{len(stack) - 1}"
            )
        self.name, self._layers, self._opening, self._dtype = causal.name, layers, opening, dtype
        self._lm, self._size, self._frozen = causal, causal.window, len(stack) - layers
        self._entered: Tensor | None = None
        stack[self._frozen].register_forward_pre_hook(self._see, with_kwargs=True)
        self._seen = causal.around(module)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self._lm, self._frozen, self._opening, self._size)

    @cached_property
    def dimensions(self) -> int:
        opening = self._lm.tokenizer.opened("")[-1]
        return int(self._read(Example((opening,), (opening,))).hidden.shape[1])

    @property
    def settings(self) -> dict[str, str | int]:
        return {
            "layers": self._layers,
            "opening": "yes" if self._opening else "no",
            "size": self._size,
            "dtype": self._dtype,
        }

    def read(self, passage: Passage) -> list[Activation]:
        """Return the pieces of a passage; BadInput for activations that the dtype cannot hold."""
        whole = encode(self._lm.tokenizer, passage.prompt, passage.text)
        cut = training_pieces(whole, self._size, self._opening)
        # What stands after a prompt would need places that predict nothing.
        return [self._read(piece) for _, piece in cut if len(piece.context) == 1]

    def _read(self, piece: Example) -> Activation:
        with torch.no_grad():
            (log_probs,) = self._seen.token_log_probs([piece])
        assert self._entered is not None
        hidden, self._entered = self._entered[0].cpu().to(DTYPES[self._dtype]), None
        if not hidden.isfinite().all():
            raise BadInput(f"the model's activations are too large for {self._dtype}: keep them as bfloat16")
        numbers: NDArray[np.uint16] = hidden.contiguous().view(torch.uint16).numpy()
        losses = -log_probs.float().cpu().numpy()
        return Activation(piece.context[0], np.array(piece.target, np.int32), numbers, losses)

    def _see(self, block: object, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._entered = inputs[0] if inputs else named["hidden_states"]


def _causal(lm: LM) -> Causal:
    if not isinstance(lm, Causal):
        raise BadInput(f"{type(lm).__name__} has no blocks of its own: give the model underneath")
    return lm
