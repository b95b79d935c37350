"""`uptake index tokens`: a model reads a datastore token by token, for kNN-LM to search."""

import json
from typing import Annotated

import typer

from uptake.cli import inputs, options, screen

EXAMPLES = options.examples(
    "uptake index tokens notes.store -m gpt2",
    "uptake index tokens notes.store -m ./my-model --fresh",
)


def tokens(
    store: Annotated[str, typer.Argument(metavar="STORE", help="The datastore's folder.")],
    model: options.Model,
    fresh: Annotated[
        bool, options.option(options.MAIN, "", "Delete the tokens there are and begin anew.", "--fresh")
    ] = False,
    as_json: options.AsJson = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
) -> None:
    """Let a model read every document: its tokens are kept, each with the state it was predicted from.

    Only what has no tokens yet is read: after `uptake index add` the same command reads what is new,
    and an interrupted one goes on where it stopped. Takes two bytes a token for each of the model's
    dimensions.
    """
    with screen.status("starting"):
        from uptake import causal
        from uptake.keys import Keys
    causal.check(device, dtype)
    inputs.set_threads(threads)
    opened = inputs.open_store(store, None, "cpu", threads)
    with screen.status("loading the model"):
        keys = Keys(causal.load(model, device, dtype))
    hint = "the tokens read so far stay: the same command goes on from there"
    with screen.interruptible(hint), screen.progress("passages", resumes=True) as update:
        read = opened.read_tokens(keys, fresh=fresh, progress=update)
    if as_json:
        told = {"documents_read": read.documents, "tokens_read": read.tokens, "tokens": read.total}
        typer.echo(json.dumps(told, indent=1))
        return
    documents = f"{read.documents:,} {'document' if read.documents == 1 else 'documents'}"
    typer.echo(f"read {read.tokens:,} tokens of {documents}; {opened.path.name} holds {read.total:,}")
