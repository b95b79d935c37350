"""Fill holes of source files, having read what stands around them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from uptake.evaluation.queries import Query, QueryProtocol
from uptake.tasks.holes import Making
from uptake.text.types import Document


@dataclass(frozen=True)
class Holes(Making, QueryProtocol):
    """Fill a hole of a source file, having read what stands around it, before *and after*.

    This is the one protocol where a token may depend on later ones: those behind the hole's line.
    """

    name: ClassVar[str] = "holes"
    lacks: ClassVar[str] = "without a hole to fill: no Python, or nothing of this kind in it"
    wants: ClassVar[str] = "Python files"
    options: ClassVar[Mapping[str, str]] = {
        "kind": "hole",
        "count": "windows",
        "prefix": "prefix",
        "around": "around",
    }

    def queries(self, document: Document) -> Iterator[Query]:
        for number, hole in enumerate(self.holes(document)):
            context, query = self.context(hole), f"{document.id}#{number}"
            yield Query(query, document, context, context, hole.target, self.support(hole))
