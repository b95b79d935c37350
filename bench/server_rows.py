"""Private rows without HTTP: the grid beside a loop, peft's mixed batch and a plain batch; and training.

Ways take turns, so that ratios are of neighbours in time. Seconds are CPU seconds of this process.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import uptake
from bench.served import spread
from bench.side_by_side import Load, decode, deltas, rounds, training
from uptake.adaptation.delta import Delta
from uptake.adaptation.side_by_side import stacking
from uptake.export import export_peft
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.generation import Decoding
from uptake.lm.grid import Grid
from uptake.lm.grid_rows import Own, own
from uptake.lm.wrappers import Routed
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.naming import method_specs
from uptake.methods.knn_lm.keys import TokenKeyer
from uptake.server.engine.rows import Answers, Row, Writer
from uptake.store import Datastore
from uptake.text.types import Document

SOURCES = Path(__file__).parent.parent / "src/uptake/lm"  # what kNN-LM's rows read
RANK = 8
RUNS = 5
CLOSE = 5e-3  # nats: what peft's batch says of the prompts, and what ours does


class Mixed:
    """peft's batch of several adapters, which `decode` can step."""

    def __init__(self, model: Path, lm: Causal, some: list[Any]) -> None:
        from peft import PeftModel

        base: Any = uptake.load(str(model))
        self.names = [f"row{row}" for row in range(len(some))]
        with tempfile.TemporaryDirectory() as folder:
            paths = [
                export_peft(delta, lm, Path(folder) / name)
                for name, delta in zip(self.names, some, strict=True)
            ]
            self.model: Any = PeftModel.from_pretrained(base.module, paths[0], adapter_name=self.names[0])
            for name, path in zip(self.names[1:], paths[1:], strict=True):
                self.model.load_adapter(path, adapter_name=name)
        self.model.eval()

    def start(self) -> None:
        return None

    def step(self, ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        out = self.model(
            input_ids=ids, past_key_values=cache, use_cache=True, adapter_names=self.names[: len(ids)]
        )
        return out.logits.float().log_softmax(-1), out.past_key_values


def decoding(model: Path, rows: int, steps: int, copies: int) -> dict[str, Any]:
    """Decode private rows four ways; `copies` are the adapted models that the loop holds at most."""
    lm: Any = uptake.load(str(model))
    some = deltas(lm, rows, RANK)
    prompts = torch.randint(1, len(lm.tokenizer), (rows, 32), generator=torch.Generator().manual_seed(1))
    loop = Routed((rows * [lm.overlay(delta) for delta in some[:copies]])[:rows])
    mixed: Any = Mixed(model, lm, some)
    owns = [Own(stacking(delta) or {}) for delta in some]

    def grid() -> float:
        table = Grid(lm)
        seats = [table.join(own, [0, *row]) for own, row in zip(owns, prompts[:, 1:].tolist(), strict=True)]
        started = time.process_time()
        for _ in range(steps):
            table.step({seat: int(seat.log_probs.argmax()) for seat in seats})
        return time.process_time() - started

    with torch.no_grad():
        theirs, ours = mixed.step(prompts)[0][0], lm.overlay(some[0]).step(prompts[:1])[0][0]
        assert (theirs - ours).abs().max() < CLOSE, "peft's batch does not answer as ours"
    jobs: dict[str, Callable[[], float]] = {
        "plain": lambda: decode(lm, lm, prompts, steps),
        "grid": grid,
        "loop": lambda: decode(loop, lm, prompts, steps),
        "peft": lambda: decode(mixed, lm, prompts, steps),
    }
    seconds = rounds(jobs, RUNS)

    def times(one: str, other: str) -> dict[str, float]:
        return spread([a / b for a, b in zip(seconds[one], seconds[other], strict=True)])

    return {
        "rows": rows,
        "tokens_a_cpu_second": {
            name: spread([rows * steps / each for each in own]) for name, own in seconds.items()
        },
        "times_loop": times("loop", "grid"),
        "times_peft": times("peft", "grid"),
        "of_plain": times("grid", "plain"),
    }


def together(model: Path, pieces: int) -> dict[str, Any]:
    """Adapt to eight texts together and one after another, at pieces of 128 and of 32 tokens."""
    lm: Any = uptake.load(str(model))
    found = {}
    for tokens in (128, 32):
        own = training(lm, 8, tokens, RANK, Load(rounds=2 * RUNS - 1, pieces=pieces))["seconds"]
        found[str(tokens)] = spread([a / b for a, b in zip(own["loop"], own["side_by_side"], strict=True)])
    return found


def mixing(model: Path, rows: int, steps: int) -> dict[str, Any]:
    """Write rows of kNN-LM over one store together and one by one, and rows that each have all weights."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    lm: Any = uptake.load(str(model))
    ((_, knn),) = method_specs(["knn-lm"], []).items()
    decoding = Decoding(tokens=steps, beyond_window=False)
    prompts = [f"def method_{row}(self, value):\n    return " for row in range(rows)]
    with tempfile.TemporaryDirectory() as folder:
        store = Datastore.create(Path(folder) / "s", retriever="lexical")
        store.add([Document(path.name, path.read_text()) for path in sorted(SOURCES.glob("*.py"))])
        store.read_tokens(TokenKeyer(lm))
        made: list[LM] = []
        for prompt in prompts:
            source = store.source(prompt)
            (state,) = knn.method.adapt(
                [knn.method.init(lm)], lm, [Evidence(source.search(0), prompt, source)], Context()
            )
            made.append(knn.method.adapted([state], lm))
        dense = {name: torch.zeros_like(t) for name, t in lm.module.named_parameters()}
        whole = [lm.overlay(Delta.dense(lm.fingerprint, dense)) for _ in prompts[: min(rows, 2)]]
        owns = [own(each) for each in made]

        def written(answers: list[Answers]) -> float:
            writer = Writer(lm, Grid(lm), rows)
            for number, (answer, prompt) in enumerate(zip(answers, prompts, strict=True)):
                writer.add(Row(number, answer, lm.tokenizer.opened(prompt), decoding))
            while len(writer.rows) < rows:  # all have read their prompts
                writer.tick()
            before, started = sum(row.written for row in writer.rows), time.process_time()
            all_rows = [*writer.rows]
            while writer.busy:
                writer.tick()
            spent = time.process_time() - started
            return spent / max(1, sum(row.written for row in all_rows) - before)

        ways = {
            "base": [Answers(own=Own())] * rows,
            "knn_together": [Answers(own=each) for each in owns],
            "knn_one_by_one": [Answers(lm=each) for each in made],
            "whole_one_by_one": [Answers(lm=whole[row % len(whole)]) for row in range(rows)],
            "base_one_by_one": [Answers(lm=lm)] * rows,
        }
        seconds = rounds({name: lambda own=answers: written(own) for name, answers in ways.items()}, RUNS)  # type: ignore[misc]
        tokens = len(store.source("a").tokens(TokenKeyer(lm).fingerprint).allowed)
    ratios = [a / b for a, b in zip(seconds["knn_one_by_one"], seconds["knn_together"], strict=True)]
    floor = [a / b for a, b in zip(seconds["whole_one_by_one"], seconds["base_one_by_one"], strict=True)]
    return {
        "rows": rows,
        "tokens_in_the_store": tokens,
        "ms_a_token": {name: spread([1000 * each for each in own]) for name, own in seconds.items()},
        "times_one_by_one": spread(ratios),
        "whole_of_base_one_by_one": spread(floor),
    }


class InProcess:
    """What the engine computes for a request, in this process and without a door."""

    def __init__(self, model: Path) -> None:
        self._lm: Any = uptake.load(str(model))
        self._grid = Grid(self._lm)

    def write(
        self, prompt: str, tokens: int, told: Callable[[str, bool], None] = lambda text, done: None
    ) -> None:
        """Write some tokens; `told` hears of each, and whether it is the last."""
        writer = Writer(self._lm, self._grid, 64)
        ids = self._lm.tokenizer.opened(prompt)
        row = Row(0, Answers(own=Own()), ids, Decoding(tokens=tokens, temperature=0, beyond_window=False))
        writer.add(row)
        while writer.busy:
            writer.tick()
            for token in row.told:
                told(token.text, bool(token.finish))
            row.told.clear()
