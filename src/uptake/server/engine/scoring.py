"""Texts that are scored, a window at a turn: a long one holds nobody else up."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch

from uptake.lm.base import LM
from uptake.lm.examples import Example, of_target, rolling_windows
from uptake.text.token_bytes import TokenBytes
from uptake.text.tokenizer import Spans

TOP = 5  # alternatives of a token that is scored

Work = tuple[Iterator[None], Callable[[], bool], Callable[[Exception], None]]


class Scorer:
    """What is to be scored, in turns. It belongs to the thread that computes."""

    def __init__(self, names: TokenBytes) -> None:
        self._names = names
        self._work: deque[Work] = deque()

    @property
    def busy(self) -> bool:
        """Whether there is anything to score."""
        return bool(self._work)

    def add(
        self, work: Iterator[None], wanted: Callable[[], bool], failed: Callable[[Exception], None]
    ) -> None:
        """Take up work that yields after each window; `failed` hears of what it raises."""
        self._work.append((work, wanted, failed))

    def tick(self) -> None:
        """Score one more window of what has its turn; what nobody wants any more ends."""
        work, wanted, failed = self._work.popleft()
        if not wanted():
            return
        try:
            next(work)
        except StopIteration:
            return
        except Exception as error:
            failed(error)
            return
        self._work.append((work, wanted, failed))

    def windows(
        self, lm_of: Callable[[], LM], example: Example, most: int
    ) -> Generator[None, None, list[list[Any]]]:
        """Return what is told of each token of a target: its bytes, log-probability and `most` rivals.

        `lm_of` returns who scores. It is called for each window: whoever has the turns between may have put
        a change of their own where that LM's was.
        """
        rows: list[list[Any]] = []
        for window in rolling_windows(example, lm_of().max_input_tokens(0)):
            rows += self._told(lm_of(), window, most)
            yield
        return rows

    def _told(self, lm: LM, example: Example, most: int) -> list[list[Any]]:
        with torch.no_grad():
            (log_probs,) = lm.predictions([example])
        log_probs = log_probs.float().cpu()
        own, best = of_target(log_probs, example).tolist(), log_probs.topk(most)
        return [
            [
                list(self._names.of(token)),
                own[place],
                [
                    [list(self._names.of(other)), value]
                    for other, value in zip(
                        best.indices[place].tolist(), best.values[place].tolist(), strict=True
                    )
                ],
            ]
            for place, token in enumerate(example.target)
        ]


def placed(rows: Sequence[list[Any]], spans: Spans, text: str) -> list[dict[str, Any]]:
    """Return each token of a text, the characters it covers, and what was as likely in its place."""
    return [
        {"text": text[start:end], "start": start, "logprob": own, "top": best}
        for (start, end), (_, own, best) in zip(spans, rows, strict=True)
    ]
