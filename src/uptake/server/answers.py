"""Answers as OpenAI's clients read them: whole or in chunks, with tokens and their log-probabilities."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from uptake.server.link import encode

FINISH = {"stop": "stop", "end": "stop", "length": "length", "window": "length"}
DONE = b"data: [DONE]\n\n"

# One token as the engine tells it: its bytes, its log-probability, and alternatives [bytes, log-probability].
Told = list[Any]


def event(data: dict[str, Any]) -> bytes:
    """Return data as one event of a stream."""
    return b"data: " + encode(data).encode() + b"\n\n"


def token_text(raw: Sequence[int]) -> str:
    """Return a token as text; one that is part of a character by its bytes, as in `bytes:\\xe2`."""
    try:
        return bytes(raw).decode("utf8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


@dataclass
class Choice:
    """One choice as it is written."""

    index: int
    text: str = ""
    finish: str | None = None
    tokens: list[Told] = field(default_factory=list)
    count: int = 0


@dataclass
class Answer:
    """One request's answer: its head, and its choices as they grow."""

    kind: str  # "completion" or "chat"
    model: str
    fingerprint: str
    choices: list[Choice]
    logprobs: bool
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    prompt_tokens: int = 0
    uptake: dict[str, Any] | None = None

    @property
    def usage(self) -> dict[str, int]:
        """Count the tokens read and written."""
        written = sum(choice.count for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }

    def _head(self, chunk: bool) -> dict[str, Any]:
        chat = self.kind == "chat"
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def whole(self) -> dict[str, Any]:
        """Return the answer in one piece."""
        found = {
            **self._head(False),
            "choices": [self._choice(each) for each in self.choices],
            "usage": self.usage,
        }
        return found if self.uptake is None else {**found, "uptake": self.uptake}

    def _choice(self, choice: Choice) -> dict[str, Any]:
        common = {"index": choice.index, "finish_reason": choice.finish}
        if self.kind == "chat":
            logprobs = self._chat_tokens(choice.tokens) if self.logprobs else None
            message = {"role": "assistant", "content": choice.text, "refusal": None}
            return {**common, "message": message, "logprobs": logprobs}
        logprobs = self._tokens(choice.tokens, 0) if self.logprobs else None
        return {**common, "text": choice.text, "logprobs": logprobs}

    def first(self) -> list[dict[str, Any]]:
        """Return the chunks that open a stream."""
        if self.kind == "chat":
            delta = {"role": "assistant", "content": ""}
            choices: list[dict[str, Any]] = [
                {"index": each.index, "delta": delta, "logprobs": None, "finish_reason": None}
                for each in self.choices
            ]
        elif self.uptake is None:
            return []
        else:
            choices = [{"index": 0, "text": "", "logprobs": None, "finish_reason": None}]
        chunk = {**self._head(True), "choices": choices}
        return [chunk if self.uptake is None else {**chunk, "uptake": self.uptake}]

    def chunk(
        self, choice: Choice, text: str, tokens: Sequence[Told], finish: str | None, offset: int
    ) -> dict[str, Any]:
        """Return what one choice has grown by."""
        common = {"index": choice.index, "finish_reason": finish}
        if self.kind == "chat":
            logprobs = self._chat_tokens(tokens) if self.logprobs and tokens else None
            delta = {"content": text} if text or not finish else {}
            made = {**common, "delta": delta, "logprobs": logprobs}
        else:
            logprobs = self._tokens(tokens, offset) if self.logprobs and tokens else None
            made = {**common, "text": text, "logprobs": logprobs}
        return {**self._head(True), "choices": [made]}

    def last(self) -> dict[str, Any]:
        """Return the chunk that tells what was used."""
        return {**self._head(True), "choices": [], "usage": self.usage}

    def _tokens(self, tokens: Sequence[Told], offset: int) -> dict[str, Any]:
        texts = [token_text(raw) for raw, _, _ in tokens]
        offsets = []
        for raw, _, _ in tokens:
            offsets.append(offset)
            offset += len(bytes(raw).decode("utf8", "ignore"))
        return {
            "tokens": texts,
            "token_logprobs": [log_prob for _, log_prob, _ in tokens],
            "top_logprobs": [None if best is None else _by_text(best) for _, _, best in tokens],
            "text_offset": offsets,
        }

    def _chat_tokens(self, tokens: Sequence[Told]) -> dict[str, Any]:
        return {"content": [_told(*token) for token in tokens], "refusal": None}


def _by_text(best: Sequence[Sequence[Any]]) -> dict[str, float]:
    """Return alternatives by their texts; where two have one text, the likelier keeps it."""
    found: dict[str, float] = {}
    for place, (raw, log_prob) in enumerate(best):
        text = token_text(raw)
        found[text if text not in found else f"{text} ({place})"] = log_prob
    return found


def _told(raw: Sequence[int], log_prob: float, best: Sequence[Sequence[Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"token": token_text(raw), "logprob": log_prob, "bytes": list(raw)}
    found["top_logprobs"] = [
        {"token": token_text(other), "logprob": value, "bytes": list(other)} for other, value in best
    ]
    return found
