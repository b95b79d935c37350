"""A frozen reader: how likely it finds an answer after one passage, and what it says after several, mixed.

The prompt puts the passage before the question, after a few examples that show how short answers are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from uptake.errors import BadInput
from uptake.lm.base import LM, Segment

_SLOTS = ("{passage}", "{question}")


@dataclass(frozen=True)
class Prompt:
    """How a passage and a question are put to a reader: `examples`, then `template`; answers end their line.

    A passage is cut to `characters`. Without a passage the template's part before the question stands empty.
    """

    examples: tuple[tuple[str, str, str], ...] = ()  # passage, question, answer
    template: str = "{passage}\nQuestion: {question}\nAnswer:"
    characters: int = 1600

    def __post_init__(self) -> None:
        if any(slot not in self.template for slot in _SLOTS) or self.characters < 1:
            raise BadInput(
                f"template {self.template!r}, characters {self.characters}: write {{passage}} and "
                "{{question}}, and 1 or more"
            )

    def of(self, question: str, passage: str) -> str:
        """Return what the reader reads before it answers."""
        shown = [f"{self._one(example[1], example[0])} {example[2]}\n\n" for example in self.examples]
        return "".join(shown) + self._one(question, passage)

    def _one(self, question: str, passage: str) -> str:
        # One after the other, so that a passage that holds "{question}" stays what it is.
        before, _, after = self.template.partition("{passage}")
        middle, _, end = after.partition("{question}")
        return f"{before}{passage[: self.characters].strip()}{middle}{question.strip()}{end}"


def answer_log_probs(
    lm: LM, prompts: Sequence[str], answers: Sequence[str], batch_tokens: int | None = None
) -> list[Tensor]:
    """Return the log-probability of each token of each answer and of its line's end, float64 [tokens]."""
    segments = [Segment(f" {answer}\n", prompt) for prompt, answer in zip(prompts, answers, strict=True)]
    return [scores.log_probs for scores in lm.score(segments, batch_tokens)]


@dataclass(frozen=True)
class Said:
    """What a reader said, and how much each passage weighs after the last token of it, [passages]."""

    text: str
    weights: tuple[float, ...]


@torch.no_grad()
def mixed_answers(
    lm: LM,
    prompts: Sequence[Sequence[str]],
    log_priors: Sequence[Tensor],
    marginal: Literal["sequence", "token"] = "sequence",
    tokens: int = 16,
    rows: int = 32,
) -> list[Said]:
    """Return the greedy answers of a mixture over passages, up to the end of the line.

    `prompts[i]` has one prompt a passage, `log_priors[i]` log p(passage | question), [passages]. `sequence`
    weighs the passages anew after each token by Bayes' rule (RAG-sequence), `token` never does. At most
    `rows` prompts share a pass. The method `rag` says the same, in more passes.
    """
    order = sorted(
        range(len(prompts)), key=lambda place: max((len(text) for text in prompts[place]), default=0)
    )
    said = [Said("", ())] * len(prompts)
    batch: list[int] = []
    for place in order:
        if not prompts[place]:
            raise BadInput(f"question {place} has no passage to mix: ask it without one")
        if batch and sum(len(prompts[each]) for each in batch) + len(prompts[place]) > rows:
            _answer(lm, prompts, log_priors, marginal, tokens, batch, said)
            batch = []
        batch.append(place)
    if batch:
        _answer(lm, prompts, log_priors, marginal, tokens, batch, said)
    return said


def _answer(
    lm: LM,
    prompts: Sequence[Sequence[str]],
    log_priors: Sequence[Tensor],
    marginal: str,
    tokens: int,
    batch: Sequence[int],
    said: list[Said],
) -> None:
    tokenizer = lm.tokenizer
    read = [tokenizer.opened(text)[-(lm.window - tokens) :] for place in batch for text in prompts[place]]
    lengths = [len(row) for row in read]
    longest = max(lengths)
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in read], device=lm.device)
    counts = [len(prompts[place]) for place in batch]
    owner = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor(counts)).to(lm.device)
    model = lm if lm.rows is None else lm.at([0] * len(read))
    log_probs, cache = model.read_on(ids, model.start(), lengths)
    weights = torch.cat([log_priors[place].double().log_softmax(0) for place in batch]).to(lm.device)
    open_, spoken = [True] * len(batch), [list[int]() for _ in batch]
    final = weights.clone()
    for _ in range(tokens):
        last = log_probs.double()
        mixed = torch.full((len(batch), last.shape[-1]), -torch.inf, dtype=last.dtype, device=last.device)
        weighed = last + weights[:, None]
        for number in range(len(batch)):
            mixed[number] = weighed[owner == number].logsumexp(0)
        chosen = mixed.argmax(1)
        if marginal == "sequence":
            weights = weights + last.gather(1, chosen[owner][:, None])[:, 0]
            for number in range(len(batch)):
                mine = owner == number
                weights[mine] = weights[mine].log_softmax(0)
        for number, token in enumerate(chosen.tolist()):
            if not open_[number]:
                continue
            text = tokenizer.decode([*spoken[number], token])
            if "\n" in text or token == tokenizer.end:
                open_[number] = False
                continue
            spoken[number].append(token)
            final[owner == number] = weights[owner == number]
        if not any(open_):
            break
        log_probs, cache = model.read_on(chosen[owner][:, None], cache)
    for number, place in enumerate(batch):
        shares = final[owner == number].exp().tolist()
        said[place] = Said(tokenizer.decode(spoken[number]).strip(), tuple(shares))
