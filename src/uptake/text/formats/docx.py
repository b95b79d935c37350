"""Word's .docx: a file is one document, its headings are places.

Text of the body is read, tables, text boxes and accepted changes included; headers, footers, notes and
comments are not.
"""

import io
import re
from collections.abc import Iterator
from typing import Any

from uptake.text.archives import check_zip
from uptake.text.files import SkipError
from uptake.text.joined import Joined
from uptake.text.reading import File, Format, Step
from uptake.text.records import detail

_BYTES = 1 << 30  # of a file, pictures included
_OLE = b"\xd0\xcf\x11\xe0"  # how Microsoft's older files begin, and encrypted ones
_WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"  # the same text again
_TAB = re.compile(r"(?<! ) *\t")
_STEPS = 1000  # paragraphs between two signs of life


def read(file: File) -> Iterator[Step]:
    """Yield the one document of a file."""
    import docx

    raw = file.whole(_BYTES)
    if raw.startswith(_OLE):
        raise SkipError("encrypted .docx, or an old .doc; save it as .docx without a password")
    check_zip(raw, file.reading)
    try:
        opened = docx.Document(io.BytesIO(raw))
        styles = {style.style_id: (style.name or "").lower() for style in opened.styles}
        body = opened.element.body
        title = opened.core_properties.title
    except MemoryError:
        raise
    except Exception as error:  # malformed files make as many kinds of error as it has parts
        raise SkipError(f"broken .docx; {detail(error)}") from None
    text = Joined(file, "\n")
    for number, (found, style) in enumerate(_paragraphs(body)):
        if number % _STEPS == 0:
            yield None
        heading = styles.get(style, "").startswith(("heading", "title"))
        text.add(found, found if heading else "")
    yield text.document({"title": title} if isinstance(title, str) and title.strip() else {}), file.where


def _paragraphs(body: Any) -> Iterator[tuple[str, str]]:
    """Yield the text and the style of each paragraph, and each row of a table as one, tabs between cells."""
    from lxml import etree

    parts, style, rows = list[str](), "", 0  # rows: how many of them this is in
    walk = etree.iterwalk(body, events=("start", "end"))
    for event, node in walk:
        tag = node.tag.removeprefix(_WORD) if isinstance(node.tag, str) else ""
        if event == "start":
            if tag == _FALLBACK:
                walk.skip_subtree()
            elif tag == "tr":
                rows += 1
            elif tag == "t":
                parts.append(node.text or "")
            elif tag in ("tab", "ptab") and node.getparent().tag == _WORD + "r":  # else it is a setting
                parts.append("\t")
            elif tag in ("br", "cr"):
                parts.append("\n")
            elif tag == "pStyle":
                style = node.get(_WORD + "val", "")
            continue
        rows -= tag == "tr"
        if tag == "tc":
            parts.append("\t")
        elif tag == "p" and rows:
            parts.append(" ")
        elif tag in ("p", "tr") and not rows:
            yield _TAB.sub("\t", "".join(parts)).strip("\t "), style
            parts, style = [], ""


format = Format((".docx",), read, isolated=True, extra="files")
