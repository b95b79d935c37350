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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from privacy_data import CHARACTERS, Data, read
from privacy_figures import figures
from privacy_kept import Entered, entered
from privacy_runs import ARMS, CLIP, OPENLY, Run, runs_of

import uptake
from uptake.adaptation.delta import Delta
from uptake.adaptation.inner_loop import GradientDescent
from uptake.adaptation.optimizers import SGD, AdamW
from uptake.adaptation.privacy.dp import Claim
from uptake.adaptation.trainable import TrainableCopy
from uptake.codec import plain
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.examples import Example, Piece, encode
from uptake.lm.private_training import train_privately
from uptake.lm.upper_blocks import above_frozen
from uptake.report.metrics import gain
from uptake.text.types import Document

LOOKS = 12  # at validation text in a training by AdamW
ON_AVERAGE = 0  # in place of the best step: the mean over the second half of them
TOGETHER = 16  # texts of a pass, where it is not a CPU that runs it
LENGTHS = (0.5, 1.0, 2.0, 4.0)  # of a step, the norm of all that it changes


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


def train_long(lm: Causal, data: Data, run: Run, kept: Entered | None = None) -> dict[str, Any]:
    """Return what a training by AdamW gave: at its best on validation text, and at its end.

    What is held out is told at the best, for validation text is public here; the attack is on the end. Where
    the second half of the training ends up on average is tried as well: that spends no privacy.
    """
    members = data.members(run.seed)
    private, opened = lm.trainable_copy(
        run.trainable, Delta(lm.fingerprint), torch.Generator().manual_seed(run.seed)
    )
    opened.module.eval()
    private = _quick(lm, private, opened, kept)
    units = pieces_of(lm, data, members)
    dp = run.dp(len(units))
    claim, started, trained = dp.claim(len(units)), time.process_time(), 0
    training = opened.parameters if run.arm == OPENLY else _upper(opened, run.parts)
    descent = GradientDescent(training, AdamW(run.rate, weight_decay=0.0))
    opened = TrainableCopy(opened.module, training, opened.delta)
    best, at, done = -math.inf, 0, 0
    at_best: dict[str, torch.Tensor] = {}
    late: list[dict[str, torch.Tensor]] = []
    every = max(1, run.steps // LOOKS)

    def look(place: int) -> None:
        nonlocal best, at, at_best
        judged = _judged(private, lm, data)
        print(f"{run.key}, {f'step {place}' if place else 'on average'}: {judged}", flush=True)
        if judged > best:
            best, at, at_best = judged, place, _values(training)

    while done < run.steps:
        some = replace(dp, steps=min(every, run.steps - done))
        trained += train_privately(private, opened, units, some, claim, descent, done).tokens
        done += some.steps
        look(done)
        if 2 * done > run.steps:
            late.append(_values(training))
    told = _told(private, lm, data, members, claim, training)
    _set(training, {name: torch.stack([each[name] for each in late]).mean(0) for name in training})
    look(ON_AVERAGE)
    seconds = time.process_time() - started
    _set(training, at_best)
    held_out = {part: [*log_probs(private, lm.tokenizer, some)] for part, some in data.held_out.items()}
    return {**held_out, **told, "cpu_seconds": seconds, "tokens_trained": trained, "best_step": at}


def _values(parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in parameters.items()}


def _set(parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


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


def _upper(opened: TrainableCopy, parts: Sequence[str] = ()) -> dict[str, torch.nn.Parameter]:
    """Return what trains, of LoRA its upper factors: the lower ones have no gradient at first, and would take
    noise alone. `parts` are the matrices that it is on, all if there are none.
    """
    return {
        name: value
        for name, value in opened.parameters.items()
        if "lora_A" not in name and (not parts or any(f".{part}." in name for part in parts))
    }


def _quick(lm: Causal, private: LM, opened: TrainableCopy, kept: Entered | None = None) -> LM:
    """Return the copy as it is quickest: without the frozen blocks below, or many texts in one pass."""
    if lm.device.type != "cpu":
        return private
    return above_frozen(lm, private, opened, Delta(lm.fingerprint), kept)


def entered_of(lm: Causal, data: Data, layers: int, file: Path) -> Entered | None:
    """Return what enters the blocks that train, of all texts; None where texts share passes."""
    documents = (*data.stream, *data.planted, *(some for part in data.held_out.values() for some in part))
    if lm.device.type != "cpu":
        return None
    return entered(lm, [encode(lm.tokenizer, "", document.text) for document in documents], layers, file)


def train(lm: Causal, data: Data, run: Run, kept: Entered | None = None) -> dict[str, Any]:
    """Return what one training gave: log-probabilities of all that is held out or planted, and its claim.

    Each step goes as far down its noisy gradient as is best on validation text, which is public here. Only
    the upper factors of LoRA train.
    """
    members = data.members(run.seed)
    private, opened = lm.trainable_copy(
        run.trainable, Delta(lm.fingerprint), torch.Generator().manual_seed(run.seed)
    )
    opened.module.eval()
    private = _quick(lm, private, opened, kept)
    units = pieces_of(lm, data, members)
    dp = run.dp(len(units))
    claim, trained = dp.claim(len(units)), 0
    up = _upper(opened, run.parts)
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
    parser.add_argument(
        "--parts", nargs="*", default=[], help="matrices of a block that LoRA is on, such as down_proj; all"
    )
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
            kept = entered_of(lm, data, run.layers, file.with_suffix(f".{run.layers}"))
            row = (train_long if run.rate else train)(lm, data, run, kept)
            if file.exists():  # another process may have added rows
                told = json.loads(file.read_text())
            told["rows"][run.key] = row
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
