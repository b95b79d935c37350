"""Fusion-in-Decoder beside one passage, mixtures and passages in a row: answers that need two passages.

A made-up world of names and values, new for every question. Each passage has two lines; a question asks for
the two values of a name. `whole`: one passage has both. `split`: each is in a passage of its own. `hop`: one
passage says which name is meant, another has that name's values. Three small T5 of the same size, steps and
questions are trained from scratch: `fused` reads the passages apart and attends to all, `joined` reads them
in a row, `single` reads one. Then which passages would each loss of docs/retrievers.md have a retriever
prefer, with the fused model as the reader?

    python recipes/fusion.py --out recipes/fusion.json

A trained network is kept in --work; the same command goes on.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fusion_signals import signals
from fusion_world import FIRST_NAME, KINDS, NAMES, PASSAGE, VALUES, Asked, as_text, asked, tokenizer
from retriever_figures import interval
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from uptake.lm.base import LM, Segment
from uptake.lm.seq2seq import Seq2Seq
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.in_context import InContext
from uptake.methods.rag import Rag

READERS = ("fused", "joined", "single")
WIDTH, LAYERS = 96, 3
WARM_UP = 50


def network(seed: int) -> T5ForConditionalGeneration:
    """Return a small T5 at random."""
    torch.manual_seed(seed)
    words = FIRST_NAME + NAMES + VALUES
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=words, d_model=WIDTH, d_kv=32, num_heads=WIDTH // 32, num_layers=LAYERS,
            d_ff=3 * WIDTH, dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
            n_positions=512,
        )
    )  # fmt: skip


def read(some: Asked, reader: str, rng: np.random.Generator) -> np.ndarray:
    """Return what the encoder reads of each question, [questions, texts read apart, tokens]."""
    count, passages = some.passages.shape[:2]
    if reader == "joined":
        rows = some.passages.reshape(count, 1, -1)
    elif reader == "single":
        # As often one that helps as any: it is to know both what it can tell, and that it cannot.
        helps = np.where(rng.random(count) < 0.5, some.first, some.second)
        place = np.where(rng.random(count) < 0.5, helps, rng.integers(passages, size=count))
        rows = some.passages[np.arange(count), place][:, None]
    else:
        rows = some.passages
    return np.concatenate([rows, np.repeat(some.questions[:, None], rows.shape[1], 1)], 2)


def loss_of(net: T5ForConditionalGeneration, inputs: np.ndarray, answers: np.ndarray) -> Tensor:
    """Return the mean loss of the answers in nats a token."""
    count, texts, length = inputs.shape
    states = net.encoder(input_ids=torch.from_numpy(inputs).view(count * texts, length)).last_hidden_state
    labels = torch.from_numpy(answers)
    begun = torch.cat([torch.zeros(count, 1, dtype=torch.long), labels[:, :-1]], 1)
    logits = net(
        encoder_outputs=BaseModelOutput(last_hidden_state=states.view(count, texts * length, -1)),
        attention_mask=torch.ones(count, texts * length),
        decoder_input_ids=begun,
    ).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def trained(reader: str, seed: int, given: argparse.Namespace) -> tuple[T5ForConditionalGeneration, float]:
    """Return a reader and the CPU seconds that its training took; read from its folder if it is there."""
    folder = given.work / f"{reader}-{seed}"
    if (folder / "seconds.json").exists():
        return T5ForConditionalGeneration.from_pretrained(folder).eval(), json.loads(
            (folder / "seconds.json").read_text()
        )
    net, begun = network(seed), time.process_time()
    descent = torch.optim.AdamW(net.parameters(), lr=given.rate, weight_decay=0.01)
    questions, drawn = np.random.default_rng([1, seed]), np.random.default_rng([2, seed])
    for step in range(given.steps):
        for group in descent.param_groups:
            group["lr"] = given.rate * min(1.0, (step + 1) / WARM_UP) * (1 - 0.9 * step / given.steps)
        some = asked(questions, given.batch, given.passages)
        loss = loss_of(net, read(some, reader, drawn), some.answers)
        descent.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        descent.step()
        if (step + 1) % 100 == 0:
            print(f"  {reader} {seed}: step {step + 1}, {loss.item():.3f} nats a token", flush=True)
    seconds = round(time.process_time() - begun, 1)
    net.eval().save_pretrained(folder)
    (folder / "seconds.json").write_text(json.dumps(seconds))
    return net, seconds


@dataclass(frozen=True)
class Way:
    """A way to answer: a reader, the method that it reads by, and whether it reads one passage alone."""

    reader: str
    method: Rag | InContext
    alone: bool = False


_APART = Rag(separator=" ")
WAYS = {
    "one passage": Way("single", replace(_APART, marginal="sequence"), True),
    "RAG-sequence": Way("single", replace(_APART, marginal="sequence")),
    "RAG-token": Way("single", replace(_APART, marginal="token")),
    "in a row": Way("joined", InContext(separator=" ")),
    "fused": Way("fused", replace(_APART, marginal="fused")),
    "fused, one passage": Way("fused", replace(_APART, marginal="fused"), True),
}


def answering(way: Way, lm: LM, passages: Sequence[str], question: str) -> LM:
    """Return the model that has the passages before it."""
    method: Any = way.method
    evidence = Evidence.of(*passages, query=question)
    (state,) = method.adapt([method.init(lm)], lm, [evidence], Context())
    found: LM = method.adapted([state], lm)
    return found


def right(way: Way, lm: LM, some: Asked) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each answer is right, to the word, and the nats of the right one.

    Who reads one passage alone reads that which names what is asked for: a search's first.
    """
    exact, nats = [], []
    for row in range(len(some.kinds)):
        places = [some.first[row]] if way.alone else range(some.passages.shape[1])
        passages = [as_text(some.passages[row, place]) for place in places]
        question, answer = as_text(some.questions[row]) + " ", as_text(some.answers[row])
        model = answering(way, lm, passages, question)
        exact.append(float(model.generate(question, 2).split() == answer.split()))
        (scores,) = model.score([Segment(answer, question)])
        nats.append(-float(scores.log_probs.sum()))
    return np.array(exact), np.array(nats)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not there yet, ask, write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/fusion"))
    parser.add_argument("--out", type=Path, default=Path("build/fusion.json"))
    parser.add_argument("--steps", type=int, default=1000, help="of each network")
    parser.add_argument("--batch", type=int, default=64, help="questions a step")
    parser.add_argument("--passages", type=int, default=4, help="of a question, in training")
    parser.add_argument("--more", type=int, nargs="*", default=[2, 8], help="passages, asked about as well")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate; warms up, then falls")
    parser.add_argument("--test", type=int, default=150, help="questions of each kind, new ones")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in vars(given).items() if key not in ("work", "out")}
    known = given.work / "settings.json"
    if known.exists() and json.loads(known.read_text()) != settings:
        parser.error(f"{known} was made with other settings: give another --work")
    known.write_text(json.dumps(settings))
    words = tokenizer()
    tests = {
        count: asked(np.random.default_rng([3, count]), len(KINDS) * given.test, count, even=True)
        for count in (given.passages, *given.more)
    }
    exact: dict[tuple[int, str], list[np.ndarray]] = {}
    nats: dict[tuple[int, str], list[np.ndarray]] = {}
    preferred: list[dict[str, Any]] = []
    seconds: dict[str, list[float]] = {}
    asking: dict[str, float] = {}
    for seed in range(given.seeds):
        models = {}
        for reader in READERS:
            net, spent = trained(reader, seed, given)
            seconds.setdefault(reader, []).append(spent)
            models[reader] = Seq2Seq(net, words, reader)
        for count, test in tests.items():
            for name, way in WAYS.items():
                if count != given.passages and way.alone:
                    continue
                begun = time.process_time()
                found = right(way, models[way.reader], test)
                exact.setdefault((count, name), []).append(found[0])
                nats.setdefault((count, name), []).append(found[1])
                asking[name] = (time.process_time() - begun) / len(found[0])
                print(f"  seed {seed}, {count} passages, {name}: {found[0].mean():.3f}", flush=True)
        preferred.append(signals(models["fused"], tests[given.passages]))
        print(f"  seed {seed}: {preferred[-1]}", flush=True)
    told: dict[str, Any] = {
        "settings": settings,
        "parameters": sum(own.numel() for own in net.parameters()),
        "cpu_seconds_of_training": seconds,
        "cpu_seconds_a_question": {name: round(value, 4) for name, value in asking.items()},
        "passage_tokens": PASSAGE,
        "passages": {},
        "preferred": preferred,
    }
    for count, test in tests.items():
        mean = {name: np.mean(exact[count, name], axis=0) for name in WAYS if (count, name) in exact}
        cost = {name: np.mean(nats[count, name], axis=0) for name in mean}
        others = [name for name in mean if name != "fused"]
        parts = {"all": np.arange(len(test.kinds))}
        parts |= {kind: np.flatnonzero(test.kinds == number) for number, kind in enumerate(KINDS)}
        told["passages"][count] = {
            part: {
                "questions": len(some),
                "exact": {name: among(mean[name][some]) for name in mean},
                "by_seed": {
                    name: [round(float(one[some].mean()), 4) for one in exact[count, name]] for name in mean
                },
                "nats": {name: round(float(cost[name][some].mean()), 3) for name in mean},
                "fused_less": {name: among((mean["fused"] - mean[name])[some]) for name in others},
            }
            for part, some in parts.items()
        }
    given.out.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told["passages"][given.passages], indent=1))


def among(values: np.ndarray) -> dict[str, Any]:
    """Return a mean over questions, each a world of its own, with its interval."""
    return interval(values, [str(number) for number in range(len(values))])


if __name__ == "__main__":
    main()
