"""How the demo's learning rate was chosen: on validation files, which it neither indexes nor shows.

python examples/choose_learning_rate.py
"""

import argparse
import os
import tempfile
from pathlib import Path

import demo
import torch

import uptake


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(demo.HERE / "demo-model"))
    parser.add_argument("--rates", nargs="+", default=["1e-4", "3e-4", "6e-4", "1e-3"])
    parser.add_argument("--queries", type=int, default=12)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = uptake.load(arguments.model, dtype=demo.best_dtype())
    parts = demo.split(list(demo.sources([])), arguments.queries)
    with tempfile.TemporaryDirectory() as folder:
        store = uptake.Datastore.create(Path(folder) / "store", retriever="lexical")
        store.add(parts.index)
        for rate in arguments.rates:
            results = uptake.compare(
                model,
                parts.validation,
                ["random", "ttt-nn"],
                store=store,
                k=max(demo.KS),
                settings=[f"learning_rate={rate}"],
                workers=arguments.workers,
            )
            gains = {label: figures["gain"] for label, figures in uptake.summary(results)["methods"].items()}
            print(
                f"{rate:>6}  " + "  ".join(f"{label} {100 * gain:5.1f} %" for label, gain in gains.items()),
                flush=True,
            )


if __name__ == "__main__":
    main()
