"""Which passage would each loss have a retriever prefer, by a causal reader: how often is it the right one?

Validation questions on facts of packages; a few candidates each, the right one among them, in the order of a
hash, so that no place in the prompt helps. `adist` has them in a row in one prompt; the others read each
alone, and order them alike, for without the likeliest passage the answer costs most.

    python recipes/retriever_signals.py --model READER --encoder MINILM --fresh build/fresh --out signals.json

The store and the reader's tables are kept in --work, as recipes/retrievers.py keeps them.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from retriever_figures import interval
from retriever_worlds import fresh_world

from uptake.lm.loading import load
from uptake.retrievers.attention import AttentionTable
from uptake.retrievers.candidates import Candidates, candidates
from uptake.retrievers.table import ReaderTable
from uptake.text.types import stable_hash


def shuffled(one: Candidates, most: int) -> Candidates:
    """Return a question with the right passage and others, `most` in all, in the order of a hash."""
    order = sorted(range(len(one.passages)), key=lambda n: (not one.gold[n], n))[:most]
    order.sort(key=lambda n: stable_hash("row", one.question.id, one.passages[n].text))
    return replace(
        one,
        passages=tuple(one.passages[n] for n in order),
        words=one.words[order],
        vectors=one.vectors[order],
    )


def preferred(one: Candidates, table: ReaderTable, attention: AttentionTable) -> dict[str, np.ndarray]:
    """Return what each loss's target rises with, a value a passage."""
    question, texts, answer = one.in_a_row
    tokens = table.tokens(question, texts, answer)
    return {
        "BM25": one.words,
        "MiniLM": one.vectors @ one.vector,
        "pdist, emdr2, loop": tokens.sum(1),
        "adist": attention.of(question, texts, answer),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask, write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--fresh", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/retrievers"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--template", default="{passage}\\n\\nQuestion: {question}\\nAnswer:")
    parser.add_argument("--valid", type=int, default=40, help="questions")
    parser.add_argument("--passages", type=int, default=1 << 40, help="of the store at most, for a trial")
    parser.add_argument("--row", type=int, default=4, help="candidates of a question")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args(arguments)
    given.work.mkdir(parents=True, exist_ok=True)
    given.part, given.pool, given.test = "fresh", 1, 0
    world = fresh_world(given)
    found = candidates(world.store, world.valid, given.row, with_right=True)
    some = [shuffled(one, given.row) for one in found if one.gold.any() and len(one.passages) >= given.row]
    lm = load(given.model, given.device, given.dtype)
    table = ReaderTable(lm, world.prompt, given.work / "signals.table")
    attention = AttentionTable(lm, world.prompt, given.work / "signals.attention")
    seconds: dict[str, float] = {}
    begun = time.process_time()
    table.fill([entry for one in some for entry in one.entries()])
    seconds["apart"] = round((time.process_time() - begun) / len(some), 2)
    begun = time.process_time()
    attention.fill(
        [one.in_a_row for one in some], lambda done, total: print(f"{done} of {total}", flush=True)
    )
    seconds["in a row"] = round((time.process_time() - begun) / len(some), 2)
    groups = [one.question.document for one in some]
    each = [(preferred(one, table, attention), one.gold) for one in some]
    right = {
        name: np.array([float(gold[int(np.argmax(values[name]))]) for values, gold in each])
        for name in each[0][0]
    }
    told: dict[str, Any] = {
        "model": lm.fingerprint,
        "questions": len(some),
        "candidates": given.row,
        "right_passage_preferred": {name: interval(values, groups) for name, values in right.items()},
        "adist_less": {
            name: interval(right["adist"] - values, groups)
            for name, values in right.items()
            if name != "adist"
        },
        "place_of_the_preferred": {
            name: np.bincount([int(np.argmax(v[name])) for v, _ in each], minlength=given.row).tolist()
            for name in right
        },
        "cpu_seconds_a_question": seconds,
    }
    given.out.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
