"""Mixtures `A/B` in the grid: rows whose experts share passes, and the same rows answered one by one.

OMP_NUM_THREADS=1 python bench/server_mixtures.py --json bench/server_mixtures.json
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import uptake
from bench.served import MODEL, ROOT, spread
from bench.side_by_side import rounds
from uptake import read
from uptake.lm.generation import Decoding
from uptake.lm.grid import Grid
from uptake.lm.grid_rows import Own, own
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.naming import method_specs
from uptake.server.engine.rows import Answers, Row, Writer
from uptake.store.datastore import Datastore

METHOD = "in-context/ttt-nn"
SETTINGS = ("trainable=lora", "learning_rate=1e-3")
RUNS = 5


def measure(model: Path, rows: int, steps: int) -> dict[str, Any]:
    """Write rows of a mixture together and one by one, beside rows of the base, in turns."""
    lm: Any = uptake.load(str(model))
    (spec,) = method_specs([METHOD], SETTINGS).values()
    decoding = Decoding(tokens=steps, beyond_window=False)
    prompts = [f"How is store {row} opened, and what does it hold?" for row in range(rows)]
    made = []
    with tempfile.TemporaryDirectory() as folder:
        store = Datastore.create(Path(folder) / "s", retriever="lexical")
        store.add(read(str(ROOT / "docs" / "methods")))
        for prompt in prompts:
            source = store.source(prompt)
            evidence = [Evidence(source.search(2), prompt, source)]
            made += spec.method.adapt([spec.method.init(lm)], lm, evidence, Context())
        answering = [spec.method.adapted([state], lm) for state in made]

    def written(answers: list[Answers]) -> float:
        """Return the CPU seconds of a token, once all rows have read their prompts."""
        writer = Writer(lm, Grid(lm), rows)
        for number, (answer, prompt) in enumerate(zip(answers, prompts, strict=True)):
            writer.add(Row(number, answer, lm.tokenizer.opened(prompt), decoding))
        while len(writer.rows) < rows:
            writer.tick()
        every = [*writer.rows]
        before, started = sum(row.written for row in every), time.process_time()
        while writer.busy:
            writer.tick()
        spent = time.process_time() - started
        assert not any(row.error for row in every)
        return spent / (sum(row.written for row in every) - before)

    ways = {
        "together": [Answers(own=own(each)) for each in answering],
        "one_by_one": [Answers(lm=each) for each in answering],
        "base_together": [Answers(own=Own())] * rows,
    }
    seconds = rounds({name: lambda own=answers: written(own) for name, answers in ways.items()}, RUNS)  # type: ignore[misc]
    ratios = [a / b for a, b in zip(seconds["one_by_one"], seconds["together"], strict=True)]
    return {
        "method": METHOD,
        "experts": 3,
        "rows": rows,
        "steps": steps,
        "ms_a_token": {name: spread([1000 * each for each in own]) for name, own in seconds.items()},
        "times_one_by_one": spread(ratios),
    }


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = measure(asked.model, asked.rows, asked.steps)
    print(json.dumps(found, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
