"""Dynamic evaluation (Krause et al. 2018, 2019): train on each piece of a text after scoring it.

It needs no store: it learns the text itself, each piece in the context of the text before it, and scores
every token before it learns it. The published optimizer divides by the usual size of training gradients,
which `uptake train dynamic-evaluation` counts; SGD and Adam need no such file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import Delta
from uptake.adaptation.gradient_statistics import GradientStatistics
from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.trainable import All
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.examples import Example, encode, even_pieces
from uptake.lm.scoring import losses
from uptake.methods.contract.learned import Learner, TrainingData
from uptake.methods.contract.method import MethodSpec
from uptake.methods.finetune import Finetune
from uptake.text.select import Nothing


@dataclass(frozen=True)
class GradientCounting(Learner[Example]):
    """Counts the squared gradients of pieces of `chunk_tokens`, each after as much text before it at most."""

    used_as = "optimizer=rms(statistics={})"

    chunk_tokens: int = 256

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1:
            raise BadInput(f"chunk_tokens {self.chunk_tokens}: use 1 or more")

    def build(self, lm: LM) -> GradientStatistics:
        return GradientStatistics(_opened(lm)[1])

    def episodes(self, lm: LM, material: TrainingData) -> list[Example]:
        size = self.chunk_tokens
        return [
            window
            for document in material.some_documents()
            for _, window in even_pieces(
                encode(lm.tokenizer, "", document.text), size, min(2 * size, lm.window)
            )
        ]

    def loss(self, network: nn.Module, lm: LM, episode: Example) -> Tensor:
        raise BadInput(
            "gradient statistics are counted, none is better than another: give no validation text"
        )

    def gradients(
        self, network: nn.Module, lm: LM, episode: Example
    ) -> tuple[float, Sequence[Tensor | None]]:
        """Count the gradient of one piece; nothing is trained."""
        assert isinstance(network, GradientStatistics)
        private, parameters = _opened(lm)
        (loss,) = losses(private, [episode])
        network.add(torch.autograd.grad(loss, list(parameters.values()), allow_unused=True))
        return loss.item(), []


def _opened(lm: LM) -> tuple[LM, Mapping[str, nn.Parameter]]:
    private, opened = lm.trainable_copy(All(), Delta(lm.fingerprint), torch.Generator())
    return private, opened.parameters


spec = MethodSpec(
    Finetune(
        optimizer=AdamW(weight_decay=0.0),
        clip=None,
        chunk_tokens=256,
        own_prefix=True,
        after_context=True,
    ),
    Nothing(),
    segment=256,
    learner=GradientCounting(),
)
