"""A frozen reader's table: log p(answer | question, passage), token by token, kept on the disk as it grows.

With the reader frozen it is a constant, so every retriever's loss costs a look into it. A table belongs to
one reader, number format and prompt, and is refused for another; each entry is kept once it is known, and an
interrupted filling goes on where it stopped.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uptake.codec import plain
from uptake.errors import Diverged
from uptake.evaluation.records import RecordFile
from uptake.lm.base import LM
from uptake.retrievers.reader import Prompt, Reader
from uptake.text.types import stable_hash

_AT_ONCE = 256  # entries scored, and kept, at a time


@dataclass(frozen=True, slots=True)
class Entry:
    """One question, one passage, and the answer whose tokens are scored."""

    question: str
    passage: str
    answer: str

    @property
    def key(self) -> str:
        """Names it, 16 hexadecimal digits."""
        return f"{stable_hash(self.question, self.passage, self.answer):016x}"


def records_of(lm: LM, prompt: Prompt, path: Path | None, *kind: str) -> RecordFile:
    """Return the file of what is known of a reader under a prompt, of a `kind` of its own if named."""
    dtype = str(getattr(lm, "dtype", "")).removeprefix("torch.")
    about = {"reader": lm.fingerprint, "dtype": dtype, "prompt": repr(plain(prompt))}
    return RecordFile(path, f"{stable_hash(*kind, *about.values()):016x}", about)


@dataclass
class ReaderTable:
    """The log-probabilities that a reader gives the tokens of answers; without a path in memory only."""

    lm: LM
    prompt: Prompt = field(default_factory=Prompt)
    path: Path | None = None
    _known: dict[str, list[float]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.reader = Reader(self.lm, self.prompt)
        self._file = records_of(self.lm, self.prompt, self.path)
        for made in self._file.start(_entries):
            self._known |= made

    def fill(
        self,
        entries: Iterable[Entry],
        batch_tokens: int | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> int:
        """Score what is not known yet, and return how many entries that were. Raises Diverged.

        `batch_tokens` bounds the tokens of one pass of the reader, as in `LM.score`.
        """
        missing = {entry.key: entry for entry in entries if entry.key not in self._known}
        # Of like length side by side, and those of one passage together.
        todo = sorted(
            missing.values(), key=lambda entry: (len(entry.passage), entry.passage, len(entry.question))
        )
        for start in range(0, len(todo), _AT_ONCE):
            some = todo[start : start + _AT_ONCE]
            found = self.reader.log_probs(
                [entry.question for entry in some],
                [entry.passage for entry in some],
                [entry.answer for entry in some],
                batch_tokens,
            )
            made = {}
            for entry, log_probs in zip(some, found, strict=True):
                if not bool(log_probs.isfinite().all()):
                    raise Diverged(
                        f"the reader's answer to {entry.question[:60]!r} has no finite probability"
                    )
                made[entry.key] = [round(value, 6) for value in log_probs.tolist()]
            self._file.keep(made)
            self._known |= made
            progress(min(start + _AT_ONCE, len(todo)), len(todo))
        return len(todo)

    def tokens(self, question: str, passages: Sequence[str], answer: str) -> NDArray[np.float64]:
        """Return [passages, tokens] of an answer that `fill` was given; raises KeyError for another."""
        rows = [self._known[Entry(question, passage, answer).key] for passage in passages]
        return np.array(rows, np.float64).reshape(len(passages), -1)

    @property
    def count(self) -> int:
        """How many entries are known."""
        return len(self._known)


def _entries(data: object) -> dict[str, list[float]]:
    if not isinstance(data, dict):
        raise ValueError("no entries")
    return {str(key): [float(value) for value in values] for key, values in data.items()}
