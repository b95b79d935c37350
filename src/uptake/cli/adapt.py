"""`uptake adapt`: a model that has taken text up for one prompt, as an adapter other programs load."""

import contextlib
from typing import Annotated

import typer

from uptake.cli import inputs, options, screen
from uptake.errors import BadInput

EXAMPLES = options.examples(
    'uptake adapt -m gpt2 -s notes.store --set "trainable=lora(rank=8)" "The pump is reset" adapter/',
    "uptake adapt -m gpt2 -s notes.store -k 50 - adapter/ < prompt.txt",
)


def adapt(
    prompt: Annotated[str, typer.Argument(help="Text whose neighbours are read; - reads standard input.")],
    folder: Annotated[str, typer.Argument(help="Where the adapter goes: a new or an empty folder.")],
    model: options.Model,
    store: options.Store = None,
    method: options.Method = "ttt-nn",
    k: Annotated[int, options.option(options.MAIN, "N", "Neighbours to read.", "-k", least=0)] = 20,
    settings: options.Setting = None,
    encoder: options.Encoder = None,
    max_tokens: options.MaxTokens = None,
    max_steps: options.MaxSteps = None,
    max_cpu_seconds: options.MaxCpuSeconds = None,
    max_wall_seconds: options.MaxWallSeconds = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    seed: options.Seed = 0,
    threads: options.Threads = None,
) -> None:
    """Read a prompt's neighbours and write what the model learnt as a peft LoRA adapter.

    Low-rank parts are moved unless `--set moves=...` says otherwise; an adapter can hold no others.
    """
    prompt = inputs.given_text(prompt)
    with screen.status("starting"):
        from uptake import api
        from uptake.export import check_folder, export_peft, moved_alone
        from uptake.lm import causal
        from uptake.methods.contract.spending import Budget

    spec = api.method_specs([method], settings or ())[method]
    with contextlib.suppress(BadInput):  # some have no such setting
        spec = api.method_specs([method], ["trainable=lora", *(settings or ())])[method]
    searches = spec.searches and k > 0
    if searches and store is None:
        raise BadInput(f"{method} reads neighbours and there is no store: name one with --store")
    check_folder(folder)
    causal.check(device, dtype)
    inputs.set_threads(threads)
    opened = None
    if searches and store:
        with screen.status("opening the store"):
            opened = inputs.open_store(store, encoder, device, threads)
    with screen.status("loading the model"):
        base = causal.load(model, device, dtype)
    with screen.status("reading neighbours"):
        budget = Budget(max_tokens, max_steps, max_cpu_seconds, max_wall_seconds)
        state, found = api.take_up(base, prompt, spec, store=opened, k=k, seed=seed, budget=budget)
        delta = moved_alone(state, spec.method.adapted([state], base))
        written = export_peft(delta, base, folder)
    screen.note(f"read {len(found.passages)} neighbours and wrote a LoRA adapter to {written}")
