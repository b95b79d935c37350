"""One document out of parts that each have a place: pages, cells, headings."""

from collections.abc import Mapping
from dataclasses import replace

from uptake.text.files import SkipError
from uptake.text.reading import File
from uptake.text.records import document
from uptake.text.types import Document

_PLACE_CHARACTERS = 100


class Joined:
    """The text of a file as it grows, part by part."""

    def __init__(self, file: File, between: str = "\n\n") -> None:
        self._file = file
        self._between = between
        self._parts: list[str] = []
        self._places: list[tuple[int, str]] = []
        self._length = 0

    def add(self, text: str, place: str = "") -> None:
        """Add a part, unless it is blank; from it on the text stands at `place`, or where it stood before.

        Raises SkipError past the limit of a document.
        """
        if not text.strip():
            return
        if self._parts:
            self._parts.append(self._between)
            self._length += len(self._between)
        if place:
            self._places.append((self._length, " ".join(place.split())[:_PLACE_CHARACTERS]))
        self._parts.append(text)
        self._length += len(text)
        if self._length > self._file.reading.max_document_bytes:
            raise SkipError(self._file.reading.too_long)

    def document(self, meta: Mapping[str, str] | None = None, blank: str = "empty text") -> Document | str:
        """Return the document, or the reason why there is none; `blank` where no part had text."""
        if not self._parts:
            return blank
        file = self._file
        record = {**(meta or {}), file.reading.text_key: "".join(self._parts)}
        found = document(record, file.name, file.reading)
        return found if isinstance(found, str) else replace(found, places=tuple(self._places))
