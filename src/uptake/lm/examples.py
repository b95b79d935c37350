"""Texts as a language model predicts them: a target after a context, as tokens, and how long ones are cut.

This is the one place that puts the opening token before a text and that cuts windows. It knows no model.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from uptake.text.tokenizer import Spans, Tokenizer


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens to predict, `target`, and those that stand before them, `context`, which is never empty.

    A causal model reads both as one text; an encoder-decoder gives the context to its encoder. `spans`
    are the characters that each token of the target covers, where the target was a text.
    """

    context: tuple[int, ...]
    target: tuple[int, ...]
    spans: Spans = field(default=(), compare=False, repr=False)

    @property
    def inputs(self) -> tuple[int, ...]:
        """The input of a causal model: its last positions, one a token of the target, predict the target."""
        return self.context + self.target[:-1]

    def part(self, start: int, end: int, max_inputs: int) -> "Example":
        """Return tokens start to end of the target as an example of their own.

        Its context is as much of what stands before them as `max_inputs` inputs can hold.
        """
        before = max(1, max_inputs - (end - start) + 1)
        context = self.target[max(0, start - before) : start]
        if start < before:
            context = self.context[start - before :] + context
        return Example(context, self.target[start:end], self.spans[start:end])

    def ending(self, max_inputs: int) -> "Example":
        """Return this example with its beginning cut off, so that it has no more inputs than that."""
        return self.part(max(0, len(self.target) - max_inputs), len(self.target), max_inputs)


@dataclass(frozen=True)
class Piece:
    """What one step learns: an example, how much each target token counts, [targets], and its document.

    `document` is any value that differs between documents.
    """

    example: Example
    weights: Tensor
    document: Hashable


def encode(tokenizer: Tokenizer, context: str, target: str) -> Example:
    """Return the example of a text after another: the opening token first, each text encoded by itself."""
    ids, spans = tokenizer.encode(target)
    return Example(tuple(tokenizer.opened(context)), tuple(ids), spans)


def rolling_windows(example: Example, max_inputs: int) -> Iterator[Example]:
    """Yield the windows that score an example, each of `max_inputs` inputs at most.

    As lm-evaluation-harness cuts them: disjoint targets, one token of overlap. A context that fits
    stands in the first window whole; one that does not keeps its end, at most half of that window.
    """
    context, count = example.context, len(example.target)
    if len(context) + count - 1 > max_inputs:
        context = context[-max(1, max_inputs // 2) :]
    example = Example(context, example.target, example.spans)
    start = 0
    while start < count:
        free = max_inputs if start else max_inputs - len(context) + 1
        end = min(count, start + free)
        yield example.part(start, end, max_inputs)
        start = end


def pieces(example: Example, size: int) -> Iterator[Example]:
    """Yield the parts of an example that fine-tuning learns one after another, of `size` inputs at most.

    Context and target are cut as one text, one token of overlap, so that every token is learnt once from
    what stands before it in its piece; pieces of the context alone are left out.
    """
    first, count = len(example.context) - 1, len(example.target)
    for begin in range(0, first + count, size):
        start, end = max(0, begin - first), min(begin + size - first, count)
        if end > start:
            yield example.part(start, end, end + first - begin)


def separate_pieces(example: Example, size: int) -> Iterator[tuple[int, Example]]:
    """Yield parts of `size` tokens that learn a text without its opening token, each with its place.

    The place is that of its first token in the target. The published TTT-NN code cuts them so: context and
    target as one text, without overlap, so that the first token of each part is read and never learnt. A
    part of nothing else is left out.
    """
    known = len(example.context) - 1
    text = example.context[1:] + example.target
    for begin in range(0, len(text), size):
        start, end = max(begin + 1, known), min(begin + size, len(text))
        if end > start:
            spans = example.spans[start - known : end - known]
            yield start - known, Example(text[begin:start], text[start:end], spans)


def training_pieces(whole: Example, size: int, opening: bool) -> Iterator[tuple[int, Example]]:
    """Yield the pieces that training reads of a text by itself, each with its place in the target.

    As `pieces` cuts them after the opening token, or without `opening` as `separate_pieces` does.
    """
    if not opening:
        yield from separate_pieces(whole, size)
        return
    done = 0
    for example in pieces(whole, size):
        yield done, example
        done += len(example.target)


def even_pieces(example: Example, size: int, max_inputs: int) -> Iterator[tuple[int, Example]]:
    """Yield even parts of the target, `size` tokens at most, each after as much context as fits.

    Each comes with its place in the target.
    """
    total = len(example.target)
    count = math.ceil(total / min(size, max_inputs))
    for number in range(count):
        start = total * number // count
        yield start, example.part(start, total * (number + 1) // count, max_inputs)


def overlapping_windows(example: Example, max_inputs: int, overlap: int) -> Iterator[Example]:
    """Yield windows whose targets are disjoint; each but the first sees `overlap` tokens of the last."""
    start, count = 0, len(example.target)
    while start < count:
        before = min(start, overlap)
        end = min(count, start - before + max_inputs)
        yield example.part(start, end, end - start + before)
        start = end


def of_target(log_probs: Tensor, example: Example) -> Tensor:
    """Return the log-probability of each target token, [targets], from predictions [targets, vocabulary]."""
    targets = torch.tensor(example.target, dtype=torch.long, device=log_probs.device)
    return log_probs.gather(-1, targets[:, None])[:, 0]


def at_targets(log_probs: Tensor, examples: Sequence[Example]) -> list[Tensor]:
    """Return the predictions [targets, vocabulary] of each example, from [rows, time, vocabulary].

    Row i begins with what follows the inputs of example i.
    """
    # Each row once: an index would cost its gradient as much as the whole. A single row is a mere view.
    rows = [log_probs.flatten(0, 1)] if len(log_probs) == 1 else torch.unbind(log_probs)
    found = []
    for row, example in zip(rows, examples, strict=False):
        start, end = len(example.inputs) - len(example.target), len(example.inputs)
        found.append(row if (start, end) == (0, len(row)) else row[start:end])
    return found


def of_targets(log_probs: Tensor, examples: Sequence[Example]) -> list[Tensor]:
    """Return the log-probability of each target token of each example, [targets].

    `log_probs` is [rows, time, vocabulary]; row i begins with what follows the inputs of example i, and
    what stands beyond them counts for nothing.
    """
    targets = padded([(*[0] * (len(each.inputs) - len(each.target)), *each.target) for each in examples])
    # Picked for all rows at once: a slice of log_probs would cost each row a gradient as large as the whole.
    places = slice(0, targets.shape[1])
    found = log_probs[: len(examples), places].gather(-1, targets.to(log_probs.device)[..., None])[..., 0]
    ends = [(len(each.inputs) - len(each.target), len(each.inputs)) for each in examples]
    return [found[row, start:end] for row, (start, end) in enumerate(ends)]


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return rows of tokens as [rows, longest], zeros to the right."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids
