"""Stand-ins for what is slow or large."""

import hashlib
from contextlib import contextmanager

import numpy as np


@contextmanager
def a_second(into):
    """Stand in for the clock: whatever is measured takes one second."""
    yield
    into.append(1.0)


class StubEncoder:
    """Vectors from hashed words: the same text has the same vector in every process."""

    spec = ""
    dtype = "float32"

    def __init__(self, dimensions=16, salt=""):
        self.dimensions = dimensions
        self.salt = salt
        self.embedded = 0

    @property
    def fingerprint(self):
        return f"stub-{self.dimensions}-{self.salt}"

    def embed(self, texts):
        self.embedded += len(texts)
        return (
            np.stack([self._vector(text) for text in texts])
            if texts
            else np.empty((0, self.dimensions), "f4")
        )

    def _vector(self, text):
        total = np.zeros(self.dimensions, np.float32)
        for word in text.split()[:200] or [""]:
            seed = int.from_bytes(
                hashlib.blake2b((self.salt + word).encode("utf8"), digest_size=8).digest(), "little"
            )
            total += np.random.default_rng(seed).standard_normal(self.dimensions, dtype=np.float32)
        return total / np.linalg.norm(total)


class Letters:
    """A tokenizer of one token a character, light enough for a process that is to be killed."""

    fingerprint = "letters"

    def encode(self, text):
        return [ord(letter) for letter in text], tuple((place, place + 1) for place in range(len(text)))
