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

from uptake import arguments
from uptake.errors import BadInput, Missing
from uptake.text import formats, isolated, packing
from uptake.text.files import SkipError, Skipped, shown, walk
from uptake.text.reading import File, Item, Reading
from uptake.text.records import document
from uptake.text.types import Document, stable_hash

__all__ = ["Piece", "Reading", "Skipped", "pieces", "read"]

# What reads one file, or one data set: it can be sent to another process.
Piece = Callable[[], Iterator[Item]]

_USUAL = Reading()
_DATA_SET = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", re.ASCII)


def read(
    sources: str | Path | Iterable[str | Path],
    *,
    skipped: Skipped | None = None,
    reading: Reading = _USUAL,
) -> Iterator[Document]:
    """Return a lazy iterator over the documents of all sources, in order.

    A source is one of

    - a file of a format that uptake.text.formats has: records of `.jsonl`, `.json`, `.parquet` or `.csv`
      with a text each, or one document, such as `.pdf`, `.docx`, `.html`, `.md`, `.ipynb` or plain text;
    - any other file, if it holds text: one document;
    - a folder: all files below it whose suffix a format has, in sorted order, hidden ones, caches and
      installed packages left out; the others are counted;
    - a Hugging Face data set, "org/name" or "org/name:split", streamed.

    Packed files are unpacked. A file's document is named by its path from the folder
    that was given, that folder's name included ("peft/tuners/lora.py"); a record without an id by
    its file and number. Files have no group: a package is one folder, and one group would make all
    of it leak into itself. `reading` says how and within which limits files are read.

    Left out and counted in `skipped`: records, files and pages that are broken, empty, binary, in no
    known encoding, beyond a limit, or of an id already read.

    Raises BadInput at once for a source that is not there or cannot be opened, and at the end if
    there was no document at all; Missing for a data set that cannot be loaded.
    """
    skipped = Skipped() if skipped is None else skipped
    opened, names = _opened(sources, reading, skipped)
    return _sift((item for piece in opened for item in piece()), skipped, names)


def pieces(
    sources: str | Path | Iterable[str | Path], *, skipped: Skipped, reading: Reading = _USUAL
) -> list[Piece]:
    """Return what reads each file of the sources, in order, wherever it is called: others may share them.

    A piece gives documents, or the reasons why there are none, each with its place; whoever calls
    them keeps the first document of each id. Raises as `read` does.
    """
    opened, names = _opened(sources, reading, skipped)
    found = list(opened)
    if not found:
        raise BadInput(f"nothing to read in {names}: it holds no text")
    return found


def _opened(
    sources: str | Path | Iterable[str | Path], reading: Reading, skipped: Skipped
) -> tuple[Iterator[Piece], str]:
    """Check every source; return their pieces, none of which has been read yet, and their names."""
    arguments.several("corpus", [sources] if isinstance(sources, str | Path) else sources)
    named = [sources] if isinstance(sources, str | Path) else list(sources)
    if not named:
        raise BadInput("no corpus named: give a file, a folder or a data set")
    # Every name is checked before the first document, so a typing error shows before hours of work.
    opened = [_open(source, reading, skipped) for source in named]
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


def _open(source: str | Path, reading: Reading, skipped: Skipped) -> Iterator[Piece]:
    """Check a source and return its pieces."""
    path, name = Path(source), shown(source)
    try:
        if not str(source):  # Path("") would be the current folder
            raise FileNotFoundError
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            next(path.iterdir(), None)
            return _folder(path, reading, skipped)
        if not stat.S_ISREG(mode):
            raise BadInput(f"cannot read {name}: it is neither a file nor a folder")
        path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        if isinstance(source, str) and _names_data_set(source):
            _data_set(source, reading)  # what cannot be loaded is reported now
            return iter([partial(_data_set, source, reading)])
        raise BadInput(f"no such file or folder: '{name}' (a data set is named org/name)") from error
    except OSError as error:
        raise BadInput(f"cannot read {name}: {error.strerror}; check its permissions") from error
    kind = formats.of(path) or "plain"
    return iter([partial(_file, path, f"{_folder_name(path.parent)}/{path.name}", reading, kind)])


def _folder(root: Path, reading: Reading, skipped: Skipped) -> Iterator[Piece]:
    for path in walk(root, skipped):
        kind = formats.of(path)
        if kind is None:
            skipped.add(_unread(path), shown(path))
        else:
            name = f"{_folder_name(root)}/{path.relative_to(root).as_posix()}"
            yield partial(_file, path, name, reading, kind)


def _unread(path: Path) -> str:
    """The reason for a file of no format here: by its suffix, unless that is a number or the like."""
    suffix = formats.suffix(path)
    usual = suffix[1:].isascii() and suffix[1:].isalnum() and not suffix[1:].isdecimal() and len(suffix) < 12
    kind = suffix if usual else "other" if suffix else "no suffix"
    return f"of no format that is read ({kind})"


def _folder_name(folder: Path) -> str:
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def _file(path: Path, name: str, reading: Reading, kind: str) -> Iterator[Item]:
    """Yield what one file holds; whatever ends its reading early becomes its last item."""
    form, file = formats.named(kind), File(path, shown(name), shown(path), reading)
    try:
        if form.isolated:
            if not path.is_file():  # opening a pipe would wait for ever
                raise SkipError("not a regular file")
            yield from isolated.items(file, kind)
        else:
            yield from (step for step in form.read(file) if step is not None)
    except SkipError as skip:
        yield str(skip), shown(path)
    except OSError:
        yield "unreadable file", shown(path)


def _names_data_set(source: str) -> bool:
    """Whether it is "org/name", not a mistyped path: to a file of a known kind or in a folder."""
    last = Path(source.partition(":")[0])
    known = formats.of(last) is not None or packing.named(last)
    return bool(_DATA_SET.fullmatch(source)) and not known and not last.parent.exists()


def _data_set(source: str, reading: Reading) -> Iterator[Item]:
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
    return _rows(iter(streams[split]), f"{name}:{split}", reading)


def _rows(rows: Iterator[Mapping[str, Any]], name: str, reading: Reading) -> Iterator[Item]:
    for number in count(1):
        try:
            row = next(rows, None)
        except Exception as error:
            raise Missing(f"data set {name} broke off at row {number}: {_first_line(error)}") from error
        if row is None:
            return
        if reading.text_key not in row:
            raise BadInput(
                f"data set {name} has no column {reading.text_key}, only {', '.join(row)}: "
                f"{reading.other_key}"
            )
        yield document(row, f"{name}:{number}", reading, f"row {number}"), f"{name}:{number}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
