"""`uptake adapt`: adapt a model to one prompt and write the result as an adapter for other programs."""

import contextlib
from typing import Annotated

import typer

from uptake.cli import inputs, options, screen, searching
from uptake.errors import BadInput, Diverged

EXAMPLES = options.examples(
    'uptake adapt -m gpt2 -s notes.store --set "trainable=lora(rank=8)" "The pump is reset" adapter/',
    "uptake adapt -m gpt2 -s notes.store -k 50 - adapter/ < prompt.txt",
)


def adapt(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="Text to retrieve neighbours for; - reads standard input.")
    ],
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder for the adapter: new or empty.")],
    model: options.Model,
    store: options.Store = None,
    method: options.Method = "ttt-nn",
    k: Annotated[int, options.option(options.MAIN, "N", "Number of neighbours to read.", "-k", least=0)] = 20,
    settings: options.Setting = None,
    hand_over: Annotated[
        list[str] | None,
        options.option(
            options.OUTPUT,
            "KIND=URL",
            "Load the adapter into this server and see that it answers: vllm, sglang or llamacpp.",
        ),
    ] = None,
    encoder: options.Encoder = None,
    search_by: searching.SearchBy = None,
    vector_weight: searching.VectorWeight = 20.0,
    query_encoder: searching.QueryEncoder = None,
    max_tokens: options.MaxTokens = None,
    max_steps: options.MaxSteps = None,
    max_cpu_seconds: options.MaxCpuSeconds = None,
    max_wall_seconds: options.MaxWallSeconds = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    seed: options.Seed = 0,
    threads: options.Threads = None,
) -> None:
    """Adapt to a prompt's neighbours and write the change of the weights as a peft LoRA adapter.

    LoRA matrices are trained unless `--set trainable=...` says otherwise; an adapter can contain no others.
    Nothing is written if training diverges.
    """
    prompt = inputs.given_text(prompt)
    with screen.status("starting"):
        from uptake import api
        from uptake.evaluation.defaults import choosing
        from uptake.export import check_folder, export_peft, only_delta
        from uptake.hand_over import hand_over as handed_over
        from uptake.hand_over import target
        from uptake.lm import loading
        from uptake.methods.contract.spending import Budget

    spec = api.method_specs([method], settings or ())[method]
    with contextlib.suppress(BadInput):  # some methods have no such setting
        spec = api.method_specs([method], ["trainable=lora", *(settings or ())])[method]
    searches = spec.searches and k > 0
    if searches and store is None:
        raise BadInput(f"{method} reads neighbours and there is no store: name one with --store")
    check_folder(folder)
    targets = [target(each) for each in hand_over or ()]
    loading.check(device, dtype)
    inputs.set_threads(threads)
    opened = None
    if searches and store:
        with screen.status("opening the store"):
            opened = inputs.open_store(
                store, encoder, device, threads, None, search_by, vector_weight, query_encoder
            )
    with screen.status("loading the model"):
        base = loading.load(model, device, dtype)
    with screen.progress("reading neighbours") as update:
        budget = Budget(max_tokens, max_steps, max_cpu_seconds, max_wall_seconds)
        session = api.adapt(
            base,
            prompt,
            spec,
            called=method,
            store=opened,
            k=k,
            seed=seed,
            budget=budget,
            progress=lambda name, tried, best: update(0, 0, choosing(name, tried, best)),
        )
        stopped = session.stopped
        if stopped and stopped.kind == "diverged":
            raise Diverged(f"{stopped}; no adapter was written")
        delta = only_delta(session.state, session.adapted)
        written = export_peft(delta, base, folder)
    if stopped:
        screen.note(f"{method} stopped: {stopped}; the adapter contains what was learnt until then")
    screen.note(f"read {len(session.neighbours)} neighbours and wrote a LoRA adapter to {written}")
    for to in targets:
        with screen.status(f"handing the adapter over to {to.url}"):
            texts = [near.text for near in session.neighbours] or [prompt]
            found = handed_over(to, written, session.adapted, base, texts)
        screen.note(
            f"{to.url} answers as {found.name}: {found.from_adapted:.4f} nats from the adapted model, "
            f"{found.from_base:.4f} from the base"
        )
