"""Jupyter notebooks, of format 3 and 4: text and code of a notebook are one document, each cell a place.

What cells printed is left out: machines wrote it. The format is plain JSON, so no library is needed.
"""

from collections.abc import Iterator
from typing import Any

from uptake.codec import Malformed, parse
from uptake.text.files import SkipError
from uptake.text.joined import Joined
from uptake.text.reading import File, Format, Item
from uptake.text.records import detail

_BYTES = 1 << 30  # of a notebook, pictures that its cells drew included


def read(file: File) -> Iterator[Item]:
    """Yield the one document of a notebook, and the reason for each cell that is none."""
    raw = bytearray()
    for chunk in file.text_chunks():
        raw += chunk
        if len(raw) > _BYTES:
            raise SkipError(f"a notebook of more than {_BYTES} bytes")
    try:
        found = parse(bytes(raw))
    except Malformed as error:
        raise SkipError(f"broken notebook; {detail(error)}") from None
    text = Joined(file)
    for number, cell in enumerate(_cells(found), start=1):
        source = _source(cell)
        if source is None:
            yield "notebook cell without source", f"{file.where}: cell {number}"
        else:
            text.add(source, f"cell {number}")
    yield text.document(), file.where


def _cells(notebook: Any) -> list[Any]:
    found = notebook if isinstance(notebook, dict) else {}
    sheets = found.get("worksheets")  # format 3
    parts = [found, *(sheets if isinstance(sheets, list) else [])]
    lists = [
        part["cells"] for part in parts if isinstance(part, dict) and isinstance(part.get("cells"), list)
    ]
    if not lists:
        raise SkipError("broken notebook; it has no cells")
    return [cell for cells in lists for cell in cells]


def _source(cell: Any) -> str | None:
    found = cell.get("source", cell.get("input")) if isinstance(cell, dict) else None
    if isinstance(found, list) and all(isinstance(line, str) for line in found):
        return "".join(found)
    return found if isinstance(found, str) else None


format = Format((".ipynb",), read, isolated=True)
