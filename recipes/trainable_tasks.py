"""The tasks of recipes/trainable.py: made of made-up worlds and of holes in source files, 32 examples each.

Methods with a network of their own are trained on other attributes and other packages first.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import trainable_kinds as kinds
from trainable_kinds import KINDS, Unrelated, marks, spending

import uptake
from uptake.adaptation.delta import Delta
from uptake.adaptation.delta.prompt import Prompt as SoftPrompt
from uptake.adaptation.optimizers import SGD, AdamW
from uptake.adaptation.trainable.prompt import Prompt
from uptake.lm.causal import Causal
from uptake.lm.scoring import losses
from uptake.methods.adapter_mixture import AdapterMixture
from uptake.methods.attempt import Attempt
from uptake.methods.contract.few_shot import shots_of
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.weight_state import WeightState
from uptake.methods.few_shot import FewShot
from uptake.methods.finetune import Finetune
from uptake.methods.mltd import Mltd
from uptake.tasks.few_shot import Shot, Task, grouped_tasks, hole_shots, world_tasks
from uptake.text.types import Found
from uptake.train import Training, train

if TYPE_CHECKING:
    from trainable import Work

ATTRIBUTES = {"train": range(6), "valid": (6,), "test": (7, 8)}
PACKAGES = {"train": slice(0, 9), "valid": slice(9, 11), "test": slice(11, 14)}  # of all, by name
IN_CONTEXT = 8
AN_EXAMPLE = 0  # in place of a number of steps: one on each example, in their order
OWNER = "prompt"
LEARNED = ("mltd", "lora by the same loop", "mixture", "lora on all tasks", "attempt")
SOURCE_SHOTS, SOURCE_RATE = 32, 1e-2
RATES = {
    "mltd": (0.05, 0.5, 2.0),
    "lora by the same loop": (0.05, 0.5, 2.0),
    "attempt": (3e-3, 1e-2, 3e-2),
    "best source": (3e-3, 1e-2, 3e-2),
}
RATES_OF_MIXTURES = (3e-4, 1e-3, 3e-3)


@cache
def holes(data: Path) -> dict[str, list[list[Shot]]]:
    """Return the examples of each source file that has some, by package."""
    found: dict[str, list[list[Shot]]] = {}
    for document in uptake.read(data / "store.jsonl"):
        if shots := hole_shots(document):
            found.setdefault(document.id.partition("/")[0], []).append(shots)
    return found


def tasks(data: Path, part: str, support: int, asked: int, seed: int) -> list[Task]:
    """Return the tasks of a part: attributes and packages that no other part has."""
    split: Any = part
    made = world_tasks(support, asked, ATTRIBUTES[part], split, seed)
    names = sorted(holes(data))[PACKAGES[part]]
    return made + grouped_tasks({name: holes(data)[name] for name in names}, support, asked, seed)


def some_of(found: Sequence[Task], each: int | None, seed: int) -> list[Task]:
    """Return `each` tasks of worlds and as many of holes, all if None; another seed begins at others."""
    if each is None:
        return [*found]
    made = (
        [task for task in found if task.asked[0].wrong],
        [task for task in found if not task.asked[0].wrong],
    )
    return [some[(seed * each + place) % len(some)] for some in made for place in range(min(each, len(some)))]


def unpicked(task: Task) -> Task:
    """Return a task without wrong answers to its questions: reading those takes as long as the rest."""
    return replace(task, asked=tuple(replace(shot, wrong=()) for shot in task.asked))


def run_tasks(lm: Causal, work: "Work", options: argparse.Namespace) -> None:
    """Measure each kind, and methods that were trained on other tasks, on tasks of a few examples."""
    each = options.each
    valid = some_of(tasks(options.data, "valid", options.shots, options.asked, 0), each, 0)
    test = [
        (f"{seed} {task.name}", task)
        for seed in range(options.seeds)
        for task in some_of(tasks(options.data, "test", options.shots, options.asked, seed), each, seed)
    ]
    if not options.picks:
        valid, test = [unpicked(task) for task in valid], [(key, unpicked(task)) for key, task in test]
    unrelated = Unrelated.of(lm)
    for key, task in test:
        work.row(f"tasks/test/base/{key}", _asked, lm, task, 0)
        work.row(f"tasks/test/in-context/{key}", _asked, lm, task, IN_CONTEXT)
    for name in options.kinds:
        trainable = kinds.trainable_of(lm, name)
        method = FewShot(trainable=trainable, choices=None)
        _measure(lm, work, options, name, method, KINDS[name].rates, valid, test, unrelated)
        if name == "ia3":
            with_choices = FewShot(trainable=trainable)
            _measure(lm, work, options, "t-few", with_choices, KINDS[name].rates, valid, test, unrelated)
    for name in options.learned:
        _learned(lm, work, options, name, valid, test, unrelated)


def _measure(
    lm: Causal,
    work: "Work",
    options: argparse.Namespace,
    name: str,
    method: Any,
    rates: Sequence[float],
    valid: Sequence[Task],
    test: Sequence[tuple[str, Task]],
    unrelated: Unrelated,
) -> None:
    """Choose a rate for each number of steps, and measure the method on the test tasks."""
    for steps in options.steps:

        def cost(rate: float, steps: int = steps) -> float | None:
            key = f"tasks/valid/{name}/{steps}/{rate:g}"
            return work.row(key, _cost, lm, _at(method, rate, steps), valid)  # type: ignore[no-any-return]

        if options.rates == 0:
            best = of_stream(work, name)
        else:
            best = kinds.best_rate(rates, options.rates, cost, options.climb)
        if best is None:
            continue
        chosen = _at(method, best, steps)
        for key, task in test:
            work.row(f"tasks/test/{name}/{steps}/{key}", _run, lm, chosen, task, unrelated)


def of_stream(work: "Work", name: str) -> float | None:
    """Return the rate at which a kind answers best about the stream's validation text; None untried."""
    start = f"stream/valid/{name}/"
    tried = {float(key.removeprefix(start)): row for key, row in work.rows.items() if key.startswith(start)}
    return min(tried, key=lambda rate: sum(tried[rate]["marks"]["nats"]), default=None)


def _asked(lm: Causal, task: Task, shots: int) -> dict[str, Any]:
    """Return how the base answers, with so many examples before each prompt."""
    before = "".join(f"{shot.prompt}{shot.answer.rstrip()}\n" for shot in task.support[:shots])
    return {"marks": marks(lm, task.asked, lm, before).plain()}


def _cost(lm: Causal, method: Any, some: Sequence[Task]) -> float:
    return sum(_nats(_run(lm, method, task, None)) for task in some)


def _at(method: Any, rate: float, steps: int) -> Any:
    optimizer = SGD(rate) if isinstance(method, Mltd) else AdamW(rate, weight_decay=0.0)
    if steps == AN_EXAMPLE:
        return Finetune(trainable=method.trainable, optimizer=optimizer)
    return replace(method, optimizer=optimizer, steps=steps)


def _nats(row: dict[str, Any]) -> float:
    # A mean a task: one of long answers counts as much as another.
    return sum(row["marks"]["nats"]) / sum(row["marks"]["tokens"])


def _run(lm: Causal, method: Any, task: Task, unrelated: Unrelated | None) -> dict[str, Any]:
    """Return how a task's questions are answered after its examples were learnt, and what learning took."""
    passages = tuple(shot.passage() for shot in task.support)
    evidence = Evidence(Found(passages, (0.0,) * len(passages)))
    with spending(lm) as spent:
        state = _begun(lm, method, task)
        (state,) = method.adapt([state], lm, [evidence], Context(continues=False))
    adapted = method.adapted([state], lm)
    if isinstance(method, Attempt):
        found = [
            marks(method.adapted([method.asked_for(state, lm, shot.prompt)], lm), [shot], lm).plain()
            for shot in task.asked
        ]
        told = {name: [value for each in found for value in each[name]] for name in found[0]}
    else:
        told = marks(adapted, task.asked, lm).plain()
    row = {"marks": told, "cpu": spent.cpu, "wall": spent.wall, **spent.memory}
    row |= {"bytes": kinds.bytes_of(state.delta), "rate": method.optimizer.learning_rate}
    return row | ({"kl": unrelated.kl(lm, adapted)} if unrelated else {})


@dataclass(frozen=True, kw_only=True)
class FromSource(FewShot):
    """Prompt tuning that begins at the source prompt under which a task's examples are likeliest (SPoT)."""

    sources: tuple[Delta, ...] = field(default=(), repr=False, metadata={"setting": False})


def _begun(lm: Causal, method: Any, task: Task) -> Any:
    if not isinstance(method, FromSource):
        return method.init(lm)

    def cost(delta: Delta) -> float:
        model = lm.overlay(delta)
        with torch.no_grad():
            return float(losses(model, shots_of(model, task.support)).sum())

    return WeightState(base=lm.fingerprint, delta=min(method.sources, key=cost))


def _learned(
    lm: Causal,
    work: "Work",
    options: argparse.Namespace,
    name: str,
    valid: Sequence[Task],
    test: Sequence[tuple[str, Task]],
    unrelated: Unrelated,
) -> None:
    """Train a method's network on other tasks, and measure the method and its controls."""
    folder, started = options.out.with_suffix(""), time.process_time()
    folder.mkdir(parents=True, exist_ok=True)
    upper = max(1, len(kinds.blocks(lm.module)[1]) // kinds.UPPER)
    made: dict[str, Any] = {
        "mltd": Mltd(support=8, asked=8, steps=2, optimizer=SGD(0.5), layers=upper),
        "lora by the same loop": Mltd(
            support=8, asked=8, steps=2, optimizer=SGD(0.5), layers=upper, kind="lora", cell=0
        ),
        "mixture": AdapterMixture(support=8, asked=8, layers=upper),
        "lora on all tasks": AdapterMixture(support=8, asked=8, layers=upper, experts=1, rank=16),
        "attempt": Attempt(support=8, asked=8, sources=tuple(map(str, _sources(lm, options, folder)))),
    }
    method = made[name]
    path = folder / f"{name.replace(' ', '-')}.network"
    if not path.exists():
        episodes = _episodes(options, method.support, method.asked)
        training = Training(
            optimizer=AdamW(1e-3, weight_decay=0.0), save_every=50, warm_up_and_decay=True, seed=0
        )
        network, points = train(method, lm, episodes, training, folder / f"{path.name}.training")
        method.save(network, lm, path)
        work.row(
            f"tasks/trained/{name}",
            lambda: {"losses": [point.loss for point in points], "cpu": time.process_time() - started},
        )
    trained = replace(method, weights=str(path))
    rates = RATES.get(name, RATES_OF_MIXTURES)
    _measure(lm, work, options, name, trained, rates, valid, test, unrelated)
    if name == "mixture":
        average = replace(trained, choose="average")
        _measure(lm, work, options, "mixture average", average, rates, valid, test, unrelated)
    if name == "mltd":
        untrained = replace(method, weights="untrained")
        _measure(lm, work, options, "mltd untrained", untrained, rates, valid, test, unrelated)
    if name == "attempt":
        prompts = tuple(Delta.load(each, lm.fingerprint) for each in _paths(folder))
        spot = FromSource(trainable=Prompt(20, OWNER), choices=None, sources=prompts)
        _measure(lm, work, options, "best source", spot, RATES["best source"], valid, test, unrelated)
        drawn = replace(method, weights="untrained", sources=(), drawn=options.sources)
        _measure(lm, work, options, "attempt, drawn sources", drawn, rates, valid, test, unrelated)


def _episodes(options: argparse.Namespace, support: int, asked: int) -> list[Task]:
    """Return episodes of the training tasks, each time of other examples."""
    made: list[Task] = []
    seed = 0
    while len(made) < options.episodes:
        made += tasks(options.data, "train", support, asked, 100 + seed)
        seed += 1
    return made[: options.episodes]


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("source-*.delta"))


def _sources(lm: Causal, options: argparse.Namespace, folder: Path) -> list[Path]:
    """Return the files of source prompts, each trained on one training task; those that are there stay."""
    count = options.sources
    if len(_paths(folder)) < count and "attempt" in options.learned:
        whole = tasks(options.data, "train", SOURCE_SHOTS, 1, 50)
        # As many of worlds as of holes, as far as there are.
        chosen = [*whole[: count // 2], *whole[::-1][: count - count // 2]]
        for number, task in enumerate(chosen):
            path = folder / f"source-{number}.delta"
            if path.exists():
                continue
            method = FewShot(
                trainable=Prompt(20, OWNER),
                optimizer=AdamW(SOURCE_RATE, weight_decay=0.0),
                steps=options.source_steps,
                choices=None,
            )
            passages = tuple(shot.passage() for shot in task.support)
            evidence = Evidence(Found(passages, (0.0,) * len(passages)))
            (state,) = method.adapt([method.init(lm)], lm, [evidence], Context(continues=False))
            assert all(isinstance(part, SoftPrompt) for part in state.delta.parts.values())
            state.delta.save(path)
    return _paths(folder)
