"""Query encoders trained by what a frozen reader makes of passages, against BM25 and the untrained encoder.

Two worlds: SQuAD 1.1's development paragraphs, all in one store and split by article, and definitions of
packages that the reader cannot know (docs/fresh.md), split by file. A third part, `versions`, replaces a
corpus by a newer one under the same weights. The store's own encoder is MiniLM, the reader any causal model.

    python recipes/retrievers.py squad --model MODEL --encoder MINILM --squad dev-v1.1.json.xz --out s.json
    python recipes/retrievers.py fresh --model MODEL --encoder MINILM --fresh build/fresh --out f.json
    python recipes/retrievers.py versions --model MODEL --fresh build/fresh --out v.json

Without --model only what needs no reader is done: retrieval, and supervised tuning.

What takes long is kept in --work: the store, the reader's table, answers. The same command goes on.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from retriever_answers import Scores, answered, compared
from retriever_figures import figures, ranks, retrieval
from retriever_versions import versions
from retriever_worlds import World, fresh_world, squad_world

from uptake.lm.loading import load
from uptake.retrievers.candidates import Candidates, candidates
from uptake.retrievers.query_encoder import QueryMap
from uptake.retrievers.table import ReaderTable
from uptake.retrievers.training import Asked, Trained, Tuning, train

LOSSES = ("contrastive", "emdr2", "emdr", "pdist", "loop")
RATES = (3e-4, 1e-3, 3e-3)
TEMPERATURES = (0.1, 0.3, 1.0)  # of the reader's targets; chosen on validation questions, as the rate is
WEIGHTS = (5.0, 10.0, 20.0, 40.0)  # of a cosine beside BM25, for the untrained encoder


@dataclass
class Searched:
    """Questions with the score of every passage of the store: by words, and the vectors to search with."""

    words: Scores
    vectors: np.ndarray  # of the questions
    passages: np.ndarray  # vectors of all passages
    gold: list[int]  # place of the right passage

    def by(self, encoder: QueryMap | None, weight: float, words: bool) -> Scores:
        """Return the scores that a query encoder gives, None for the store's own, with the words' or not."""
        vectors = self.vectors if encoder is None else encoder.turned(self.vectors)
        found = weight * (vectors @ self.passages.T)
        return found + self.words if words else found


def searched(world: World, questions: Sequence[Any], ids: Sequence[int]) -> Searched:
    """Search the whole store for each question, by words and by the vectors of the store's own encoder."""
    place = {key: number for number, key in enumerate(ids)}
    words = np.zeros((len(questions), len(ids)))
    found = world.store.searched("lexical").search([one.text for one in questions], len(ids))
    for row, ranked in zip(words, found, strict=True):
        row[[place[key] for key in ranked.ids.tolist()]] = ranked.scores
    vectors = world.store.searched("dense").query_vectors([one.text for one in questions])
    right = world.store.passages_of([one.document for one in questions])
    gold = [place[right[one.document][0]] for one in questions]
    return Searched(words, vectors, world.store.vectors(ids), gold)


def tuned(
    training: Sequence[Asked], valid: Sequence[Asked], seen: Searched, encoder: str, start: Tuning
) -> tuple[Tuning, dict[str, float]]:
    """Return the rate and the temperature that do best on validation questions, by mean reciprocal rank."""
    distils = start.loss in ("pdist", "loop")
    tried: dict[str, float] = {}
    best: tuple[float, Tuning] | None = None
    for temperature in TEMPERATURES if distils else (start.temperature,):
        for rate in RATES:
            tuning = replace(start, temperature=temperature, learning_rate=rate)
            made = train(training, encoder, tuning, valid).encoder
            places = ranks(seen.by(made, start.vector_weight, start.words), seen.gold)
            value = float((1 / places).mean())
            tried[f"{rate:g}" + (f", {temperature:g}" if distils else "")] = round(value, 4)
            if best is None or value > best[0]:
                best = value, tuning
    assert best is not None
    return best[1], tried


def trained_encoders(
    world: World,
    pool: Sequence[Candidates],
    valid: Sequence[Candidates],
    supervised: tuple[Sequence[Candidates], Sequence[Candidates]],
    table: ReaderTable | None,
    seen: Searched,
    weight: float,
    given: argparse.Namespace,
    note: Callable[[str], None],
) -> tuple[dict[tuple[str, bool], list[Trained]], dict[str, Any]]:
    """Train every loss with without words beside it, over the seeds; tell what was chosen."""
    by_reader = [one.asked(table) for one in pool], [one.asked(table) for one in valid]
    trainable = [loss for loss in LOSSES if loss == "contrastive" or (table and loss in given.losses)]
    by_mark = [one.asked() for one in supervised[0]], [one.asked() for one in supervised[1]]
    made: dict[tuple[str, bool], list[Trained]] = {}
    told: dict[str, Any] = {}
    encoder = world.store.view.encoder_fingerprint
    for words in (False, True):
        for loss in trainable:
            asked, judged = by_mark if loss == "contrastive" else by_reader
            start = Tuning(loss, passes=given.passes, vector_weight=weight if words else 20.0, words=words)
            draws = [np.random.default_rng(seed).permutation(len(asked)) for seed in range(given.seeds)]
            drawn = [[asked[place] for place in order[: given.train]] for order in draws]
            chosen, tried = tuned(drawn[0], judged, seen, encoder, start)
            begun = time.process_time()
            made[loss, words] = [
                train(some, encoder, replace(chosen, seed=seed), judged) for seed, some in enumerate(drawn)
            ]
            name = f"{loss}{' + BM25' if words else ''}"
            told[name] = {
                "learning_rate": chosen.learning_rate,
                "temperature": chosen.temperature,
                "valid_mrr": tried,
                "cpu_seconds_a_training": round((time.process_time() - begun) / given.seeds, 2),
            }
            note(f"trained {name}: {told[name]}")
    return made, told


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Do all of one world and return its figures."""
    begun = time.monotonic()
    seconds: dict[str, float] = {}

    def note(text: str) -> None:
        print(f"[{time.monotonic() - begun:.0f} s] {text}", flush=True)

    def lap(name: str) -> None:
        seconds[name] = round(time.monotonic() - begun - sum(seconds.values()), 1)
        note(f"{name}: {seconds[name]} s")

    world = (squad_world if given.part == "squad" else fresh_world)(given)
    lap("store")
    lm = load(given.model, given.device, given.dtype) if given.model else None
    ids = sorted(key for some in world.store.passages_of(world.documents).values() for key in some)
    test, valid = searched(world, world.test, ids), searched(world, world.valid, ids)
    by_id = dict(zip(ids, world.store.passages(ids), strict=True))
    lap("search")
    pool, judged = (candidates(world.store, some, given.each) for some in (world.train, world.valid))
    supervised = tuple(
        candidates(world.store, some, given.each, with_right=True) for some in (world.train, world.valid)
    )
    lap("candidates")
    table, scored = None, 0
    if lm and given.losses != ["contrastive"]:
        table = ReaderTable(lm, world.prompt, given.work / f"{given.part}.table")
        entries = [entry for one in (*pool, *judged) for entry in one.entries()]
        scored = table.fill(entries, given.batch_tokens, lambda done, total: note(f"table {done} of {total}"))
        lap("table")
    weight = max(WEIGHTS, key=lambda w: float((1 / ranks(valid.by(None, w, True), valid.gold)).mean()))
    made, chosen = trained_encoders(
        world, pool, judged, (supervised[0], supervised[1]), table, valid, weight, given, note
    )
    lap("training")
    for (loss, words), some in made.items():
        some[0].encoder.save(given.work / f"{given.part}-{loss}{'-words' if words else ''}.safetensors")

    rng = np.random.default_rng(0)
    systems: dict[str, list[Scores]] = {
        "random": [rng.random(test.words.shape)],
        "BM25": [test.words],
        "MiniLM": [test.by(None, 20.0, False)],
        "BM25 + MiniLM": [test.by(None, weight, True)],
    }
    for (loss, words), some in made.items():
        w = weight if words else 20.0
        systems[f"{loss}{' + BM25' if words else ''}"] = [test.by(one.encoder, w, words) for one in some]
    groups = [one.document for one in world.test]
    pairs = [(f"{loss}", "MiniLM") for loss in LOSSES]
    pairs += [("BM25 + MiniLM", "BM25"), ("BM25 + MiniLM", "MiniLM")]
    pairs += [(f"{loss} + BM25", other) for loss in LOSSES for other in ("BM25", "BM25 + MiniLM")]
    pairs += [(f"{loss} + BM25", f"{loss}") for loss in LOSSES]
    places = {name: [ranks(one, test.gold) for one in some] for name, some in systems.items()}
    measured = {name: [retrieval(one) for one in some] for name, some in places.items()}
    hard = np.flatnonzero(places["BM25"][0] > 1)
    hard_half = {
        name: [{key: value[hard] for key, value in one.items()} for one in some]
        for name, some in measured.items()
    }
    found: dict[str, Any] = {
        "part": given.part,
        "model": Path(given.model).name if given.model else "no reader",
        "dtype": given.dtype,
        "device": given.device,
        "passages": len(ids),
        "questions": {"train": given.train, "pool": len(pool), "valid": len(judged), "test": len(world.test)},
        "weight": weight,
        "scored": scored,
        "tuned": chosen,
        "retrieval": figures(measured, groups, pairs),
        "retrieval_where_bm25_misses": {
            "questions": len(hard),
            **figures(hard_half, [groups[place] for place in hard], pairs),
        },
    }
    note("retrieval measured")
    if lm:
        of_valid = {"BM25 + MiniLM": (valid.by(None, weight, True), valid.gold)}
        for (loss, words), some in made.items():
            if words:
                of_valid[f"{loss} + BM25"] = valid.by(some[0].encoder, weight, True), valid.gold

        def keep(answers: dict[str, Any]) -> None:
            given.out.write_text(json.dumps({**found, "answers": answers}, indent=1) + "\n")

        if given.differences:
            apart = [(f"{loss} + BM25", "BM25") for loss in given.losses]
            apart += [("BM25 + MiniLM", "BM25"), *((one, "BM25 + MiniLM") for one, _ in apart)]
            apart += [(loss, "MiniLM") for loss in given.losses]
            found["answers"] = compared(world, lm, systems, by_id, ids, groups, apart, given, note)
        else:
            found["answers"] = answered(
                world, lm, systems, of_valid, by_id, ids, test.gold, hard, groups, pairs, given, note, keep
            )
        lap("answers")
    store_bytes = sum(f.stat().st_size for f in Path(str(world.store.path)).rglob("*") if f.is_file())
    found["cost"] = {
        "seconds": seconds,
        "bytes_a_passage": round(store_bytes / len(ids)),
        **({"table_entries_a_second": round(scored / max(seconds["table"], 0.1), 1)} if table else {}),
        "query_encoder_bytes": (given.work / f"{given.part}-contrastive.safetensors").stat().st_size,
    }
    return found


def main() -> None:
    """Read the arguments, do one part, write its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("squad", "fresh", "versions"))
    parser.add_argument("--model", default="")
    parser.add_argument("--encoder", default="", help="MiniLM's folder; not needed for versions")
    parser.add_argument("--squad", type=Path)
    parser.add_argument("--fresh", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/retrievers"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--pool", type=int, default=1600, help="training questions to draw from")
    parser.add_argument("--train", type=int, default=1200, help="of these, how many a seed draws")
    parser.add_argument("--valid", type=int, default=300)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--passages", type=int, default=1 << 40, help="at most so many passages, for a trial")
    parser.add_argument("--each", type=int, default=8, help="candidates by words, and as many by vectors")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES), help="which to train")
    parser.add_argument(
        "--differences", action="store_true", help="ask only where two systems find different passages"
    )
    parser.add_argument(
        "--template", default="", help="how a reader is asked that has learnt the form: no examples are shown"
    )
    parser.add_argument("--mixed", type=int, default=500, help="test questions that mixtures answer")
    parser.add_argument(
        "--mixtures", nargs="*", default=["BM25 + MiniLM", "contrastive + BM25"], help="what mixtures read"
    )
    parser.add_argument(
        "--only-mixtures",
        action="store_true",
        help="ask after nothing but these, their best passage, the right",
    )
    parser.add_argument(
        "--definitions", action="store_true", help="versions: passages are definitions, changes are questions"
    )
    parser.add_argument("--read", type=int, default=5, help="passages that a mixture reads")
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=32, help="prompts in one pass of the reader that answers")
    parser.add_argument(
        "--batch-tokens", type=int, default=None, help="tokens of one pass that fills a table"
    )
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    found = versions(given) if given.part == "versions" else run(given)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {given.out}")


if __name__ == "__main__":
    main()
