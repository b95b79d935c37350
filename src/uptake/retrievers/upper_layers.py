"""A sentence encoder whose upper layers train, while those below stay as they are.

What enters the lowest trained layer is the same for a text whatever is learnt: it is computed once and kept,
so that a text costs the trained layers alone from then on, also when a whole store is encoded again.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uptake.adaptation.delta import skeleton
from uptake.adaptation.trainable.places import blocks
from uptake.errors import BadInput
from uptake.lm.bounded_table import BoundedTable
from uptake.lm.frozen_layers import FrozenLayers
from uptake.lm.upper_blocks import Skipped
from uptake.text.encoders import SentenceEncoder

KEPT = 4 << 30  # bytes of states that stay in memory; those of further texts are computed again
_TOKENS_A_PASS = 8192
_PROBE = ("What holds the seal?", "a pump, and the valve behind it, which is held by four screws")
_NEAR = 1e-4  # how far a vector by the upper layers alone may be from that of the whole encoder


class UpperLayers:
    """An encoder of which the last `layers` layers train, in place; vectors are of length one.

    It computes in the number format of the encoder. No layer drops anything out in training. `kept` bounds
    the bytes of what is kept of texts. Raises BadInput for an encoder that cannot be divided so.
    """

    def __init__(self, encoder: SentenceEncoder, layers: int, kept: int = KEPT) -> None:
        first, *self._after = encoder.modules
        model: Any = getattr(first, "model", first)
        name, stack = blocks(model)
        if not 1 <= layers < len(stack):
            raise BadInput(
                f"layers {layers}: encoder {encoder.spec} has {len(stack)}, and the lowest stays: use 1 to "
                f"{len(stack) - 1}"
            )
        frozen = len(stack) - layers
        self.encoder, self.device = encoder, next(model.parameters()).device
        model.requires_grad_(False)
        self.parameters: dict[str, nn.Parameter] = {
            f"{name}.{place}.{each}": parameter
            for place in range(frozen, len(stack))
            for each, parameter in stack[place].named_parameters()
        }
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self._lower = FrozenLayers(model, frozen, lambda module, ids: module(input_ids=ids), kept=0)
        self._upper: Any = skeleton(model)
        _, above = blocks(self._upper)
        for place in range(frozen):
            above[place] = Skipped(above[place], self._lower.returns_tuple)
        self._entry: Any = above[frozen - 1]
        self._kept = BoundedTable[Tensor](kept, forgets=False)  # texts come round in turn
        with torch.no_grad():
            same = np.allclose(self.embed(_PROBE), encoder.embed(_PROBE), atol=_NEAR)
        if not self._lower.supported or not same:
            raise BadInput(
                f"layers {layers}: encoder {encoder.spec} cannot go on from a layer in its middle; train "
                "without --layers, which turns the queries' vectors"
            )

    def embed(
        self, texts: Sequence[str], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> NDArray[np.floating]:
        """Return one row a text, as the layers are now."""
        found = np.zeros((len(texts), self.encoder.dimensions), self._numbers)
        done = 0
        with torch.no_grad():
            for places, states in self._passes(texts):
                found[places] = self._vectors(states).cpu().numpy()
                done += len(places)
                progress(done, len(texts))
        return found

    def gradients(self, texts: Sequence[str], of_vectors: Tensor) -> list[Tensor]:
        """Return the gradient of a loss in each of `parameters`, of whose texts the vectors' is known.

        `of_vectors` is [texts, dimensions]. Passes follow one another, so that memory is bounded however
        many texts there are.
        """
        total = [torch.zeros_like(parameter) for parameter in self.parameters.values()]
        for places, states in self._passes(texts):
            value = (self._vectors(states) * of_vectors[places].to(self.device)).sum()
            for own, more in zip(total, torch.autograd.grad(value, [*self.parameters.values()]), strict=True):
                own += more
        return total

    def state(self) -> dict[str, Tensor]:
        """Return a copy of what trains, by name."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def put(self, state: dict[str, Tensor]) -> None:
        """Set what trains to what `state` returned; raises KeyError where something is missing."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])

    def write(self, folder: Path) -> None:
        """Write the whole encoder to a new folder, as `make_encoder` reads it."""
        self.encoder.write(folder)

    @property
    def _numbers(self) -> Any:
        return np.float64 if next(iter(self.parameters.values())).dtype == torch.float64 else np.float32

    def _passes(self, texts: Sequence[str]) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Yield texts of like length side by side: their places, and what enters the upper layers of each."""
        states = self._states(texts)
        order = sorted(range(len(texts)), key=lambda place: (-len(states[place]), place))
        while order:
            some = order[: max(1, _TOKENS_A_PASS // max(1, len(states[order[0]])))]
            yield some, [states[place] for place in some]
            order = order[len(some) :]

    def _states(self, texts: Sequence[str]) -> list[Tensor]:
        found = {text: states for text in texts if (states := self._kept.get(text)) is not None}
        new = [text for text in dict.fromkeys(texts) if text not in found]
        for text, ids in zip(new, self.encoder.tokens(new), strict=True):
            found[text] = self._entering(ids)
            self._kept.put(text, found[text])
        return [found[text] for text in texts]

    def _entering(self, ids: Sequence[int]) -> Tensor:
        return self._lower.of(tuple(ids))[0]

    def _vectors(self, states: Sequence[Tensor]) -> Tensor:
        """Return [texts, dimensions] of what enters the lowest trained layer, each [tokens, width]."""
        longest = max(len(each) for each in states)
        mask = torch.zeros(len(states), longest, dtype=torch.long, device=self.device)
        hidden = states[0].new_zeros(len(states), longest, states[0].shape[1])
        for row, each in enumerate(states):
            mask[row, : len(each)] = 1
            hidden[row, : len(each)] = each
        self._entry.hidden = hidden
        try:
            # The tokens are in the states; what stands here gives the shape alone.
            out = self._upper(input_ids=torch.zeros_like(mask), attention_mask=mask)
        finally:
            self._entry.hidden = None
        found = {"token_embeddings": out.last_hidden_state, "attention_mask": mask}
        for module in self._after:
            found = module(found)
        return nn.functional.normalize(found["sentence_embedding"], dim=1)
