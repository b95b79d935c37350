"""Retrieve with a prefix, score what follows it: the default protocol."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from uptake.errors import BadInput
from uptake.evaluation.queries import Query, QueryProtocol
from uptake.text.types import Document


@dataclass(frozen=True)
class PerQuery(QueryProtocol):
    """Retrieve with a prefix, score what follows it, forget. The default, because nothing leaks.

    A document gives up to `windows` queries, one after another; one shorter than prefix and
    suffix together is split in the middle. `search` shortens what retrieves to the end of the
    prefix: what stands next to the scored text tells most of it, and an encoder reads no more
    than its window from the beginning.
    """

    name: ClassVar[str] = "per-query"
    options: ClassVar[Mapping[str, str]] = {
        "prefix": "prefix",
        "suffix": "suffix",
        "windows": "windows",
        "search": "search",
    }
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
