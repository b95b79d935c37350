"""When text is taken up: what of a document retrieves, what is read, and what is scored.

Splits fall between characters, so never inside a UTF-8 sequence, and depend on the document
alone: every way of taking text up scores the same bytes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from uptake.errors import BadInput
from uptake.tasks.holes import Making
from uptake.text.types import Document, Passage


@dataclass(frozen=True, slots=True)
class Query:
    """One thing to score: `target` after `context`, by a model that may read what `search` finds."""

    id: str
    document: Document
    search: str
    context: str
    target: str
    support: tuple[Passage, ...] = ()  # what else of the document may be read, before neighbours are

    @property
    def own(self) -> str:
        """The query's own text as a method sees it: what stands before the target, if anything does."""
        return self.context or self.search


class Protocol(ABC):
    """A rule that makes queries of a document."""

    name: ClassVar[str]
    retrieves: ClassVar[bool] = True  # False: what is taken up is the text itself, once scored
    wants: ClassVar[str] = "texts of two characters or more"

    @abstractmethod
    def queries(self, document: Document) -> Iterator[Query]:
        """Yield the queries of one document, in order; none if it is too short."""


@dataclass(frozen=True)
class PerQuery(Protocol):
    """Retrieve with a prefix, score what follows it, forget. The default, because nothing leaks.

    A document gives up to `windows` queries, one after another; one shorter than prefix and
    suffix together is split in the middle. `search` shortens what retrieves to the end of the
    prefix: what stands next to the scored text tells most of it, and an encoder reads no more
    than its window from the beginning.
    """

    name: ClassVar[str] = "per-query"
    prefix: int = 1024  # characters
    suffix: int = 1024  # characters
    windows: int = 1
    search: int | None = None  # characters at the end of the prefix; None: all of it

    def __post_init__(self) -> None:
        if min(self.prefix, self.suffix, self.windows, 1 if self.search is None else self.search) < 1:
            raise BadInput(
                f"prefix {self.prefix}, suffix {self.suffix}, windows {self.windows}, search {self.search}: "
                "use 1 or more of each"
            )

    def queries(self, document: Document) -> Iterator[Query]:
        text = document.text
        for number in range(self.windows):
            start = number * (self.prefix + self.suffix)
            left = len(text) - start
            if left < 2 or (number > 0 and left <= self.prefix):
                return
            split = start + min(self.prefix, left // 2 if number == 0 else left)
            prefix, target = text[start:split], text[split : split + self.suffix]
            search = prefix if self.search is None else prefix[-self.search :]
            yield Query(f"{document.id}#{number}", document, search, prefix, target)


@dataclass(frozen=True)
class Whole(Protocol):
    """Retrieve with the whole document and score all of it, as the TTT-NN paper does by default.

    The text that is scored chooses its neighbours: gains are higher than a user would see.
    """

    name: ClassVar[str] = "whole"

    def queries(self, document: Document) -> Iterator[Query]:
        if document.text:
            yield Query(f"{document.id}#0", document, document.text, "", document.text)


@dataclass(frozen=True)
class Running(Protocol):
    """Score a segment, then take it up, to the end of the document: dynamic evaluation's order.

    Segments are so many characters and may end within a word, which costs tokens: every way scores the same
    ones, the base among them, but bits per byte grow with the number of cuts.
    """

    name: ClassVar[str] = "running"
    retrieves: ClassVar[bool] = False
    segment: int = 512  # characters
    context: int = 1024  # characters before a segment that its score may see

    def __post_init__(self) -> None:
        if self.segment < 1 or self.context < 0:
            raise BadInput(f"segment {self.segment}, context {self.context}: use 1 or more, and 0 or more")

    def queries(self, document: Document) -> Iterator[Query]:
        text = document.text
        for number, start in enumerate(range(0, len(text), self.segment)):
            context = text[max(0, start - self.context) : start]
            target = text[start : start + self.segment]
            yield Query(f"{document.id}#{number}", document, context, context, target)


@dataclass(frozen=True)
class Holes(Making, Protocol):
    """Fill a hole of a source file, having read what stands around it, before *and after*.

    This is the one protocol where a token may depend on later ones: those behind the hole's line.
    """

    name: ClassVar[str] = "holes"
    wants: ClassVar[str] = "Python files"

    def queries(self, document: Document) -> Iterator[Query]:
        for number, hole in enumerate(self.holes(document)):
            context, query = self.context(hole), f"{document.id}#{number}"
            yield Query(query, document, context, context, hole.target, self.support(hole))
