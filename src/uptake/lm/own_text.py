"""Text that a model writes of itself, where statistics of ordinary text are wanted and none is given."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from uptake.cache import cache_root, private
from uptake.errors import Damaged, UptakeError
from uptake.lm.base import LM
from uptake.lm.pretrained import Pretrained
from uptake.sealed import from_json, to_json, write_whole
from uptake.text.types import stable_hash

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
    path = cache_root() / "own-text" / f"{stable_hash(of):016x}.json"
    with contextlib.suppress(OSError, Damaged, KeyError, TypeError, ValueError, RuntimeError):
        return _read(path, of, len(lm.tokenizer))
    found = written(lm, tokens, length)
    with contextlib.suppress(UptakeError, OSError):  # a full disk costs another text
        if private(path.parent, make=True):
            write_whole(path, to_json({"of": of, "batches": [batch.tolist() for batch in found]}))
    return found


def _read(path: Path, of: str, vocabulary: int) -> list[Tensor]:
    """Return the batches that a file keeps. Raises one of many errors where it is not that text's."""
    if not private(path.parent):
        raise FileNotFoundError(path)
    data = from_json(path.read_bytes(), path, "text of a model", "it is written again")
    batches = [torch.tensor(batch) for batch in data["batches"]]
    for batch in batches:
        if batch.dim() != 2 or batch.dtype != torch.long or not 0 <= batch.min() <= batch.max() < vocabulary:
            raise ValueError("no rows of tokens")
    if data["of"] != of or not batches:
        raise ValueError("another text")
    return batches


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
