"""`uptake generate`: a prompt continued by the model after it has taken text up."""

import json
import sys
from typing import Annotated

import typer

from uptake.cli import options
from uptake.errors import BadInput


def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads standard input.")],
    model: options.Model,
    store: options.Store = None,
    method: Annotated[str, typer.Option(help="A name, as `uptake methods` lists them.")] = "ttt-nn",
    k: Annotated[int, typer.Option("-k", help="Neighbours to read.")] = 20,
    settings: options.Setting = None,
    tokens: Annotated[int, typer.Option(help="Most tokens to write.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text.")] = None,
    show_neighbours: Annotated[
        bool, typer.Option("--neighbours", help="Show on standard error what was read.")
    ] = False,
    encoder: options.Encoder = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print prompt, text and neighbours as JSON.")
    ] = False,
    max_tokens: options.MaxTokens = None,
    max_steps: options.MaxSteps = None,
    max_seconds: options.MaxSeconds = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    seed: options.Seed = 0,
    threads: options.Threads = None,
) -> None:
    """Continue a prompt with the model as it is after reading the prompt's neighbours."""
    from uptake import api, causal
    from uptake.method import Budget
    from uptake.plain import plain

    way = api.ways([method], settings or ())[method]
    if way.method.reads and k > 0 and store is None:
        raise BadInput(f"{method} reads neighbours and there is no store: name one with --store")
    if tokens < 0:
        raise BadInput(f"--tokens {tokens}: use 0 or more")
    prompt = sys.stdin.read() if prompt == "-" else prompt
    options.set_threads(threads)
    base = causal.load(model, device, dtype)
    with options.console().status("reading neighbours"):
        lm, read = api.adapt(
            base,
            prompt,
            method,
            store=options.open_store(store, encoder, device, threads),
            k=k,
            settings=settings or (),
            seed=seed,
            budget=Budget(max_tokens, max_steps, max_seconds),
        )
    if show_neighbours:
        for neighbour in read:
            first = " ".join(neighbour.text.split())[:80]
            typer.echo(f"{neighbour.score:9.3f}  {neighbour.document}@{neighbour.start}  {first}", err=True)
    if as_json:
        text = lm.generate(prompt, tokens, temperature, seed, stop or ())
        typer.echo(json.dumps({"prompt": prompt, "text": text, "method": method, "neighbours": plain(read)}))
        return
    typer.echo(prompt, nl=False)
    for piece in lm.stream(prompt, tokens, temperature, seed, stop or ()):
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    typer.echo()
