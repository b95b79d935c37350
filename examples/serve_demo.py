"""Serve the repository's model, adapted to the repository's own documentation: `make serve-demo`."""

import os
import sys
from pathlib import Path

from uptake import Datastore, read

ROOT = Path(__file__).parent.parent
STORE = ROOT / "build" / "serve" / "docs.store"

ASK = """
Once it is up, in another terminal:

curl localhost:8000/v1/completions -H 'content-type: application/json' -d '
  {"model": "demo-model+docs", "prompt": "The datastore ", "max_tokens": 32, "temperature": 0}'
"""


def main() -> None:
    """Make the store if it is not there, and become `uptake serve`."""
    if not STORE.exists():
        STORE.parent.mkdir(parents=True, exist_ok=True)
        added = Datastore.create(STORE, retriever="lexical").add(read(str(ROOT / "docs")))
        print(f"indexed {added.passages:,} passages of docs/")
    print(ASK, flush=True)
    model = str(ROOT / "examples" / "demo-model")
    settings = ["--set", "trainable=lora", "--set", "learning_rate=1e-3", "-k", "5"]
    program = [str(Path(sys.executable).with_name("uptake")), "serve", "-m", model, "-s", str(STORE)]
    os.execv(program[0], [*program, *settings, *sys.argv[1:]])


if __name__ == "__main__":
    main()
