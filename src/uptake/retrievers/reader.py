"""A frozen reader: how likely it finds an answer after one passage, and what it says after several, mixed.

The prompt puts the passage before the question, after a few examples that show how short answers are. What
prompts share, the examples and then a passage, is read once where the model allows it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Literal

import torch
from torch import Tensor

from uptake.errors import BadInput
from uptake.lm.base import LM, Segment
from uptake.lm.beginnings import Beginnings, Rows, beginnings
from uptake.lm.examples import encode, of_target
from uptake.lm.rows import left_padded

_SLOTS = ("{passage}", "{question}")
ROWS = 32  # prompts of one pass


@dataclass(frozen=True)
class Prompt:
    """How a passage and a question are put to a reader: `examples`, then `template`; answers end their line.

    A passage is cut to `characters`. Without a passage the template's part before the question stands empty.
    """

    examples: tuple[tuple[str, str, str], ...] = ()  # passage, question, answer
    template: str = "{passage}\nQuestion: {question}\nAnswer:"
    characters: int = 1600

    def __post_init__(self) -> None:
        if any(slot not in self.template for slot in _SLOTS) or self.characters < 1:
            raise BadInput(
                f"template {self.template!r}, characters {self.characters}: write {{passage}} and "
                "{{question}}, and 1 or more"
            )

    def of(self, question: str, passage: str) -> str:
        """Return what the reader reads before it answers."""
        return self.shown + self._one(question, passage)

    @property
    def shown(self) -> str:
        """The examples, which stand before every question."""
        return "".join(f"{self._one(example[1], example[0])} {example[2]}\n\n" for example in self.examples)

    def before(self, passage: str) -> str:
        """Return what stands before every question about a passage: the examples, and the passage."""
        return self.shown + self._passage(passage)

    def in_a_row(self, question: str, passages: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
        """Return a prompt with all these passages in the place of one, and where each stands in it.

        Each is cut to `characters`; an empty line stands between them. Spans are of characters, [passages].
        """
        before, _, behind = self.template.partition("{passage}")
        text, spans = self.shown + before, []
        for number, passage in enumerate(passages):
            own = passage[: self.characters].strip()
            text += ("\n\n" if number else "") + own
            spans.append((len(text) - len(own), len(text)))
        middle, _, end = behind.partition("{question}")
        return f"{text}{middle}{question.strip()}{end}", spans

    def _one(self, question: str, passage: str) -> str:
        # One after the other, so that a passage that holds "{question}" stays what it is.
        middle, _, end = self.template.partition("{passage}")[2].partition("{question}")
        return f"{self._passage(passage)}{middle}{question.strip()}{end}"

    def _passage(self, passage: str) -> str:
        return f"{self.template.partition('{passage}')[0]}{passage[: self.characters].strip()}"


@dataclass(frozen=True)
class Said:
    """What a reader said, and how much each passage weighs after the last token of it, [passages]."""

    text: str
    weights: tuple[float, ...]


@dataclass
class Reader:
    """A model that is asked after passages by a prompt; `most` bytes keep what was read of them.

    With `shares=False` every prompt is read whole, as it is for a model that cannot go on from a part.
    """

    lm: LM
    prompt: Prompt = field(default_factory=Prompt)
    most: int = 1 << 30
    shares: bool = True

    def log_probs(
        self,
        questions: Sequence[str],
        passages: Sequence[str],
        answers: Sequence[str],
        batch_tokens: int | None = None,
    ) -> list[Tensor]:
        """Return the log-probability of each token of each answer and of its line's end, float64 [tokens].

        Ask about one passage side by side. `batch_tokens` bounds the tokens of one pass, as in `LM.score`.
        """
        asked = list(zip(questions, passages, strict=True))
        ended = [f" {answer}\n" for answer in answers]
        examples = [
            encode(self.lm.tokenizer, self.prompt.of(*one), text)
            for one, text in zip(asked, ended, strict=True)
        ]
        found: dict[int, Tensor] = {}
        if self._beginnings is not None:
            fits = [n for n, one in enumerate(examples) if len(one.inputs) <= self.lm.window]
            for some in self._batches(fits, [len(one.inputs) for one in examples], batch_tokens):
                last = max(len(examples[n].target) for n in some)
                rows = self._open([asked[n] for n in some], [examples[n].inputs for n in some], last=last)
                for n, log_probs in zip(some, rows.log_probs, strict=True):
                    own = of_target(log_probs[last - len(examples[n].target) :], examples[n])
                    found[n] = own.double().cpu()
        whole = [n for n in range(len(asked)) if n not in found]
        segments = [Segment(ended[n], self.prompt.of(*asked[n])) for n in whole]
        for n, scores in zip(whole, self.lm.score(segments, batch_tokens), strict=True):
            found[n] = scores.log_probs
        return [found[n] for n in range(len(asked))]

    @torch.no_grad()
    def say(
        self,
        questions: Sequence[str],
        passages: Sequence[Sequence[str]],
        log_priors: Sequence[Tensor],
        marginal: Literal["sequence", "token"] = "sequence",
        tokens: int = 16,
        rows: int = ROWS,
        empty: bool = True,
    ) -> list[Said]:
        """Return the greedy answers of a mixture over passages, up to the end of the line.

        `passages[i]` are those of question i, `log_priors[i]` log p(passage | question), [passages]; one
        passage is that passage in context. `sequence` weighs the passages anew after each token by Bayes'
        rule (RAG-sequence), `token` never does. Answers have at most `tokens` tokens, and
        without `empty` something in them. About `rows` prompts share a pass. Questions about like passages
        belong side by side. The method `rag` says the same, in more passes.
        """
        for number, some in enumerate(passages):
            if not some:
                raise BadInput(f"question {number} has no passage to mix: ask it without one")
        said: list[Said] = []
        batch: list[int] = []
        for number, some in enumerate(passages):
            if batch and sum(len(passages[each]) for each in batch) + len(some) > rows:
                some_asked = [(questions[n], passages[n], log_priors[n]) for n in batch]
                said += self._say(some_asked, marginal, tokens, empty)
                batch = []
            batch.append(number)
        if batch:
            some_asked = [(questions[n], passages[n], log_priors[n]) for n in batch]
            said += self._say(some_asked, marginal, tokens, empty)
        return said

    def _say(
        self, batch: Sequence[tuple[str, Sequence[str], Tensor]], marginal: str, tokens: int, empty: bool
    ) -> list[Said]:
        tokenizer, device = self.lm.tokenizer, self.lm.device
        asked = [(question, passage) for question, some, _ in batch for passage in some]
        room = self.lm.window - tokens
        texts = [tokenizer.opened(self.prompt.of(*one))[-room:] for one in asked]
        rows = self._open(asked, texts, tokens)
        counts = torch.tensor([len(some) for _, some, _ in batch], device=device)
        owner = torch.repeat_interleave(torch.arange(len(batch), device=device), counts)
        weights = torch.cat([prior.double().log_softmax(0) for *_, prior in batch]).to(device)
        spoken = [list[int]() for _ in batch]
        final = [weights[owner == number] for number in range(len(batch))]
        last = rows.log_probs[:, -1].double()
        for _ in range(tokens):
            going = sorted(set(owner.tolist()))
            mixed = torch.stack([(last + weights[:, None])[owner == number].logsumexp(0) for number in going])
            if not empty:
                silent = [not tokenizer.decode(spoken[number]).strip() for number in going]
                mixed[torch.tensor(silent, device=device)[:, None] & self._blank] = -torch.inf
            best = dict(zip(going, mixed.argmax(1).tolist(), strict=True))
            chosen = torch.tensor([best[number] for number in owner.tolist()], device=device)
            if marginal == "sequence":
                weights = weights + last.gather(1, chosen[:, None])[:, 0]
                for number in going:
                    weights[owner == number] = weights[owner == number].log_softmax(0)
            ended = []
            for number, token in best.items():
                if token == tokenizer.end or "\n" in tokenizer.decode([*spoken[number], token]):
                    ended.append(number)
                else:
                    spoken[number].append(token)
                    final[number] = weights[owner == number]
            if len(ended) == len(going):
                break
            if ended:
                stays = ~torch.isin(owner, torch.tensor(ended, device=device))
                owner, weights, chosen = owner[stays], weights[stays], chosen[stays]
                rows.keep(stays.nonzero()[:, 0])
            last = rows.step(chosen).double()
        return [
            Said(tokenizer.decode(words).strip(), tuple(shares.exp().tolist()))
            for words, shares in zip(spoken, final, strict=True)
        ]

    @cached_property
    def _blank(self) -> Tensor:
        """Whether each token of the vocabulary says nothing or ends its line."""
        known = self.lm.tokenizer
        texts = (known.decode([token]) for token in range(len(known)))
        blank = ["\n" in text or not text.strip() for text in texts]
        if known.end is not None:
            blank[known.end] = True
        return torch.tensor(blank, device=self.lm.device)

    @cached_property
    def _beginnings(self) -> Beginnings | None:
        return beginnings(self.lm, self._root, self.most) if self.shares else None

    @property
    def _root(self) -> list[int]:
        """The tokens that stand before every passage, whatever it begins with."""
        shown = self.lm.tokenizer.opened(self.prompt.shown)
        return _alike(shown, self.lm.tokenizer.opened(self.prompt.before("x")))

    def _batches(
        self, numbers: Sequence[int], lengths: Sequence[int], batch_tokens: int | None
    ) -> Iterator[Sequence[int]]:
        most = ROWS
        if batch_tokens is not None:
            most = max(1, min(most, batch_tokens // max((lengths[n] for n in numbers), default=1)))
        yield from (numbers[start : start + most] for start in range(0, len(numbers), most))

    def _open(
        self, asked: Sequence[tuple[str, str]], texts: Sequence[Sequence[int]], free: int = 0, last: int = 1
    ) -> "Rows | _Whole":
        if self._beginnings is None:
            return _Whole(self.lm, texts)
        before: dict[str, list[int]] = {}
        for _, passage in asked:
            if passage not in before:
                before[passage] = self.lm.tokenizer.opened(self.prompt.before(passage))
        shared = [len(_alike(before[passage], text)) for (_, passage), text in zip(asked, texts, strict=True)]
        return self._beginnings.open(texts, shared, free, last)


def _alike(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Return the tokens that two texts both begin with."""
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]


class _Whole:
    """Texts that go on side by side, each read whole; the same as `Rows` for any model with `step`."""

    def __init__(self, lm: LM, texts: Sequence[Sequence[int]]) -> None:
        self._lm = lm if lm.rows is None else lm.at([0] * len(texts))
        ids, lengths = left_padded(texts, lm.device)
        after, self._cache = self._lm.read_on(ids, self._lm.start(), lengths)
        self.log_probs = after[:, None]
        self._rows = torch.arange(len(texts), device=lm.device)

    def step(self, tokens: Tensor) -> Tensor:
        """Let every row read a token, [rows], and return what follows, [rows, vocabulary]."""
        # A cache of any kind keeps its rows: those that ended read on, and nobody looks.
        every = torch.zeros(len(self.log_probs), dtype=torch.long, device=tokens.device)
        every[self._rows] = tokens
        after, self._cache = self._lm.read_on(every[:, None], self._cache)
        self.log_probs = after[:, None]
        return after[self._rows]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self._rows = self._rows[rows]
