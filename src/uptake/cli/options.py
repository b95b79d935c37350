"""Options that mean the same under every verb."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uptake.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from uptake.overlap import LeakFilter
    from uptake.readers import Skipped
    from uptake.store.datastore import Datastore

Model = Annotated[str, typer.Option("--model", "-m", help="Base model: a Hugging Face name or a folder.")]
Methods = Annotated[
    str,
    typer.Option("--methods", "--method", help="Names, as `uptake methods` lists them, with commas between."),
]
Store = Annotated[str | None, typer.Option("--store", "-s", help="Datastore to find neighbours in.")]
Data = Annotated[
    list[str], typer.Option("--data", help='Documents to score: .jsonl of {"id", "text"}, or files.')
]
Neighbours = Annotated[str, typer.Option("-k", help="Neighbours a query; several as in 1,5,20.")]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="A method's setting, name=value or method.name=value; see `uptake methods NAME`."
    ),
]
ProtocolName = Annotated[
    str, typer.Option("--protocol", help="per-query (leak-free), whole (the paper's) or running.")
]
Prefix = Annotated[int, typer.Option(help="Characters that retrieve and are read, not scored (per-query).")]
Suffix = Annotated[int, typer.Option(help="Characters scored after the prefix (per-query).")]
Windows = Annotated[int, typer.Option(help="Most queries made of one document (per-query).")]
SegmentSize = Annotated[int, typer.Option("--segment", help="Characters scored, then taken up (running).")]
Limit = Annotated[int | None, typer.Option(help="Most documents to score.")]
Batch = Annotated[int, typer.Option(help="Queries side by side.")]
Containment = Annotated[
    float, typer.Option(help="Leak filter: share of a passage's 13-grams in the document.")
]
Jaccard = Annotated[float, typer.Option(help="Leak filter: Jaccard similarity of passage and document.")]
NoFilter = Annotated[
    bool, typer.Option("--no-leak-filter", help="Let passages through that leak. Say so if you publish.")
]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens trained on a query.")]
MaxSteps = Annotated[int | None, typer.Option(help="Most gradient steps a query.")]
MaxSeconds = Annotated[float | None, typer.Option(help="Most CPU seconds of training a query.")]
Encoder = Annotated[
    str | None,
    typer.Option(help="The store's encoder, if it is not found by its name: a folder or lm:MODEL."),
]
Json = Annotated[str | None, typer.Option("--json", help="Write the report, rows included, to this file.")]
Html = Annotated[str | None, typer.Option("--html", help="Write the report as one self-contained page.")]
Device = Annotated[str, typer.Option(help="Where tensors live: cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[
    str, typer.Option(help="Number format of the base model: float32, bfloat16, float16, float64.")
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads (default: PyTorch's choice).")]


def console() -> "Console":
    """Return the console for what is not the result itself: it writes to standard error."""
    from rich.console import Console

    return Console(stderr=True)


def set_threads(threads: int | None) -> None:
    """Let PyTorch use this many CPU threads; None leaves it be. Raises BadInput below one."""
    if threads is None:
        return
    if threads < 1:
        raise BadInput(f"--threads {threads}: use 1 or more")
    import torch

    torch.set_num_threads(threads)


def numbers(text: str, option: str) -> list[int]:
    """Return the whole numbers of a list such as 1,5,20; BadInput if it is none."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(f"{option} {text!r}: write whole numbers such as 20 or 1,5,20") from None


def leak_filter(containment: float, jaccard: float, off: bool) -> "LeakFilter":
    from uptake.overlap import LeakFilter

    return LeakFilter.off() if off else LeakFilter(containment, jaccard)


def open_store(path: str | None, encoder: str | None, device: str, threads: int | None) -> "Datastore | None":
    from uptake.store.datastore import Datastore

    return None if path is None else Datastore.open(path, encoder=encoder, device=device, threads=threads)


def tell_skipped(skipped: "Skipped") -> None:
    """Say on standard error what was left out while reading, if anything was."""
    if skipped.total:
        typer.echo(f"left out: {skipped}", err=True)


@contextmanager
def progress_bar(what: str) -> "Iterator[Callable[..., None]]":
    """Show a progress bar on standard error; the block calls what it is given with (done, total, name)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, TextColumn("{task.fields[name]}"), console=console(), transient=True) as bar:
        task = bar.add_task(what, total=None, name="")

        def update(done: int, total: int, name: str = "") -> None:
            bar.update(task, completed=done, total=total or None, name=name[-40:])

        yield update
