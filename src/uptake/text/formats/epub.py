"""EPUB: a book is one document, its chapters in reading order, its headings places."""

import io
import posixpath
import zipfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from uptake.text.archives import check_zip
from uptake.text.files import SkipError
from uptake.text.formats import html
from uptake.text.joined import Joined
from uptake.text.reading import File, Format, Step
from uptake.text.records import detail

_BYTES = 1 << 30  # of a file, pictures included


def read(file: File) -> Iterator[Step]:
    """Yield the one document of a book, and the reason for each chapter that could not be read."""
    raw = file.whole(_BYTES)
    check_zip(raw, file.reading)
    try:
        book = zipfile.ZipFile(io.BytesIO(raw))
        opf = _first(ElementTree.fromstring(book.read("META-INF/container.xml")), "rootfile").get(
            "full-path", ""
        )
        package = ElementTree.fromstring(book.read(opf))
        chapters, title = _chapters(package, posixpath.dirname(opf)), _title(package)
        hidden = _encrypted(book)
    except MemoryError:
        raise
    except Exception as error:  # of zipfile, expat and missing parts
        raise SkipError(f"broken EPUB; {detail(error)}") from None
    text, left_out = Joined(file, "\n"), list[tuple[str, str]]()
    for number, name in enumerate(chapters, start=1):
        yield None
        where = f"{file.where}: chapter {number}"
        if name in hidden:
            left_out.append(("encrypted EPUB chapter", where))
            continue
        try:
            markup = html.decode(book.read(name), file)
        except (KeyError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
            left_out.append((f"unreadable EPUB chapter; {detail(error)}", where))
            continue
        except SkipError as error:
            left_out.append((str(error), where))
            continue
        except Exception as error:  # zlib's
            left_out.append((f"unreadable EPUB chapter; {type(error).__name__}", where))
            continue
        html.add_markup(text, markup, f"chapter {number}")
    yield from left_out
    yield text.document({"title": title} if title else {}, "EPUB without text"), file.where


def _chapters(package: Any, folder: str) -> list[str]:
    """Return the names of the chapters in reading order."""
    items = {
        item.get("id"): posixpath.normpath(posixpath.join(folder, unquote(item.get("href", ""))))
        for item in package.iter()
        if _local(item) == "item"
    }
    return [
        items[ref.get("idref")]
        for ref in package.iter()
        if _local(ref) == "itemref" and ref.get("idref") in items
    ]


def _encrypted(book: zipfile.ZipFile) -> set[str]:
    """Return the names of what only its seller's software can read."""
    if "META-INF/encryption.xml" not in book.namelist():
        return set()
    tree = ElementTree.fromstring(book.read("META-INF/encryption.xml"))
    return {unquote(node.get("URI", "")) for node in tree.iter() if _local(node) == "CipherReference"}


def _title(package: Any) -> str:
    return next(
        (" ".join((node.text or "").split()) for node in package.iter() if _local(node) == "title"), ""
    )[:1000]


def _first(tree: Any, name: str) -> Any:
    return next(node for node in tree.iter() if _local(node) == name)


def _local(node: Any) -> str:
    return str(node.tag).rpartition("}")[2]


format = Format((".epub",), read, isolated=True)
