"""Makes a store: loads its encoder, writes its layout and a table, empty unless it is filled at once."""

import secrets
from collections.abc import Callable

from uptake.errors import BadInput
from uptake.store.inventory import TABLE, Recorder
from uptake.store.layout import WORDS, Layout, View
from uptake.store.passages.columns import PRECISIONS
from uptake.store.passages.drafts import check_free, new_store
from uptake.store.passages.table import Table
from uptake.store.remote.objects import Location
from uptake.text.types import Chunking, Embedder


def make_store(
    path: Location,
    lock: str,
    retriever: str,
    words: str | None,
    encoder: Embedder | str | None,
    chunking: Chunking,
    metric: str,
    index: str,
    loading: tuple[str, str],
    precision: str = "float32",
    fill: Callable[[Table, View, Embedder | None], Table] = lambda table, view, encoder: table,
) -> tuple[Layout, Embedder | None]:
    """Make a store at `path`, as `Datastore.create` says; return its layout and its encoder.

    `loading` is the device and the precision of an encoder that is given by its name. `fill` returns the
    table with what is to be in it from the first: in a folder nobody sees the store before all of it is.
    """
    check_free(path, lock)
    if precision not in PRECISIONS:
        raise BadInput(f"vectors {precision!r}: use {' or '.join(PRECISIONS)}")
    if retriever == "lexical" and precision != "float32":
        raise BadInput(f"vectors {precision!r}: a lexical store has none; leave it out")
    if retriever == "dense" and words is not None:
        raise BadInput(f"words {words!r}: a dense store searches no words; leave it out")
    if retriever == "lexical":
        if encoder is not None:
            raise BadInput("a lexical store takes no encoder; leave it out or choose --retriever hybrid")
    elif encoder is None or isinstance(encoder, str):
        from uptake.text.encoders import DEFAULT_ENCODER, make_encoder

        encoder = make_encoder(encoder or DEFAULT_ENCODER, *loading)
    view = View.of(encoder, chunking, metric)
    words = "" if retriever == "dense" else words or WORDS[0]
    layout = Layout(secrets.token_hex(16), retriever, index, {"passages": view}, words)
    with new_store(path, lock) as draft:
        empty = Table.create(draft / TABLE, view.dimensions, words == "any-script", precision)
        table = fill(empty, view, encoder)
        if retriever != "dense":
            table = table.index_text()
        Recorder.new(draft, layout.uid, table.version, layout.sums)
        layout.write(draft)
    return layout, encoder
