"""Ask a language model: how likely it finds the right answer, what it says, and how far it has drifted.

Closed book: it sees the question alone. Every model is asked in the same words, and it knows
nothing of how the model came to know.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from uptake.errors import BadInput, Diverged
from uptake.lm.base import LM, Scores, Segment
from uptake.lm.examples import encode, rolling_windows
from uptake.lm.generation import Decoding, Token
from uptake.lm.read_again import predictions_again
from uptake.lm.scoring import divergences
from uptake.tasks import answers
from uptake.tasks.questions import Question
from uptake.text.tokenizer import Tokenizer

SLOT = "{question}"


@dataclass(frozen=True)
class Asking:
    """How questions are put: `template` with {question} in it, then a space and the answer.

    The likelihood is that of the `first` answer, or of the `best`, the likeliest of all. What is said
    is greedy, at most `tokens` tokens, up to the end of the line; `batch` questions are put side by side.
    With `align` opening tokens stand before a question, so many that it ends where a chunk of `align` tokens
    ends: RETRO finds by whole chunks, and answers from what it found with the last (Borgeaud et al. 2021,
    section 4.3, pad on the left to the same end).
    """

    template: str = "Question: {question}\nAnswer:"
    likelihood: Literal["first", "best"] = "first"
    tokens: int = 16
    batch: int = 64
    align: int = 1

    def __post_init__(self) -> None:
        if SLOT not in self.template:
            raise BadInput(f"template {self.template!r}: write {SLOT} where the question goes")
        if self.likelihood not in ("first", "best"):
            raise BadInput(f"likelihood {self.likelihood!r}: use first or best")
        if self.tokens < 0 or self.batch < 1 or self.align < 1:
            raise BadInput(
                f"tokens {self.tokens}, batch {self.batch}, align {self.align}: use 0 or more, and 1 or more"
            )

    def prompt(self, question: Question) -> str:
        """Return what the model reads."""
        return self.template.replace(SLOT, question.text)

    def aligned_prompt(self, question: Question, tokenizer: Tokenizer) -> str:
        """Return what the model reads, after the opening tokens that `align` adds."""
        prompt = self.prompt(question)
        # One more stands before every text.
        count = -(1 + len(tokenizer.encode(prompt)[0])) % self.align
        return tokenizer.decode([tokenizer.opening] * count) + prompt

    def answer(self, text: str) -> str:
        """Return an answer as it stands after the prompt."""
        return f" {text}"

    def learnt(self, text: str) -> str:
        """Return an answer as it is learnt: with the end of its line, where saying it is to end."""
        return f"{self.answer(text)}\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one question: nats and tokens of the right answer, its own words, their marks.

    Of what the tokenizer does not give back of the right answer neither nats nor tokens count.
    """

    nats: float
    tokens: int
    said: str
    f1: float
    exact: float
    bytes: int = 0  # of the right answer, scored
    bytes_not_scored: int = 0
    said_nats: float = 0.0  # of what was said, its end included
    said_tokens: int = 0


def ask(lm: LM, questions: Sequence[Question], asking: Asking | None = None) -> list[Answer]:
    """Return the answer to each question; `lm` is one model, of one row or of none.

    Raises Diverged where the model gives an answer no finite probability.
    """
    asking = asking or Asking()
    likely = _likelihoods(lm, questions, asking)
    for question, scores in zip(questions, likely, strict=True):
        if not math.isfinite(scores.bits):
            raise Diverged(f"the answer to question {question.id!r} is not finite: {scores.bits} bits")
    prompts = [asking.aligned_prompt(question, lm.tokenizer) for question in questions]
    spoken = speak(lm, prompts, asking.tokens, asking.batch)
    return [
        Answer(
            nats=-float(scores.scored.sum()),
            tokens=len(scores.scored),
            said=said.text,
            f1=answers.f1(said.text, question.answers),
            exact=answers.exact(said.text, question.answers),
            bytes=scores.bytes,
            bytes_not_scored=scores.bytes_not_scored,
            said_nats=said.nats,
            said_tokens=said.tokens,
        )
        for question, scores, said in zip(questions, likely, spoken, strict=True)
    ]


def _likelihoods(lm: LM, questions: Sequence[Question], asking: Asking) -> list[Scores]:
    """Return the scores of each question's answer: of the best, one that is scored whole if there is any."""
    segments, owners = [], []
    for place, question in enumerate(questions):
        for answer in question.answers if asking.likelihood == "best" else question.answers[:1]:
            segments.append(Segment(asking.answer(answer), asking.aligned_prompt(question, lm.tokenizer)))
            owners.append(place)
    found: dict[int, Scores] = {}
    for place, scores in zip(owners, _spread(lm, len(segments)).score(segments), strict=True):
        # The first stands where no answer is likely at all, or none a number.
        if place not in found or _worth(scores) < _worth(found[place]):
            found[place] = scores
    return [found[place] for place in range(len(questions))]


def _worth(scores: Scores) -> tuple[int, float]:
    """Return what answers are compared by, the best first: one that is scored in part is not cheap."""
    return scores.bytes_not_scored, scores.bits


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a model said, and how sure it was of these very words.

    `nats` are -log of the probability, of the model itself, of all `tokens` that it wrote, the one that
    ended the line included: no second pass is needed for them.
    """

    text: str
    nats: float
    tokens: int

    @property
    def confidence(self) -> float:
        """The probability that the model gives to saying this and nothing more, 0 to 1."""
        return math.exp(-self.nats)


def generate(
    lm: LM, prompts: Sequence[str], tokens: int, batch: int = 64, rows: Sequence[int] | None = None
) -> list[str]:
    """Return the texts of `speak`."""
    return [one.text for one in speak(lm, prompts, tokens, batch, rows)]


def speak(
    lm: LM, prompts: Sequence[str], tokens: int, batch: int = 64, rows: Sequence[int] | None = None
) -> list[Spoken]:
    """Return for each prompt what the model says after it, greedily, up to the end of the line.

    Prompts of like length go side by side, `batch` at a time. One that leaves too little for `tokens` in the
    window keeps its end. Prompt i goes by row `rows[i]` of the LM, or all by its one row.
    """
    said = [Spoken("", 0.0, 0)] * len(prompts)
    lengths = [len(lm.tokenizer.encode(prompt)[0]) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lengths.__getitem__)
    decoding = Decoding(tokens=tokens, stop=("\n",), beyond_window=False)
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        some = _spread(lm, len(places)) if rows is None else lm.at([rows[place] for place in places])
        written: list[list[Token]] = [[] for _ in places]
        for row, token in some.stream_rows([prompts[place] for place in places], decoding):
            written[row].append(token)
        for place, parts in zip(places, written, strict=True):
            chosen = [-token.log_prob for token in parts if token.id is not None]
            text = "".join(token.text for token in parts).strip()
            said[place] = Spoken(text, math.fsum(chosen), len(chosen))
    return said


def divergence(base: LM, adapted: LM, text: str) -> tuple[float, int]:
    """Return KL(base || adapted), in nats summed over the text's tokens, and how many those are.

    Both read the text in the windows that fit them both, from the opening token on; float64.
    """
    example = encode(base.tokenizer, "", text)
    one, other = _spread(base, 1), _spread(adapted, 1)
    total = 0.0
    for window in rolling_windows(example, min(one.max_input_tokens(0), other.max_input_tokens(0))):
        before = predictions_again(one, window)
        with torch.no_grad():
            (after,) = other.predictions([window])
        total += float(divergences(before, after, torch.float64).sum())
    return total, len(example.target)


def _spread(lm: LM, rows: int) -> LM:
    """Return the LM for a batch of so many rows, all of the one model that it is."""
    return lm if lm.rows is None else lm.at([0] * rows)
