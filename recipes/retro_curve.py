"""RETRO from scratch against the same network without retrieval, over training tokens: where a gain begins.

Four networks take the same steps on the same text: without neighbours (`alone`), with the two nearest chunks
of all other documents (`retro`), with two drawn at random (`random`, the control), and with the nearest into
some of which what comes next is put at first (`planted`). They are looked at as they go.

    python recipes/retro_curve.py --device cuda --seconds 150 --out recipes/retro_curve.json
"""

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pretraining import (
    Clock,
    Pupil,
    Stream,
    batches,
    learned_tokenizer,
    patiently,
    pile,
    precision,
    resume,
    save,
    stream,
    write,
)
from retro_search import Chunks, Search, longest, shared
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from uptake.adaptation.tensors import read_tensors, write_tensors
from uptake.lm.causal import Causal
from uptake.lm.loading import load_tokenizer
from uptake.methods.retro import Retro, TextEpisode, insert_copies
from uptake.report.metrics import gain, gain_interval
from uptake.text.tokenizer import Tokenizer

WINDOW, CHUNK, NEIGHBOURS = 512, 32, 2
CANDIDATES, SHARED = 10, 0.5  # for held-out text: as the leak filter, half of a passage's runs of 13
SIZES = {
    "small": {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
    },
    "tiny": {  # minutes of a CPU
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    },
    "toy": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
}
ARMS = ("alone", "retro", "random", "planted")
PLANTED, PLANTED_STEPS = 0.1, 300  # share of neighbours, for so many steps
READS = ("nearest", "random", "none")
BINS = (
    (0, 2),
    (3, 5),
    (6, 10),
    (11, CHUNK),
)  # tokens of the longest run that a chunk shares with what it reads


@dataclass(frozen=True)
class Windows:
    """Windows of a text, and for each chunk of each the numbers of its neighbours, [windows, chunks, k]."""

    text: Stream
    starts: NDArray[np.int64]
    nearest: NDArray[np.int64]
    store: Chunks

    def barred(self) -> NDArray[np.int32]:
        return owners(self.text, self.starts)

    def episode(self, numbers: NDArray[np.int64], read: str, seed: Sequence[int]) -> TextEpisode:
        """Return these windows beside what is read with them."""
        ids = torch.tensor(self.text.at(self.starts[numbers], WINDOW + 1), dtype=torch.long)
        lengths = torch.full((len(ids),), WINDOW + 1)
        if read == "none":
            return TextEpisode(ids, lengths, torch.zeros(len(ids), WINDOW // CHUNK, 0, 0, dtype=torch.int32))
        return TextEpisode(ids, lengths, torch.tensor(self.read(numbers, read, seed)))

    def read(self, numbers: NDArray[np.int64], read: str, seed: Sequence[int]) -> NDArray[np.int32]:
        """Return the tokens that are read with each chunk, [windows, chunks, k, 2 * chunk]."""
        chosen = self.nearest[numbers]
        if read == "random":
            chosen = np.random.default_rng(list(seed)).integers(len(self.store.tokens), size=chosen.shape)
        return np.where(chosen[..., None] < 0, -1, self.store.tokens[chosen])


def owners(text: Stream, starts: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the first and the last document of each window, [windows, 2]."""
    return np.stack([text.owner[starts], text.owner[starts + WINDOW]], 1)


def windows_of(text: Stream, search: Search, own: bool, most: int | None = None) -> Windows:
    """Return a text's windows with their neighbours found; `own` says that the store holds the text itself.

    A text that it does not hold gets no neighbour that shares half its runs of 13 tokens with it.
    """
    starts = text.windows(WINDOW + 1)
    if most is not None and len(starts) > most:
        starts = starts[np.unique(np.linspace(0, len(starts) - 1, most).astype(int))]
    chunks = text.at(starts, WINDOW).reshape(-1, CHUNK)
    barred = np.repeat(owners(text, starts), WINDOW // CHUNK, 0)
    if own:
        found = search.nearest(chunks, NEIGHBOURS, barred)
    else:
        candidates = search.nearest(chunks, CANDIDATES)
        tokens = np.where(candidates[..., None] < 0, -1, search.chunks.tokens[candidates])
        left = (candidates >= 0) & (shared(text, tokens, barred) < SHARED)
        order = np.argsort(~left, axis=1, kind="stable")[:, :NEIGHBOURS]
        found = np.where(np.take_along_axis(left, order, 1), np.take_along_axis(candidates, order, 1), -1)
    return Windows(text, starts, found.reshape(len(starts), WINDOW // CHUNK, -1), search.chunks)


def prepared(arguments: Any, tokenizer: Tokenizer) -> dict[str, Windows]:
    """Return the windows of all parts; what was found for them is kept in a file."""
    texts = {
        part: pile(arguments.pile, part, tokenizer, most)
        for part, most in (("train", arguments.characters), ("valid", 3e6), ("test", math.inf))
    }
    stores = {"train": Chunks.of(texts["train"], CHUNK)}
    if arguments.fresh:
        for part in ("store", "test"):
            texts[f"fresh {part}"] = stream([("fresh", arguments.fresh / f"{part}.jsonl")], tokenizer)
        stores["fresh store"] = Chunks.of(texts["fresh store"], CHUNK)
    plan = [("train", "train", None), ("valid", "train", arguments.valid), ("test", "train", arguments.test)]
    plan += [("fresh test", "fresh store", arguments.test)] if arguments.fresh else []
    file, made = arguments.work / "neighbours.safetensors", dict[str, Windows]()
    if file.exists():
        _, kept = read_tensors(file, "neighbours")
        for part, store, _ in plan:
            starts, nearest = (kept[f"{part}/{name}"].numpy() for name in ("starts", "nearest"))
            made[part] = Windows(texts[part], starts, nearest, stores[store])
        return made
    searches: dict[str, Search] = {}
    for part, store, most in plan:
        if store not in searches:
            searches.clear()
            searches[store] = patiently(partial(Search, stores[store], len(tokenizer), arguments.device))
        made[part] = patiently(partial(windows_of, texts[part], searches[store], part == store, most))
    searches.clear()
    torch.cuda.empty_cache()  # what the search took is for whoever needs it next
    tensors = {
        f"{part}/{name}": torch.tensor(getattr(each, name))
        for part, each in made.items() for name in ("starts", "nearest")
    }  # fmt: skip
    write_tensors(file, tensors, {"format": "uptake-neighbours-1"})
    return made


def small_model(tokenizer: Tokenizer, size: str, device: str) -> Causal:
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES[size], vocab_size=len(tokenizer), max_position_embeddings=2 * WINDOW,
        tie_word_embeddings=True, bos_token_id=tokenizer.opening, eos_token_id=tokenizer.opening,
    )  # fmt: skip
    return Causal(LlamaForCausalLM(config).to(device), tokenizer, "small")


def method_of(arm: str) -> Retro:
    return Retro(chunk=CHUNK, base="fresh", neighbours=0 if arm == "alone" else NEIGHBOURS)


def loss_of(network: nn.Module, arm: str, model: Causal, episode: TextEpisode) -> torch.Tensor:
    return method_of(arm).loss(network, model, episode)


def lesson(arm: str, train: Windows, numbers: NDArray[np.int64], step: int) -> TextEpisode:
    """Return what one step of a network learns; the windows are the same for all of them."""
    read = {"alone": "none", "random": "random"}.get(arm, "nearest")
    episode = train.episode(numbers, read, (3, step))
    if arm == "planted" and step < PLANTED_STEPS:
        return insert_copies(episode, CHUNK, PLANTED, np.random.default_rng([4, step]))
    return episode


def nats(
    pupil: Pupil, model: Causal, held: Windows, read: str, batch: int, device: str
) -> NDArray[np.float64]:
    """Return the nats of every token of every window, [windows, tokens], beside what is read."""
    found = []
    pupil.network.eval()
    network: Any = pupil.network
    for at in range(0, len(held.starts), batch):
        numbers = np.arange(at, min(at + batch, len(held.starts)))
        ids, _, tokens = (each.to(device) for each in held.episode(numbers, read, (5, at)))
        with torch.no_grad(), precision(device):
            log_probs, _ = network.fitted.step(ids[:, :-1], tokens.clamp(min=0).long(), tokens >= 0)
        found.append(-log_probs.float().gather(-1, ids[:, 1:, None])[..., 0].cpu().double())
    return torch.cat(found).numpy()


def reads_of(arm: str) -> tuple[str, ...]:
    return ("none",) if arm == "alone" else READS


def validate(pupils: Sequence[Pupil], model: Causal, held: Windows, read: int, arguments: Any) -> None:
    for pupil in pupils:
        found = {
            name: float(
                patiently(partial(nats, pupil, model, held, name, arguments.batch, arguments.device)).mean()
            )
            for name in reads_of(pupil.name)
        }
        pupil.course.append(
            {"step": pupil.steps, "tokens": read, **found, "seconds": round(pupil.seconds, 1)}
        )
        print(f"  {pupil.name}: {pupil.course[-1]}", flush=True)


def measured(pupils: Sequence[Pupil], model: Causal, held: Windows, arguments: Any) -> dict[str, Any]:
    """Return nats a token on held-out text by what is read, and gains over `alone`; by overlap, too."""
    barred = held.barred()
    names = [str(first) for first, _ in barred]
    kinds = np.array([held.text.domains[first] for first, _ in barred])
    inputs = held.text.at(held.starts, WINDOW + 1)
    # The chunk that is predicted beside what was found with the one before it.
    coming = inputs[:, CHUNK:WINDOW].reshape(len(inputs), -1, CHUNK)
    read = held.read(np.arange(len(inputs)), "nearest", ())[:, :-1]
    runs = longest(coming.reshape(-1, CHUNK), read.reshape(-1, *read.shape[2:])).reshape(coming.shape[:2])
    told: dict[str, Any] = {}
    base: NDArray[np.float64] | None = None
    for pupil in pupils:
        for reads in reads_of(pupil.name):
            each = patiently(partial(nats, pupil, model, held, reads, arguments.batch, arguments.device))
            base = each if base is None else base
            per, against = each.sum(1), base.sum(1)
            one = told[f"{pupil.name}, {reads}"] = {
                "nats": float(each.mean()),
                "gain": gain(per, against),
                "gain_ci": list(gain_interval(per, against, names) or ()),
                "kinds": {
                    str(kind): [
                        float(each[kinds == kind].mean()),
                        gain(per[kinds == kind], against[kinds == kind]),
                    ]
                    for kind in np.unique(kinds)
                },
            }
            # What is predicted at place t is token t + 1.
            chunked = [
                nll[:, CHUNK - 1 : WINDOW - 1].reshape(len(nll), -1, CHUNK).sum(-1) for nll in (each, base)
            ]
            one["overlap"] = {
                f"{low}-{high}": [int(chosen.sum()), gain(chunked[0][chosen], chunked[1][chosen])]
                for low, high in BINS if (chosen := (runs >= low) & (runs <= high)).any()
            }  # fmt: skip
    return {"windows": len(inputs), "documents": len(set(names)), "ways": told}


def begins(courses: Mapping[str, Sequence[Mapping[str, Any]]], arm: str, against: str) -> int | None:
    """Return the tokens from which on the arm, reading the nearest, is below another's best at every look.

    None where it is not at the last one.
    """
    found = None
    for own, other in zip(courses[arm], courses[against], strict=True):
        below = own["nearest"] < min(value for name, value in other.items() if name in READS)
        found = (own["tokens"] if found is None else found) if below else None
    return found


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    shared_folder = Path(os.environ.get("UPTAKE_SHARED", "../shared"))
    parser.add_argument("--pile", type=Path, default=shared_folder / "data/minipile")
    parser.add_argument("--fresh", type=Path, help="a folder of recipes/fresh.py, read without training")
    parser.add_argument("--tokenizer", default=str(shared_folder / "models/base-5m"))
    parser.add_argument(
        "--vocabulary",
        type=int,
        default=0,
        help="of a tokenizer learnt from the text, in place of --tokenizer",
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="beside `alone`")
    parser.add_argument("--work", type=Path, default=Path("build/retro_curve"))
    parser.add_argument("--out", type=Path, default=Path("build/retro_curve.json"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of this call, all networks")
    parser.add_argument("--steps", type=int, default=2400, help="of each network, in all")
    parser.add_argument("--every", type=int, default=100, help="steps between looks at validation text")
    parser.add_argument("--batch", type=int, default=32, help="windows of 512 tokens a step")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="learning rate, which warms up and falls")
    parser.add_argument("--valid", type=int, default=64, help="validation windows")
    parser.add_argument("--test", type=int, default=384, help="test windows")
    parser.add_argument("--characters", type=float, default=math.inf, help="of training text")
    arguments = parser.parse_args(given)
    clock = Clock(arguments.seconds)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.vocabulary:
        tokenizer = learned_tokenizer(arguments.pile, arguments.vocabulary, arguments.work / "tokenizer")
    else:
        tokenizer = load_tokenizer(arguments.tokenizer)
    made = prepared(arguments, tokenizer)
    train = made["train"]
    print(f"  {len(train.text.tokens):,} tokens, {len(train.store.tokens):,} chunks to find", flush=True)
    model = small_model(tokenizer, arguments.size, arguments.device)
    pupils = [
        Pupil(arm, method_of(arm).fresh(model), arguments.rate)
        for arm in ARMS
        if arm in {"alone", *arguments.arms}
    ]
    done = resume(pupils, arguments.work)
    following, tokens = batches(len(train.starts), arguments.batch, 0, done), arguments.batch * WINDOW
    while done < arguments.steps and not clock.over:
        numbers = following()
        for pupil in pupils:
            episode = lesson(pupil.name, train, numbers, done)
            pupil.learn(partial(loss_of, arm=pupil.name, model=model, episode=episode), arguments.device)
        done += 1
        if done % arguments.every == 0:
            validate(pupils, model, made["valid"], done * tokens, arguments)
            if clock.save_now():
                save(pupils, arguments.work)
    if not pupils[0].course or pupils[0].course[-1]["step"] != done:
        validate(pupils, model, made["valid"], done * tokens, arguments)
    courses = {pupil.name: pupil.course for pupil in pupils}
    settings = {
        name: value for name, value in vars(arguments).items()
        if name not in ("pile", "fresh", "tokenizer", "work", "out", "seconds")
    }  # fmt: skip
    told: dict[str, Any] = {
        "settings": {**settings, "characters": min(arguments.characters, 1e12)},
        "steps": done, "tokens": done * tokens, "text_tokens": len(train.text.tokens),
        "chunks": len(train.store.tokens), "courses": courses,
        "parameters": {pupil.name: pupil.parameters for pupil in pupils},
        "begins": {
            f"{arm} below {other}": begins(courses, arm, other)
            for arm in ("retro", "planted") for other in ("alone", "random") if {arm, other} <= {*courses}
        },
    }  # fmt: skip
    write(arguments.out, told)
    for part in ("test", "fresh test"):
        if part in made:
            told[part] = measured(pupils, model, made[part], arguments)
            write(arguments.out, told)
    show(told)
    save(pupils, arguments.work)


def show(told: Any) -> None:
    for part in ("test", "fresh test"):
        if part not in told:
            continue
        table = Table(
            "trained, reads",
            "nats a token",
            "gain, %",
            *told[part]["ways"]["alone, none"]["overlap"],
            box=None,
        )
        for name, each in told[part]["ways"].items():
            ends = ", ".join(f"{100 * end:.2f}" for end in each["gain_ci"])
            bins = (f"{100 * value:.2f}" for _, value in each["overlap"].values())
            table.add_row(name, f"{each['nats']:.4f}", f"{100 * each['gain']:.2f} [{ends}]", *bins)
        Console(width=120).print(f"{part}, after {told['tokens'] / 1e6:.1f} M tokens", table)
    print(told["begins"])


if __name__ == "__main__":
    main()
