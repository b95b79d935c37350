"""What a language model's last layer would learn of a text: factors of its Fisher information.

That of the unembedding, as BAIT wants it: at each place the gradient for a token c is (e_c - p) (x) h, and
counts by p_c. Three approximations keep it small: the commonest tokens of the texts and one class for all the
rest, hidden states projected at random, and a text's places summed under random signs into a few rows. The
last two are unbiased.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uptake.lm.base import LM
from uptake.lm.capabilities import HiddenStates, capability
from uptake.lm.rows import left_padded

PLACES = 1 << 13  # logits of so many places at once


@dataclass(frozen=True)
class TextRead:
    """What one pass over a text gives: factor [rows, classes * width], mean state [width], nats a token."""

    factor: NDArray[np.float64]
    state: NDArray[np.float64]
    nats: float


@dataclass(frozen=True)
class FisherReader:
    """Reads texts as factors: `classes` tokens and the rest, states projected to `width`, `rows` a text."""

    classes: int = 16
    width: int = 32
    rows: int = 16

    @torch.no_grad()
    def read(self, lm: LM, texts: Sequence[str], generator: torch.Generator) -> list[TextRead]:
        """Return what a pass over each text gives; of one longer than the window its beginning."""
        model = capability(lm, HiddenStates)
        most = lm.max_input_tokens(0)
        ids = [[lm.tokenizer.opening, *lm.tokenizer.encode(text)[0]][: most + 1] for text in texts]
        told = Counter(token for each in ids for token in each[1:])
        common = sorted(told, key=lambda token: (-told[token], token))[: self.classes]
        classes = torch.tensor(common, dtype=torch.long, device=lm.device)
        matrix = model.unembedding
        mixing = torch.randn(matrix.weight.shape[1], self.width, generator=generator, dtype=torch.float64)
        mixing = mixing.to(lm.device) / self.width**0.5
        found: dict[int, TextRead] = {}
        for some in _batches([max(1, len(each) - 1) for each in ids]):
            rows = [ids[number][:-1] or ids[number] for number in some]
            padded, lengths = left_padded(rows, lm.device)
            states, _ = model.hidden(padded, None, lengths)
            for place, number in enumerate(some):
                own = states[place, states.shape[1] - len(rows[place]) :]
                log_probs = torch.log_softmax(matrix.logits(own), -1)
                targets = torch.tensor(ids[number][1:], dtype=torch.long, device=lm.device)
                nats = -log_probs[: len(targets)].gather(1, targets[:, None]).mean() if len(targets) else 0.0
                probs = log_probs[:, classes].double().exp()
                rest = (1 - probs.sum(1, keepdim=True)).clamp(min=0)
                signs = torch.randn(
                    self.rows, len(own), len(common) + 1, generator=generator, dtype=torch.float64
                ).to(lm.device)
                factor = sketched(own.double() @ mixing, torch.cat([probs, rest], 1), signs)
                found[number] = TextRead(
                    factor.cpu().numpy(), own.double().mean(0).cpu().numpy(), float(nats)
                )
        return [found[number] for number in range(len(texts))]


def sketched(states: Tensor, probs: Tensor, signs: Tensor) -> Tensor:
    """Return rows V [rows, classes * width] for which the mean of V'V is a text's Fisher information.

    That is the mean over places [time] of sum_c p_c (e_c - p)(e_c - p)' (x) h h'. `states` is [time, width],
    `probs` [time, classes], `signs` [rows, time, classes] of mean 0 and variance 1, independent.
    """
    weighed = signs * probs.sqrt()
    weighed = weighed - probs * weighed.sum(-1, keepdim=True)
    rows: Tensor = torch.einsum("rtc,td->rcd", weighed, states).flatten(1)
    scaled: Tensor = rows / (len(states) * len(signs)) ** 0.5
    return scaled


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Return the numbers of texts of like length in batches of at most so many places."""
    batches: list[list[int]] = [[]]
    for number in sorted(range(len(lengths)), key=lambda number: lengths[number]):
        if batches[-1] and (len(batches[-1]) + 1) * lengths[number] > PLACES:
            batches.append([])
        batches[-1].append(number)
    return batches if lengths else []
