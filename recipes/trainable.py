"""Kinds of trainable under TTT-NN on text that a model cannot have read: gain, parameters, bytes, CPU
seconds.

    python recipes/fresh.py build                                        # build/fresh
    python recipes/trainable.py --model MODEL --documents 4 --json build/trainable.json

The first validation documents, drawn by a hash; every kind at one learning rate of its own. It resumes: kinds
that are in the JSON file already, for these documents and this model, are not run again.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fresh_common import drawn, store_of

import uptake
from uptake.adaptation.delta import Delta
from uptake.adaptation.trainable import Trainable
from uptake.errors import UptakeError
from uptake.lm.causal import Causal
from uptake.settings import parse
from uptake.store import Datastore
from uptake.text.types import Document


@dataclass(frozen=True)
class Kind:
    """What is trained, and AdamW's learning rate for it; a rate of its own was not searched for."""

    trainable: str
    rate: float


KINDS: Mapping[str, Kind] = {
    "lora": Kind("lora(rank=16)", 3e-4),
    "lora r1": Kind("lora(rank=1,alpha=2)", 1e-3),
    "ia3": Kind("ia3", 1e-2),
    "ia3 top 10": Kind("ia3(layers=10)", 1e-2),
    "prompt": Kind("prompt(tokens=20)", 1e-2),
    "compacter": Kind("compacter", 3e-3),
    "tarp": Kind("tarp", 1e-3),
}


def size(lm: Causal, kind: Kind) -> tuple[int, int]:
    """Return how many parameters train, and the bytes of the delta's file."""
    chosen = parse(Trainable, kind.trainable, "trainable")
    copy = chosen.copy(lm.module, Delta(lm.fingerprint), torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        copy.delta().save(Path(folder) / "delta")
        written = (Path(folder) / "delta").stat().st_size
    return sum(parameter.numel() for parameter in copy.parameters.values()), written


def measured(lm: Causal, store: Datastore, documents: list[Document], k: int, kind: Kind) -> dict[str, Any]:
    """Return the figures of TTT-NN with one kind on these documents."""
    settings = [f"trainable={kind.trainable}", f"optimizer=adamw(learning_rate={kind.rate})"]
    results = uptake.compare(lm, documents, ["base", "ttt-nn"], store=store, k=k, settings=settings)
    found = uptake.summary(results)["methods"]["ttt-nn"]
    parameters, written = size(lm, kind)
    return {"settings": settings, "parameters": parameters, "bytes": written, **found}


def main() -> int:
    """Run the kinds that are missing; return the status to exit with."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, default=Path("build/fresh"))
    parser.add_argument("--store", type=Path, default=Path("build/fresh/lexical.store"))
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    try:
        lm = uptake.load(options.model)
        assert isinstance(lm, Causal)
        store = store_of(options.data, options.store)
        documents = drawn(options.data, "valid")[: options.documents]
        ids = [document.id for document in documents]
        whole: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
        if (
            whole.get("documents") != ids
            or whole.get("model") != lm.fingerprint
            or whole.get("k") != options.k
        ):
            whole = {"model": lm.fingerprint, "documents": ids, "k": options.k, "kinds": {}}
        for name in options.kinds:
            if name not in whole["kinds"]:
                whole["kinds"][name] = measured(lm, store, documents, options.k, KINDS[name])
                options.json.write_text(json.dumps(whole, indent=1) + "\n")
            print(name, json.dumps(whole["kinds"][name]), flush=True)
    except UptakeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
