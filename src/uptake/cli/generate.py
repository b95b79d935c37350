"""`uptake generate`: continue a prompt with the adapted model."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from uptake.cli import inputs, options, screen, searching
from uptake.errors import BadInput
from uptake.showing import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from uptake.lm.generation import Token

EXAMPLES = options.examples(
    'uptake generate -m gpt2 -s notes.store --method ttt-nn -k 20 "The pump is reset"',
    'uptake generate -m gpt2 --method base "The pump is reset"',
    "uptake generate -m gpt2 -s notes.store --neighbours - < prompt.txt",
    'uptake generate -m gpt2 --delta fixes "The pump is reset"',
)
WRITING = "Generation"
DIVERGED = 3  # exit code where the answer is the base's because reading diverged


def generate(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="Text to continue; - reads standard input.")
    ],
    model: options.Model,
    store: options.Store = None,
    method: options.MethodOr = None,
    k: Annotated[
        int | None,
        options.option(
            options.MAIN, "N", "Number of neighbours to read. Default: 20, or the recipe's.", "-k", least=0
        ),
    ] = None,
    settings: options.Setting = None,
    delta: Annotated[
        str | None,
        options.option(
            options.MAIN,
            "DIR|FILE",
            "Answer with what was changed: a folder of `uptake edit`, or a file of `uptake delta`.",
        ),
    ] = None,
    recipe: options.Recipe = None,
    encoder: options.Encoder = None,
    search_by: searching.SearchBy = None,
    vector_weight: searching.VectorWeight = 20.0,
    query_encoder: searching.QueryEncoder = None,
    tokens: Annotated[int, options.option(WRITING, "N", "Maximum number of new tokens.", least=0)] = 64,
    temperature: Annotated[
        float,
        options.option(WRITING, "T", "Sampling temperature; 0 always takes the likeliest token.", least=0),
    ] = 0.0,
    stop: Annotated[
        list[str] | None, options.option(WRITING, "TEXT", "Stop before this text; may be repeated.")
    ] = None,
    max_tokens: options.MaxTokens = None,
    max_steps: options.MaxSteps = None,
    max_cpu_seconds: options.MaxCpuSeconds = None,
    max_wall_seconds: options.MaxWallSeconds = None,
    show_neighbours: Annotated[
        bool,
        options.option(
            options.OUTPUT, "", "Print the neighbours that were read on standard error.", "--neighbours"
        ),
    ] = False,
    as_json: Annotated[
        bool,
        options.option(
            options.OUTPUT,
            "",
            "Print prompt, text, neighbours and why adapting stopped early as JSON.",
            "--json",
        ),
    ] = False,
    device: options.Device = "cpu",
    dtype: options.DtypeOr = None,
    seed: options.Seed = 0,
    threads: options.Threads = None,
) -> None:
    """Adapt the model to a prompt's neighbours, then continue the prompt.

    If training diverges, the base model's answer is printed with a note on standard error, and the exit
    code is 3.
    """
    prompt = inputs.given_text(prompt)
    with screen.status("starting"):
        from uptake import api
        from uptake.codec import plain
        from uptake.editing import edited
        from uptake.evaluation.defaults import choosing, usual_format
        from uptake.lm import loading
        from uptake.lm.generation import Decoding
        from uptake.methods.contract.spending import Budget

    if delta is not None:
        if given := [
            name for name, value in (("--store", store), ("--method", method), ("--recipe", recipe)) if value
        ]:
            raise BadInput(f"{given[0]} and --delta {delta}: what is changed is there already, leave one out")
        dtype = dtype or "float32"  # a delta belongs to the weights it was made for
        loading.check(device, dtype)
        inputs.set_threads(threads)
        with screen.status("loading the model"):
            lm = edited(loading.load(model, device, dtype), delta)
        decoding = Decoding(tokens=tokens, temperature=temperature, seed=seed, stop=tuple(stop or ()))
        _answer(prompt, lm.stream(prompt, decoding), as_json, {"delta": delta})
        return
    chosen = inputs.recipe(recipe)
    if chosen and method not in (None, chosen.method):
        raise BadInput(
            f"--method {method} --recipe {recipe}: the recipe is for {chosen.method}, leave one out"
        )
    method = method or (chosen.method if chosen else "ttt-nn")
    k = k if k is not None else (chosen.k if chosen else 20)
    settings = [*(chosen.settings if chosen else ()), *(settings or ())]
    spec = api.method_specs([method], settings or ())[method]
    reads = spec.searches and k > 0
    if reads and store is None:
        raise BadInput(f"{method} reads neighbours and there is no store: name one with --store")
    dtype = dtype or usual_format([spec])
    loading.check(device, dtype)
    inputs.set_threads(threads)
    opened = None
    if reads and store:
        with screen.status("opening the store"):
            opened = inputs.open_store(
                store, encoder, device, threads, None, search_by, vector_weight, query_encoder
            )
    with screen.status("loading the model"):
        base = loading.load(model, device, dtype)
    with screen.progress("reading neighbours") as update:
        session = api.adapt(
            base,
            prompt,
            spec,
            called=method,
            store=opened,
            k=k,
            seed=seed,
            budget=Budget(max_tokens, max_steps, max_cpu_seconds, max_wall_seconds),
            progress=lambda name, tried, best: update(0, 0, choosing(name, tried, best)),
        )
    for line in session.notes:
        screen.note(line)
    read, stopped = session.neighbours, session.stopped
    diverged = stopped is not None and stopped.kind == "diverged"
    if reads and not read:
        screen.note("the store has no neighbour of this prompt: this is the base model's answer")
    if stopped:
        outcome = (
            "this is the base model's answer" if diverged else "the answer uses what was read until then"
        )
        screen.note(f"{method} stopped: {stopped}; {outcome}")
    if show_neighbours:
        for neighbour in read:
            place = f", {neighbour.place}" if neighbour.place else ""
            where = one_line(f"{neighbour.document}{place} @ {neighbour.start}")
            screen.note(f"{neighbour.score:.3f}  {where}  {one_line(neighbour.text, 80)}")
    about = {"method": method, "stopped": plain(stopped), "neighbours": plain(read)}
    _answer(prompt, session.stream(prompt, tokens, temperature, seed, stop or ()), as_json, about)
    if diverged:
        raise typer.Exit(DIVERGED)


def _answer(prompt: str, tokens: "Iterator[Token]", as_json: bool, about: "Mapping[str, object]") -> None:
    """Print a prompt and its continuation, as it comes or with what there is to say about it as JSON."""
    if as_json:
        text = "".join(token.text for token in tokens)
        screen.echo(json.dumps({"prompt": prompt, "text": text, **about}, indent=1))
        return
    screen.echo(prompt, newline=False)
    for token in tokens:
        screen.echo(token.text, newline=False)
        sys.stdout.flush()
    screen.echo()
