"""`uptake compare`: several ways of taking text up, side by side on the same text."""

import json
from typing import Annotated

import typer

from uptake.cli import options
from uptake.errors import BadInput


def compare(
    model: options.Model,
    data: options.Data,
    methods: options.Methods = "base,random,in-context,ttt-nn",
    store: options.Store = None,
    k: options.Neighbours = "20",
    settings: options.Setting = None,
    protocol: options.ProtocolName = "per-query",
    prefix: options.Prefix = 1024,
    suffix: options.Suffix = 1024,
    windows: options.Windows = 1,
    segment: options.SegmentSize = 512,
    limit: options.Limit = None,
    batch: options.Batch = 8,
    leak_containment: options.Containment = 0.5,
    leak_jaccard: options.Jaccard = 0.8,
    no_leak_filter: options.NoFilter = False,
    max_tokens: options.MaxTokens = None,
    max_steps: options.MaxSteps = None,
    max_seconds: options.MaxSeconds = None,
    encoder: options.Encoder = None,
    json_path: options.Json = None,
    html: options.Html = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not go on from an interrupted run.")] = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    seed: options.Seed = 0,
    threads: options.Threads = None,
) -> None:
    """Score documents under several methods and show gain, cost and controls.

    With --json an interrupted run goes on where it stopped when the same command is given again.
    """
    from itertools import islice
    from pathlib import Path

    from uptake import api, causal, readers, report
    from uptake.method import Budget
    from uptake.protocol import PerQuery, Protocol, Running, Whole

    names = [name.strip() for name in methods.split(",") if name.strip()]
    protocols: dict[str, Protocol] = {
        each.name: each for each in (PerQuery(prefix, suffix, windows), Whole(), Running(segment, prefix))
    }
    if protocol not in protocols:
        raise BadInput(f"--protocol {protocol}: use one of {', '.join(protocols)}")
    ks = options.numbers(k, "-k")
    api.ways(names, settings or ())  # a misspelt name should not wait for a model to load
    options.set_threads(threads)
    skipped = readers.Skipped()
    documents = list(islice(readers.read(data, skipped=skipped), limit))
    options.tell_skipped(skipped)
    journal = Path(json_path + ".journal") if json_path else None
    if fresh and journal:
        journal.unlink(missing_ok=True)
    opened = options.open_store(store, encoder, device, threads)
    with options.progress_bar("scoring") as progress:
        results = api.compare(
            causal.load(model, device, dtype),
            documents,
            names,
            store=opened,
            k=ks,
            settings=settings or (),
            protocol=protocols[protocol],
            seed=seed,
            batch=batch,
            budget=Budget(max_tokens, max_steps, max_seconds),
            leak=options.leak_filter(leak_containment, leak_jaccard, no_leak_filter),
            journal=journal,
            notes=[f"left out while reading: {skipped}"] if skipped.total else [],
            progress=progress,
        )
    if json_path == "-":
        typer.echo(json.dumps(report.summary(results), indent=1))
    else:
        from rich.console import Console

        Console().print(report.table(results))
    if json_path and json_path != "-":
        report.write_json(results, json_path)
        typer.echo(f"report: {json_path}", err=True)
    if html:
        from uptake.page import write_page

        write_page(results, html)
        typer.echo(f"page: {html}", err=True)
    if journal:
        journal.unlink(missing_ok=True)
