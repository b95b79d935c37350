"""The bytes that each token of a vocabulary stands for, part of a character or not."""

import re
from functools import cache
from typing import Any

from uptake.text.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Bytes of tokens by their id: of byte-level vocabularies, and of those with a mark for a space."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._inner: Any = tokenizer.inner
        self._added = {
            int(token): str(content) for token, content in self._inner.added_tokens_decoder.items()
        }
        self._byte_level = "ByteLevel" in str(self._inner.backend_tokenizer.decoder or "")

    def of(self, token: int) -> bytes:
        """Return the bytes of a token; none for an id that the vocabulary leaves out."""
        if token in self._added:
            return self._added[token].encode("utf8", "replace")
        text = self._inner.convert_ids_to_tokens(token)
        if text is None:
            return b""
        if self._byte_level:
            known = _byte_of()
            if all(letter in known for letter in text):
                return bytes(known[letter] for letter in text)
        if single := _BYTE.fullmatch(text):
            return bytes([int(single[1], 16)])
        return str(text).replace("\u2581", " ").encode("utf8", "replace")


@cache
def _byte_of() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for (Radford et al. 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
