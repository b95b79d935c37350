"""A reader that is asked after passages; what it said is kept on the disk."""

from collections.abc import Sequence
from pathlib import Path

import torch
from retriever_worlds import World

from uptake.evaluation.records import RecordFile
from uptake.lm.base import LM
from uptake.retrievers.reader import Reader, Said
from uptake.text.types import Passage, stable_hash

AT_ONCE = 128  # questions whose answers are kept at a time
KEPT = 3 << 29  # bytes of what was read of passages


class Answers:
    """What the reader says after passages, kept on the disk by question and passages."""

    def __init__(self, lm: LM, world: World, path: Path) -> None:
        self.world = world
        self.reader, self.closed = Reader(lm, world.prompt, most=KEPT), Reader(lm, world.closed)
        self.file = RecordFile(path, f"{lm.fingerprint} {world.prompt}")
        self.known: dict[str, Said] = {}
        for made in self.file.start(dict):
            self.known |= {key: Said(text, tuple(weights)) for key, (text, weights) in made.items()}

    def say(
        self,
        read: Sequence[Sequence[Passage]],
        priors: Sequence[torch.Tensor],
        marginal: str,
        rows: int,
        places: Sequence[int] | None = None,
    ) -> list[Said]:
        """Return what is said after none, one or several passages, mixed.

        To the test questions at `places`, or to the first ones.
        """
        questions = [self.world.test[place] for place in (range(len(read)) if places is None else places)]
        keys = [
            _key(marginal, q.id, passages, prior)
            for q, passages, prior in zip(questions, read, priors, strict=True)
        ]
        todo = [place for place, key in enumerate(keys) if key not in self.known]
        # Like passages side by side: what was read of one serves the next question.
        todo.sort(key=lambda place: [passage.id for passage in read[place]])
        for start in range(0, len(todo), AT_ONCE):
            some = todo[start : start + AT_ONCE]
            texts = [[passage.text for passage in read[place]] or [""] for place in some]
            reader = self.reader if read[some[0]] else self.closed
            asked = [questions[place].text for place in some]
            some_priors = [priors[place] for place in some]
            said = reader.say(asked, texts, some_priors, marginal, self.world.tokens, rows, empty=False)  # type: ignore[arg-type]
            made = {keys[place]: one for place, one in zip(some, said, strict=True)}
            self.file.keep({key: [one.text, list(one.weights)] for key, one in made.items()})
            self.known |= made
        return [self.known[key] for key in keys]


def _key(marginal: str, question: str, passages: Sequence[Passage], prior: torch.Tensor) -> str:
    weighed = repr([round(value, 4) for value in prior.tolist()])
    return f"{stable_hash(marginal, question, weighed, *(passage.text for passage in passages)):016x}"
