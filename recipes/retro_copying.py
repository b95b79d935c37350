"""RETRO on made-up text that only neighbours can tell: from scratch and as RETROfit, beside its controls.

A text is 45 letters and digits, none twice, in words of three; a store holds a copy of each text, under
another name. What comes next cannot be known but from the copy. All networks see the same texts in the
same steps: without retrieval, with the nearest chunks, with random ones, and beside a frozen model.

    python recipes/retro_copying.py --out recipes/retro_copying.json
"""

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from uptake.adaptation.optimizers import AdamW
from uptake.lm.causal import Causal
from uptake.methods.contract.learned import TrainingData
from uptake.methods.retro import Retro, TextEpisode
from uptake.text.chunks.view import Chunked, listed
from uptake.text.overlap import LeakFilter, Overlap
from uptake.text.tokenizer import Tokenizer
from uptake.text.types import Document
from uptake.train import Training, train

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
END = "<|end|>"
CHUNK = 12  # tokens, of text and store


def texts(count: int, seed: int) -> list[Document]:
    drawn, made = random.Random(seed), []
    for number in range(count):
        letters = drawn.sample(LETTERS, 45)
        words = ["".join(letters[at : at + 3]) for at in range(0, 45, 3)]
        made.append(Document(f"{seed}/{number}", " ".join(words)))
    return made


def model() -> Causal:
    backend = Backend(models.WordLevel({END: 0, " ": 1, **{c: i for i, c in enumerate(LETTERS, 2)}}, END))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    inner = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END, eos_token=END)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, vocab_size=len(inner), max_position_embeddings=64, bos_token_id=0)
    return Causal(LlamaForCausalLM(config), Tokenizer(inner), "made up")


def episodes(method: Retro, lm: Causal, documents: list[Document], store: Chunked) -> list[TextEpisode]:
    chunks = store.bound("", "", Overlap(""), LeakFilter.off())
    source: Any = type("Copies", (), {"chunks": lambda self, fingerprint: chunks})()
    return method.episodes(lm, TrainingData(tuple(documents), sources=lambda document: source))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/retro_copying.json"))
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bare = model()
    taught, unseen = texts(arguments.texts, 0), texts(32, 1)
    copies = [Document("copy of " + d.id, d.text) for d in (*taught, *unseen)]
    store = listed(copies, bare.tokenizer, CHUNK)
    training = Training(AdamW(arguments.rate, weight_decay=0.0), passes=arguments.passes, save_every=32)
    shape = Retro(chunk=CHUNK, episode_tokens=60, windows=8, base="fresh")
    told: dict[str, Any] = {"texts": arguments.texts, "passes": arguments.passes, "rate": arguments.rate}
    methods: dict[str, dict] = told.setdefault("nats_a_token", {})

    def run(name: str, method: Retro, lm: Causal) -> Any:
        made = episodes(method, lm, taught, store)
        network, points = train(method, lm, made, training)
        methods[name] = {"steps": points[-1].total, "trained_on": points[-1].loss}
        # Beside a frozen base 0 neighbours leave nothing to train, but much to measure.
        for read, other in {
            "nearest": replace(method, draw="nearest", neighbours=2),
            "random": replace(method, draw="random", neighbours=2),
            "none": replace(method, neighbours=0, base="fresh"),
        }.items():
            if method.neighbours or read == "none":
                some = episodes(other, lm, unseen, store)
                with torch.no_grad():
                    losses = [other.loss(network, lm, episode).item() for episode in some]
                methods[name][read] = sum(losses) / len(losses)
        print(f"  {name}: {methods[name]}", flush=True)
        return network

    alone = run("from scratch, without retrieval", replace(shape, neighbours=0), bare)
    run("from scratch", shape, bare)
    run("from scratch, random neighbours", replace(shape, draw="random"), bare)
    frozen: Any = alone.under(bare)
    run("RETROfit of the first", replace(shape, base="frozen"), frozen)
    run("RETROfit, random neighbours", replace(shape, base="frozen", draw="random"), frozen)
    table = Table("trained", "steps", "reads nearest", "reads random", "reads none", box=None)
    for name, each in methods.items():
        cells = (f"{each[read]:.3f}" if read in each else "" for read in ("nearest", "random", "none"))
        table.add_row(name, str(each["steps"]), *cells)
    Console(width=110).print("nats a token of unseen texts", table)
    arguments.out.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
