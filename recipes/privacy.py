"""What privacy costs on fresh text, and an attack on what it keeps: eps 8, eps 3 and none, side by side.

    python recipes/fresh.py build                                    # build/fresh
    python recipes/privacy.py run --model MODEL --data build/fresh   # one line a training, resumes
    python recipes/privacy.py table --model MODEL

The stream is the beginnings of fresh passages, each a document; the gain is the share of bits saved on other
documents of the same kind, which nobody trained on. Among the stream stand planted documents, each there or
not by the toss of a coin: the attack tells which from how much likelier the model finds them than its base
does (a likelihood ratio; Carlini et al. 2022, with the base as reference). How far a step goes is
chosen on validation text.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import uptake
from uptake.adaptation.delta import Delta
from uptake.adaptation.inner_loop import GradientDescent
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.privacy.dp import DP
from uptake.adaptation.trainable import LoRA, TrainableCopy
from uptake.codec import plain
from uptake.lm.causal import Causal
from uptake.lm.examples import Example, Piece, encode
from uptake.lm.private_training import train_privately
from uptake.lm.upper_blocks import above_frozen
from uptake.report.metrics import gain, gain_interval, ratio_interval
from uptake.text.types import Document, stable_hash

CHARACTERS = 120  # of each document: short ones, many of them
PLANTED = 64  # documents, each in the stream or not by the toss of a coin
DELTA = 1e-4  # a tenth of one over the number of documents
ARMS: Mapping[str, float | None] = {"none": None, "8": 8.0, "3": 3.0}  # epsilon
LENGTHS = (0.5, 1.0, 2.0, 4.0)  # of a step, the norm of all that it changes
HELD_OUT = {"valid": 48, "test": 96}
# Words of planted documents: nothing about the others says which of them stands where.
WORDS = (
    "amber basin cedar delta ember fjord grove heron inlet jasper kelp larch maple north onyx pearl quartz",
    "river slate tundra umber vale willow yarrow zephyr",
)


@dataclass(frozen=True)
class Data:
    """The stream without what is planted, what is held out, and what may be planted."""

    stream: tuple[Document, ...]
    held_out: Mapping[str, tuple[Document, ...]]
    planted: tuple[Document, ...]

    def members(self, seed: int) -> NDArray[np.bool_]:
        """Return which planted documents stand in the stream: half of them, drawn by the seed."""
        drawn = np.random.default_rng(stable_hash("planted", str(seed))).permutation(len(self.planted))
        return drawn < len(self.planted) // 2


@dataclass(frozen=True)
class Run:
    """One training: an arm, a seed of what is planted, and how many steps over how many documents."""

    arm: str
    seed: int
    steps: int
    batch: int
    layers: int

    @property
    def key(self) -> str:
        return f"{self.arm} {self.seed} {self.steps} {self.batch} {self.layers}"

    def dp(self) -> DP:
        """Return the settings of this arm; without privacy the same steps, no clip and no noise."""
        epsilon = ARMS[self.arm]
        shared: dict[str, Any] = {"delta": DELTA, "steps": self.steps, "batch": self.batch}
        if epsilon is None:
            return DP(epsilon=None, noise=0.0, clip=math.inf, seed=self.seed, **shared)
        return DP(epsilon=epsilon, **shared)


def read(folder: Path) -> Data:
    """Return the data of `recipes/fresh.py`, cut short."""
    stream = tuple(_documents(folder / "facts/train/passages.jsonl"))
    groups = {document.group for document in stream}
    held_out = {}
    for part, count in HELD_OUT.items():
        fresh = [d for d in _documents(folder / f"facts/{part}/passages.jsonl") if d.group not in groups]
        order = np.random.default_rng(stable_hash("held out", part)).permutation(len(fresh))
        held_out[part] = tuple(fresh[place] for place in sorted(order[:count]))
    return Data(stream, held_out, tuple(_planted()))


def _documents(path: Path) -> Iterator[Document]:
    for line in path.read_text(encoding="utf8").splitlines():
        each = json.loads(line)
        yield Document(each["id"], each["text"][:CHARACTERS], each["group"])


def _planted() -> Iterator[Document]:
    draws, words = np.random.default_rng(stable_hash("planted words")), " ".join(WORDS).split()
    for number in range(PLANTED):
        said = " ".join(words[place] for place in draws.integers(0, len(words), 8))
        code = int(draws.integers(10**5, 10**6))
        name = f"planted/{number}"
        yield Document(name, f"# vault, entry {code}: the phrase that opens it is {said}.", name)


def log_probs(lm: Any, tokenizer: Any, documents: Sequence[Document]) -> NDArray[np.float64]:
    """Return the log-probability of each document, in nats."""
    examples: list[Example] = [encode(tokenizer, "", document.text) for document in documents]
    with torch.no_grad():
        return np.array([float(lm.token_log_probs([each])[0].double().sum()) for each in examples])


def train(lm: Causal, data: Data, run: Run) -> dict[str, Any]:
    """Return what one training gave: log-probabilities of all that is held out or planted, and its claim.

    Each step goes as far down its noisy gradient as is best on validation text, which is public here. Only
    the upper factors of LoRA train: the lower ones have no gradient at first, and would take noise alone.
    """
    dp, members = run.dp(), data.members(run.seed)
    planted = [document for document, there in zip(data.planted, members, strict=True) if there]
    trainable = LoRA(rank=4, alpha=32, layers=run.layers)
    start = Delta(lm.fingerprint)
    private, opened = lm.trainable_copy(trainable, start, torch.Generator().manual_seed(run.seed))
    opened.module.eval()
    private = above_frozen(lm, private, opened, start)
    units = [
        [Piece(example, torch.ones(len(example.target)), document.id)]
        for document in (*data.stream, *planted)
        for example in [encode(lm.tokenizer, "", document.text)]
    ]
    claim, trained = dp.claim(len(units)), 0
    up = {name: value for name, value in opened.parameters.items() if "lora_B" in name}
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
    return {
        **{part: [*log_probs(private, lm.tokenizer, some)] for part, some in data.held_out.items()},
        "planted": [*log_probs(private, lm.tokenizer, data.planted)],
        "members": members.tolist(),
        "cpu_seconds": time.process_time() - started,
        "tokens_trained": trained,
        "lengths": taken,
        "claim": plain(claim),
        "said": claim.said(),
        "parameters": sum(parameter.numel() for parameter in up.values()),
    }


def _judged(lm: Any, base: Causal, data: Data) -> float:
    """Return the log-probability of some of the validation text, by which steps are chosen."""
    return float(log_probs(lm, base.tokenizer, data.held_out["valid"][::2]).sum())


def advantage(ratios: NDArray[np.float64], members: NDArray[np.bool_]) -> float:
    """Return the attack's true less its false positive rate, the likelier half of all called members.

    The threshold is fixed beforehand: half of the planted documents are in the stream.
    """
    called = np.argsort(np.argsort(-ratios, kind="stable"), kind="stable") < members.sum()
    return float(called[members].mean() - called[~members].mean())


def chance(members: NDArray[np.bool_], draws: int = 10_000) -> tuple[float, float]:
    """Return the 95 % interval of the advantage of guessing, by permutation."""
    generator = np.random.default_rng(0)
    found = [advantage(generator.random(len(members)), members) for _ in range(draws)]
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def figures(
    data: Data, rows: Mapping[str, Any], base: Mapping[str, Any], runs: Sequence[Run]
) -> dict[str, Any]:
    """Return each arm's gain on test text, its share of the gain without privacy, and the attack."""
    best = {run.arm: run for run in runs if run.key in rows}
    groups = [document.group for document in data.held_out["test"]]
    before = -np.array(base["test"])
    arms: dict[str, Any] = {}
    for arm, run in best.items():
        row = rows[run.key]
        after = -np.array(row["test"])
        members = np.array(row["members"])
        ratios = np.array(row["planted"]) - np.array(base["planted"])
        arms[arm] = {
            "steps": run.steps,
            "batch": run.batch,
            "layers": run.layers,
            "gain_valid": gain(-np.array(row["valid"]), -np.array(base["valid"])),
            "gain": gain(after, before),
            "ci": gain_interval(after, before, groups),
            "attack": advantage(ratios, members),
            "chance": chance(members),
            **{
                name: row[name]
                for name in ("claim", "said", "cpu_seconds", "tokens_trained", "parameters", "lengths")
            },
        }
        if arm != "none" and "none" in best:
            plain = -np.array(rows[best["none"].key]["test"])
            arms[arm]["share"] = float((before - after).sum() / (before - plain).sum())
            arms[arm]["share_ci"] = ratio_interval(before - after, before - plain, groups)
    return {"documents": len(data.stream), "planted": len(data.planted), "test": len(groups), "arms": arms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, default=Path("build/fresh"))
    parser.add_argument("--work", type=Path, default=Path("build/privacy"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=440)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--cpu-minutes", type=float, default=40.0, help="begin no training after so many")
    parser.add_argument("--out", type=Path, default=Path("recipes/privacy.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = read(options.data)
    runs = [
        Run(arm, seed, options.steps, options.batch, options.layers)
        for seed in range(options.seeds)
        for arm in options.arms
    ]
    file = options.work / f"{Path(options.model).name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"rows": {}}
    if options.action == "run":
        lm = uptake.load(options.model)
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
            told["rows"][run.key] = train(lm, data, run)
            file.write_text(json.dumps(told) + "\n", encoding="utf8")
            saved = gain(-np.array(told["rows"][run.key]["valid"]), -np.array(told["base"]["valid"]))
            print(
                f"{run.key}: gain on valid {saved:.4f}, {told['rows'][run.key]['cpu_seconds']:.0f} s",
                flush=True,
            )
        return
    found = figures(data, told["rows"], told["base"], [run for run in runs if run.key in told["rows"]])
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf8")
    for arm, each in found["arms"].items():
        share = f"{each['share']:.2f} {each['share_ci']}" if "share" in each else ""
        print(arm, f"{each['gain']:.4f} {each['ci']}", share, f"attack {each['attack']:.3f} {each['chance']}")


if __name__ == "__main__":
    main()
