"""`uptake cost`: estimate the time and memory of a comparison before running it."""

import inspect
import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from uptake.cli import compare as comparing
from uptake.cli import evaluating, inputs, options, screen
from uptake.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uptake.evaluation.cost import CostRange, Forecast
    from uptake.methods.contract.method import MethodSpec

EXAMPLES = options.examples(
    "uptake cost -m gpt2 -s notes.store --data test.jsonl -k 1,5,20",
    "uptake cost -m gpt2 -s notes.store --data test.jsonl --recipe notes.recipe --workers 8",
)

Queries = Annotated[
    int,
    options.option(options.MAIN, "N", "Number of queries to measure, evenly spread over the data.", least=1),
]


def cost(**given: Any) -> None:
    """Measure a few queries of a comparison, and estimate the time and memory of all of it.

    The options are those of `uptake compare`. The estimate holds for this machine under its present load.
    """
    named = None if given["methods"] is None else inputs.methods(given["methods"], "ttt-nn")
    reading = options.reading_of(given)
    with screen.status("starting"):
        from itertools import islice

        from uptake import api
        from uptake.evaluation.cost import forecast
        from uptake.evaluation.defaults import LARGE_METHODS, queries_together, usual_format, usual_methods
        from uptake.evaluation.plan import Plan
        from uptake.lm import loading
        from uptake.methods.contract.spending import Budget
        from uptake.text import readers
    protocol = evaluating.protocol(given["protocol"], given)
    if protocol.data != "documents":
        raise BadInput(f"--protocol {protocol.name}: no forecast is made of it; run compare with --limit 10")
    chosen, settings = inputs.recipe(given["recipe"]), given["settings"] or ()
    more = [chosen.method] if chosen else []
    if chosen:
        settings = [*(f"{chosen.method}.{setting}" for setting in chosen.settings), *settings]
    ks = inputs.counts(given["k"] or str(chosen.k if chosen else 20), "-k")

    def specs(names: "Sequence[str]") -> "dict[str, MethodSpec]":
        # Every query is scored by the base too, whether it is among the methods or not.
        return api.method_specs(list(dict.fromkeys(("base", *names, *more))), settings)

    plan = Plan(
        specs(LARGE_METHODS if named is None else named),
        protocol,
        tuple(ks),
        given["seed"],
        given["batch"] or 1,
        Budget(*(given[f"max_{name}"] for name in ("tokens", "steps", "cpu_seconds", "wall_seconds"))),
        inputs.leak_filter(
            given["leak_containment"],
            given["leak_jaccard"],
            given["leak_letters"],
            given["leak_spaced_letters"],
            given["no_leak_filter"],
        ),
    )
    if plan.sequential and given["workers"] > 1:
        raise BadInput("reference=true carries state from query to query: use one worker")
    dtype = given["dtype"] or usual_format(plan.methods.values())
    loading.check(given["device"], dtype)
    wanted = evaluating.wanted_store(given["store"], plan)
    # Each of several workers has one thread.
    threads = 1 if given["workers"] > 1 else given["threads"]
    inputs.set_threads(threads)
    skipped = readers.Skipped()
    with screen.status("reading documents"):
        documents = list(
            islice(readers.read(given["data"], skipped=skipped, reading=reading), given["limit"])
        )
    screen.note_skipped(skipped)
    store = None
    if wanted:
        with screen.status("opening the store"):
            way = (given[name] for name in ("search_by", "vector_weight", "query_encoder"))
            store = inputs.open_store(wanted, given["encoder"], given["device"], threads, None, *way)
    with screen.status("loading the model"):
        loaded = loading.load(given["model"], given["device"], dtype)
    methods = specs(usual_methods(loaded) if named is None else named)
    plan = replace(plan, methods=methods, batch=given["batch"] or queries_together(loaded, methods))
    with screen.interruptible("an estimate cannot be resumed"), screen.progress("measuring") as update:
        found = forecast(
            loaded,
            plan,
            documents,
            store,
            queries=given["queries"],
            workers=given["workers"],
            progress=update,
        )
    _show(found, given["as_json"])


def _show(found: "Forecast", as_json: bool) -> None:
    if as_json:
        from dataclasses import asdict

        screen.echo(json.dumps(asdict(found), indent=1))
        return
    from rich.table import Table

    from uptake.report.formatting import many, number, size

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("method", no_wrap=True)
    for heading in ("k", "CPU time", "tokens trained", "peak memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    for spec in found.methods:
        tokens = number(spec.tokens_trained.value, 0, ",") if spec.tokens_trained else ""
        ks = ",".join(str(k) for k in spec.k if k)
        table.add_row(spec.method, ks, _span(spec.cpu_seconds), tokens, size(spec.peak_bytes))
    screen.results().print(table)
    whole = many(found.size.documents, "document", "documents")
    if found.size.units != found.size.documents:
        whole = f"{many(found.size.units, 'query', 'queries')} of {whole}"
    by = "" if found.workers == 1 else f" by {found.workers} workers, each with this memory"
    screen.echo(f"{whole}: about {_span(found.wall_seconds)}{by}; {found.measured} measured")
    for spec in found.methods:
        if spec.failed:
            screen.note(f"note: {spec.method} failed on a measured query: {spec.failed}")


def _span(seconds: "CostRange | None") -> str:
    if seconds is None:
        return "unknown"
    return f"{duration(seconds.value)} [{duration(seconds.low)}, {duration(seconds.high)}]"


def duration(seconds: float) -> str:
    """Return a time in the unit that people would use, two figures of it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{_two_figures(seconds / length)} {unit}"
    return f"{_two_figures(seconds)} s"


def _two_figures(value: float) -> str:
    digits = max(0, 1 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{min(digits, 3)}f}"


# The options of `compare` but for those of its report.
_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_parameters = [
    *(
        parameter.replace(kind=_KEYWORD)
        for name, parameter in inspect.signature(comparing.compare).parameters.items()
        if name not in ("json_path", "html", "fresh", "questions", "within", "by")
    ),
    inspect.Parameter("queries", _KEYWORD, default=3, annotation=Queries),
    inspect.Parameter("as_json", _KEYWORD, default=False, annotation=options.AsJson),
]
cost.__signature__ = inspect.Signature(_parameters)  # type: ignore[attr-defined]
cost.__annotations__ = {parameter.name: parameter.annotation for parameter in _parameters}
