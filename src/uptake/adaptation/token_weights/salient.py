"""Salient spans (Guu et al. 2020; Hu et al. 2023, as a baseline): names, numbers and dates count alone."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from uptake.adaptation.token_weights.base import Spans, TokenWeights, covering
from uptake.errors import BadInput, Missing
from uptake.text.terms import has_pieces, mostly_ascii
from uptake.text.types import Passage

RULES = "rules"
# Words with a capital, joined by what stands within names; and figures with what is written to them.
_NAME = re.compile(r"\b[A-Z][\w'’-]*(?:(?: of| the| de| von| van)* [A-Z][\w'’-]*)*")
_NUMBER = re.compile(r"([$£€]?\d[\d.,:/-]*)\w*%?")
_OPENS = re.compile(r"(?:^|[.!?:]['\"”’)]*\s+|\n)['\"“‘(]*$")  # what a sentence begins after


@dataclass(frozen=True)
class SalientSpans(TokenWeights):
    """Tokens of names, numbers and dates weigh 1, all others 0.

    `pipeline` names an installed spaCy pipeline, such as en_core_web_sm, whose named entities are the
    spans; `phrases` adds its noun phrases. The pipeline `rules` goes by spelling alone and needs no
    spaCy: figures, and words with a capital, except a single one that opens a sentence. Scripts without
    capitals, such as Chinese, Arabic and Hindi, show it no names, only figures: give a pipeline there.
    """

    pipeline: str = RULES
    phrases: bool = False

    def __post_init__(self) -> None:
        if self.phrases and self.pipeline == RULES:
            raise BadInput("phrases=true needs a spaCy pipeline: give pipeline=en_core_web_sm, say")

    def of(self, passage: Passage, spans: Spans, before: Sequence[Passage] = ()) -> Tensor:
        return covering(spans, list(self._found(passage.text)))

    def _found(self, text: str) -> Iterator[tuple[int, int]]:
        if self.pipeline == RULES:
            yield from by_spelling(text)
            return
        read = _pipeline(self.pipeline)(text)
        if self.phrases and not read.has_annotation("DEP"):
            raise BadInput(
                f"pipeline={self.pipeline} parses nothing, so it finds no phrases: "
                "take one with a parser, or phrases=false"
            )
        for span in (*read.ents, *(read.noun_chunks if self.phrases else ())):
            yield span.start_char, span.end_char


def by_spelling(text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of what may be a name or a number."""
    for found in _NUMBER.finditer(text):
        yield found.start(), found.end() if found[0].isascii() else _end_of_number(text, found)
    for found in _names(text).finditer(text):
        if " " in found[0] or not _OPENS.search(text, max(0, found.start() - 8), found.start()):
            yield found.span()


def _end_of_number(text: str, found: re.Match[str]) -> int:
    """Return where a number ends: where words are written together, after the one character that counts."""
    for place in range(found.end(1), found.end()):
        if has_pieces(text[place]):
            return place + 1
    return found.end()


def _names(text: str) -> Any:
    """Return the pattern of names for a text: capitals are those of ASCII where most of its letters are."""
    return _NAME if mostly_ascii(text) else _name_in_any_script()


@lru_cache(maxsize=1)
def _name_in_any_script() -> Any:
    import regex

    return regex.compile(_NAME.pattern.replace("A-Z", r"\p{Lu}").replace(r"[\w", r"[\w\p{M}"))


@lru_cache(maxsize=2)
def _pipeline(name: str) -> Any:
    try:
        import spacy
    except ImportError:
        raise Missing(f"pipeline={name} needs spaCy: pip install 'uptake[spans]', or use {RULES}") from None
    try:
        return spacy.load(name)
    except OSError:
        raise Missing(
            f"no spaCy pipeline {name!r} here: python -m spacy download {name}, or use {RULES}"
        ) from None
