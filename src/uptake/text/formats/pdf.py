"""PDF: a file is one document, each page a place. Pages that are pictures hold no text and are counted."""

import io
import re
from collections.abc import Iterator
from typing import Any

from uptake.text.files import SkipError
from uptake.text.joined import Joined
from uptake.text.reading import File, Format, Step
from uptake.text.records import detail

_BYTES = 1 << 30  # of a file, pictures included
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # what broken fonts give in the place of letters


def read(file: File) -> Iterator[Step]:
    """Yield the one document of a PDF, and the reason for each page that could not be read."""
    import pypdf
    from pypdf.errors import DependencyError, PyPdfError

    raw = file.whole(_BYTES)
    try:
        reader = pypdf.PdfReader(io.BytesIO(raw), strict=False)
        if reader.is_encrypted and not reader.decrypt(""):
            raise SkipError("encrypted PDF; remove its password first")
        pages = reader.pages
        count = len(pages)
    except (SkipError, MemoryError):
        raise
    except DependencyError:
        raise SkipError("encrypted PDF; remove its password first") from None
    except Exception as error:  # malformed files make as many kinds of error as it has parts
        kind = (
            "PDF beyond the parser's limits"
            if isinstance(error, PyPdfError) and "imit" in str(error)
            else "broken PDF"
        )
        raise SkipError(f"{kind}; {detail(error)}") from None
    text, left_out = Joined(file), list[tuple[str, str]]()
    for number in range(1, count + 1):
        yield None
        place = f"page {number}"
        try:
            page = pages[number - 1]
            found = _NO_TEXT.sub("\ufffd", page.extract_text())
            scanned = not found.strip() and _has_image(page)
        except (SkipError, MemoryError):
            raise
        except Exception as error:
            left_out.append((f"unreadable PDF page; {detail(error)}", f"{file.where}: {place}"))
            continue
        if scanned:
            left_out.append(
                ("PDF page without text; it is a picture: run OCR first", f"{file.where}: {place}")
            )
        text.add(found, place)
    made = text.document(_meta(reader), "PDF without text; if it was scanned, run OCR first")
    if not isinstance(made, str):
        yield from left_out
    elif left_out and not left_out[0][0].startswith("PDF page without text"):
        made = left_out[0][0].replace(" page", "", 1)
    yield made, file.where


def _has_image(page: Any) -> bool:
    resources = page.get("/Resources")
    objects = resources.get_object().get("/XObject") if resources is not None else None
    named = objects.get_object().values() if objects is not None else ()
    return any(each.get_object().get("/Subtype") == "/Image" for each in named)


def _meta(reader: Any) -> dict[str, str]:
    """Return title and author, where they are there and are text."""
    try:
        info = reader.metadata or {}
        found = {name: info.get(key) for name, key in (("title", "/Title"), ("author", "/Author"))}
    except Exception:
        return {}
    return {
        name: _NO_TEXT.sub("\ufffd", str(value))[:1000]
        for name, value in found.items()
        if isinstance(value, str) and value.strip()
    }


format = Format((".pdf",), read, isolated=True, extra="files")
