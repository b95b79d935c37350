"""`uptake index`: build a datastore and look after it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from uptake.cli import options
from uptake.errors import BadInput, Damaged

app = typer.Typer(help="Build a datastore and look after it.", no_args_is_help=True)

StorePath = Annotated[str, typer.Argument(help="The datastore's folder.")]
Corpus = Annotated[
    list[str],
    typer.Argument(
        help=".jsonl(.gz .xz .zst) .txt .md .parquet, folders of sources, Hugging Face data set names."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Metric = Annotated[str, typer.Option(help="Nearness of vectors: cosine, l2 or ip (inner product).")]


@app.command()
def build(
    store: StorePath,
    corpus: Corpus,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Sentence encoder by name or folder, or lm:MODEL for a language model's own states."
        ),
    ] = None,
    retriever: Annotated[str, typer.Option(help="dense, lexical or hybrid.")] = "hybrid",
    chunk: Annotated[int, typer.Option(help="Most characters of a passage.")] = 1024,
    metric: Metric = "cosine",
    index: Annotated[str, typer.Option(help="flat, ivf, or auto: chosen by size.")] = "auto",
    as_json: AsJson = False,
    device: options.Device = "cpu",
    dtype: Annotated[str, typer.Option(help="Number format of the encoder.")] = "bfloat16",
    threads: options.Threads = None,
) -> None:
    """Make a datastore from text. Interrupted, the same command goes on where it stopped."""
    from uptake.store.datastore import Datastore
    from uptake.text import Chunking

    options.set_threads(threads)
    here = Path(store)
    if (here / "store.json").is_file():
        opened = Datastore.open(here, encoder=encoder, device=device, threads=threads)
        asked = {"retriever": retriever, "chunk_characters": chunk, "metric": metric, "index": index}
        info = opened.info()
        for name, value in asked.items():
            if info[name] != value:
                raise BadInput(
                    f"{store} is there with {name} {info[name]}, not {value}: use it as it is or a new folder"
                )
    else:
        opened = Datastore.create(
            here,
            retriever=retriever,
            encoder=encoder,
            chunking=Chunking(chunk),
            metric=metric,  # type: ignore[arg-type]
            index=index,  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
            threads=threads,
        )
    _add(opened, corpus, as_json)


@app.command()
def add(
    store: StorePath,
    corpus: Corpus,
    encoder: options.Encoder = None,
    as_json: AsJson = False,
    device: options.Device = "cpu",
    threads: options.Threads = None,
) -> None:
    """Add text to a datastore; what is there already is left alone, changed documents are replaced."""
    options.set_threads(threads)
    _add(_open(store, encoder, device, threads), corpus, as_json)


@app.command()
def remove(
    store: StorePath,
    documents: Annotated[list[str] | None, typer.Argument(help="Ids of documents to remove.")] = None,
    passage: Annotated[list[int] | None, typer.Option(help="Id of a passage to remove.")] = None,
    purge: Annotated[
        bool, typer.Option("--purge", help="Rewrite the files, so that no byte of it stays.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove documents or passages. Without --purge their bytes stay for readers of older versions."""
    if not documents and not passage and not purge:
        raise BadInput(
            "nothing to remove: name documents, or --passage ID, or --purge to clean what was removed"
        )
    removed = _open(store).remove(documents or (), passage or (), purge=purge)
    told = {"passages_removed": removed, "purged": purge}
    typer.echo(json.dumps(told) if as_json else f"removed {removed} passages" + (", purged" if purge else ""))


@app.command()
def search(
    store: StorePath,
    query: Annotated[str, typer.Argument(help="Text to find neighbours of.")],
    k: Annotated[int, typer.Option("-k", help="How many.")] = 5,
    encoder: options.Encoder = None,
    as_json: AsJson = False,
    device: options.Device = "cpu",
    threads: options.Threads = None,
) -> None:
    """Show the passages nearest to a text."""
    options.set_threads(threads)
    opened = _open(store, encoder, device, threads)
    (ranked,) = opened.search([query], k)
    passages = opened.passages(ranked.ids.tolist())
    if as_json:
        found = [
            {"id": p.id, "score": float(score), "document": p.document, "start": p.start, "text": p.text}
            for p, score in zip(passages, ranked.scores, strict=True)
        ]
        typer.echo(json.dumps(found, indent=1))
        return
    from rich.console import Console
    from rich.text import Text

    screen = Console()
    for passage, score in zip(passages, ranked.scores, strict=True):
        screen.print(
            Text(f"{score:8.3f}  {passage.document} @ {passage.start}  (passage {passage.id})", style="bold")
        )
        screen.print(Text("          " + " ".join(passage.text.split())[:300], style="dim"))


@app.command()
def info(store: StorePath, as_json: AsJson = False) -> None:
    """Show what a datastore holds and how it was made."""
    _show(_open(store).info(), as_json)


@app.command()
def verify(store: StorePath, as_json: AsJson = False) -> None:
    """Look for damage; each fault is named with its cure, and the exit code is then 2."""
    from uptake.store.verify import verify_store

    faults = verify_store(store)
    if as_json:
        typer.echo(json.dumps({"faults": faults}, indent=1))
    else:
        typer.echo("\n".join(faults) if faults else "sound: no fault found")
    if faults:
        raise Damaged(f"{store}: {len(faults)} {'fault' if len(faults) == 1 else 'faults'} found, see above")


@app.command()
def export(store: StorePath, path: Annotated[str, typer.Argument(help="A new .parquet file.")]) -> None:
    """Write every passage, with its vector, as one plain Parquet file."""
    typer.echo(f"wrote {_open(store).export(path)} passages to {path}")


def _open(store: str, encoder: str | None = None, device: str = "cpu", threads: int | None = None) -> Any:
    return options.open_store(store, encoder, device, threads)


def _add(store: Any, corpus: list[str], as_json: bool) -> None:
    from uptake import readers

    skipped = readers.Skipped()
    with options.progress_bar("passages") as progress:
        added = store.add(readers.read(corpus, skipped=skipped), progress=progress)
    options.tell_skipped(skipped)
    told = {
        "documents": added.documents,
        "passages_added": added.passages,
        "passages_already_there": added.already,
        "passages": store.count,
        "skipped": skipped.counts,
    }
    _show(told, as_json)


def _show(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(told, indent=1))
        return
    width = max(map(len, told))
    for name, value in told.items():
        typer.echo(f"{name.replace('_', ' '):{width}}  {value if value != {} else 'none'}")
