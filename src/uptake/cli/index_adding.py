"""Behind `uptake index build`, `add` and `encode`: what goes into a store, and what is said of it."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from uptake.cli import inputs, screen
from uptake.errors import BadInput

if TYPE_CHECKING:
    from uptake.store.cluster import Cluster
    from uptake.store.datastore import Added, Datastore
    from uptake.text.readers import Reading, Skipped
    from uptake.text.types import Document


def count_of(count: int) -> str:
    """Return so many passages, in words."""
    return f"{count:,} {'passage' if count == 1 else 'passages'}"


def add_corpus(
    place: str,
    open_store: "Callable[[], Datastore]",
    corpus: list[str],
    as_json: bool,
    threads: int | None,
    reading: "Reading",
    ray: str | None = None,
    workers: int = 1,
    cluster: "Cluster | None" = None,
    building: bool = False,
) -> None:
    """Read a corpus into the store at `place`, which `open_store` opens or makes, and say what was added.

    A store that is `building` and finished takes nothing that it does not hold.
    """
    from uptake.text import readers

    inputs.set_threads(threads)
    skipped = readers.Skipped()
    with screen.interruptible(lambda: _resumes(place)):
        if ray is None:
            store, added = _by_this_process(open_store, corpus, reading, skipped, building)
        else:
            pieces = readers.pieces(corpus, skipped=skipped, reading=reading)
            with screen.status("opening the store"):
                store = open_store()
            if building and store.count and not store.unfinished:
                with screen.status("reading"):
                    for _ in _known(store, readers.read(corpus, reading=reading)):
                        pass
            with screen.on_cluster(ray):
                with screen.progress("passages", skipped) as update:
                    added = store.build(pieces, ray, workers, progress=update, left_out=skipped.add)
                if cluster:
                    with screen.status("making the shards' indexes"):
                        type(store).open(store.path, cluster=cluster).prepare()
    _show_added(added, store, skipped, as_json)


def _by_this_process(
    open_store: "Callable[[], Datastore]",
    corpus: list[str],
    reading: "Reading",
    skipped: "Skipped",
    building: bool,
) -> "tuple[Datastore, Added]":
    from uptake.text import readers

    documents = readers.read(corpus, skipped=skipped, reading=reading)
    # A corpus that is not there or holds nothing ends here, before it leaves an empty store behind.
    with screen.status("reading"):
        first = next(documents)
    with screen.status("opening the store"):
        store = open_store()
    known = _count(corpus, reading, store) if store.view.dimensions else 0
    read: Iterator[Document] = chain([first], documents)
    if building and store.count and not store.unfinished:
        read = _known(store, read)
    with screen.progress("passages", skipped) as update:

        def progress(done: int, waiting: int) -> None:
            update(done, max(known, done) if known else 0)

        return store, store.add(read, progress=progress, label=label_of(corpus))


def label_of(corpus: list[str]) -> str:
    """Return what an unfinished build is known by: the corpus, wherever the command is given."""
    return ", ".join(str(Path(each).resolve()) if Path(each).exists() else each for each in corpus)


def _known(store: "Datastore", documents: "Iterable[Document]") -> "Iterator[Document]":
    """Yield documents that a finished store holds; BadInput at the first that it does not."""
    lacks = store.lacks()
    for document in documents:
        if lacks(document):
            raise BadInput(
                f"{store.path} is finished and does not hold {document.id!r} as it is in this corpus: add it "
                f"with `uptake index add {store.path.name}`, or give a new folder"
            )
        yield document


def _resumes(place: str) -> str:
    """Return what an interrupted `build` or `add` has left, and what to do."""
    from uptake.errors import UptakeError
    from uptake.store.datastore import Datastore

    try:
        store = Datastore.open(place)
        stored = store.count if store.unfinished else 0
    except UptakeError:
        stored = 0
    if not stored:
        return "nothing of it was stored yet: the same command begins again"
    return f"what was stored so far is safe, {count_of(stored)}: the same command resumes"


def encode_store(
    store: str, new: str, encoder: str, device: str, dtype: str, threads: int | None
) -> "Datastore":
    """Write the passages of one store to another, embedded by `encoder`; return the new one."""
    from uptake.store.encoding_anew import encode_anew

    inputs.set_threads(threads)
    with screen.status("opening the store"):
        opened = inputs.open_store(store, None, device, threads)
    with (
        screen.interruptible(lambda: f"nothing is at {new} yet: the same command begins again"),
        screen.progress("passages") as update,
    ):
        return encode_anew(opened, new, encoder, device=device, dtype=dtype, progress=update)


def _show_added(added: "Added", store: "Datastore", skipped: "Skipped", as_json: bool) -> None:
    screen.note_skipped(skipped)
    facts = {
        "documents": added.documents,
        "passages_added": added.passages,
        "passages_already_there": added.already,
        "passages": store.count,
        "skipped": skipped.counts,
        # By name: workers of a cluster find them in another order.
        "skipped_examples": sorted({*skipped.examples, *skipped.firsts.values()}),
    }
    if as_json:
        screen.echo(json.dumps(facts, indent=1))
        return
    there = f", {added.already:,} were there already" if added.already else ""
    documents_read = f"{added.documents:,} {'document' if added.documents == 1 else 'documents'}"
    screen.echo(
        f"added {count_of(added.passages)} of {documents_read}{there}; "
        f"{store.path.name} holds {store.count:,}"
    )


def _count(corpus: list[str], reading: "Reading", store: "Datastore") -> int:
    """Return how many passages a corpus makes, for the bar: embedding takes far longer than reading twice."""
    from uptake.text import readers

    if not all(Path(source).exists() for source in corpus):  # a data set is not fetched twice
        return 0
    with screen.status("counting passages"):
        chunking = store.view.chunking
        return sum(
            1 for document in readers.read(corpus, reading=reading) for _ in chunking.split(document.text)
        )
