"""How much a causal reader attends to each of several passages that it reads in a row: what ADist distils.

In the paper the reader is Fusion-in-Decoder and the attention its decoder's to what was encoded (Izacard et
al. 2022, section 2.2.1). A decoder reads all passages in one prompt, and its own attention takes the place of
that. What is kept of a question goes to the disk, as the table of likelihoods does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uptake.adaptation.delta import skeleton
from uptake.errors import BadInput, Diverged
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.retrievers.reader import Prompt
from uptake.retrievers.table import records_of
from uptake.text.types import stable_hash

_AT_ONCE = 8  # questions that are read, and kept, at a time


@torch.no_grad()
def attention(
    lm: LM, prompt: Prompt, question: str, passages: Sequence[str], answer: str
) -> NDArray[np.float64]:
    """Return each passage's share of the attention from what predicts the right answer's tokens, [passages].

    The passages stand in the prompt in the order given. An attention counts times the norm of the value it
    fetches, and is summed over a passage's tokens, over layers, heads and tokens of the answer. Shares sum to
    one, so that one temperature suits readers of any depth and width, which the paper's means do not. Raises
    BadInput for a reader that is no causal transformer, or a prompt longer than its window.
    """
    if not isinstance(lm, Causal):
        raise BadInput(
            f"attention to passages in a row is a causal model's, and {type(lm).__name__} is none: use pdist"
        )
    text, spans = prompt.in_a_row(question, passages)
    ids, characters = lm.tokenizer.encode(text)
    context = [lm.tokenizer.opening, *ids]
    target = lm.tokenizer.encode(f" {answer}\n")[0]
    count = len(context) + len(target) - 1
    if count > lm.window:
        raise BadInput(
            f"{len(passages)} passages in a row, the question and the answer are {count:,} tokens, and the "
            f"window holds {lm.window:,}: give fewer or shorter passages, or use pdist"
        )
    owner = torch.tensor([-1, *(_place(each, spans) for each in characters)], device=lm.device)
    total = torch.zeros(len(passages), dtype=torch.float64, device=lm.device)
    known = owner >= 0
    for weights, norms in _attended(lm, context, target):  # [heads, queries, time], [heads, time]
        each = (weights.double() * norms[:, None].double()).sum((0, 1))[: len(owner)]
        total.index_add_(0, owner[known], each[known])
    return (total / total.sum()).cpu().numpy()


def _place(characters: tuple[int, int], spans: Sequence[tuple[int, int]]) -> int:
    """Return which passage a token begins in, -1 for none."""
    return next((n for n, (start, end) in enumerate(spans) if start <= characters[0] < end), -1)


def _attended(lm: Causal, context: Sequence[int], target: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Return of each layer the attention of those that predict the target, and the norms of all values."""
    cache: Any = None
    if len(context) > 1:  # what stands before needs no attention weights: a pass as fast as any
        _, cache = lm.read_on(torch.tensor([context[:-1]], device=lm.device), lm.start())
    ids = torch.tensor([[context[-1], *target[:-1]]], device=lm.device)
    module: Any = lm.derived("weighs attention", lambda: _eager(lm))
    out = module(input_ids=ids, past_key_values=cache, use_cache=True, output_attentions=True)
    found = []
    for weights, layer in zip(out.attentions or (), out.past_key_values.layers, strict=True):
        values = layer.values[0]  # [heads of values, time, size]
        if weights is None or weights.shape[-1] != values.shape[-2]:
            raise BadInput(f"{lm.name or type(lm.module).__name__} keeps no attention to all that it read")
        norms = values.norm(dim=-1).repeat_interleave(weights.shape[1] // len(values), 0)
        found.append((weights[0], norms))
    return found


def _eager(lm: Causal) -> Any:
    """Return a private copy of the module, its weights shared, that gives its attention weights."""
    module: Any = skeleton(lm.module)
    try:
        module.set_attn_implementation("eager")
    except (AttributeError, ValueError) as error:
        name = lm.name or type(lm.module).__name__
        raise BadInput(f"{name} gives no attention weights ({error}): use pdist") from error
    return module


@dataclass
class AttentionTable:
    """A frozen reader's attention to the candidates of questions; without a path in memory only."""

    lm: LM
    prompt: Prompt = field(default_factory=Prompt)
    path: Path | None = None
    _known: dict[str, list[float]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._file = records_of(self.lm, self.prompt, self.path, "attention")
        for made in self._file.start(_values):
            self._known |= made

    def fill(
        self,
        asked: Sequence[tuple[str, Sequence[str], str]],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> int:
        """Measure what is not known yet of (question, passages, answer); return how many. Raises Diverged."""
        todo = [one for one in dict.fromkeys((q, tuple(p), a) for q, p, a in asked) if one[1]]
        todo = [one for one in todo if _key(*one) not in self._known]
        for start in range(0, len(todo), _AT_ONCE):
            made = {}
            for question, passages, answer in todo[start : start + _AT_ONCE]:
                found = attention(self.lm, self.prompt, question, passages, answer)
                if not np.isfinite(found).all():
                    raise Diverged(f"the reader's attention after {question[:60]!r} is not finite")
                made[_key(question, passages, answer)] = [float(f"{value:.8g}") for value in found]
            self._file.keep(made)
            self._known |= made
            progress(min(start + _AT_ONCE, len(todo)), len(todo))
        return len(todo)

    def of(self, question: str, passages: Sequence[str], answer: str) -> NDArray[np.float64]:
        """Return [passages] of what `fill` was given; raises KeyError for another."""
        if not passages:
            return np.zeros(0)
        return np.array(self._known[_key(question, passages, answer)], np.float64)


def _key(question: str, passages: Sequence[str], answer: str) -> str:
    return f"{stable_hash(question, answer, *passages):016x}"


def _values(data: object) -> dict[str, list[float]]:
    if not isinstance(data, dict):
        raise ValueError("no attention")
    return {str(key): [float(value) for value in values] for key, values in data.items()}
