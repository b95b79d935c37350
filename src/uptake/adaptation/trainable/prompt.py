"""Prompt tuning: vectors before the text (Lester et al. 2021, arXiv 2104.08691)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from uptake.adaptation.delta import Delta, wide
from uptake.adaptation.delta.delta import check_owner
from uptake.adaptation.delta.prompt import Prompt as SoftPrompt
from uptake.adaptation.delta.prompt import transformer_of
from uptake.adaptation.trainable.opening import open_parts
from uptake.adaptation.trainable.trainable import Trainable, TrainableCopy
from uptake.errors import BadInput

_COMMON = 5000  # tokenizers number tokens by how common they are, about


@dataclass(frozen=True)
class Prompt(Trainable):
    """A soft prompt of `tokens` vectors, which take as many of the model's input tokens.

    They begin as embeddings of tokens drawn from the first 5,000 of the vocabulary, as published. A prompt
    changes what the model computes before any step is taken.
    """

    tokens: int = 20
    owner: str = "prompt"
    neutral = False

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise BadInput(f"prompt tokens {self.tokens}: use 1 or more")
        check_owner(self.owner)

    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        embedding: Any = transformer_of(module).get_input_embeddings()
        common = min(_COMMON, len(embedding.weight))
        if self.tokens > common:
            raise BadInput(f"prompt tokens {self.tokens}: use at most {common:,}, the tokens it begins with")
        drawn = torch.randperm(common, generator=generator)[: self.tokens].to(embedding.weight.device)
        with torch.no_grad():
            vectors = wide(embedding.weight[drawn]).clone()
        return open_parts(module, {"": SoftPrompt(vectors)}, self.owner, start)
