"""`uptake index`: builds a datastore, changes, searches and checks it."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uptake import showing
from uptake.cli import index_views, inputs, options, screen, searching
from uptake.cli.index_adding import add_corpus, count_of, encode_store, label_of
from uptake.cli.options import examples
from uptake.errors import BadInput, Damaged
from uptake.showing import one_line

if TYPE_CHECKING:
    from uptake.store.datastore import Datastore
    from uptake.text.reading import Reading

app = typer.Typer(
    help="Build a datastore of passages, change it, search it and check it.", no_args_is_help=True
)

StorePath = Annotated[str, typer.Argument(metavar="STORE", help="The datastore's folder, or its URI.")]
Corpus = Annotated[
    list[str],
    typer.Argument(
        metavar="CORPUS",
        help="Files such as .jsonl .csv .parquet .pdf .docx .html .ipynb .md .txt, packed or not; folders; "
        "Hugging Face data set names.",
    ),
]
Encoder = Annotated[
    str | None,
    options.option(
        options.MAIN,
        "NAME|DIR|lm:MODEL",
        "Sentence encoder by name or folder, or lm: and a language model for its own states. "
        "Left out: all-MiniLM-L6-v2.",
    ),
]
Opener = Annotated[
    str | None,
    options.option(
        options.MAIN, "DIR|lm:MODEL", "The store's encoder, where it is not found by its own name."
    ),
]


@app.command(
    epilog=examples(
        "uptake index build notes.store notes/ tickets.jsonl.zst",
        "uptake index build notes.store notes/ --retriever lexical",
        "uptake index build notes.store notes/ --encoder lm:gpt2",
    )
)
@options.reads_files
def build(
    store: StorePath,
    corpus: Corpus,
    reading: "Reading",
    retriever: Annotated[
        str,
        options.option(
            options.MAIN, "NAME", "dense: by vectors. lexical: by words, no encoder. hybrid: both."
        ),
    ] = "hybrid",
    words: Annotated[
        str | None,
        options.option(
            options.MAIN,
            "NAME",
            "What a search by words finds. any-script: words of every script, emoji. spaced: only words "
            "between spaces, in a smaller store. Left out: any-script.",
        ),
    ] = None,
    encoder: Encoder = None,
    chunk: Annotated[int, options.option(options.MAIN, "N", "Most characters of a passage.")] = 1024,
    metric: Annotated[
        str, options.option(options.MAIN, "NAME", "Nearness of vectors: cosine, l2, or ip (inner product).")
    ] = "cosine",
    index: Annotated[
        str, options.option(options.MAIN, "NAME", "flat, ivf, or auto: chosen by size.")
    ] = "auto",
    vectors: Annotated[
        str,
        options.option(
            options.MAIN, "NAME", "What vectors are stored in: float32, or float16 in half the room."
        ),
    ] = "float32",
    as_json: options.AsJson = False,
    device: options.Device = "cpu",
    dtype: options.EncoderDtype = "bfloat16",
    threads: options.Threads = None,
    ray: options.Ray = None,
    workers: options.Workers = 1,
    shard_rows: Annotated[
        int | None,
        options.option(
            options.MACHINE,
            "N",
            "With --ray: make the indexes of shards of N rows each, side by side, on the cluster.",
            least=1,
            most=1 << 40,
        ),
    ] = None,
) -> None:
    """Make a datastore from text. If it is interrupted, the same command resumes it.

    A store that is finished stays as it is: `uptake index add` adds other text to it.
    """
    from uptake.store.datastore import Datastore
    from uptake.store.layout import INDEXES, METRICS, RETRIEVERS, WORDS
    from uptake.store.passages.columns import PRECISIONS
    from uptake.store.remote.objects import locate
    from uptake.store.unfinished import said
    from uptake.text.types import Chunking

    inputs.one_of("--retriever", retriever, RETRIEVERS)
    if words is not None:
        inputs.one_of("--words", words, WORDS)
    inputs.one_of("--metric", metric, METRICS)
    inputs.one_of("--index", index, INDEXES)
    inputs.one_of("--vectors", vectors, PRECISIONS)
    chunking = Chunking(chunk)

    def made() -> "Datastore":
        if not (locate(store) / "store.json").is_file():
            if retriever != "lexical":
                inputs.check_device(device)
            return Datastore.create(
                store,
                retriever=retriever,
                words=words,
                encoder=encoder,
                chunking=chunking,
                metric=metric,  # type: ignore[arg-type]
                index=index,  # type: ignore[arg-type]
                vectors=vectors,
                device=device,
                dtype=dtype,
                threads=threads,
            )
        opened = inputs.open_store(store, encoder, device, threads)
        info = opened.info()
        wanted = {"retriever": retriever, "chunk_characters": chunk, "metric": metric, "index": index}
        if words is not None:
            wanted["words"] = words
        if retriever != "lexical":
            wanted["vectors"] = vectors
        for name, value in wanted.items():
            if info[name] != value:
                raise BadInput(
                    f"{store} is there with {name.replace('_', ' ')} {info[name]}, not {value}: give a new "
                    "folder, or add to it as it is with `uptake index add`"
                )
        begun = opened.unfinished
        if begun and label_of(corpus) not in begun:
            raise BadInput(
                f"{store} is {said(begun)}, before it is built from another corpus; or give a new folder"
            )
        return opened

    cluster = inputs.shards(ray, shard_rows, "wait")
    add_corpus(store, made, corpus, as_json, threads, reading, ray, workers, cluster, building=True)


@app.command(
    epilog=examples(
        "uptake index add notes.store new-notes/", "uptake index add notes.store tickets.csv --text-key body"
    )
)
@options.reads_files
def add(
    store: StorePath,
    corpus: Corpus,
    reading: "Reading",
    encoder: Opener = None,
    as_json: options.AsJson = False,
    device: options.Device = "cpu",
    threads: options.Threads = None,
) -> None:
    """Add text to a datastore; known documents are skipped, changed ones are replaced."""
    add_corpus(
        store, lambda: inputs.open_store(store, encoder, device, threads), corpus, as_json, threads, reading
    )


@app.command(
    epilog=examples(
        "uptake index remove notes.store notes/old.md",
        "uptake index remove --purge notes.store notes/secret.md",
    )
)
def remove(
    store: StorePath,
    documents: Annotated[
        list[str] | None, typer.Argument(metavar="DOCUMENT", help="Ids of documents to remove.")
    ] = None,
    passage: Annotated[
        list[int] | None, options.option(options.MAIN, "ID", "Id of a passage to remove; may be repeated.")
    ] = None,
    purge: Annotated[
        bool, options.option(options.MAIN, "", "Rewrite the files, so that no byte of it stays.", "--purge")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Remove documents or passages. Without --purge their bytes stay for readers of older versions."""
    if not documents and not passage and not purge:
        raise BadInput(
            "nothing to remove: name documents, or --passage ID, or --purge to clean what was removed"
        )
    opened = inputs.open_store(store)
    with screen.status("purging" if purge else "removing"):
        removed = opened.remove(documents or (), passage or (), purge=purge)
    if not removed and not purge:
        named = ", ".join(repr(each) for each in (*(documents or ()), *(passage or ())))
        raise BadInput(f"{store} holds nothing of {named}: ids are as `uptake index search` shows them")
    facts = {"passages_removed": removed, "passages": opened.count, "purged": purge}
    if as_json:
        screen.echo(json.dumps(facts))
    else:
        done = ", and rewrote the files without what was removed" if purge else ""
        screen.echo(f"removed {count_of(removed)}{done}; {opened.count:,} left")


@app.command(epilog=examples('uptake index search notes.store "how is the pump reset" -k 3'))
def search(
    store: StorePath,
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help="Text to find neighbours of; - reads standard input.")
    ],
    k: Annotated[int, options.option(options.MAIN, "N", "How many passages.", "-k", least=1)] = 5,
    encoder: Opener = None,
    search_by: searching.SearchBy = None,
    vector_weight: searching.VectorWeight = 20.0,
    query_encoder: searching.QueryEncoder = None,
    as_json: options.AsJson = False,
    device: options.Device = "cpu",
    threads: options.Threads = None,
) -> None:
    """Show the passages nearest to a text."""
    query = inputs.given_text(query)
    inputs.set_threads(threads)
    with screen.status("searching"):
        opened = inputs.open_store(
            store, encoder, device, threads, None, search_by, vector_weight, query_encoder
        )
        (ranked,) = opened.search([query], k)
        passages = opened.passages(ranked.ids.tolist())
    inputs.note_unfinished(opened)
    pairs = list(zip(passages, ranked.scores.tolist(), strict=True))
    if blind := opened.unsearchable(query):
        screen.note(
            f"the words of this store are those between spaces, and the query has {', '.join(blind)}: "
            "to find that too, build the store anew with --words any-script"
        )
    if as_json:
        found = [
            {
                "id": p.id,
                "score": score,
                "document": p.document,
                "place": p.meta.get("place", ""),
                "start": p.start,
                "text": p.text,
            }
            for p, score in pairs
        ]
        screen.echo(json.dumps(found, indent=1))
        return
    if not pairs:
        screen.note(
            "nothing found: " + ("the store is empty" if not opened.count else "no passage has these words")
        )
    _show_found(pairs)


@app.command()
def info(store: StorePath, as_json: options.AsJson = False) -> None:
    """Show what a datastore contains and how it was made."""
    facts = inputs.open_store(store).info()
    if as_json:
        screen.echo(json.dumps(facts, indent=1))
        return
    numbers = ("passages", "documents", "tokens", "chunks", "activations", "bytes")
    screen.facts({name: f"{each:,}" if name in numbers else each for name, each in facts.items()})


@app.command()
def verify(
    store: StorePath,
    relist: Annotated[
        bool,
        options.option(
            options.MAIN,
            "",
            "Where checksums.sha256 is lost: list what is there as what was written.",
            "--relist",
        ),
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Check a datastore for damage; each fault is listed with its cure, and the exit code is then 2."""
    from uptake.store.verify import verify_store

    if relist:
        from uptake.store.relist import relist as listed_anew

        with screen.status("reading every passage"):
            passages = listed_anew(store)
        screen.note(f"listed anew: {count_of(passages)}, as they are now")
    with screen.status("reading every file"):
        faults = verify_store(store)
    if as_json:
        screen.echo(json.dumps({"faults": faults}, indent=1))
    else:
        screen.echo("\n".join(map(showing.message, faults)) if faults else "sound: no fault found")
    if faults:
        raise Damaged(f"{store}: {len(faults)} {'fault' if len(faults) == 1 else 'faults'} found, see above")


@app.command(epilog=examples("uptake index encode notes.store better.store --encoder encoder"))
def encode(
    store: StorePath,
    new: Annotated[str, typer.Argument(metavar="NEW", help="A new folder for the store with these vectors.")],
    encoder: Annotated[
        str,
        options.option(
            options.MAIN,
            "NAME|DIR|lm:MODEL",
            "What embeds the passages: as in `build`, or what `uptake train retriever --layers 1` wrote.",
        ),
    ],
    as_json: options.AsJson = False,
    device: options.Device = "cpu",
    dtype: options.EncoderDtype = "bfloat16",
    threads: options.Threads = None,
) -> None:
    """Write a store's passages to a new one, embedded by another encoder. The old store stays as it is.

    No document is read again. NEW is there once it is whole: after an interruption the same command begins
    again.
    """
    made = encode_store(store, new, encoder, device, dtype, threads)
    facts = {"passages": made.count, "encoder": made.view.encoder_fingerprint, "path": new}
    screen.echo(json.dumps(facts) if as_json else f"encoded {count_of(made.count)} into {new}")


@app.command(epilog=examples("uptake index export notes.store notes.parquet"))
def export(
    store: StorePath,
    path: Annotated[str, typer.Argument(metavar="FILE", help="A new .parquet file.")],
    as_json: options.AsJson = False,
) -> None:
    """Write every passage, with its vector, as one plain Parquet file."""
    file = inputs.output_file("FILE", path)
    assert file is not None
    with screen.status("writing"):
        written = inputs.open_store(store).export(file)
    facts = {"passages": written, "path": path}
    screen.echo(json.dumps(facts) if as_json else f"wrote {count_of(written)} to {path}")


app.command(epilog=index_views.TOKENS)(index_views.tokens)
app.command(epilog=index_views.CHUNKS)(index_views.chunks)
app.command(epilog=index_views.ACTIVATIONS)(index_views.activations)


def _show_found(pairs: list[tuple[Any, float]]) -> None:
    """Print passages with their scores: wrapped under their heading on a terminal, else a line each."""
    from rich.padding import Padding
    from rich.text import Text

    console = screen.results()
    for passage, score in pairs:
        place = f", {one_line(passage.meta['place'], 80)}" if passage.meta.get("place") else ""
        document = one_line(passage.document)
        where = f"{score:9.3f}  {document}{place} @ {passage.start}  (passage {passage.id})"
        console.print(Text(where, style="bold"), soft_wrap=True)
        text = Text(one_line(passage.text, 300), style="dim")
        if console.is_terminal:
            console.print(Padding(text, (0, 0, 0, 11)))
        else:
            console.print(Text(" " * 11) + text, soft_wrap=True)
