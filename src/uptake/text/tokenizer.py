"""A tokenizer as the rest of Uptake needs it: ids with the characters they cover, and an opening token."""

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING

from uptake.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Spans = tuple[tuple[int, int], ...]  # of characters, one a token, in order


class Tokenizer:
    """A thin face over a Hugging Face fast tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        if not tokenizer.is_fast:
            raise BadInput(
                f"{type(tokenizer).__name__} does not report which characters a token covers: use a fast one"
            )
        self.inner = tokenizer

    def __len__(self) -> int:
        """How many tokens there are."""
        return len(self.inner)

    def encode(self, text: str) -> tuple[list[int], Spans]:
        """Return the token ids of `text`, without special tokens, and each token's span of characters.

        Raises BadInput for a text that holds half a character.
        """
        if not text:
            return [], ()
        try:
            # `verbose` off: a text longer than the window is expected here, and cut by whoever reads it.
            found = self.inner(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        except TypeError as error:
            half = next((c for c in text if "\ud800" <= c <= "\udfff"), None)
            if half is None:
                raise
            raise BadInput(
                f"a text holds half a character (U+{ord(half):04X}), which is no Unicode: leave it out"
            ) from error
        return list(found["input_ids"]), tuple((start, end) for start, end in found["offset_mapping"])

    def opened(self, text: str) -> list[int]:
        """Return the token ids of a text that nothing stands before: the opening token first."""
        return [self.opening, *self.encode(text)[0]]

    def decode(self, ids: list[int]) -> str:
        return str(self.inner.decode(ids, clean_up_tokenization_spaces=False))

    @cached_property
    def anchor(self) -> list[int]:
        """Tokens of a text that others can go on from; none where the tokenizer knows no letter."""
        return self.encode("a")[0]

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change whenever the tokens of some text might."""
        return hashlib.sha256(self.inner.backend_tokenizer.to_str().encode()).hexdigest()[:16]

    @cached_property
    def opening(self) -> int:
        """The token a text begins after: the beginning-of-text token, else the end-of-text token."""
        for token in (self.inner.bos_token_id, self.inner.eos_token_id):
            if token is not None:
                return int(token)
        raise BadInput(
            "the tokenizer has neither a beginning nor an end token: set `bos_token` in its configuration"
        )

    @cached_property
    def end(self) -> int | None:
        token = self.inner.eos_token_id
        return None if token is None else int(token)
