"""Text that a model writes of itself, where statistics of ordinary text are wanted and none is given."""

from collections.abc import Sequence

import torch
from torch import Tensor

from uptake.lm.base import LM

ROWS = 32  # texts that are written together
_STARTS = ("The", "I", "Because", "You", "Therefore", "It", "In", "When")


def written(lm: LM, tokens: int, length: int, seed: int = 0) -> list[Tensor]:
    """Return at least `tokens` tokens that the model samples, as batches [rows, length].

    Every text begins with the opening token and is drawn at temperature 1 from a generator of its own.
    """
    length = min(length, lm.window)
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    while sum(batch.numel() for batch in found) < tokens:
        rows = min(ROWS, -(-(tokens - sum(batch.numel() for batch in found)) // length))
        ids, cache = torch.full((rows, 1), lm.tokenizer.opening), lm.start()
        with torch.no_grad():
            fed = ids
            while ids.shape[1] < length:
                log_probs, cache = lm.step((ids if cache is None else fed).to(lm.device), cache)
                fed = torch.multinomial(log_probs[:, -1].exp().float().cpu(), 1, generator=generator)
                ids = torch.cat([ids, fed], 1)
        found.append(ids)
    return found


def rows_of(lm: LM, text: str, length: int) -> list[Tensor]:
    """Return a text as batches [rows, length] of tokens, each row after the opening token; a rest goes."""
    length = min(length, lm.window)
    ids = lm.tokenizer.encode(text)[0]
    opening = [lm.tokenizer.opening]
    rows = [opening + ids[at : at + length - 1] for at in range(0, len(ids) - length + 2, length - 1)]
    return [torch.tensor(rows[at : at + ROWS]) for at in range(0, len(rows), ROWS)]


def openings(lm: LM, count: int, tokens: int = 8, seed: int = 0) -> list[str]:
    """Return texts to stand before others: none, then short sentences that the model itself begins."""
    return ["", *(_sentence(lm, start, tokens, seed) for start in _starts(count - 1))]


def _starts(count: int) -> Sequence[str]:
    return [_STARTS[place % len(_STARTS)] for place in range(count)]


def _sentence(lm: LM, start: str, tokens: int, seed: int) -> str:
    goes_on = lm.generate(start, tokens, temperature=1.0, seed=seed)
    return " ".join(f"{start}{goes_on}".split()).rstrip(".") + ". "
