"""Checks of the values of options, made before anything slow begins. All raise BadInput."""

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uptake.cli.options import MOST
from uptake.errors import BadInput

if TYPE_CHECKING:
    from uptake.evaluation.tune import Recipe
    from uptake.store.cluster import Cluster
    from uptake.store.datastore import Datastore
    from uptake.tasks.questions import Question
    from uptake.text.overlap import LeakFilter


def one_of(option: str, value: str, known: Sequence[str]) -> str:
    """Return `value` if it is one of those known."""
    if value in known:
        return value
    near = difflib.get_close_matches(value, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
    raise BadInput(f"{option} {value!r}: {hint}")


def counts(text: str, option: str, of: str = "neighbours") -> list[int]:
    """Return the whole numbers of a list such as 1,5,20."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(f"{option} {text!r}: write whole numbers such as 20 or 1,5,20") from None
    for number in numbers:
        if not 0 <= number <= MOST:
            raise BadInput(f"{option} {number:.6g}: use 0 to {MOST:,} {of}")
    return numbers


def methods(text: str, such_as: str) -> list[str]:
    """Return the names in a list of methods."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise BadInput(f"--methods {text!r}: name at least one, such as {such_as}")
    return names


def report_file(name: str | None) -> Path | None:
    """Return where --json writes the report to; None for nowhere, or for standard output, "-"."""
    return None if name == "-" else output_file("--json", name)


def output_file(option: str, name: str | None) -> Path | None:
    """Return a file to write to, checked before hours of work go into its content; None for none."""
    if name is None:
        return None
    path = Path(name).expanduser()
    if not name or path.is_dir():
        raise BadInput(f"{option} {name!r} is a folder: give a file name")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise BadInput(f"{option} {name}: there is no folder {path.parent}; make it first")
    # A file is replaced as a whole, so its folder must be writable; a pipe or a device is written to.
    special = path.exists() and not path.is_file()
    if not os.access(path if special else folder, os.W_OK):
        raise BadInput(f"{option} {name}: you may not write to {path if special else folder}")
    return path


def check_outputs(written: Mapping[str, Path | None], *read: str | Sequence[str] | None) -> None:
    """Raise BadInput where two of the files that are written are one, or one of them is read too."""
    sources = {
        Path(name).expanduser().resolve()
        for names in read
        for name in ([names] if isinstance(names, str) else names or ())
    }
    seen: dict[Path, str] = {}
    for option, path in written.items():
        if path is None or (path.exists() and not path.is_file()):  # a pipe or a device takes it all
            continue
        file = path.resolve()
        if file in sources:
            raise BadInput(
                f"{option} {path}: it is read by this command, and would be lost; name another file"
            )
        if file in seen:
            raise BadInput(f"{option} {path}: {seen[file]} is written there; name another file")
        seen[file] = option


def given_text(text: str) -> str:
    """Return a text, read from standard input for "-"."""
    try:
        text = sys.stdin.read() if text == "-" else text
        text.encode("utf8")
    except UnicodeError as error:  # the shell passes bytes that are no UTF-8 as lone surrogates
        raise BadInput(f"the text is not UTF-8 at character {error.args[2]}: convert it first") from None
    return text


def set_threads(threads: int | None) -> None:
    """Let PyTorch use this many CPU threads; None changes nothing."""
    if threads is None:
        return
    import torch

    torch.set_num_threads(threads)


def check_device(device: str) -> None:
    """Raise BadInput for a device that this machine lacks."""
    if device != "cpu":
        from uptake.lm import loading

        loading.check_device(device)


def leak_filter(
    containment: float, jaccard: float, letters: float, spaced_letters: float, off: bool
) -> "LeakFilter":
    """Return the leak filter with these thresholds."""
    from uptake.text.overlap import LeakFilter

    return LeakFilter(containment, jaccard, letters, spaced_letters, enabled=not off)


def open_store(
    path: str,
    encoder: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    cluster: "Cluster | None" = None,
    search_by: str | None = None,
    vector_weight: float = 20.0,
    query_encoder: str | None = None,
) -> "Datastore":
    """Open a store at its newest version, to be searched as these options say."""
    from uptake.cli import searching
    from uptake.store.datastore import Datastore

    check_device(device)
    return Datastore.open(
        path,
        encoder=encoder,
        device=device,
        threads=threads,
        cluster=cluster,
        search_by=search_by,
        vector_weight=vector_weight,
        query_encoder=searching.query_encoder(query_encoder, device),
    )


def questions(*names: Sequence[str]) -> "list[list[Question]]":
    """Read the questions of each list of files, and print what was left out of all of them."""
    from uptake.cli import screen
    from uptake.tasks.questions import read_questions
    from uptake.text.files import Skipped

    skipped = Skipped()
    with screen.status("reading questions"):
        found = [[q for name in some for q in read_questions(name, skipped).questions] for some in names]
    screen.note_skipped(skipped)
    return found


def note_unfinished(store: "Datastore") -> None:
    """Print that part of a store is missing, where somebody's `add` was interrupted."""
    from uptake.cli import screen
    from uptake.store.unfinished import said

    if line := said(store.unfinished):
        screen.note(f"note: {store.path} is {line}")


def shards(ray: str | None, rows: int | None, missing: str) -> "Cluster | None":
    """Return the cluster that searches the store; None unless --ray and --shard-rows are given."""
    from uptake.store.cluster import POLICIES, Cluster

    one_of("--missing", missing, POLICIES)
    if rows is None:
        return None
    if ray is None:
        raise BadInput(f"--shard-rows {rows}: shards need a cluster, name one with --ray")
    return Cluster(ray, rows, missing=missing)  # type: ignore[arg-type]


def recipe(path: str | None) -> "Recipe | None":
    """Return the recipe in a file, if one is named."""
    if path is None:
        return None
    from uptake.evaluation.tune import Recipe

    return Recipe.read(path)
