"""The main job in a minute: a small model meets packages it has never read, and reads its neighbours.

    make demo                                             # the model and the packages that are here
    make demo ARGS="--model gpt2 --corpus notes/ --data test.jsonl"

It indexes the sources of packages that Uptake depends on, except some held-out files; continues
one prompt before and after reading; compares the base, random neighbours, in-context and TTT-NN
on the held-out files; and writes a page. The held-out files are in no index, and the leak filter
drops whatever repeats them.
"""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

if TYPE_CHECKING:
    from rich.table import Table

    from uptake.methods.contract.method import MethodSpec

HERE = Path(__file__).parent
PACKAGES = ("networkx", "mpmath", "rich", "jinja2", "typer", "peft", "fsspec")
# Chosen on validation files, which are neither indexed nor shown: see examples/choose_learning_rate.py.
LEARNING_RATE = 3e-4
KS = (1, 5, 20)
METHODS = ("base", "random", "in-context", "ttt-nn")
PROMPT = "def test_dijkstra(self):\n        G = nx."

console = Console(width=min(100, Console().width) if Console().is_terminal else 100)


def corpus_of(paths: list[str]) -> list[str]:
    """Return the corpus named, or the folders of the installed packages."""
    if paths:
        return paths
    found = [importlib.util.find_spec(name) for name in PACKAGES]
    return [place for spec in found if spec for place in list(spec.submodule_search_locations or [])[:1]]


class Split(NamedTuple):
    """Documents to index, and those held out: to choose settings on, and to show."""

    index: list
    validation: list
    test: list


def split(documents: list, queries: int) -> Split:
    """Hold out `queries` documents twice, at most a fifth of those long enough, by a hash of their names."""
    from uptake.text.types import stable_hash

    long = [document for document in documents if len(document.text) >= 2048]
    long.sort(key=lambda document: stable_hash("order", document.id))
    count = min(queries, max(1, len(long) // 5))
    test, validation = long[:count], long[count : 2 * count]
    held = {document.id for document in (*test, *validation)}
    return Split([document for document in documents if document.id not in held], validation, test)


def best_dtype() -> str:
    """Return bfloat16 where the processor multiplies it natively, else float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "float32"
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def sources(paths: list[str]) -> Iterator:
    import uptake

    return uptake.read(corpus_of(paths))


def main() -> None:
    arguments = parser(__doc__).parse_args()
    ours = Path(arguments.model).resolve() == (HERE / "demo-model").resolve()
    arguments.set = [*([f"learning_rate={LEARNING_RATE}"] if ours else []), *arguments.set]
    told(run, arguments)


def parser(about: str | None) -> argparse.ArgumentParser:
    """Return the options of a demo, with the defaults of this one."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(HERE / "demo-model"), help="Hugging Face name or folder")
    parser.add_argument("--corpus", nargs="+", default=[], help="text to index: files, folders, data sets")
    parser.add_argument(
        "--data", nargs="+", default=[], help="documents to score (default: held out of the corpus)"
    )
    parser.add_argument("--encoder", help="search by meaning too: an encoder's name or folder, or lm:MODEL")
    parser.add_argument(
        "--prompt", help="text to continue (default: a function, or how a held-out text begins)"
    )
    parser.add_argument("--queries", type=int, default=12, help="held-out documents to score")
    parser.add_argument("--set", nargs="+", default=[], help="settings, such as learning_rate=1e-4")
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes that share the scoring"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=best_dtype())
    parser.add_argument("--seed", type=int, default=0)
    return parser


def told(demo: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> None:
    """Run a demo; tell what cannot be done in one line, and exit 2, or 130 where it was interrupted."""
    from uptake.cli.screen import InterruptedWork
    from uptake.errors import UptakeError

    try:
        demo(arguments)
    except (UptakeError, InterruptedWork) as error:
        console.print(Text(f"demo: {error}"))
        sys.exit(2 if isinstance(error, UptakeError) else 130)


def run(
    arguments: argparse.Namespace,
    methods: "Mapping[str, MethodSpec] | None" = None,
    shown: str = "ttt-nn",
    ks: Sequence[int] = KS,
) -> None:
    """Index, continue one prompt under `shown`, compare `methods` (or the usual four), write a page."""
    started = time.monotonic()
    with console.status("loading the model"):
        import torch

        import uptake
        from uptake.cli import evaluating, screen
        from uptake.cli.tables import fitted
        from uptake.report import page
        from uptake.report import summary as report
        from uptake.report.results import Sample
        from uptake.text.types import stable_hash

        torch.set_num_threads(arguments.threads)
        model = uptake.load(arguments.model, arguments.device, arguments.dtype)
    settings = arguments.set
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    console.rule("[bold]Uptake")
    console.print(f"  base model   {Path(arguments.model).name}, {parameters / 1e6:,.1f} M parameters")

    documents = list(sources(arguments.corpus))
    parts = split(documents, arguments.queries)
    test = list(uptake.read(arguments.data)) if arguments.data else parts.test
    index = documents if arguments.data else parts.index
    # Both are named by what they hold, so that a run which was interrupted goes on.
    held = stable_hash(arguments.encoder or "", *(f"{each.id} {stable_hash(each.text)}" for each in index))
    folder = arguments.out / f"store-{held:016x}"
    asked = [str(value) for name, value in sorted(vars(arguments).items()) if name not in ("out", "workers")]
    asked += [*map(str, ks), *(METHODS if methods is None else methods)]
    journal = arguments.out / f"report-{stable_hash(str(held), *asked):016x}.journal"
    retriever = (
        {"retriever": "hybrid", "encoder": arguments.encoder}
        if arguments.encoder
        else {"retriever": "lexical"}
    )
    begun = (folder / "store.json").is_file()
    store = (
        uptake.Datastore.open(folder, encoder=arguments.encoder, device=arguments.device)
        if begun
        else uptake.Datastore.create(folder, **retriever, device=arguments.device)
    )
    names = ", ".join(Path(path).name for path in corpus_of(arguments.corpus))
    console.print(f"  new text     {names}: {len(index):,} documents indexed, {len(test)} held out\n")
    with screen.progress("  indexing passages") as update:
        store.add(index, progress=lambda done, known: update(done, known, ""))

    prompt = arguments.prompt or (test[0].text[:300] if arguments.corpus else PROMPT)
    with console.status("reading the neighbours of one prompt"):
        adapting = shown if methods is None else methods[shown]
        session = uptake.adapt(
            model, prompt, adapting, store=store, k=max(ks), settings=settings if methods is None else ()
        )
        sample = Sample(
            prompt,
            {
                "base": model.generate(prompt, 48, stop=["\n\n"]),
                shown: session.generate(prompt, 48, stop=["\n\n"]),
            },
            session.neighbours,
        )
    for name, text in (
        ("before", sample.continuations["base"]),
        ("after reading", sample.continuations[shown]),
    ):
        whole = Text(sample.prompt, style="dim").append(text, style="bold")
        console.print(Panel(whole, title=name, title_align="left", width=console.width))
    nearest = " · ".join(dict.fromkeys(one.document for one in session.neighbours[:4]))
    console.print(Text(f"  read: {nearest} and {max(0, len(session.neighbours) - 4)} more\n", style="dim"))

    with (
        screen.interruptible("finished queries are saved: the same command goes on from there"),
        screen.progress("  scoring held-out documents", resumes="an interrupted run") as update,
    ):
        results = uptake.compare(
            model,
            test,
            METHODS if methods is None else methods,
            store=store,
            k=ks,
            settings=settings if methods is None else (),
            seed=arguments.seed,
            batch=1,
            showcases=3,
            workers=arguments.workers,
            journal=journal,
            progress=update,
        )
    results = replace(results, samples=(sample,))
    console.print()

    def whole(left_out: Sequence[str]) -> "Table":
        return report.table(results, left_out)

    console.print(fitted(whole, results.kind.optional_headings, console))
    arguments.out.mkdir(parents=True, exist_ok=True)
    report.write_json(results, arguments.out / "report.json")
    page.write_page(results, arguments.out / "report.html")
    evaluating.forget(journal)  # the report holds it all
    console.print(f"\n  page   {arguments.out / 'report.html'}   (open it in a browser)")
    console.print(f"  json   {arguments.out / 'report.json'}")
    console.print(f"  took   {time.monotonic() - started:.0f} s\n")


if __name__ == "__main__":
    main()
