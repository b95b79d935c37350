"""The folder of a trained encoder: what sentence-transformers reads, and a file that says what it is for.

Trained on both sides it is an encoder like any other. Trained on the query side it embeds queries for
passages that another encoder has embedded, and the file names that one.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uptake.cache import sync
from uptake.codec import Malformed, load, plain
from uptake.errors import BadInput, Damaged
from uptake.sealed import from_json, to_json, write_whole
from uptake.text.encoders import SentenceEncoder
from uptake.text.types import Embedder

if TYPE_CHECKING:
    from uptake.retrievers.upper_layers import UpperLayers

NAME = "uptake-encoder.json"
FORMAT = "uptake-encoder-1"
_CURE = "train it anew, or put the folder back from a copy"


@dataclass(frozen=True)
class About:
    """What the file says: whose vectors the passages have, "" for its own; its own; how it was trained."""

    passages: str
    own: str  # fingerprint in float32
    trained: str
    format: str = FORMAT


def check_new(folder: Path) -> None:
    """Raise BadInput where there is something at `folder` already, or it cannot be made there."""
    if folder.exists():
        raise BadInput(f"{folder}: already there; give a new folder")
    if not folder.resolve().parent.is_dir():
        raise BadInput(f"{folder}: there is no folder {folder.parent}; make it first")


def write_encoder(encoder: "UpperLayers", folder: Path, passages: str, trained: str) -> About:
    """Write a trained encoder to a new folder, whole or not at all; `passages` is as in `About`."""
    check_new(folder)
    draft = folder.with_name(f".{folder.name}.draft")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(draft)
    try:
        encoder.write(draft)
        about = About(passages, SentenceEncoder(str(draft), dtype="float32").fingerprint, trained)
        write_whole(draft / NAME, to_json(plain(about)))
        mode = (draft / NAME).stat().st_mode  # that of a new file of ours, where libraries make private ones
        for file in draft.rglob("*"):
            if file.is_file():
                file.chmod(mode)
            sync(file)
        draft.rename(folder)
        sync(folder.resolve().parent)
    except OSError as error:
        raise BadInput(
            f"cannot write {folder}: {error.strerror}; give a folder with free space that you may write to"
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return about


def read_about(folder: Path) -> About:
    """Read what the file says. Raises BadInput where there is none, Damaged."""
    path = folder / NAME
    if not path.is_file():
        raise BadInput(
            f"{folder}: no query encoder, for it has no {NAME}; give what `uptake train retriever` wrote"
        )
    try:
        return load(About, from_json(path.read_bytes(), path, "encoder's description", _CURE))
    except Malformed as error:
        raise Damaged(f"{path}: not what was written ({error}); {_CURE}") from error


@dataclass
class QueryFolder:
    """A query encoder that is a whole encoder of its own; see `uptake.text.types.QueryEncoder`."""

    folder: Path
    about: About
    device: str = "cpu"
    _model: SentenceEncoder = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._model = SentenceEncoder(str(self.folder), self.device, "float32")
        if self._model.fingerprint != self.about.own:
            raise Damaged(f"{self.folder}: its weights are not those that {NAME} names; {_CURE}")

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "QueryFolder":
        """Read it. Raises BadInput where it is no query encoder, Damaged."""
        about = read_about(folder)
        if not about.passages:
            raise BadInput(
                f"{folder}: trained for passages as well as queries: encode the store with it, by "
                f"`uptake index encode STORE NEW --encoder {folder}`"
            )
        return cls(folder, about, device)

    @property
    def encoder(self) -> str:
        """The fingerprint of the encoder that has embedded the passages."""
        return self.about.passages

    @property
    def fingerprint(self) -> str:
        """Names it and the passages' encoder, 16 hexadecimal digits."""
        return hashlib.sha256(f"{self.encoder} {self.about.own}".encode()).hexdigest()[:16]

    @property
    def dimensions(self) -> int:
        """The width of the vectors."""
        return self._model.dimensions

    def embed(self, texts: Sequence[str], encoder: Embedder) -> NDArray[np.float32]:
        """Return one row of length one a query; the passages' encoder is not asked."""
        return self._model.embed(texts)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.about, self.device)  # another process reads the weights itself
