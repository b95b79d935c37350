"""What privacy costs on fresh text, and an attack on what it keeps: eps 8, eps 3 and none, side by side.

    python recipes/fresh.py build                                    # build/fresh
    python recipes/privacy.py run --model MODEL --data build/fresh   # one line a training, resumes
    python recipes/privacy.py table --model MODEL
    python recipes/privacy.py run --model MODEL --arms none clipped 8 --passes 1 --batch 64 --rate 1e-2 3e-2

The stream is the beginnings of fresh passages, each a document; the gain is the share of bits saved on other
documents of the same kind, which nobody trained on. Among the stream stand planted documents, each there or
not by the toss of a coin: the attack tells which from how much likelier the model finds them than its base
does (a likelihood ratio; Carlini et al. 2022, with the base as reference). How far a step goes is
chosen on validation text, or, with --rate, AdamW takes the steps and the best number of them is. The arm
`clipped` clips and adds no noise, which tells the two apart. With --documents more definitions of the same
packages stand in the stream. Where several batches and rates were run, an arm is told at the best of its own
on validation text, so that what privacy keeps is a share of what the same stream gives without it at its
best. Beside them stands a training at length without privacy (`openly`): what privacy costs against the best
that one may do, and whether the attack sees what was learnt that way.
"""

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from privacy_data import CHARACTERS, Data, read

import uptake
from uptake.adaptation.delta import Delta
from uptake.adaptation.inner_loop import GradientDescent
from uptake.adaptation.optimizers import SGD, AdamW
from uptake.adaptation.privacy.dp import DP, Claim
from uptake.adaptation.trainable import LoRA, Trainable, TrainableCopy
from uptake.adaptation.trainable.ia3 import IA3
from uptake.codec import plain
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.examples import Example, Piece, encode
from uptake.lm.private_training import train_privately
from uptake.lm.upper_blocks import above_frozen
from uptake.report.metrics import gain, gain_interval, ratio_interval
from uptake.text.types import Document

DELTA = 1e-4  # a tenth of one over the number of documents, of so many as facts are about
CLIP = 0.1
OPENLY, CLIPPED = "openly", "clipped"
ARMS: Mapping[str, float | None] = {"none": None, CLIPPED: None, "8": 8.0, "3": 3.0, OPENLY: None}  # epsilon
OPEN_STEPS, OPEN_BATCH, OPEN_RATE = 240, 64, 1e-3  # of AdamW, on both factors of LoRA
LOOKS = 12  # at validation text in a training by AdamW
TOGETHER = 16  # texts of a pass, where it is not a CPU that runs it
LENGTHS = (0.5, 1.0, 2.0, 4.0)  # of a step, the norm of all that it changes


@dataclass(frozen=True)
class Run:
    """One training: an arm, a seed of what is planted, and how many steps over how many documents."""

    arm: str
    seed: int
    steps: int
    batch: int
    layers: int
    rank: int
    rate: float = 0.0  # of AdamW; 0: steps along the noisy gradient, each as long as is best on validation
    clip: float = CLIP
    documents: int = 0  # of the stream; 0: those that facts are about

    @property
    def key(self) -> str:
        how = f" {self.rate:g}" if self.rate else ""
        if (self.clip, self.documents) != (CLIP, 0):
            how = f" {self.rate:g} {self.clip:g} {self.documents}"
        return f"{self.arm} {self.seed} {self.steps} {self.batch} {self.layers} {self.rank}{how}"

    @classmethod
    def of(cls, key: str) -> "Run":
        """Return the run of a key."""
        arm, *numbers = key.split()
        seed, steps, batch, layers, rank = map(int, numbers[:5])
        documents = int(numbers[7]) if len(numbers) > 7 else 0
        return cls(arm, seed, steps, batch, layers, rank, *map(float, numbers[5:7]), documents=documents)

    @property
    def trainable(self) -> Trainable:
        """What trains: LoRA, at rank 0 (IA)^3."""
        if self.rank == 0:
            return IA3(layers=self.layers)
        return LoRA(rank=self.rank, alpha=8 * self.rank, layers=self.layers)

    def dp(self, units: int) -> DP:
        """Return the settings of this arm; without privacy the same steps, no clip and no noise."""
        epsilon = ARMS[self.arm]
        delta = min(DELTA, 0.1 / units) if self.documents else DELTA
        shared: dict[str, Any] = {"delta": delta, "steps": self.steps, "batch": self.batch}
        if epsilon is None:
            clip = self.clip if self.arm == CLIPPED else math.inf
            return DP(epsilon=None, noise=0.0, clip=clip, seed=self.seed, **shared)
        return DP(epsilon=epsilon, clip=self.clip, **shared)


def log_probs(lm: Any, tokenizer: Any, documents: Sequence[Document]) -> NDArray[np.float64]:
    """Return the log-probability of each document, in nats."""
    examples: list[Example] = [encode(tokenizer, "", document.text) for document in documents]
    size = 1 if lm.device.type == "cpu" else TOGETHER
    with torch.no_grad():
        found = [
            each.double().sum()
            for start in range(0, len(examples), size)
            for each in lm.token_log_probs(examples[start : start + size])
        ]
    return np.array([float(each) for each in found])


def pieces_of(lm: Causal, data: Data, members: NDArray[np.bool_]) -> list[list[Piece]]:
    """Return the units that train: each document of the stream, and those that are planted in it."""
    planted = [document for document, there in zip(data.planted, members, strict=True) if there]
    return [
        [Piece(example, torch.ones(len(example.target)), document.id)]
        for document in (*data.stream, *planted)
        for example in [encode(lm.tokenizer, "", document.text)]
    ]


def train_long(lm: Causal, data: Data, run: Run) -> dict[str, Any]:
    """Return what a training by AdamW gave: at its best on validation text, and at its end.

    What is held out is told at the best, for validation text is public here; the attack is on the end.
    """
    members = data.members(run.seed)
    private, opened = lm.trainable_copy(
        run.trainable, Delta(lm.fingerprint), torch.Generator().manual_seed(run.seed)
    )
    opened.module.eval()
    private = _quick(lm, private, opened)
    units = pieces_of(lm, data, members)
    dp = run.dp(len(units))
    claim, started, trained = dp.claim(len(units)), time.process_time(), 0
    training = opened.parameters if run.arm == OPENLY else _upper(opened)
    descent = GradientDescent(training, AdamW(run.rate, weight_decay=0.0))
    opened = TrainableCopy(opened.module, training, opened.delta)
    best, at, done = -math.inf, 0, 0
    at_best: dict[str, torch.Tensor] = {}
    every = max(1, run.steps // LOOKS)
    while done < run.steps:
        some = replace(dp, steps=min(every, run.steps - done))
        trained += train_privately(private, opened, units, some, claim, descent, done).tokens
        done += some.steps
        judged = _judged(private, lm, data)
        if judged > best:
            best, at = judged, done
            at_best = {name: value.detach().clone() for name, value in training.items()}
        print(f"{run.key}, step {done}: {judged}", flush=True)
    seconds = time.process_time() - started
    told = _told(private, lm, data, members, claim, training)
    with torch.no_grad():
        for name, value in at_best.items():
            training[name].copy_(value)
    held_out = {part: [*log_probs(private, lm.tokenizer, some)] for part, some in data.held_out.items()}
    return {**held_out, **told, "cpu_seconds": seconds, "tokens_trained": trained, "best_step": at}


def _told(
    private: LM,
    lm: Causal,
    data: Data,
    members: NDArray[np.bool_],
    claim: Claim,
    trained: Mapping[str, torch.nn.Parameter],
) -> dict[str, Any]:
    """Return what every training tells: what the attack sees, who was in the stream, the claim, its size."""
    return {
        "planted": [*log_probs(private, lm.tokenizer, data.planted)],
        "members": members.tolist(),
        "claim": plain(claim),
        "said": claim.said(),
        "parameters": sum(parameter.numel() for parameter in trained.values()),
    }


def _upper(opened: TrainableCopy) -> dict[str, torch.nn.Parameter]:
    """Return what trains, of LoRA its upper factors: the lower ones have no gradient at first, and would take
    noise alone.
    """
    return {name: value for name, value in opened.parameters.items() if "lora_A" not in name}


def _quick(lm: Causal, private: LM, opened: TrainableCopy) -> LM:
    """Return the copy as it is quickest: without the frozen blocks below, or many texts in one pass."""
    return above_frozen(lm, private, opened, Delta(lm.fingerprint)) if lm.device.type == "cpu" else private


def train(lm: Causal, data: Data, run: Run) -> dict[str, Any]:
    """Return what one training gave: log-probabilities of all that is held out or planted, and its claim.

    Each step goes as far down its noisy gradient as is best on validation text, which is public here. Only
    the upper factors of LoRA train.
    """
    members = data.members(run.seed)
    private, opened = lm.trainable_copy(
        run.trainable, Delta(lm.fingerprint), torch.Generator().manual_seed(run.seed)
    )
    opened.module.eval()
    private = _quick(lm, private, opened)
    units = pieces_of(lm, data, members)
    dp = run.dp(len(units))
    claim, trained = dp.claim(len(units)), 0
    up = _upper(opened)
    started = time.process_time()
    judged, taken = _judged(private, lm, data), list[float]()
    for step in range(run.steps):
        before = {name: value.detach().clone() for name, value in up.items()}
        descent = GradientDescent(up, SGD(1.0))
        one = replace(dp, steps=1)
        opened_up = TrainableCopy(opened.module, up, opened.delta)
        trained += train_privately(private, opened_up, units, one, claim, descent, step).tokens
        downs = {name: value.detach() - before[name] for name, value in up.items()}
        size = float(torch.stack([down.square().sum() for down in downs.values()]).sum().sqrt())
        found = {0.0: judged}
        for length in (*LENGTHS, 0.0):
            length = max(found, key=lambda each: found[each]) if length == 0.0 else length
            with torch.no_grad():
                for name, value in up.items():
                    value.copy_(before[name] + downs[name] * (length / size if size else 0.0))
            if length not in found:
                found[length] = _judged(private, lm, data)
        judged = found[length]
        taken.append(length)
        print(f"{run.key}, step {step}: {found}", flush=True)
    told = _told(private, lm, data, members, claim, up)
    held_out = {part: [*log_probs(private, lm.tokenizer, some)] for part, some in data.held_out.items()}
    seconds = time.process_time() - started
    return {**held_out, **told, "cpu_seconds": seconds, "tokens_trained": trained, "lengths": taken}


def _judged(lm: Any, base: Causal, data: Data) -> float:
    """Return the log-probability of some of the validation text, by which steps are chosen."""
    return float(log_probs(lm, base.tokenizer, data.held_out["valid"][::2]).sum())


def advantage(ratios: NDArray[np.float64], members: NDArray[np.bool_]) -> float:
    """Return the attack's true less its false positive rate, the likelier half of all called members.

    The threshold is fixed beforehand: half of the planted documents are in the stream.
    """
    called = np.argsort(np.argsort(-ratios, kind="stable"), kind="stable") < members.sum()
    return float(called[members].mean() - called[~members].mean())


def chance(members: NDArray[np.bool_], draws: int = 10_000, seeds: int = 1) -> tuple[float, float]:
    """Return the 95 % interval of the advantage of guessing, the mean of `seeds` times, by permutation."""
    generator = np.random.default_rng(0)
    found = [
        np.mean([advantage(generator.random(len(members)), members) for _ in range(seeds)])
        for _ in range(draws)
    ]
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def best_of(runs: Sequence[Run], rows: Mapping[str, Any]) -> list[Run]:
    """Return the runs of those settings that are best on validation text, the mean over their seeds."""
    alike: dict[Run, list[Run]] = {}
    for run in runs:
        alike.setdefault(replace(run, seed=0), []).append(run)
    return max(alike.values(), key=lambda some: np.mean([sum(rows[run.key]["valid"]) for run in some]))


def figures(
    data: Data, rows: Mapping[str, Any], base: Mapping[str, Any], runs: Sequence[Run]
) -> dict[str, Any]:
    """Return each arm's gain on test text, its share of the gains without privacy, and the attack.

    Of several settings of an arm the one that is best on validation text is told. Several seeds of it are
    one figure: the mean of their bits, and of the attack's advantages.
    """
    there = {
        arm: best_of([run for run in runs if run.arm == arm and run.key in rows], rows)
        for arm in dict.fromkeys(run.arm for run in runs if run.key in rows)
    }
    groups = [document.group for document in data.held_out["test"]]
    before = -np.array(base["test"])

    def bits(arm: str, part: str) -> NDArray[np.float64]:
        return -np.mean([rows[run.key][part] for run in there[arm]], axis=0)

    arms: dict[str, Any] = {}
    for arm, some in there.items():
        found = [rows[run.key] for run in some]
        after = bits(arm, "test")
        attacks = [
            advantage(np.array(row["planted"]) - np.array(base["planted"]), np.array(row["members"]))
            for row in found
        ]
        arms[arm] = {
            "seeds": len(some),
            "tried": {
                run.key: gain(-np.array(rows[run.key]["valid"]), -np.array(base["valid"]))
                for run in runs
                if run.arm == arm and run.key in rows
            },
            "steps": some[0].steps,
            "batch": some[0].batch,
            "rate": some[0].rate,
            "documents": some[0].documents or len(data.stream),
            "layers": some[0].layers,
            "rank": some[0].rank,
            "gain_valid": gain(bits(arm, "valid"), -np.array(base["valid"])),
            "gain": gain(after, before),
            "ci": gain_interval(after, before, groups),
            "attack": float(np.mean(attacks)),
            "chance": chance(np.array(found[0]["members"]), seeds=len(some)),
            "cpu_seconds": float(np.mean([row["cpu_seconds"] for row in found])),
            **{name: found[0][name] for name in ("claim", "said", "tokens_trained", "parameters")},
            **{name: found[0][name] for name in ("lengths", "best_step") if name in found[0]},
        }
        for name, other in (("share", "none"), ("share_of_openly", OPENLY)):
            if arm not in (OPENLY, other) and other in there:
                saved = before - bits(other, "test")
                arms[arm][name] = float((before - after).sum() / saved.sum())
                arms[arm][f"{name}_ci"] = ratio_interval(before - after, saved, groups)
    return {"documents": len(data.stream), "planted": len(data.planted), "test": len(groups), "arms": arms}


def runs_of(options: argparse.Namespace, units: int) -> list[Run]:
    """Return the runs that are asked for: each arm, batch, rate and seed."""
    shape = options.layers, options.rank
    found = []
    for seed in range(options.seeds):
        for arm in options.arms:
            if arm == OPENLY:
                found.append(Run(arm, seed, OPEN_STEPS, OPEN_BATCH, *shape, OPEN_RATE))
                continue
            for batch in options.batch:
                steps = max(1, options.passes * units // batch) if options.passes else options.steps
                found += [
                    Run(arm, seed, steps, batch, *shape, rate, clip, options.documents)
                    for rate in options.rate
                    for clip in (options.clip if arm not in ("none", OPENLY) else [CLIP])
                ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, default=Path("build/fresh"))
    parser.add_argument("--work", type=Path, default=Path("build/privacy"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument(
        "--passes", type=int, default=0, help="in place of steps: as many as read it so often"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[440])
    parser.add_argument("--characters", type=int, default=CHARACTERS, help="of each document")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rank", type=int, default=4, help="of LoRA; 0: (IA)^3")
    parser.add_argument("--clip", type=float, nargs="+", default=[CLIP])
    parser.add_argument("--documents", type=int, default=0, help="of the stream; 0: those of the facts")
    parser.add_argument(
        "--rate", type=float, nargs="+", default=[0.0], help="of AdamW; 0: the best length of each step"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-minutes", type=float, default=40.0, help="begin no training after so many")
    parser.add_argument("--out", type=Path, default=Path("recipes/privacy.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = read(options.data, options.characters, options.documents)
    runs = runs_of(options, len(data.stream) + len(data.planted) // 2)
    file = options.work / f"{Path(options.model).name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"rows": {}}
    if options.action == "run":
        lm = uptake.load(options.model, options.device)
        if "base" not in told:
            told["base"] = {
                **{part: [*log_probs(lm, lm.tokenizer, some)] for part, some in data.held_out.items()},
                "planted": [*log_probs(lm, lm.tokenizer, data.planted)],
            }
        for run in runs:
            if run.key in told["rows"]:
                continue
            if time.process_time() > 60 * options.cpu_minutes:
                print("the CPU minutes are spent: the same command goes on")
                break
            told["rows"][run.key] = (train_long if run.rate else train)(lm, data, run)
            file.write_text(json.dumps(told) + "\n", encoding="utf8")
            saved = gain(-np.array(told["rows"][run.key]["valid"]), -np.array(told["base"]["valid"]))
            print(
                f"{run.key}: gain on valid {saved:.4f}, {told['rows'][run.key]['cpu_seconds']:.0f} s",
                flush=True,
            )
        return
    # All that was run on this stream, whatever the other options of this call.
    there = [run for run in map(Run.of, told["rows"]) if run.documents == options.documents]
    found = figures(data, told["rows"], told["base"], there)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf8")
    for arm, each in found["arms"].items():
        share = f"{each['share']:.2f} {each['share_ci']}" if "share" in each else ""
        if "share_of_openly" in each:
            share += f" of openly {each['share_of_openly']:.2f} {each['share_of_openly_ci']}"
        print(arm, f"{each['gain']:.4f} {each['ci']}", share, f"attack {each['attack']:.3f} {each['chance']}")


if __name__ == "__main__":
    main()
