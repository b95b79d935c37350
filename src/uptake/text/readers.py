"""Reads corpora: files, folders and data sets become a stream of documents.

What cannot be used is left out, counted by reason and named, and costs nothing around it. Only a
corpus that is not there at all, or that holds nothing, is an error.
"""

import itertools
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from uptake.errors import BadInput, Missing
from uptake.text.files import COMPRESSIONS, FORMATS, RECORDS, TABLES, SkipError, Skipped, shown, suffix, walk
from uptake.text.formats import Item, Limits, document, json_lines, parquet, text_file
from uptake.text.types import Document, stable_hash

__all__ = ["Piece", "Skipped", "pieces", "read"]

# What reads one file, or one data set: it can be sent to another process.
Piece = Callable[[], Iterator[Item]]

_USUAL = Limits()
_DATA_SET = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", re.ASCII)


def read(
    sources: str | Path | Iterable[str | Path],
    *,
    skipped: Skipped | None = None,
    max_document_bytes: int = _USUAL.document,
    max_decompressed_bytes: int = _USUAL.decompressed,
) -> Iterator[Document]:
    """Return a lazy iterator over the documents of all sources, in order.

    A source is one of

    - `.jsonl` or `.ndjson` (`.json` too, if named itself): an object a line with `text`, and if it
      likes `id`, `group` and more, whose scalar values become `meta`;
    - `.parquet`: the columns `text` and, if they are there, `id` and `group`;
    - any other file: one document, whatever its suffix;
    - a folder: all such files below it that hold text, in sorted order, hidden ones, caches and
      installed packages left out;
    - a Hugging Face data set, "org/name" or "org/name:split", streamed.

    `.gz`, `.xz` and `.zst` are unpacked. A file's document is named by its path from the folder
    that was given, that folder's name included ("peft/tuners/lora.py"); a record without an id by
    its file and line. Files have no group: a package is one folder, and one group would make all
    of it leak into itself.

    Left out and counted in `skipped`: records and files that are broken, empty, binary, not UTF-8,
    of a size beyond `max_document_bytes` (UTF-8), or of an id already read; the rest of a
    file that is damaged or unpacks to more than `max_decompressed_bytes`.

    Raises BadInput at once for a source that is not there or cannot be opened, and at the end if
    there was no document at all; Missing for a data set that cannot be loaded.
    """
    skipped = Skipped() if skipped is None else skipped
    opened, names = _opened(sources, Limits(max_document_bytes, max_decompressed_bytes), skipped)
    return _sift((item for piece in opened for item in piece()), skipped, names)


def pieces(sources: str | Path | Iterable[str | Path], *, skipped: Skipped) -> list[Piece]:
    """Return what reads each file of the sources, in order, wherever it is called: others may share them.

    A piece gives documents, or the reasons why there are none, each with its place; whoever calls
    them keeps the first document of each id. Raises as `read` does.
    """
    opened, names = _opened(sources, _USUAL, skipped)
    found = list(opened)
    if not found:
        raise BadInput(f"nothing to read in {names}: it holds no text")
    return found


def _opened(
    sources: str | Path | Iterable[str | Path], limits: Limits, skipped: Skipped
) -> tuple[Iterator[Piece], str]:
    """Check every source; return their pieces, none of which has been read yet, and their names."""
    if limits.document < 1 or limits.decompressed < 1:
        raise BadInput("size limits must be at least 1 byte")
    named = [sources] if isinstance(sources, str | Path) else list(sources)
    if not named:
        raise BadInput("no corpus named: give a file, a folder or a data set")
    # Every name is checked before the first document, so a typing error shows before hours of work.
    opened = [_open(source, limits, skipped) for source in named]
    return itertools.chain.from_iterable(opened), ", ".join(shown(source) for source in named)


def _sift(items: Iterator[Item], skipped: Skipped, names: str) -> Iterator[Document]:
    """Count what is no document, keep the first of each id, and refuse to end with nothing."""
    before = len(skipped.examples)
    seen: set[int] = set()  # hashes: ids may be long, and there may be millions
    for found, where in items:
        if isinstance(found, str):
            skipped.add(found, where)
        elif (key := stable_hash(found.id)) in seen:
            skipped.add("duplicate id", where)
        else:
            seen.add(key)
            yield found
    if not seen:
        first = [*skipped.examples[before:], "it holds no text"][0]
        raise BadInput(f"nothing to read in {names}: {first}")


def _open(source: str | Path, limits: Limits, skipped: Skipped) -> Iterator[Piece]:
    """Check a source and return its pieces."""
    path, name = Path(source), shown(source)
    try:
        if not str(source):  # Path("") would be the current folder
            raise FileNotFoundError
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            next(path.iterdir(), None)
            return _folder(path, limits, skipped)
        if not stat.S_ISREG(mode):
            raise BadInput(f"cannot read {name}: it is neither a file nor a folder")
        path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        if isinstance(source, str) and _names_data_set(source):
            _data_set(source, limits)  # what cannot be loaded is reported now
            return iter([partial(_data_set, source, limits)])
        raise BadInput(f"no such file or folder: '{name}' (a data set is named org/name)") from error
    except OSError as error:
        raise BadInput(f"cannot read {name}: {error.strerror}; check its permissions") from error
    return iter([partial(_file, path, f"{_folder_name(path.parent)}/{path.name}", limits, named=True)])


def _folder(root: Path, limits: Limits, skipped: Skipped) -> Iterator[Piece]:
    for path in walk(root, skipped):
        yield partial(_file, path, f"{_folder_name(root)}/{path.relative_to(root).as_posix()}", limits)


def _folder_name(folder: Path) -> str:
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def _file(path: Path, name: str, limits: Limits, named: bool = False) -> Iterator[Item]:
    """Yield what one file holds; whatever ends its reading early becomes its last item."""
    kind = suffix(path)
    if kind in RECORDS or (named and kind == ".json"):
        read_kind = json_lines
    elif kind in TABLES:
        read_kind = parquet
    else:
        read_kind = text_file
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise SkipError("not a regular file")
        yield from read_kind(path, shown(name), limits)
    except SkipError as skip:
        yield str(skip), shown(path)
    except OSError:
        yield "unreadable file", shown(path)


def _names_data_set(source: str) -> bool:
    """Whether it is "org/name", not a mistyped path: to a file of a known kind or in a folder."""
    last = Path(source.partition(":")[0])
    known = suffix(last) in FORMATS | {".json"} or last.suffix in COMPRESSIONS
    return bool(_DATA_SET.fullmatch(source)) and not known and not last.parent.exists()


def _data_set(source: str, limits: Limits) -> Iterator[Item]:
    name, _, split = source.partition(":")
    try:
        import datasets
    except ImportError as error:
        raise Missing(
            f"{source} is no file; as a data set it needs: pip install 'uptake[datasets]'"
        ) from error
    try:
        streams = datasets.load_dataset(name, streaming=True)
    except Exception as error:  # the hub, the network, the data set's own files: whatever they raise
        raise Missing(f"{source} is no file, nor a data set that loads: {_first_line(error)}") from error
    if not split:
        split = next(iter(streams)) if len(streams) == 1 else "train"
    if split not in streams:
        raise BadInput(
            f"data set {name} has no split {split!r}: add one of {', '.join(streams)} after a colon"
        )
    return _rows(iter(streams[split]), f"{name}:{split}", limits)


def _rows(rows: Iterator[Mapping[str, Any]], name: str, limits: Limits) -> Iterator[Item]:
    for number in count(1):
        try:
            row = next(rows, None)
        except Exception as error:
            raise Missing(f"data set {name} broke off at row {number}: {_first_line(error)}") from error
        if row is None:
            return
        if "text" not in row:
            raise BadInput(f"data set {name} has no column text, only {', '.join(row)}")
        yield document(row, f"{name}:{number}", limits), f"{name}:{number}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
