"""TF-IDF with a cut (Hu et al. 2023, as a baseline): only the words that stand out in a text count."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from uptake.adaptation.token_weights.base import Spans, TokenWeights, covering
from uptake.codec import loads
from uptake.errors import BadInput
from uptake.text import formats
from uptake.text.files import SkipError, read_lines
from uptake.text.reading import File, Reading
from uptake.text.terms import spans as spans_of
from uptake.text.types import Passage

_LINE = 64 << 20


class Frequencies(NamedTuple):
    """In how many of so many documents each word stands."""

    documents: int
    of: Mapping[str, int]


@dataclass(frozen=True)
class TfIdf(TokenWeights):
    """The words of highest TF-IDF, a share `keep` of a text's distinct words, weigh 1, all others 0.

    Where words are written together, as in Chinese, pairs of neighbouring characters stand for words.

    How many documents a word stands in is counted in `corpus`, a file with a document a line (text,
    or JSON with `text`), or, without one, in what was read before this text. Nothing
    else is read: no question, and no later document.
    """

    keep: float = 0.25
    corpus: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise BadInput(f"keep {self.keep}: use a share above 0, at most 1")

    def of(self, passage: Passage, spans: Spans, before: Sequence[Passage] = ()) -> Tensor:
        found = list(spans_of(passage.text))
        counts = Counter(word for word, _ in found)
        frequencies = _corpus(self.corpus) if self.corpus else _among(counts, before)
        kept = set(highest(counts, frequencies, math.ceil(self.keep * len(counts))))
        return covering(spans, [span for word, span in found if word in kept])


def highest(counts: Mapping[str, int], frequencies: Frequencies, most: int) -> list[str]:
    """Return the `most` words of highest TF-IDF, count * log((1 + N) / (1 + df)); of equals the first."""

    def score(word: str) -> float:
        return counts[word] * math.log((1 + frequencies.documents) / (1 + frequencies.of.get(word, 0)))

    return sorted(counts, key=score, reverse=True)[:most]


def _among(words: Iterable[str], passages: Sequence[Passage]) -> Frequencies:
    """Count these words alone: of what was read, each text's words are taken apart once."""
    texts = [_words(passage.text) for passage in passages]
    return Frequencies(len(texts), {word: sum(word in text for text in texts) for word in words})


@lru_cache(maxsize=1 << 14)
def _words(text: str) -> frozenset[str]:
    return frozenset(word for word, _ in spans_of(text))


@lru_cache(maxsize=2)
def _corpus(name: str) -> Frequencies:
    """Count the words of a file's documents."""
    path, counts, documents = Path(name), Counter[str](), 0
    try:
        for text in _texts(path):
            counts.update({word for word, _ in spans_of(text)})
            documents += 1
    except OSError as error:
        raise BadInput(f"cannot read corpus={name}: {error.strerror}; give a file") from None
    except (SkipError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"cannot read corpus={name} ({error}): give lines of text or JSON") from None
    return Frequencies(documents, counts)


def _texts(path: Path) -> Iterator[str]:
    records = formats.of(path) == "json_lines"
    chunks = File(path, str(path), str(path), Reading()).text_chunks()
    for line in read_lines(chunks, _LINE):
        if line is not None and line.strip():
            yield loads(dict[str, Any], line)["text"] if records else line.decode("utf8", "replace")
