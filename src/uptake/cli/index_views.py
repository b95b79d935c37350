"""`uptake index tokens`, `chunks` and `activations`: views of a datastore for one model."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uptake.cli import inputs, options, screen

if TYPE_CHECKING:
    from uptake.store.datastore import Datastore
    from uptake.store.views.view_writer import ReadTokens

TOKENS = options.examples(
    "uptake index tokens notes.store -m gpt2",
    "uptake index tokens notes.store -m ./my-model --fresh",
)
CHUNKS = options.examples(
    "uptake index chunks notes.store -m gpt2",
    "uptake index chunks notes.store -m ./my-model --length 32 --fresh",
)
ACTIVATIONS = options.examples(
    "uptake index activations notes.store -m gpt2 --layers 4",
    "uptake index activations notes.store -m ./my-model --layers 2 --max-bytes 2000000000",
)

_StorePath = Annotated[str, typer.Argument(metavar="STORE", help="The datastore's folder.")]


def tokens(
    store: _StorePath,
    model: options.Model,
    fresh: Annotated[
        bool, options.option(options.MAIN, "", "Delete the tokens there are and begin anew.", "--fresh")
    ] = False,
    as_json: options.AsJson = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
    workers: Annotated[
        int,
        options.option(
            options.MACHINE,
            "N",
            "Processes that read, each with its own model and one thread; the last bit of a key may differ.",
            "--workers",
            least=1,
            most=1024,
        ),
    ] = 1,
) -> None:
    """Store every document's tokens, each with the model's state that predicts it: for kNN-LM.

    Only what has no tokens yet is read: after `uptake index add` the same command reads what is new,
    and an interrupted one is resumed. Takes two bytes a token for each of the model's
    dimensions.
    """
    with screen.status("starting"):
        from uptake.lm import loading
        from uptake.methods.knn_lm.parallel import ParallelKeyer
    loading.check(device, dtype)
    inputs.set_threads(1 if workers > 1 else threads)
    opened = inputs.open_store(store, None, "cpu", threads)
    with screen.status("loading the model"):
        keys = ParallelKeyer(loading.load_causal(model, device, dtype, "an index of tokens"), workers)
    with keys:
        _read(
            opened, "tokens", lambda update: opened.read_tokens(keys, fresh=fresh, progress=update), as_json
        )


def chunks(
    store: _StorePath,
    model: options.Model,
    length: Annotated[int, options.option(options.MAIN, "N", "Tokens of a chunk.")] = 64,
    encoder: Annotated[
        str | None,
        options.option(
            options.MAIN, "DIR|lm:MODEL", "The store's encoder, where it is not found by its own name."
        ),
    ] = None,
    fresh: Annotated[
        bool, options.option(options.MAIN, "", "Delete the chunks there are and begin anew.", "--fresh")
    ] = False,
    as_json: options.AsJson = False,
    device: options.Device = "cpu",
    threads: options.Threads = None,
) -> None:
    """Cut every document into chunks of a model's tokens, for RETRO to find and read with what follows.

    A chunk is embedded by the store's own encoder, and found by its words where there is none. Of the
    model only the tokenizer is loaded. Only what has no chunks yet is cut: after `uptake index add` the
    same command cuts what is new, and an interrupted one is resumed.
    """
    with screen.status("starting"):
        from uptake.lm import loading
    inputs.set_threads(threads)
    opened = inputs.open_store(store, encoder, device, threads)
    tokenizer = loading.load_causal_tokenizer(model, "an index of chunks")
    _read(
        opened,
        "chunks",
        lambda update: opened.read_chunks(tokenizer, length=length, name=model, fresh=fresh, progress=update),
        as_json,
    )


def activations(
    store: _StorePath,
    model: options.Model,
    layers: Annotated[
        int,
        options.option(options.MAIN, "N", "Blocks that will train: keep what enters the lowest.", "--layers"),
    ] = 4,
    no_opening_token: Annotated[
        bool,
        options.option(
            options.MAIN,
            "",
            "Read passages as training with opening_token=false does.",
            "--no-opening-token",
        ),
    ] = False,
    keep_as: Annotated[
        str,
        options.option(
            options.MAIN,
            "TYPE",
            "float16, bfloat16 for what float16 cannot hold, or float32 for the very bits.",
            "--keep-as",
        ),
    ] = "float16",
    max_bytes: Annotated[
        int | None,
        options.option(
            options.MAIN,
            "N",
            "Keep no more than this on the disk; what is left out is computed when needed.",
            "--max-bytes",
            least=1,
            most=1 << 50,
        ),
    ] = None,
    fresh: Annotated[
        bool,
        options.option(options.MAIN, "", "Delete the activations there are and begin anew.", "--fresh"),
    ] = False,
    as_json: options.AsJson = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
) -> None:
    """Store what enters a model's upper blocks for every passage: for training these blocks alone.

    Methods that train with `trainable=top(layers=N)` use it with `activations=view`; the base's loss of each
    token is kept beside it, for `token_weights=baseloss`. Only what was not read yet is read, and an
    interrupted run is resumed. Takes two bytes a token for each of the model's dimensions.
    """
    with screen.status("starting"):
        from uptake.lm import loading
        from uptake.lm.activations import ActivationReader
    loading.check(device, dtype)
    inputs.set_threads(threads)
    opened = inputs.open_store(store, None, "cpu", threads)
    with screen.status("loading the model"):
        loaded = loading.load_causal(model, device, dtype, "an index of activations")
        reader = ActivationReader(loaded, layers, not no_opening_token, keep_as)

    def read(update: "Callable[[int, int], None]") -> "ReadTokens":
        return opened.read_activations(reader, most_bytes=max_bytes, fresh=fresh, progress=update)

    _read(opened, "activations", read, as_json, "passage")


def _read(
    opened: "Datastore", kind: str, read: "Callable[[Any], ReadTokens]", as_json: bool, unit: str = "document"
) -> None:
    before = opened.view_contents(kind)

    def there(done: int, total: int) -> str:
        left = total - done
        return f"{done:,} of {total:,} passages were read before: " + (
            f"reading the other {left:,}" if left else "nothing is left to read"
        )

    def hint() -> str:
        if opened.view_contents(kind) in ("", before):
            return "nothing new was stored yet: the same command begins again"
        return "what was read so far is stored: the same command resumes"

    with screen.interruptible(hint), screen.progress("passages", resumes=there) as update:
        done = read(update)
    if as_json:
        counts = {f"{unit}s_read": done.documents, "tokens_read": done.tokens, "tokens": done.total}
        screen.echo(json.dumps(counts, indent=1))
        return
    units = f"{done.documents:,} {unit if done.documents == 1 else f'{unit}s'}"
    screen.echo(f"read {done.tokens:,} tokens of {units}; {opened.path.name} holds {done.total:,}")
