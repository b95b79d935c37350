"""Does choosing pay on a stream? Half as many steps, on documents that BAIT, the loss or chance chooses.

Paragraphs of SQuAD, one after another: `online` learns each, the others four of every eight. At the end the
questions on all paragraphs are asked, closed book; how likely the right answers are is what counts. The rate
is that of uniform weights on other articles (docs/results.md, Weighing tokens on SQuAD).

    python recipes/choosing_stream.py --model MODEL --squad dev-v1.1.json.xz --unrelated TEXT.jsonl \
        --out recipes/choosing_stream.json
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import uptake
from uptake.methods.contract.method import MethodSpec
from uptake.methods.contract.naming import method_specs
from uptake.methods.online_chosen import OnlineChosen
from uptake.tasks.asking import Asking
from uptake.tasks.questions import Question, read_questions
from uptake.text.readers import read
from uptake.text.types import Document

ALL, WAYS = "online", ("random", "loss", "bait")


def arms(settings: Sequence[str], keep: int, of: int) -> dict[str, MethodSpec]:
    """Return `online`, and `online-chosen` by each way of choosing."""
    made = method_specs([ALL, "online-chosen"], settings)
    chosen = made["online-chosen"]
    assert isinstance(chosen.method, OnlineChosen)
    ways = {
        way: replace(chosen, method=replace(chosen.method, keep=keep, of=of, by=way))  # type: ignore[arg-type]
        for way in WAYS
    }
    return {ALL: made[ALL], **ways}


def stream_of(
    path: Path, articles: int, each: int, asked: int, seed: int
) -> tuple[list[Document], list[Question]]:
    """Return paragraphs of the last articles, shuffled, and up to so many questions on each."""
    held = read_questions(path)
    groups = list(dict.fromkeys(document.group for document in held.documents))[-articles:]
    random, documents = Random(seed), list[Document]()
    for group in groups:
        own = [document for document in held.documents if document.group == group]
        documents += random.sample(own, min(each, len(own)))
    random.shuffle(documents)
    questions = list[Question]()
    for document in documents:
        questions += [one for one in held.questions if one.document == document.id][:asked]
    return documents, questions


def measured(arguments: Any, seed: int) -> dict[str, Any]:
    documents, questions = stream_of(
        arguments.squad, arguments.articles, arguments.each, arguments.asked, seed
    )
    unrelated = [replace(one, text=one.text[:1000]) for one in islice(read(arguments.unrelated), 6)]
    results = uptake.stream(
        uptake.load(arguments.model),
        documents,
        questions,
        arms(arguments.settings, arguments.keep, arguments.of),
        unrelated=unrelated,
        asking=Asking(tokens=0),
        seed=seed,
        journal=arguments.work / f"stream-{seed}.json",
        progress=lambda done, total, name: print(f"  {seed}: {name}", flush=True) if done % 16 == 0 else None,
    )
    told = uptake.summary(results)
    return {
        "documents": len(documents),
        "questions": len(questions),
        "base": told["base"],
        "methods": told["methods"],
        "pairs": told["pairs"],
    }


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--squad", type=Path, required=True)
    parser.add_argument("--unrelated", type=Path, required=True, help="documents on other things, for the KL")
    parser.add_argument("--work", type=Path, default=Path("build/choosing"))
    parser.add_argument("--out", type=Path, default=Path("build/choosing_stream.json"))
    parser.add_argument("--articles", type=int, default=16)
    parser.add_argument("--each", type=int, default=4, help="paragraphs of an article")
    parser.add_argument("--asked", type=int, default=5, help="questions on a paragraph")
    parser.add_argument("--keep", type=int, default=4)
    parser.add_argument("--of", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--settings", nargs="*", default=["trainable=all", "learning_rate=1e-3"])
    arguments = parser.parse_args(given)
    arguments.work.mkdir(parents=True, exist_ok=True)
    told = {"keep": arguments.keep, "of": arguments.of, "settings": arguments.settings, "streams": {}}
    for seed in arguments.seeds:
        told["streams"][str(seed)] = measured(arguments, seed)
        arguments.out.write_text(json.dumps(told, indent=1) + "\n")
        show(told["streams"][str(seed)])


def show(told: Any) -> None:
    print(
        f"{told['documents']} documents, {told['questions']} questions, base {told['base']['nll']:.3f} nats"
    )
    for name, each in told["methods"].items():
        beside = each["vs_base"]["nll"]
        print(
            f"{name:8} {each['nll']:.3f} nats, {beside['difference']:+.3f} {beside['ci']}, "
            f"KL {each['kl']:.2f}, {each['steps']} steps, {each['adapt_seconds']:.0f} CPU s"
        )
    for pair in told["pairs"]:
        print(pair)


if __name__ == "__main__":
    main()
