"""The made-up world of fusion.py: lines of a relation, a name and what it has, in passages of two lines."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from uptake.text.tokenizer import Tokenizer

KINDS = ("whole", "split", "hop")
RELATIONS = ("first", "second", "means")
WORDS = ("<pad>", "</s>", *RELATIONS, "of", "via")  # then names, then values
NAMES, VALUES = 24, 16
FIRST_NAME = len(WORDS)
FIRST, SECOND, MEANS, OF, VIA = range(2, FIRST_NAME)
PASSAGE = 6  # tokens: two lines of three
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Asked:
    """Questions with their passages, as tokens; `first` is the place of the passage that names what is asked
    for, `second` that of the other one that is needed, the same where one has all."""

    passages: Ids  # [questions, passages, tokens]
    questions: Ids  # [questions, tokens]
    answers: Ids  # [questions, 2]
    kinds: Ids  # [questions]
    first: Ids  # [questions]
    second: Ids  # [questions]


def vocabulary() -> list[str]:
    """Return every word, by its token."""
    return [*WORDS, *(f"n{number}" for number in range(NAMES)), *(f"v{number}" for number in range(VALUES))]


def tokenizer() -> Tokenizer:
    """Return the tokenizer: a token a word."""
    backend = Backend(models.WordLevel({word: at for at, word in enumerate(vocabulary())}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>"))


def as_text(ids: Ids) -> str:
    """Return the words of some tokens."""
    words = vocabulary()
    return " ".join(words[token] for token in ids.tolist())


def asked(rng: np.random.Generator, count: int, passages: int, even: bool = False) -> Asked:
    """Return so many new questions with so many passages each; with `even` as many of every kind."""
    kinds = np.arange(count) % len(KINDS) if even else rng.integers(len(KINDS), size=count)
    made = [_one(rng, kind, passages) for kind in kinds.tolist()]
    columns = [np.array(column) for column in zip(*made, strict=True)]
    return Asked(columns[0], columns[1], columns[2], kinds, columns[3], columns[4])


def _one(
    rng: np.random.Generator, kind: int, passages: int
) -> tuple[list[list[int]], list[int], list[int], int, int]:
    names = (FIRST_NAME + rng.permutation(NAMES)).tolist()
    key, meant, others = names[0], names[1], names[2:]
    a, b = (FIRST_NAME + NAMES + rng.integers(VALUES, size=2)).tolist()
    rows = [_other(rng, others) for _ in range(passages)]
    one, two = rng.permutation(passages)[:2].tolist()
    if kind == 0:
        two, rows[one] = one, [[FIRST, key, a], [SECOND, key, b]]
    elif kind == 1:
        rows[one][rng.integers(2)], rows[two][rng.integers(2)] = [FIRST, key, a], [SECOND, key, b]
    else:
        rows[one][rng.integers(2)] = [MEANS, key, meant]
        rows[two] = [[FIRST, meant, a], [SECOND, meant, b]]
    flat = [[token for line in rows[place] for token in line] for place in range(passages)]
    return flat, [VIA if kind == 2 else OF, key], [a, b], one, two


def _other(rng: np.random.Generator, names: list[int]) -> list[list[int]]:
    """Return a passage about other names: half of them have both values of one, as some that are needed."""
    values = (FIRST_NAME + NAMES + rng.integers(VALUES, size=2)).tolist()
    one, two, three, four = rng.choice(names, 4, replace=False).tolist()
    if rng.random() < 0.5:
        return [[FIRST, one, values[0]], [SECOND, one, values[1]]]
    relations = rng.integers(FIRST, MEANS + 1, size=2).tolist()
    return [
        [relation, name, other if relation == MEANS else value]
        for relation, name, other, value in zip(relations, (one, two), (three, four), values, strict=True)
    ]
