"""Editors whose networks are trained: MEND, SERAC's scope and SLAG, on CounterFact and a model of your own.

    python recipes/learned_editors.py mend --model MODEL --seconds 180 --out mend.json
    python recipes/learned_editors.py serac --model MODEL --seconds 60 --out serac.json
    python recipes/learned_editors.py slag --model MODEL --seconds 180 --set length=10 --out slag10.json
    python recipes/learned_editors.py merge --out learned_editors.json mend.json serac.json slag*.json

Each is trained on the subjects of one part of CounterFact for about `--seconds`, keeps the network that does
best on another part, and is measured there and on a third, whose subjects neither has. Several runs of one
editor with other settings are told apart by `--name`; `merge` chooses among them by the figures of the second
part (`valid`) alone. Started again a command goes on where it was interrupted, with as many steps as it had
set out to take.

MEND and plain fine-tuning make each edit by itself: both are asked for it in its own words, in others, and
after neighbours, and the base is asked too. Fine-tuning's rate is the one at which it drifts on unrelated
text as far as MEND does. SLAG makes sequences of ten edits, all asked at the end. A scope is judged by how it
ranks rephrases above neighbours, which ask for the same relation of another subject, and by what a memory of
all edits lets through.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import editing

import uptake
from uptake.adaptation.editing.scope import ScopeNetwork
from uptake.adaptation.optimizers import AdamW
from uptake.errors import BadInput, UptakeError
from uptake.evaluation.protocols.edits import Edits
from uptake.lm.causal import Causal
from uptake.methods.contract.learned import Learner, TrainingData
from uptake.methods.contract.method import Context, Evidence, Method, MethodSpec
from uptake.methods.contract.naming import method_specs
from uptake.methods.gated_memory import GatedMemory
from uptake.methods.gated_memory.trained import ScopeEpisode, Trained
from uptake.methods.mend import Mend
from uptake.methods.serac import Serac
from uptake.methods.slag import Slag
from uptake.sealed import write_whole
from uptake.settings import apply, describe
from uptake.tasks.asking import generate
from uptake.tasks.edit_asking import drift, reply_to
from uptake.tasks.edit_marks import askings, same_words
from uptake.tasks.edits import Edit, independent
from uptake.text.types import Document, Found
from uptake.train import Training, train

TOKENS = 8  # of an answer
PROBES = 2  # rephrases and neighbours that are asked of each edit
ROWS = 25  # edits side by side
KL_EDITS, KL_TEXTS = 8, 4
KL_RATES, KL_TRIES = (1e-6, 1e-2), 7
SEQUENCE = 10
Parts = dict[str, tuple[Edit, ...]]
Keep = Callable[[dict[str, Any]], None]  # writes down what is known of a run so far
LIMITS = {"mend": 180.0, "serac": 60.0, "slag": 180.0}


def parts_of(folder: Path, train_edits: int, valid: int, test: int) -> dict[str, tuple[Edit, ...]]:
    """Return edits in three parts without a common subject: those of `editing.py`, and more to train."""
    parts: dict[str, list[Edit]] = {name: [] for name in editing.PARTS}
    for file in ("edit", "train"):
        path = folder / "counterfact" / f"counterfact-{file}.json.xz"
        if path.exists():
            for name, some in editing.by_subject(uptake.read_edits(path), editing.PARTS).items():
                # What is reported is of the file that is there to edit.
                parts[name] += some if name == "train" or file == "edit" else ()
    sizes = {"train": train_edits, "valid": valid, "test": test}
    found = {name: independent(some[: sizes[name]]) for name, some in parts.items()}
    if short := [name for name, some in found.items() if len(some) < min(sizes[name], 2)]:
        raise BadInput(f"{folder}: part {short[0]} has {len(found[short[0]])} edits")
    return found


def said_by_base(model: Causal, edits: Sequence[Edit], most: int, path: Path, batch: int) -> list[Edit]:
    """Return edits whose first neighbours are followed by what the base says there; kept in a file."""
    prompts = [*dict.fromkeys(probe.prompt for edit in edits for probe in edit.neighbours[:most])]
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    missing = [prompt for prompt in prompts if prompt not in known]
    if missing:
        known |= zip(missing, generate(model, missing, TOKENS, batch), strict=True)
        write_whole(path, json.dumps(known).encode())
    return [
        replace(
            edit,
            neighbours=tuple(replace(probe, target=known[probe.prompt]) for probe in edit.neighbours[:most]),
        )
        for edit in edits
    ]


def trained(
    learner: Learner[Any], model: Causal, args: argparse.Namespace, make: Callable[[str], TrainingData]
) -> tuple[Any, dict[str, Any]]:
    """Return the network that does best on the valid part, and what its training was."""
    path = args.work / f"{args.name}.safetensors"
    plan, told = path.with_suffix(".plan"), path.with_suffix(".told")
    if path.exists() and told.exists():
        return learner.load(path, model), json.loads(told.read_text())
    episodes, valid = learner.episodes(model, make("train")), learner.episodes(model, make("valid"))
    every = args.save_every
    if plan.exists():
        steps = json.loads(plan.read_text())
    else:
        steps = args.steps or _steps(learner, model, episodes, args)
        write_whole(plan, json.dumps(steps).encode())
    turns = [episodes[step % len(episodes)] for step in range(steps)]
    training = Training(
        AdamW(learning_rate=args.learning_rate, weight_decay=0.0),
        clip=args.clip,
        save_every=min(every, steps),
        warm_up_and_decay=True,
        seed=args.seed,
    )
    begun = time.perf_counter()

    def tell(point: Any) -> None:
        print(
            f"{args.name}: {point.step:,} of {steps:,}, {point.loss:.4f}, {point.valid:.4f}", file=sys.stderr
        )

    checkpoint = path.with_suffix(".training")
    network, points = train(
        learner,
        model,
        turns,
        training,
        checkpoint,
        tell,
        valid[: args.valid_steps],
        # A machine that is shared may be slower than it was when the steps were counted.
        enough=lambda: not args.steps and time.perf_counter() - begun > args.seconds,
    )
    learner.save(network, model, path)
    found = {
        "steps": points[-1].step,
        "of": steps,
        "passes": round(points[-1].step / len(episodes), 2),
        "seconds": round(time.perf_counter() - begun, 1),
        "valid_before": points[0].valid,
        "valid_best": min(point.valid for point in points if point.valid is not None),
        "learning_rate": args.learning_rate,
        "curve": [[point.step, _plain(point.loss), point.valid] for point in points],
    }
    write_whole(told, json.dumps(found).encode())
    checkpoint.unlink()
    return network, found


def _plain(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None


def _steps(learner: Learner[Any], model: Causal, episodes: Sequence[Any], args: argparse.Namespace) -> int:
    """Return how many steps fit into the time, by the time that a few take."""
    train(learner, model, episodes[:2], Training(save_every=2))
    begun, some = time.perf_counter(), episodes[2:10] or episodes
    train(learner, model, some, Training(save_every=len(some)))
    each = (time.perf_counter() - begun) / len(some)
    return max(4, int(args.seconds / each))


def alone(method: Method[Any], model: Causal, edits: Sequence[Edit], base: Sequence[Any]) -> dict[str, Any]:
    """Return what comes of edits that are each made by itself: shares of prompts, and those of each edit."""
    marks: dict[str, list[list[bool]]] = {"success": [], "tight": [], "same": [], "leak": []}
    replies = iter(base)
    for start in range(0, len(edits), ROWS):
        some = edits[start : start + ROWS]
        adapted = made_alone(method, model, some)
        asked = [(row, one) for row, edit in enumerate(some) for one in asked_of(edit)]
        found = reply_to(adapted, [one for _, one in asked], TOKENS, 64, [row for row, _ in asked])
        own: list[dict[str, list[bool]]] = [{name: [] for name in marks} for _ in some]
        for (row, one), reply in zip(asked, found, strict=True):
            before = next(replies)
            if one.kind == "neighbour":
                own[row]["same"].append(same_words(reply.said, before.said))
                own[row]["leak"].append(reply.right)
            else:
                own[row]["success" if one.kind == "edit" else "tight"].append(reply.right)
        for name, lists in marks.items():
            lists += [each[name] for each in own]
    return {name: share(lists) for name, lists in marks.items()} | {"edits": len(edits)}


def asked_of(edit: Edit) -> list[Any]:
    """Return what is asked of an edit here: its own prompt, rephrases and neighbours."""
    return [one for one in askings(edit, 1, PROBES) if one.kind in ("edit", "rephrase", "neighbour")]


def made_alone(method: Method[Any], model: Causal, edits: Sequence[Edit]) -> Any:
    """Return an LM whose row i holds edit i alone."""
    evidence = [Evidence(Found((edit.passage(),), (0.0,)), edit.prompt) for edit in edits]
    states = method.adapt([method.init(model) for _ in edits], model, evidence, Context(continues=False))
    return method.adapted(states, model)


def share(lists: Sequence[Sequence[bool]], draws: int = 2000) -> dict[str, Any]:
    """Return the share of all marks, with its 95 % interval by edit."""
    counts = np.array([[sum(own), len(own)] for own in lists if own], dtype=float)
    if not len(counts):
        return {"share": None, "interval": None}
    chosen = np.random.default_rng(0).integers(len(counts), size=(draws, len(counts)))
    drawn = counts[chosen].sum(1)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    whole = counts.sum(0)
    return {"share": round(whole[0] / whole[1], 4), "interval": [round(low, 4), round(high, 4)]}


def kl_of(method: Method[Any], model: Causal, edits: Sequence[Edit], texts: Sequence[Document]) -> float:
    """Return how far single edits drift on unrelated text, in nats a token."""
    adapted = made_alone(method, model, edits[:KL_EDITS])
    values = [
        value
        for row in range(len(edits[:KL_EDITS]))
        for text in texts[:KL_TEXTS]
        for value in drift(model, adapted.at([row]), text.text).kl
    ]
    return sum(values) / len(values)


def mend(args: argparse.Namespace, model: Causal, parts: Parts, keep: Keep) -> None:
    """Train MEND, and measure it and fine-tuning at the KL that it has on the valid part."""
    learner = apply(Mend(batch=args.batch), *args.set)
    kept = args.work / f"base-words-{args.train}.json"
    material = {
        name: said_by_base(model, parts[name], args.near, kept, args.asked) for name in ("train", "valid")
    }
    texts = unrelated(args)

    def make(name: str) -> TrainingData:
        return TrainingData((), unrelated=texts[name], edits=tuple(material[name]))

    network, told = trained(learner, model, args, make)
    method = learner.with_network(network)
    drifts = texts["test"]
    found: dict[str, Any] = {"settings": _settings(learner), "training": told}
    if args.out.exists() and (before := json.loads(args.out.read_text())).get("training") == told:
        found = before
    base: dict[str, list[Any]] = {}

    def measure(name: str, way: Method[Any], *some: str) -> None:
        for part in some:
            if name in found.get(part, {}):
                continue
            if part not in base:
                asked = [one for edit in parts[part] for one in asked_of(edit)]
                base[part] = reply_to(model, asked, TOKENS, args.asked)
            measured = alone(way, model, parts[part], base[part])
            found.setdefault(part, {})[name] = measured | {"kl": kl_of(way, model, parts[part], drifts)}
            keep(found)

    measure("mend", method, "valid", "test")
    found["finetune_rate"] = args.finetune_rate or rate_at(
        found["valid"]["mend"]["kl"], model, parts["valid"], drifts
    )
    measure("finetune", finetune(found["finetune_rate"]), "test")
    measure("untrained", replace(learner, weights="untrained"), "test")


def finetune(rate: float) -> Method[Any]:
    """Return plain fine-tuning as `recipes/editing.py` does it, at another learning rate."""
    return editing.EDITORS["finetune"].spec([f"optimizer.learning_rate={rate}"]).method


def rate_at(wanted: float, model: Causal, edits: Sequence[Edit], texts: Sequence[Document]) -> float:
    """Return the learning rate at which fine-tuning drifts so far."""
    low, high = KL_RATES
    best = (float("inf"), low)
    for _ in range(KL_TRIES):  # drift grows with the rate: halve the interval in logarithms
        rate = (low * high) ** 0.5
        found = kl_of(finetune(rate), model, edits, texts)
        print(f"learning rate {rate:.2e}: KL {found:.5f}, wanted {wanted:.5f}", file=sys.stderr)
        best = min(best, (abs(found - wanted), rate))
        low, high = (rate, high) if found < wanted else (low, rate)
    return best[1]


def serac(args: argparse.Namespace, model: Causal, parts: Parts, keep: Keep) -> None:
    """Train SERAC's scope, judge it alone, then before the base that reads the edit and before an editor."""
    learner = apply(Trained(batch=args.batch), *args.set)
    network, told = trained(learner, model, args, lambda name: TrainingData((), edits=parts[name]))
    scope = learner.with_network(network)
    found: dict[str, Any] = {"settings": _settings(learner), "training": told}
    for part in ("valid", "test"):
        edits = parts[part]
        found[part] = {
            "trained": judged(scope, model, edits) | through(scope, model, edits),
            "untrained": judged(replace(learner, weights="untrained"), model, edits),
            "words": through(GatedMemory().scope, model, edits),
        }
        keep(found)
    texts = unrelated(args)["test"]
    if some := parts["test"][: args.memory]:
        ways = {
            "trained scope": MethodSpec(GatedMemory(scope)),
            "scope of words": method_specs(["gated-memory"])["gated-memory"],
        }
        found["memory"] = asked_after(model, some, texts, ways)
        keep(found)
    if args.editor:
        behind = {"serac": MethodSpec(Serac(scope=scope))}
        found["behind"] = asked_after(model, parts["test"][: args.editor], texts, behind)
        keep(found)


def judged(scope: Trained, model: Causal, edits: Sequence[Edit]) -> dict[str, Any]:
    """Return how a scope ranks rephrases of an edit above its neighbours, and what a memory lets through."""
    network = scope.network(model)
    assert isinstance(network, ScopeNetwork)
    inside, outside = list[float](), list[float]()
    for start in range(0, len(edits), ROWS):
        asked = ScopeEpisode(tuple(replace(edit, loose=()) for edit in edits[start : start + ROWS]))
        with torch.no_grad():
            keys = scope.read(network, model, [edit.prompt for edit in asked.edits]).wide()
            read = scope.read(network, model, [prompt for prompt, _, _ in asked.prompts]).wide()
            near = torch.exp(-network.distances(keys, read)).tolist()
        for number, (prompt, place, about) in enumerate(asked.prompts):
            if prompt != asked.edits[place].prompt:
                (inside if about else outside).append(near[place][number])
    return {"auc": auc(inside, outside), "rephrases": len(inside), "neighbours": len(outside)}


def through(scope: Any, model: Causal, edits: Sequence[Edit]) -> dict[str, Any]:
    """Return what a memory of all edits lets through: prompts to their own edit, and neighbours to any."""
    memory = scope.memory([edit.passage() for edit in edits], model)

    def right(prompt: str, edit: Edit) -> bool:
        return [found.document for found in memory.find(prompt, 1)] == [edit.id]

    asked = {
        "own": [[right(edit.prompt, edit)] for edit in edits],
        "tight": [[right(prompt, edit) for prompt in edit.rephrases] for edit in edits],
        "loose": [[right(prompt, edit) for prompt in edit.loose] for edit in edits],
        "neighbours": [[bool(memory.find(probe.prompt, 1)) for probe in edit.neighbours] for edit in edits],
    }
    return {f"opens_{name}": share(lists) for name, lists in asked.items()}


def auc(inside: Sequence[float], outside: Sequence[float]) -> float | None:
    """Return how often one of the first is above one of the second; a tie counts half. None of none."""
    if not inside or not outside:
        return None
    below, values = np.sort(np.array(outside)), np.array(inside)
    wins = np.searchsorted(below, values, "left") + np.searchsorted(below, values, "right")
    return float(wins.mean() / 2 / len(below))


def asked_after(
    model: Causal, edits: Sequence[Edit], texts: Sequence[Document], ways: dict[str, MethodSpec]
) -> dict[str, Any]:
    """Return the figures of methods that make all edits before anything is asked, with the controls."""
    inputs = uptake.Inputs(edits=tuple(edits), unrelated=tuple(texts[:KL_TEXTS]))
    protocol = Edits(turn=0, tokens=TOKENS, controls=True, save_every=len(edits))
    results = uptake.compare(model, inputs, ways, protocol=protocol)
    columns = ("success", "tight", "loose", "forced", "same", "leak", "ripple", "kl", "bits_change")
    told = uptake.summary(results)
    return {name: {key: own[key] for key in columns} for name, own in told["methods"].items()} | {
        "edits": len(edits)
    }


def slag(args: argparse.Namespace, model: Causal, parts: Parts, keep: Keep) -> None:
    """Train SLAG, and ask for all edits of sequences once the last one is made."""
    learner = apply(Slag(batch=args.batch), *args.set)
    texts = unrelated(args)
    kept = args.work / f"base-words-{args.train}.json"
    material = {
        name: said_by_base(model, parts[name], args.near, kept, args.asked) for name in ("train", "valid")
    }

    def make(name: str) -> TrainingData:
        return TrainingData((), unrelated=texts[name], edits=tuple(material[name]))

    network, told = trained(learner, model, args, make)
    found: dict[str, Any] = {"settings": _settings(learner), "training": told}
    ways = {"slag": learner.with_network(network), "untrained": replace(learner, weights="untrained")}
    for name, part in (("slag", "valid"), ("slag", "test"), ("untrained", "test")):
        method = replace(ways[name], steps=args.steps_each)
        found.setdefault(part, {})[name] = sequences(method, model, parts[part])
        keep(found)


def sequences(method: Method[Any], model: Causal, edits: Sequence[Edit]) -> dict[str, Any]:
    """Return what is said after sequences of ten edits, by the place of an edit in its own."""
    by_place: list[list[list[bool]]] = [[] for _ in range(SEQUENCE)]
    same: list[list[bool]] = []
    for start in range(0, len(edits) - SEQUENCE + 1, SEQUENCE):
        some = edits[start : start + SEQUENCE]
        read = Evidence(Found(tuple(edit.passage() for edit in some), (0.0,) * SEQUENCE))
        (state,) = method.adapt([method.init(model)], model, [read], Context(continues=False))
        adapted = method.adapted([state], model)
        asked = [one for edit in some for one in asked_of(edit) if one.kind != "rephrase"]
        replies = reply_to(adapted, asked, TOKENS, 64, [0] * len(asked))
        near = [one for one in asked if one.kind == "neighbour"]
        before = iter(generate(model, [one.prompt for one in near], TOKENS))
        kept: list[bool] = []
        place = 0
        for one, reply in zip(asked, replies, strict=True):
            if one.kind == "neighbour":
                kept.append(same_words(reply.said, next(before)))
            else:
                by_place[place].append([reply.right])
                place += 1
        same.append(kept)
    return {
        "sequences": len(same),
        "success": share([mark for place in by_place for mark in place]),
        "by_place": [share(place)["share"] for place in by_place],
        "same": share(same),
        "first": [int(mark[0]) for mark in by_place[0]],
    }


def unrelated(args: argparse.Namespace) -> dict[str, tuple[Document, ...]]:
    """Return other text: short pieces to train and choose on, and whole paragraphs to measure drift on."""
    import lzma

    with lzma.open(Path(args.shared) / "wikitext2" / "test.txt.xz", "rt", encoding="utf8") as file:
        lines = [line.strip() for line in file if len(line) > 400]
    short = [Document(f"wikitext/{number}", line[: args.characters]) for number, line in enumerate(lines)]
    third = max(1, len(short) // 3)
    return {
        "train": tuple(short[third:]) or tuple(short),
        "valid": tuple(short[:third]),
        "test": editing.unrelated_of(Path(args.shared)),
    }


def _settings(learner: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {key: value for key, value in describe(learner).items() if key != "weights"}
    return plain


def merge(files: Sequence[Path]) -> dict[str, Any]:
    """Return all runs by editor, of each kind the one that is best on the valid part first."""
    runs: dict[str, list[dict[str, Any]]] = {"mend": [], "serac": [], "slag": []}
    for path in files:
        run = json.loads(path.read_text())
        runs[run["editor"]].append(run)
    runs["mend"].sort(key=lambda run: -_worth(run["valid"]["mend"]))
    runs["serac"].sort(key=lambda run: (-run["valid"]["trained"]["auc"], run["name"]))
    found: dict[str, Any] = {"runs": runs}
    runs["slag"].sort(key=lambda run: -run["valid"]["slag"]["success"]["share"])
    lengths: dict[int, dict[str, Any]] = {}
    for run in runs["slag"]:
        lengths.setdefault(run["settings"]["length"], run)
    if {1, SEQUENCE} <= set(lengths):
        one, ten = (lengths[size]["test"]["slag"]["first"] for size in (1, SEQUENCE))
        found["slag_first_edit"] = difference(ten, one)
    return found


def _worth(told: dict[str, Any]) -> float:
    """Return what MEND is chosen by: the lower of what it must say and what must stay."""
    return float(min(told["success"]["share"], told["same"]["share"] or 0.0))


def difference(ten: Sequence[int], one: Sequence[int], draws: int = 10000) -> dict[str, Any]:
    """Return the shares of first edits that are kept, and how far they are apart, paired by sequence."""
    count = min(len(ten), len(one))
    apart = np.array(ten[:count], float) - np.array(one[:count], float)
    drawn = apart[np.random.default_rng(0).integers(count, size=(draws, count))].mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {
        "sequences": count,
        "length_ten": round(float(np.mean(ten[:count])), 4),
        "length_one": round(float(np.mean(one[:count])), 4),
        "difference": round(float(apart.mean()), 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
    }


def shown(run: dict[str, Any]) -> Iterator[str]:
    """Yield lines of a run's figures."""
    yield f"{run['editor']} {run['name']}: {run['training']}"
    for part in ("valid", "test"):
        for way, told in run.get(part, {}).items():
            cells = {
                key: value["share"] if isinstance(value, dict) else value
                for key, value in told.items()
                if key not in ("first", "by_place")
            }
            yield f"  {part} {way}: " + ", ".join(f"{key} {value}" for key, value in cells.items())
    for name in ("memory", "behind"):
        told = run.get(name)
        for way, own in told.items() if isinstance(told, dict) else ():
            yield f"  {name} {way}: {own}"


EDITORS: dict[str, Callable[..., None]] = {"mend": mend, "serac": serac, "slag": slag}


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    about, _, usage = (__doc__ or "").partition("\n\n")
    made = argparse.ArgumentParser(
        description=about, epilog=usage, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("command", choices=(*EDITORS, "merge", "show"))
    made.add_argument("files", nargs="*", type=Path)
    made.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    made.add_argument("--name", default="", help="of this run, where an editor has several")
    made.add_argument("--seconds", type=float, default=0.0, help="of training, by the time a few steps take")
    made.add_argument("--steps", type=int, default=0, help="of training, instead of a time")
    made.add_argument("--learning-rate", type=float, default=0.0)
    made.add_argument("--near", type=int, default=PROBES, help="neighbours of an edit to learn from")
    made.add_argument("--characters", type=int, default=240, help="of a text that is not related")
    made.add_argument("--finetune-rate", type=float, default=0.0, help="to compare with, else looked for")
    made.add_argument("--clip", type=float, default=100.0)
    made.add_argument("--batch", type=int, default=16)
    made.add_argument("--train", type=int, default=20000, help="edits at most")
    made.add_argument("--valid", type=int, default=100)
    made.add_argument("--test", type=int, default=200)
    made.add_argument("--valid-steps", type=int, default=6, help="of the valid part, to choose a network by")
    made.add_argument(
        "--memory", type=int, default=100000, help="edits at most that a gated memory is asked for"
    )
    made.add_argument("--editor", type=int, default=0, help="edits behind a scope that an editor makes")
    made.add_argument("--steps-each", type=int, default=5, help="of SLAG, for an edit, once it is trained")
    made.add_argument("--asked", type=int, default=256, help="prompts asked of the base side by side")
    made.add_argument("--save-every", type=int, default=200)
    made.add_argument("--set", action="append", default=[])
    made.add_argument("--shared", default=os.environ.get("UPTAKE_SHARED", "../shared") + "/data")
    made.add_argument("--work", type=Path, default=Path("build/learned_editors"))
    made.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    made.add_argument("--device", default="cpu")
    made.add_argument("--dtype", default="float32")
    made.add_argument("--seed", type=int, default=0)
    return made.parse_intermixed_args(arguments)


RATES = {"mend": 1e-5, "serac": 1e-3, "slag": 3e-4}


def write(path: Path, found: dict[str, Any]) -> None:
    """Write figures into a file, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(found, indent=1).encode() + b"\n")


def main(arguments: Sequence[str] | None = None) -> None:
    args = parsed(arguments)
    try:
        if args.command == "show":
            for path in args.files:
                print(*shown(json.loads(path.read_text())), sep="\n")
            return
        if args.command == "merge":
            write(args.out, merge(args.files))
            return
        args.name = args.name or args.command
        args.seconds = args.seconds or LIMITS[args.command]
        args.learning_rate = args.learning_rate or RATES[args.command]
        args.work.mkdir(parents=True, exist_ok=True)
        parts = parts_of(Path(args.shared), args.train, args.valid, args.test)
        model = uptake.load(args.model, args.device, args.dtype)
        about = {"editor": args.command, "name": args.name, "model": Path(model.name).name, "seed": args.seed}
        about["edits"] = {name: len(some) for name, some in parts.items()}
        EDITORS[args.command](args, model, parts, lambda found: write(args.out, about | found))
        print(*shown(json.loads(args.out.read_text())), sep="\n")
    except UptakeError as error:
        sys.exit(f"learned_editors: {error}")


if __name__ == "__main__":
    main()
