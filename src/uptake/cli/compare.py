"""`uptake compare`: several ways of taking text up, side by side on the same text."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from uptake.cli import inputs, options, screen
from uptake.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from uptake.evaluation.protocol import Protocol
    from uptake.methods.contract.method import MethodSpec
    from uptake.store.datastore import Datastore
    from uptake.tasks.holes import Around, Kind

EXAMPLES = options.examples(
    "uptake compare -m gpt2 -s notes.store --data test.jsonl --html report.html",
    "uptake compare -m gpt2 -s notes.store --data test.jsonl -k 1,5,20 --limit 50",
    "uptake compare -m gpt2 --data test.jsonl --methods base,finetune \\\n      --protocol running",
)


def compare(
    model: options.Model,
    data: options.Data,
    store: options.Store = None,
    methods: options.Methods = "base,random,in-context,ttt-nn",
    k: options.NeighboursOr = None,
    settings: options.Setting = None,
    recipe: options.Recipe = None,
    encoder: options.Encoder = None,
    protocol: options.ProtocolName = "per-query",
    prefix: options.Prefix = 1024,
    suffix: options.Suffix = 1024,
    windows: options.Windows = 1,
    search: options.Search = None,
    segment: options.SegmentSize = 512,
    hole: options.Hole = "identifier",
    around: options.Around = "both",
    limit: options.Limit = None,
    leak_containment: options.Containment = 0.5,
    leak_jaccard: options.Jaccard = 0.8,
    no_leak_filter: options.NoFilter = False,
    max_tokens: options.MaxTokens = None,
    max_steps: options.MaxSteps = None,
    max_cpu_seconds: options.MaxCpuSeconds = None,
    max_wall_seconds: options.MaxWallSeconds = None,
    json_path: options.Json = None,
    html: options.Html = None,
    fresh: options.Fresh = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    batch: options.Batch = 8,
    workers: options.Workers = 1,
    ray: options.Ray = None,
    shard_rows: options.ShardRows = None,
    missing: options.Missing = "fail",
    seed: options.Seed = 0,
    threads: options.Threads = None,
) -> None:
    """Score documents under several methods and show gain, cost and controls.

    Every method scores the same bytes. With --json an interrupted run goes on when it is started again.
    """
    # What can be seen to be wrong is said before a file is read or a model loaded.
    names = inputs.methods(methods, "ttt-nn")
    report_file = inputs.report_file(json_path)
    page_file = inputs.output_file("--html", html)
    with screen.status("starting"):
        from itertools import islice

        from uptake import api
        from uptake.evaluation.protocol import Holes, PerQuery, Running, Whole
        from uptake.lm import causal
        from uptake.methods.contract.spending import Budget
        from uptake.report import summary as report
        from uptake.text import readers
    rules = {
        each.name: each
        for each in (
            PerQuery(prefix, suffix, windows, search),
            Whole(),
            Running(segment, prefix),
            Holes(cast("Kind", hole), windows, prefix, cast("Around", around)),
        )
    }
    rule = rules[inputs.one_of("--protocol", protocol, list(rules))]
    chosen = inputs.recipe(recipe)
    if chosen:
        names = list(dict.fromkeys([*names, chosen.method]))
        # The recipe's settings are its own method's, and what is said beside it comes after.
        settings = [*(f"{chosen.method}.{setting}" for setting in chosen.settings), *(settings or ())]
    ks = inputs.counts(k or str(chosen.k if chosen else 20), "-k")
    specs = api.method_specs(names, settings or ())
    leak = inputs.leak_filter(leak_containment, leak_jaccard, no_leak_filter)
    causal.check(device, dtype)
    wanted = _wanted_store(store, specs, rule, ks)
    cluster = inputs.shards(ray, shard_rows, missing)
    inputs.set_threads(threads)

    skipped = readers.Skipped()
    with screen.status("reading documents"):
        documents = list(islice(readers.read(data, skipped=skipped), limit))
    screen.tell_skipped(skipped)
    opened: Datastore | None = None
    if wanted:
        with screen.status("opening the store"):
            opened = inputs.open_store(wanted, encoder, device, threads, cluster)
    with screen.status("loading the model"):
        loaded = causal.load(model, device, dtype)

    # A pipe or a device can be written to but not gone on from.
    keeps = report_file is not None and (report_file.is_file() or not report_file.exists())
    journal = Path(f"{report_file}.journal") if keeps else None
    if fresh and journal:
        journal.unlink(missing_ok=True)
    hint = (
        f"finished queries are in {journal}: the same command goes on from there"
        if journal
        else "nothing is kept without --json FILE"
    )
    with (
        screen.on_cluster(ray),
        screen.interruptible(hint),
        screen.progress("scoring", resumes=True) as update,
    ):
        results = api.compare(
            loaded,
            documents,
            names,
            store=opened,
            k=ks,
            settings=settings or (),
            protocol=rule,
            seed=seed,
            batch=batch,
            budget=Budget(max_tokens, max_steps, max_cpu_seconds, max_wall_seconds),
            leak=leak,
            journal=journal,
            notes=[f"left out while reading: {skipped}"] if skipped.total else [],
            progress=update,
            workers=workers,
            ray=ray,
        )
    if json_path == "-":
        typer.echo(json.dumps(report.summary(results), indent=1))
    else:
        from uptake.cli import tables

        tables.show(results)
    if report_file:
        report.write_json(results, report_file)
        screen.note(f"report: {report_file}")
    if page_file:
        from uptake.report.page import write_page

        write_page(results, page_file)
        screen.note(f"page: {page_file}")
    if journal:  # what it held is in the report
        journal.unlink(missing_ok=True)


def _wanted_store(
    store: str | None, specs: "Mapping[str, MethodSpec]", protocol: "Protocol", ks: "Sequence[int]"
) -> str | None:
    """Return the store if anything will be looked for in it; BadInput where one is wanted and not named."""
    searching = [name for name, spec in specs.items() if spec.searches]
    if protocol.retrieves and searching and max(ks) > 0:
        if store is None:
            raise BadInput(f"{searching[0]} reads neighbours and there is no store: name one with --store")
        return store
    if store is not None:
        unread = (
            "no method looks for neighbours"
            if protocol.retrieves
            else f"--protocol {protocol.name} needs none"
        )
        screen.note(f"--store {store} is not used: {unread if max(ks) > 0 or not searching else '-k is 0'}")
    return None
