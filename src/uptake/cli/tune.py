"""`uptake tune`: choose settings on validation text and write them as a recipe."""

import json
from typing import TYPE_CHECKING, Annotated, Any

from uptake.cli import inputs, options, screen, searching
from uptake.errors import BadInput

if TYPE_CHECKING:
    from uptake.evaluation.tune import Recipe, Trial, Tuning
    from uptake.text.reading import Reading

EXAMPLES = options.examples(
    "uptake tune -m gpt2 -s notes.store --data valid.jsonl --budget 1.0s --out notes.recipe",
    "uptake eval -m gpt2 -s notes.store --data test.jsonl --recipe notes.recipe",
)


@options.reads_files
def tune(
    model: options.Model,
    data: options.Data,
    reading: "Reading",
    store: Annotated[
        str, options.option(options.MAIN, "DIR", "Datastore to retrieve neighbours from.", "--store", "-s")
    ],
    out: Annotated[str, options.option(options.OUTPUT, "FILE", "Write the recipe here.", "--out")],
    method: options.Method = "ttt-nn",
    budget: Annotated[
        str | None,
        options.option(options.MAIN, "SECONDS", "Maximum CPU seconds of a query, such as 1.0s."),
    ] = None,
    k: options.Neighbours = "1,5,20",
    settings: options.Setting = None,
    encoder: options.Encoder = None,
    search_by: searching.SearchBy = None,
    vector_weight: searching.VectorWeight = 20.0,
    query_encoder: searching.QueryEncoder = None,
    prefix: options.Prefix = 1024,
    suffix: options.Suffix = 1024,
    windows: options.Windows = 1,
    search: options.Search = None,
    limit: options.Limit = None,
    as_json: options.AsJson = False,
    device: options.Device = "cpu",
    dtype: options.DtypeOr = None,
    batch: options.BatchOr = None,
    workers: options.Workers = 1,
    seed: options.Seed = 0,
    threads: options.Threads = None,
) -> None:
    """Choose the trainable weights, the learning rate, k and the order, under a budget of CPU seconds.

    Use validation documents, never the ones you will report on. The table shows the Pareto frontier: the
    settings that no other beats in both gain and cost.
    """
    seconds = _seconds(budget)
    ks = inputs.counts(k, "-k")
    file = inputs.output_file("--out", out)
    inputs.check_outputs({"--out": file}, data)
    with screen.status("starting"):
        from itertools import islice

        from uptake import api
        from uptake.evaluation.defaults import usual_format
        from uptake.evaluation.protocols.per_query import PerQuery
        from uptake.evaluation.tune import Space
        from uptake.evaluation.tune import tune as choose
        from uptake.lm import loading
        from uptake.text import readers
    spec = api.method_specs([method], settings or ())[method]
    if not spec.searches or max(ks) < 1:
        raise BadInput(
            f"--method {method} -k {k}: tune chooses how neighbours are read, name one that reads some"
        )
    dtype = dtype or usual_format([spec])
    loading.check(device, dtype)
    inputs.set_threads(threads)
    skipped = readers.Skipped()
    with screen.status("reading documents"):
        documents = list(islice(readers.read(data, skipped=skipped, reading=reading), limit))
    screen.note_skipped(skipped)
    with screen.status("opening the store"):
        opened = inputs.open_store(
            store, encoder, device, threads, None, search_by, vector_weight, query_encoder
        )
    with screen.status("loading the model"):
        loaded = loading.load(model, device, dtype)
    with screen.interruptible("a search cannot be resumed"), screen.status("trying settings"):
        recipe, tuning = choose(
            loaded,
            documents,
            method,
            store=opened,
            settings=settings or (),
            space=Space(ks=tuple(ks)),
            budget=seconds,
            protocol=PerQuery(prefix, suffix, windows, search),
            batch=batch,
            seed=seed,
            workers=workers,
            progress=_note_trial,
        )
    if file is None:
        raise BadInput("--out: name a file for the recipe")
    recipe.write(file)
    _show(recipe, tuning, as_json)
    screen.note(f"recipe: {file}")


def _seconds(budget: str | None) -> float | None:
    if budget is None:
        return None
    try:
        seconds = float(budget.strip().removesuffix("s"))
    except ValueError:
        seconds = float("nan")
    if not seconds > 0:
        raise BadInput(f"--budget {budget}: write CPU seconds a query, such as 1.0s")
    return seconds


def _note_trial(made: int, best: "Trial") -> None:
    screen.note(
        f"{made:3} tried, best so far {100 * best.gain:5.1f} % at k = {best.k}: {', '.join(best.settings)}"
    )


def _show(recipe: "Recipe", tuning: "Tuning", as_json: bool) -> None:
    frontier, best = tuning.frontier(), tuning.best()
    if as_json:
        from dataclasses import asdict

        output: dict[str, Any] = {
            "recipe": asdict(recipe),
            "frontier": [{**asdict(trial), "chosen": trial is best} for trial in frontier],
        }
        screen.echo(json.dumps(output, indent=1))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, caption="cost against gain on validation text; > is the recipe")
    table.caption_justify = "left"
    for heading in ("", "CPU s a query", "gain", "k"):
        table.add_column(heading, justify="right")
    table.add_column("settings")
    for trial in frontier:
        table.add_row(
            ">" if trial is best else "",
            f"{trial.seconds:.2f}",
            f"{100 * trial.gain:.1f} %",
            str(trial.k or ""),  # some methods read no passages
            " ".join(trial.settings),
        )
    screen.results().print(table)
