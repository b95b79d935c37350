"""Many real vectors in minutes: a small language model's token states over mini-Pile text.

Each vector stands for one token read in its context: the states of two layers, each of length one,
side by side, turned by a fixed random rotation and cut to 384 numbers, of length one again. Its
text is the eight tokens that end there.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

import uptake
from uptake.text.types import stable_hash

DIMENSIONS = 384
LAYERS = (2, 4)
WINDOW = 512  # tokens the model reads at a time
SKIPPED = 16  # first tokens of a window, whose context is too short to tell them apart
SHOWN = 8  # tokens that make a text
BATCH = 8


def token_states(shared: Path, part: str, count: int, work: Path) -> tuple[NDArray[np.float32], list[str]]:
    """Return `count` vectors and their texts from one part of the mini-Pile, cached in `work`."""
    vectors_at, texts_at = work / f"{part}-{count}.npy", work / f"{part}-{count}.jsonl"
    if not texts_at.exists():
        work.mkdir(parents=True, exist_ok=True)
        vectors = np.lib.format.open_memmap(vectors_at, "w+", np.float32, (count, DIMENSIONS))
        texts: list[str] = []
        for states, windows in _batches(shared, part):
            some = states[: count - len(texts)]
            vectors[len(texts) : len(texts) + len(some)] = some
            texts += windows[: len(some)]
            if len(texts) == count:
                break
        else:
            raise SystemExit(f"{shared}: text for {len(texts)} vectors only; ask for fewer than {count}")
        vectors.flush()
        texts_at.write_text("".join(json.dumps(text) + "\n" for text in texts))
    return np.load(vectors_at, mmap_mode="r"), [json.loads(line) for line in texts_at.open()]


def _batches(shared: Path, part: str) -> Iterator[tuple[NDArray[np.float32], list[str]]]:
    name = str(shared / "models/base-5m")
    tokenizer: Any = AutoTokenizer.from_pretrained(name)
    model: Any = AutoModel.from_pretrained(name, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    width = model.config.hidden_size * len(LAYERS)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator))[0][:, :DIMENSIONS]
    waiting: list[tuple[list[int], list[str]]] = []
    for document in _documents(shared / "data/minipile", part):
        encoded = tokenizer(document, return_offsets_mapping=True)
        ids, places = encoded["input_ids"], encoded["offset_mapping"]
        texts = [document[places[max(0, n - SHOWN + 1)][0] : places[n][1]] for n in range(len(ids))]
        for start in range(0, len(ids) - WINDOW + 1, WINDOW):
            waiting.append((ids[start : start + WINDOW], texts[start : start + WINDOW]))
        while len(waiting) >= BATCH:
            some, waiting = waiting[:BATCH], waiting[BATCH:]
            with torch.inference_mode():
                states = model(
                    torch.tensor([row for row, _ in some]), output_hidden_states=True
                ).hidden_states
                layers = [
                    torch.nn.functional.normalize(states[layer][:, SKIPPED:], dim=-1) for layer in LAYERS
                ]
                mixed = torch.nn.functional.normalize(torch.cat(layers, -1) @ rotation, dim=-1)
            yield mixed.flatten(0, 1).numpy(), [text for _, row in some for text in row[SKIPPED:]]


def _documents(pile: Path, part: str) -> Iterator[str]:
    """Yield the documents of every domain, mixed in an order fixed by their names."""
    found = [
        (stable_hash(folder.name, document.id), document.text)
        for folder in sorted(pile.iterdir())
        for document in uptake.read(folder / f"{part}.jsonl.xz")
    ]
    return (text for _, text in sorted(found))
