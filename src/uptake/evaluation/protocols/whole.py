"""Retrieve with the whole document and score all of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from uptake.evaluation.queries import Query, QueryProtocol
from uptake.text.types import Document


@dataclass(frozen=True)
class Whole(QueryProtocol):
    """Retrieve with the whole document and score all of it, as the TTT-NN paper does by default.

    The text that is scored chooses its neighbours: gains are higher than a user would see.
    """

    name: ClassVar[str] = "whole"
    lacks: ClassVar[str] = "empty"

    def queries(self, document: Document) -> Iterator[Query]:
        if document.text:
            yield Query(f"{document.id}#0", document, document.text, "", document.text)
