"""HTML: a file is one document without its markup, scripts and styles; its headings are places.

Python's own parser is enough to take text out of markup, so nothing has to be installed. Menus and
footers are text as well, and stay.
"""

import codecs
import re
from collections.abc import Iterator
from html.parser import HTMLParser

from uptake.text.files import SkipError
from uptake.text.joined import Joined
from uptake.text.reading import File, Format, Item

_BLOCK_NAMES = """
    address article aside blockquote body br caption center dd details dialog div dl dt fieldset figcaption
    figure footer form h1 h2 h3 h4 h5 h6 head header hr html legend li main menu nav ol option p
    pre section select summary table tbody tfoot thead title tr ul
"""
_BLOCKS = frozenset(_BLOCK_NAMES.split())
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_CHARSET = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})|encoding=["']([\w.:-]{1,40})""", re.I
)
_SPACE = re.compile(r"[ \t\r\n\f]+")


def read(file: File) -> Iterator[Item]:
    """Yield the one document of a page."""
    raw = bytearray()
    for chunk in file.text_chunks():
        raw += chunk
        if len(raw) > 4 * file.reading.max_document_bytes:
            raise SkipError(file.reading.too_long)
    text = Joined(file, "\n")
    title = add_markup(text, decode(bytes(raw), file))
    yield text.document({"title": title} if title else {}), file.where


def decode(raw: bytes, file: File) -> str:
    """Return a page as text: UTF-8, or what it says it is. Raises SkipError where it is neither."""
    try:
        return raw.decode("utf8")
    except UnicodeDecodeError:
        pass
    match = _CHARSET.search(raw[:4096])
    name = (match[1] or match[2]).decode("ascii") if match else file.reading.encoding
    try:
        return raw.decode(codecs.lookup(name).name)
    except (LookupError, UnicodeError, ValueError):
        raise SkipError(
            f"not UTF-8, nor the encoding it names; {name}: {file.reading.other_encoding}"
        ) from None


def add_markup(text: Joined, markup: str, place: str = "") -> str:
    """Add the text of a page to `text`, from `place` on if it has no heading; return its title."""
    page = _Page()
    page.feed(markup)
    page.close()
    page.end_block()
    for block, is_heading in page.blocks:
        text.add(block, block if is_heading else place)
        place = ""
    return page.title


class _Page(HTMLParser):
    """Collects the blocks of a page. It counts tags and trusts none to be closed, so nothing goes missing."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[tuple[str, bool]] = []
        self.title = ""
        self._parts: list[str] = []
        self._heading = self._in_title = self._silent = False
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style"):
            self._silent = True
        elif tag in _BLOCKS:
            self.end_block()
            self._in_title = tag == "title" and not self.title
            self._heading = tag in _HEADINGS
            self._pre += tag == "pre"
        elif tag in ("td", "th") and self._parts:
            self._parts.append("\t")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._silent = False
        elif tag in _BLOCKS:
            self.end_block()
            self._pre = max(0, self._pre - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if not self._silent and data:
            self._parts.append(data if self._pre else _SPACE.sub(" ", data))

    def end_block(self) -> None:
        """What was collected is one block."""
        text = "".join(self._parts)
        text = text.strip("\r\n") if self._pre else re.sub(" *\t *", "\t", re.sub(" +", " ", text)).strip()
        self._parts.clear()
        if self._in_title:
            self.title = " ".join(text.split())[:1000]
        elif text.strip():
            self.blocks.append((text, self._heading))
        self._heading = self._in_title = False


format = Format((".html", ".htm", ".xhtml"), read, isolated=True)
