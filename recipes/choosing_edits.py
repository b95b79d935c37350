"""Which facts to ask about? Half of a pool is looked up, corrected, and the whole pool asked again.

A person has some facts that a language model may have wrong and can look half of them up. Which half is
chosen before anything is known of the right answers, by what the model itself makes of each prompt and its
own answer: at random, those whose answer it is least sure of, those most alike, those that SIFT finds tell
most about the pool's middle, those that BAIT finds tell its last layer most about the whole pool. The right
answers of these are then learnt (plain fine-tuning) and all facts of the pool are asked. Beside
them stand the model as it is and the whole pool learnt. An editor that changes nothing but what it is
shown, as one behind a gate does, ends at what `found` says: the wrong answers among those looked up.

    python recipes/choosing_edits.py run --model MODEL --name known --facts counterfact-edit.json.xz --known 8
    python recipes/choosing_edits.py run --model MODEL --name updates --now --together \
        --facts build/fresh/updates/edits.jsonl
    python recipes/choosing_edits.py table --json recipes/choosing_edits.json

Facts with an old answer are asked for it (CounterFact's true one); `--now` asks for the new one. With
`--known` each pool holds so many facts that the model has right, with `--together` facts that stand beside
each other in the file, which are about like things.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fresh_common import difference
from numpy.typing import NDArray

import uptake
from uptake.codec import load
from uptake.errors import BadInput
from uptake.evaluation.edit_making import make_edits
from uptake.evaluation.records import RecordFile
from uptake.lm.base import LM
from uptake.lm.fisher import FisherReader
from uptake.methods.bait import in_units
from uptake.methods.contract.method import Context
from uptake.methods.contract.naming import method_specs
from uptake.report.metrics import gain, gain_difference, gain_interval, ratio_interval
from uptake.tasks.edit_asking import Reply, reply_to
from uptake.tasks.edit_marks import Asking
from uptake.tasks.edits import Edit
from uptake.text.bait import bait
from uptake.text.select import sift
from uptake.text.types import stable_hash

NOTHING, ALL, RANDOM = "nothing", "all", "random"
WAYS = (RANDOM, "least sure", "most alike", "sift", "bait")
TOKENS = 8  # of an answer
Floats = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Asked:
    """A pool after one way: which facts were looked up; of every fact whether it is right, and its nats."""

    pool: int
    way: str
    facts: tuple[str, ...]
    asked: tuple[int, ...]
    right: tuple[bool, ...]
    nats: tuple[float, ...]  # a token of the right answer
    choosing_seconds: float
    learning_seconds: float


@dataclass(frozen=True)
class Sizes:
    """Facts of a pool, how many are looked up, and how many the model has right (None: as it comes)."""

    pool: int = 24
    half: int = 12
    known: int | None = None


def facts_of(path: Path, now: bool, together: int) -> list[Edit]:
    """Return the facts with the answer that is right, in the order of a hash, `together` at a time.

    No prompt comes twice.
    """
    found: dict[str, Edit] = {}
    for edit in uptake.read_edits(path):
        right = edit.target if now or not edit.old else edit.old
        found.setdefault(edit.prompt, replace(edit, target=right, old=""))
    facts = [*found.values()]
    groups = [facts[start : start + together] for start in range(0, len(facts), together)]
    groups = [group for group in groups if len(group) == together]
    return [
        fact for group in sorted(groups, key=lambda each: stable_hash("drawn", each[0].id)) for fact in group
    ]


def pools_of(lm: LM, facts: Sequence[Edit], count: int, sizes: Sizes) -> list[list[Edit]]:
    """Return so many pools that share no fact. Raises BadInput where there are too few facts."""
    wanted = {False: sizes.pool}  # by whether the model has them right, as far as that matters
    if sizes.known is not None:
        wanted = {False: sizes.pool - sizes.known, True: sizes.known}
    pools: list[dict[bool, list[Edit]]] = [{kind: [] for kind in wanted} for _ in range(count)]
    for start in range(0, len(facts), 64):
        some = facts[start : start + 64]
        right = [False] * len(some)
        if sizes.known is not None:
            right = [reply.right for reply in _replies(lm, some)]
        for fact, kind in zip(some, right, strict=True):
            free = next((pool[kind] for pool in pools if len(pool[kind]) < wanted[kind]), None)
            if free is not None:
                free.append(fact)
        if all(len(of) == wanted[kind] for pool in pools for kind, of in pool.items()):
            return [
                sorted((one for of in pool.values() for one in of), key=lambda one: stable_hash("in", one.id))
                for pool in pools
            ]
    known = f" of which the model has {sizes.known} right" if sizes.known is not None else ""
    raise BadInput(f"{len(facts)} facts: too few for {count} pools of {sizes.pool}{known}; ask for fewer")


def _replies(lm: LM, facts: Sequence[Edit]) -> list[Reply]:
    return reply_to(lm, [Asking(one.id, 0, "edit", 0, one.prompt, one.target) for one in facts], TOKENS)


def choices(
    lm: LM, prompts: Sequence[str], replies: Sequence[Reply], half: int, seed: int
) -> dict[str, list[int]]:
    """Return what each way looks up, by its place. It sees prompts and the model's own answers alone."""
    texts = [prompt + reply.said for prompt, reply in zip(prompts, replies, strict=True)]
    read = FisherReader().read(lm, texts, torch.Generator().manual_seed(seed))
    factors = in_units(np.stack([each.factor for each in read]), len(texts))
    states = np.stack([each.state for each in read])
    unsure = [reply.said_nats / max(1, reply.said_tokens) for reply in replies]
    return {
        RANDOM: np.random.default_rng(seed).permutation(len(texts))[:half].tolist(),
        "least sure": sorted(range(len(texts)), key=lambda place: -unsure[place])[:half],
        "most alike": most_alike(states, half),
        "sift": sift(states, states.mean(0), half, repeats=False),
        "bait": bait(factors, half, None, 0.01),
    }


def most_alike(states: Floats, count: int) -> list[int]:
    """Return the place nearest to the middle, and then each time the one nearest to any that is chosen."""
    centred = states - states.mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(1e-12)
    chosen = [int(np.argmin(np.square(centred).sum(1)))]
    while len(chosen) < count:
        near = (unit @ unit[chosen].T).max(1)
        near[chosen] = -np.inf
        chosen.append(int(np.argmax(near)))
    return chosen


def run(arguments: Any) -> Iterator[str]:
    """Look up, learn and ask pool after pool; yield a line on each. Goes on where it stopped."""
    lm = uptake.load(arguments.model)
    method = method_specs(["finetune"], arguments.settings)["finetune"].method
    sizes = Sizes(arguments.pool, arguments.half, arguments.known)
    journal = RecordFile(arguments.work / f"edits-{arguments.name}.jsonl", _key(arguments))
    done = {(row.pool, row.way) for row in journal.start(lambda row: load(Asked, row))}
    facts = facts_of(arguments.facts, arguments.now, sizes.pool if arguments.together else 1)
    pools = pools_of(lm, facts, arguments.pools, sizes)
    for number, pool in enumerate(pools):
        if {(number, way) for way in (NOTHING, *WAYS, ALL)} <= done:
            continue
        before = _replies(lm, pool)
        started = time.process_time()
        made = choices(
            lm, [fact.prompt for fact in pool], before, sizes.half, stable_hash("pool", str(number))
        )
        choosing = time.process_time() - started
        told = []
        for way, asked in ({NOTHING: []} | made | {ALL: [*range(len(pool))]}).items():
            if (number, way) in done:
                continue
            started = time.process_time()
            after = lm
            if asked:
                # In the order of the pool: which are learnt is to count, not which come last.
                state, refused = make_edits(
                    method, method.init(lm), lm, [pool[place] for place in sorted(asked)], Context()
                )
                if refused:
                    raise BadInput(f"{pool[sorted(asked)[refused[0][0]]].id}: {refused[0][1]}")
                after = method.adapted([state], lm)
            learning = time.process_time() - started
            replies = before if not asked else _replies(after, pool)
            row = Asked(
                number, way, tuple(fact.id for fact in pool), tuple(sorted(asked)),
                tuple(reply.right for reply in replies), tuple(_nats(reply) for reply in replies),
                choosing if way in WAYS[1:] else 0.0, learning,
            )  # fmt: skip
            journal.keep(row)
            told.append(f"{way} {sum(row.right)} right, {np.mean(row.nats):.2f} nats")
        yield f"pool {number}: " + "; ".join(told)


def _nats(reply: Reply) -> float:
    assert reply.nats is not None  # of an "edit" it is always measured
    return reply.nats


def _key(arguments: Any) -> str:
    own = {
        name: str(getattr(arguments, name))
        for name in ("pool", "half", "known", "now", "together", "settings")
    }
    return f"{arguments.name} {own}"


def figures(rows: Sequence[Asked]) -> dict[str, Any]:
    """Return what each way found, and what the whole pool and the facts not looked up are worth after it."""
    of: dict[str, dict[int, Asked]] = {}
    for row in rows:
        of.setdefault(row.way, {})[row.pool] = row
    whole = sorted(set.intersection(*(set(pools) for pools in of.values())))
    names = [str(number) for number in whole]
    plain = [of[NOTHING][number] for number in whole]
    base = [sum(row.nats) for row in plain]
    wrong = [sum(not each for each in row.right) for row in plain]
    sizes = [len(row.right) for row in plain]
    told: dict[str, Any] = {"pools": len(whole), "facts": sum(sizes), "wrong": sum(wrong), "ways": {}}
    told["looked_up"] = len(of[RANDOM][whole[0]].asked)
    kept = {way: [pools[number] for number in whole] for way, pools in of.items()}
    for way, own in kept.items():
        nats = [sum(row.nats) for row in own]
        found = [_found(row, was) for row, was in zip(own, plain, strict=True)]
        # The facts that were not looked up: what is said of them follows from the others alone.
        rest = [
            [place for place in range(len(row.right)) if place not in row.asked] if way != NOTHING else []
            for row in own
        ]
        before = [sum(was.nats[place] for place in places) for was, places in zip(plain, rest, strict=True)]
        after = [sum(row.nats[place] for place in places) for row, places in zip(own, rest, strict=True)]
        right = [sum(row.right) for row in own]
        told["ways"][way] = {
            "found": _share(found, wrong, names),
            "right": _share(right, sizes, names),
            "saved": {"value": gain(nats, base), "interval": gain_interval(nats, base, names)},
            "choosing_seconds": float(np.mean([row.choosing_seconds for row in own])),
            "learning_seconds": float(np.mean([row.learning_seconds for row in own])),
        }
        if sum(before):
            told["ways"][way]["saved_of_the_rest"] = {
                "value": gain(after, before), "interval": gain_interval(after, before, names),
            }  # fmt: skip
        for other in (RANDOM, ALL):
            if way not in (other, NOTHING):
                beside = kept[other]
                there = [_found(row, was) for row, was in zip(beside, plain, strict=True)]
                told["ways"][way][f"beyond {other}"] = {
                    "found": _share(_less(found, there), wrong, names),
                    "right": _share(_less(right, [sum(row.right) for row in beside]), sizes, names),
                    "saved": gain_difference(nats, [sum(row.nats) for row in beside], base, names),
                }
    return told


def _less(own: Sequence[float], other: Sequence[float]) -> list[float]:
    return [one - two for one, two in zip(own, other, strict=True)]


def _found(row: Asked, before: Asked) -> int:
    return sum(not before.right[place] for place in row.asked)


def _share(above: Sequence[float], below: Sequence[float], names: Sequence[str]) -> dict[str, Any]:
    return {
        "value": sum(above) / sum(below) if sum(below) else None,
        "interval": ratio_interval(above, below, names),
    }


def table(arguments: Any) -> dict[str, Any]:
    """Return the figures of every run in the working folder, by its name."""
    told: dict[str, Any] = {}
    for path in sorted(arguments.work.glob("edits-*.jsonl")):
        head = json.loads(path.read_text().split("\n", 1)[0].split(" ", 1)[1])
        rows = RecordFile(path, head["key"]).start(lambda row: load(Asked, row))
        told[path.stem.removeprefix("edits-")] = {"run": head["key"], **figures(rows)}
    return told


def shown(told: Mapping[str, Any]) -> str:
    """Return a run's figures as a table: shares and what is saved in %, differences in points."""
    lines = [
        f"{told['pools']} pools of {told['facts'] // told['pools']} facts, {told['wrong']} wrong; "
        f"{told['looked_up']} looked up\n",
        "| looked up | wrong ones found | beyond random | right after | beyond random | nats saved "
        "| beyond random | of those not looked up |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, own in told["ways"].items():
        beyond = own.get(f"beyond {RANDOM}", {})
        cells = [
            _cell(own["found"]), _cell(beyond.get("found")), _cell(own["right"]), _cell(beyond.get("right")),
            _cell(own["saved"]), difference(beyond.get("saved")), _cell(own.get("saved_of_the_rest")),
        ]  # fmt: skip
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return ""
    if found["interval"] is None:
        return f"{100 * found['value']:.0f}"
    low, high = found["interval"]
    return f"{100 * found['value']:.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "table"):
        command = commands.add_parser(name)
        command.add_argument("--work", type=Path, default=Path("build/choosing"))
    command.add_argument("--json", type=Path)
    command = commands.choices["run"]
    command.add_argument("--model", required=True)
    command.add_argument("--facts", type=Path, required=True, help="a file of edits")
    command.add_argument("--name", required=True, help="of the run: work/edits-NAME.jsonl")
    command.add_argument("--now", action="store_true", help="the edit's new answer is right, not its old one")
    command.add_argument("--together", action="store_true", help="a pool is facts beside each other")
    command.add_argument("--pools", type=int, default=8)
    command.add_argument("--pool", type=int, default=Sizes.pool, help="facts of one")
    command.add_argument("--half", type=int, default=Sizes.half, help="facts that are looked up")
    command.add_argument("--known", type=int, help="facts of a pool that the model has right")
    command.add_argument(
        "--settings", nargs="*",
        default=["trainable=top(layers=4)", "optimizer=adamw(learning_rate=3e-4,weight_decay=0)", "passes=3"],
    )  # fmt: skip
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    if arguments.command == "run":
        for line in run(arguments):
            print(line, flush=True)
        return
    told = table(arguments)
    for name, of in told.items():
        print(f"{name}: {shown(of)}\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
