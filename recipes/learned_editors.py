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
after neighbours, and the base is asked too; then the same behind each `--gate` before all edits of a part
(words, if none is named). Fine-tuning's rate is the one at which it drifts on unrelated text as far as MEND
does, looked for on the second part. `others` measures editors that are not trained in the same way. SLAG
makes sequences of ten edits, all asked at the end. A scope is judged by how it ranks rephrases above
neighbours, which ask for the same relation of another subject, by what a memory of all edits lets through,
and by what is said behind it; its threshold is chosen on the second part.
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

sys.path.insert(0, str(Path(__file__).parent))
import editing
from edits_alone import KINDS, KL_RATES, PROBES, TOKENS, Alone, asked_of, finetune, rate_at, share
from scope_figures import judged, let_in, nearest, threshold_at, through, through_at

import uptake
from uptake.adaptation.optimizers import AdamW
from uptake.errors import BadInput, UptakeError
from uptake.lm.causal import Causal
from uptake.methods.contract.learned import Learner, TrainingData
from uptake.methods.contract.method import Context, Evidence, Method
from uptake.methods.gated_editor import GatedEditor
from uptake.methods.gated_memory import GatedMemory
from uptake.methods.gated_memory.scope import Always, Words
from uptake.methods.gated_memory.trained import Trained
from uptake.methods.mend import Mend
from uptake.methods.slag import Slag
from uptake.sealed import write_whole
from uptake.settings import apply, describe
from uptake.tasks.asking import generate
from uptake.tasks.edit_asking import reply_to
from uptake.tasks.edit_marks import same_words
from uptake.tasks.edits import Edit, independent
from uptake.text.types import Document, Found
from uptake.train import Training, train

SEQUENCE = 10
Parts = dict[str, tuple[Edit, ...]]
Keep = Callable[[dict[str, Any]], None]  # writes down what is known of a run so far
LIMITS = {"mend": 180.0, "serac": 60.0, "slag": 180.0, "others": 0.0}


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
    begun, done = time.perf_counter(), 0

    def tell(point: Any) -> None:
        nonlocal done
        done = point.step
        print(
            f"{args.name}: {point.step:,} of {steps:,}, {point.loss:.4f}, {point.valid:.4f}", file=sys.stderr
        )

    def enough() -> bool:
        # A machine that is shared may be slower than it was when the steps were counted.
        late = not args.steps and time.perf_counter() - begun > args.seconds
        return late or 0 < args.stop_after <= done

    checkpoint = path.with_suffix(".training")
    network, points = train(
        learner,
        model,
        turns,
        training,
        checkpoint,
        tell,
        valid[: args.valid_steps],
        enough=enough,
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


def mend(args: argparse.Namespace, model: Causal, parts: Parts, keep: Keep) -> None:
    """Train MEND, and measure it and fine-tuning at the KL that it has on the valid part, gated as well."""
    learner = apply(Mend(batch=args.batch), *args.set)
    kept = args.work / f"base-words-{args.train}.json"
    material = {
        name: said_by_base(model, parts[name], args.near, kept, args.asked) for name in ("train", "valid")
    }
    texts = unrelated(args)

    def make(name: str) -> TrainingData:
        return TrainingData((), unrelated=texts[name], edits=tuple(material[name]))

    network, told = trained(learner, model, args, make)
    found: dict[str, Any] = {"settings": _settings(learner), "training": told}
    tables = {part: alone(args, model, parts[part], part) for part in ("valid", "test")}

    def measure(name: str, way: Method[Any], part: str, kept: str = "") -> None:
        found.setdefault(part, {"base": tables[part].of_base()}).update(tables[part].of(name, way, kept))
        keep(found)

    def drift_at(rate: float) -> float:
        return tables["valid"].kl(f"finetune-{rate:.4g}", finetune(rate))

    for part in ("valid", "test"):
        measure("mend", learner.with_network(network), part, f"mend-{told['steps']}")
    rate = args.finetune_rate
    if not rate:
        wanted = found["valid"]["mend"]["kl"]
        rate, found["finetune_tried"] = rate_at(wanted, drift_at, args.finetune_between)
    found["finetune_rate"] = rate
    measure("finetune", finetune(rate), "test", f"finetune-{rate:.4g}")
    measure("untrained", replace(learner, weights="untrained"), "test")
    found["mend_ahead_of_finetune"] = {
        f"behind {gate}" if gate else "no gate": tables["test"].ahead("mend", "finetune", gate)
        for gate in tables["test"].ways
    }
    keep(found)


def alone(
    args: argparse.Namespace, model: Causal, edits: Sequence[Edit], part: str, about: int = 0, **more: Any
) -> Alone:
    """Return what measures editors on a part, behind the gates of the command line."""
    gates = {
        text.partition("(")[0]: apply(GatedMemory(), f"scope={text}").scope for text in args.gate or ["words"]
    }
    return Alone(
        model,
        edits,
        about or len(edits),
        args.work / args.name / part,
        unrelated(args)["test"],
        **{"gates": gates, "batch": args.asked} | more,
    )


def others(args: argparse.Namespace, model: Causal, parts: Parts, keep: Keep) -> None:
    """Measure editors that learn from nothing, each edit by itself, and fine-tuning at several rates."""
    table = alone(args, model, parts["valid"], "valid")
    ways = {name: editing.EDITORS[name].spec().method for name in args.editors.split(",") if name}
    ways |= {f"finetune-{rate:.4g}": finetune(rate) for rate in args.finetune_rates}
    found: dict[str, Any] = {"training": None, "valid": {"base": table.of_base()}}
    for name, way in ways.items():
        found["valid"].update(table.of(name, way))
        keep(found)


def serac(args: argparse.Namespace, model: Causal, parts: Parts, keep: Keep) -> None:
    """Train SERAC's scope, judge it alone, then before the base that reads the edit and before an editor."""
    learner = apply(Trained(batch=args.batch), *args.set)
    network, told = trained(learner, model, args, lambda name: TrainingData((), edits=parts[name]))
    scope, untrained = learner.with_network(network), replace(learner, weights="untrained")
    found: dict[str, Any] = {"settings": _settings(learner), "training": told}
    asked = {part: nearest(scope, model, parts[part]) for part in ("valid", "test")}
    chosen = threshold_at(args.neighbours_open, asked["valid"])
    found["threshold"] = {"chosen": chosen, "neighbours_open_at_most": args.neighbours_open}
    for part in ("valid", "test"):
        edits = parts[part]
        found[part] = {
            "trained": judged(scope, model, edits) | through_at(scope.threshold, asked[part], edits),
            "threshold chosen": through_at(chosen, asked[part], edits),
            "untrained": judged(untrained, model, edits),
            "words": through(Words(), model, edits),
        }
        found.setdefault("let_in", {})[part] = let_in(scope.threshold, asked[part], edits)
        keep(found)
    gates = {"trained": scope, "threshold chosen": replace(scope, threshold=chosen), "words": Words()}
    # Each of the edits asked about is made by itself; which of all of them it is, the gate says.
    for key, about, name, way in (
        ("memory", args.memory, "oracle", GatedMemory(Always())),
        ("behind", args.editor, "gated-editor", GatedEditor(scope=Always())),
    ):
        if about := min(about, len(parts["test"])):
            table = alone(args, model, parts["test"], "test", about, gates=gates, kinds=(*KINDS, "loose"))
            found[key] = {"base": table.of_base(), **table.of(name, way, drifts=False)}
            keep(found)


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
        asked = [one for _, one in asked_of(some, ("edit", "neighbour"))]
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
    """Return all runs by editor, of each kind the one that is best on the valid part first.

    A file may hold several runs, merged before; of two with one name the later counts.
    """
    runs: dict[str, list[dict[str, Any]]] = {"mend": [], "serac": [], "slag": [], "others": []}
    for path in files:
        whole = json.loads(path.read_text())
        for run in [each for some in whole["runs"].values() for each in some] if "runs" in whole else [whole]:
            same = runs[run["editor"]]
            same[:] = [*(other for other in same if other["name"] != run["name"]), run]
    runs["mend"].sort(key=lambda run: -_worth(run["valid"]))
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


def _worth(valid: dict[str, Any]) -> float:
    """Return what MEND is chosen by: the lower of what it must say and what must stay, at its best gate."""
    rows = [told for way, told in valid.items() if way.split(" behind ")[0] == "mend"]
    return max(float(min(told["success"]["share"], told["same"]["share"] or 0.0)) for told in rows)


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


EDITORS: dict[str, Callable[..., None]] = {"mend": mend, "serac": serac, "slag": slag, "others": others}


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
    made.add_argument(
        "--stop-after", type=int, default=0, help="so many steps, though the rate was to fall to the last"
    )
    made.add_argument("--learning-rate", type=float, default=0.0)
    made.add_argument("--near", type=int, default=PROBES, help="neighbours of an edit to learn from")
    made.add_argument("--characters", type=int, default=240, help="of a text that is not related")
    made.add_argument("--finetune-rate", type=float, default=0.0, help="to compare with, else looked for")
    made.add_argument(
        "--finetune-between", type=float, nargs=2, default=KL_RATES, help="where that rate is looked for"
    )
    made.add_argument(
        "--finetune-rates", type=float, nargs="*", default=(), help="of `others`, one editor each"
    )
    made.add_argument("--editors", default="rome,memit", help="of `others`, as `editing.py` names them")
    made.add_argument(
        "--gate", action="append", default=[], help="a scope to stand behind as well: words, trained(...)"
    )
    made.add_argument("--clip", type=float, default=100.0)
    made.add_argument("--batch", type=int, default=16)
    made.add_argument("--train", type=int, default=20000, help="edits at most")
    made.add_argument("--valid", type=int, default=100)
    made.add_argument("--test", type=int, default=200)
    made.add_argument("--valid-steps", type=int, default=6, help="of the valid part, to choose a network by")
    made.add_argument(
        "--memory", type=int, default=100000, help="edits at most that a gated memory is asked about"
    )
    made.add_argument(
        "--neighbours-open",
        type=float,
        default=0.01,
        help="share of the valid part's that a scope may open for",
    )
    made.add_argument("--editor", type=int, default=0, help="the same, of an editor behind the scope")
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


RATES = {"mend": 1e-5, "serac": 1e-3, "slag": 3e-4, "others": 0.0}


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
