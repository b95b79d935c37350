"""Prompts as the model reads them: texts, tokens or the messages of a chat, and the room that they leave."""

from collections.abc import Sequence
from typing import Any

from uptake.lm.causal import Causal
from uptake.server.errors import bad

COMPLETION_TOKENS = 16  # where a completion does not say
MOST_ROWS = 128  # choices of one request


class Prompts:
    """Makes tokens of what requests ask."""

    def __init__(self, lm: Causal) -> None:
        self._lm = lm

    def of(self, frame: dict[str, Any]) -> list[list[int]]:
        """Return the prompts of a request as tokens. Raises ApiError."""
        return [self._ids(prompt) for prompt in self._prompts(frame)]

    def room(self, frame: dict[str, Any], prompts: Sequence[Sequence[int]]) -> int:
        """Return how many tokens a request may write. Raises ApiError where there is no room for them."""
        window, chat = self._lm.window, frame.get("messages") is not None
        if len(prompts) * frame["n"] > MOST_ROWS:
            raise bad(f"{len(prompts)} prompts of {frame['n']} choices each: use {MOST_ROWS} in all", "n")
        longest = max(len(self.opened(frame, ids)) for ids in prompts)
        asked = frame["max_tokens"]
        if asked is None:
            asked = max(1, window - longest) if chat else min(COMPLETION_TOKENS, max(1, window - longest))
        if longest + asked > window:
            raise bad(
                f"the model has room for {window:,} tokens; {longest:,} of the prompt and {asked:,} to write "
                "are more: shorten one",
                "messages" if chat else "prompt",
                "context_length_exceeded",
            )
        return int(asked)

    def opened(self, frame: dict[str, Any], ids: Sequence[int]) -> list[int]:
        """Return what the model reads: the opening token first, but a chat's template is all there is."""
        opening = self._lm.tokenizer.opening
        if ids and (ids[0] == opening or frame.get("messages") is not None):
            return list(ids)
        return [opening, *ids]

    def query(self, frame: dict[str, Any], ids: Sequence[int]) -> str:
        """Return what is searched for where nothing else is said: the prompt, or the user's last message."""
        messages = frame.get("messages")
        if messages is not None:
            asked = [each["content"] for each in messages if each["role"] == "user"]
            return str(asked[-1] if asked else messages[-1]["content"])
        return str(self._lm.tokenizer.decode(list(ids)))

    def _prompts(self, frame: dict[str, Any]) -> list[str | list[int]]:
        if frame.get("messages") is None:
            return list(frame["prompts"])
        tokenizer: Any = self._lm.tokenizer.inner
        if not tokenizer.chat_template:
            raise bad("the model has no chat template: use /v1/completions", "messages", "no_chat_template")
        try:
            text = tokenizer.apply_chat_template(
                frame["messages"], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates raise what they like
            raise bad(f"the model's chat template refuses these messages ({error})", "messages") from None
        ids = self._lm.tokenizer.encode(str(text))[0]
        return [ids or [self._lm.tokenizer.opening]]

    def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return self._lm.tokenizer.encode(prompt)[0]
        if (most := len(self._lm.tokenizer)) <= max(prompt):
            raise bad(f"token {max(prompt)} is none of the {most:,} of this model", "prompt")
        return prompt
