"""Text that a model writes of itself, where statistics of ordinary text are wanted and none is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uptake.codec import Malformed, load
from uptake.kept import cache_of, keep, read_kept
from uptake.lm.base import LM
from uptake.lm.pretrained import Pretrained


@dataclass(frozen=True)
class _Kept:
    batches: list[list[list[int]]]


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


def kept(lm: Pretrained, tokens: int, length: int) -> list[Tensor]:
    """Return `written` text of a model, from the cache where it was written before: it may take minutes."""
    of = f"{lm.weights_fingerprint} {lm.tokenizer.fingerprint} {lm.dtype} {tokens} {length}"
    folder = cache_of("own-text")
    found = _batches(read_kept(folder, of), len(lm.tokenizer))
    if not found:
        found = written(lm, tokens, length)
        keep(folder, of, {"batches": [batch.tolist() for batch in found]})
    return found


def _batches(data: dict[str, Any] | None, vocabulary: int) -> list[Tensor]:
    """Return the batches of a kept text, none where it is no rows of tokens."""
    try:
        batches = [torch.tensor(rows) for rows in load(_Kept, data or {}).batches]
    except (Malformed, ValueError, RuntimeError):  # not all rows of a batch are of one length, or no integers
        return []
    sound = all(batch.dim() == 2 and 0 <= batch.min() <= batch.max() < vocabulary for batch in batches)
    return batches if sound else []


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
