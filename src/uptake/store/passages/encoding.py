"""The encoder of a store: checked to be the one it was made with, its vectors checked and normalised."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from uptake.errors import BadInput, Mismatch
from uptake.preparation import preparing
from uptake.store.layout import View
from uptake.store.remote.objects import Location
from uptake.text.types import Embedder, QueryEncoder


class Encoding:
    """The encoder of a view. Without one given, that named in the view is loaded when first needed.

    Queries may have an encoder of their own. Raises Mismatch, naming both, for an encoder other than the one
    the store was made with, or a query encoder that belongs to another.
    """

    def __init__(
        self,
        store: Location,
        view: View,
        encoder: Embedder | str | None,
        device: str,
        query_encoder: QueryEncoder | None = None,
    ) -> None:
        if (encoder is not None or query_encoder is not None) and not view.dimensions:
            raise BadInput(f"{store}: a lexical store takes no encoder; leave it out")
        if query_encoder is not None:
            _check_query_encoder(store, view, query_encoder)
        self.query_encoder = query_encoder
        self._store = store
        self._view = view
        self.device = device
        self._encoder = None if encoder is None else self._checked(encoder)

    @property
    def encoder(self) -> Embedder:
        """The encoder; raises BadInput where it has to be given, Missing where it cannot be loaded."""
        if self._encoder is None:
            if not self._view.encoder:
                raise BadInput(f"{self._store}: made with an encoder of your own; open it with encoder=...")
            self._encoder = self._checked(self._view.encoder)
        return self._encoder

    def with_query_encoder(self, query_encoder: QueryEncoder | None) -> "Encoding":
        """Return the same for queries with this encoder of their own, or none."""
        return Encoding(self._store, self._view, self._encoder, self.device, query_encoder)

    @property
    def elsewhere(self) -> tuple[Embedder | str | None, str]:
        """What another process embeds with: the encoder's name, or the encoder itself; and the device."""
        return self.spec or self._encoder, self.device

    @property
    def spec(self) -> str:
        """What `make_encoder` makes it from; empty where it was given as an object, or there is none."""
        return self._view.encoder if self._encoder is None else getattr(self._encoder, "spec", "")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one row a passage, of length one where the metric is cosine."""
        return self.checked_vectors(self.encoder.embed(texts), texts)

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one row a query, of length one where the metric is cosine."""
        if self.query_encoder is None:
            return self.embed(texts)
        return self.checked_vectors(self.query_encoder.embed(texts, self.encoder), texts)

    def checked_vectors(self, given: NDArray[np.floating], texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of these texts as the store compares them; raises BadInput."""
        vectors = np.asarray(given, dtype=np.float32)
        if vectors.shape != (len(texts), self._view.dimensions):
            raise BadInput(
                f"vectors of shape {vectors.shape} for {len(texts)} texts; "
                f"the store needs {self._view.dimensions} dimensions"
            )
        if not np.isfinite(vectors).all():
            place = int(np.argmin(np.isfinite(vectors).all(axis=1)))
            raise BadInput(f"a vector that is not finite for the text {texts[place][:60]!r}")
        if self._view.metric == "cosine":
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
        return vectors

    def _checked(self, encoder: Embedder | str) -> Embedder:
        if isinstance(encoder, str):
            from uptake.text.encoders import make_encoder

            with preparing():
                encoder = make_encoder(encoder, self.device, self._view.dtype)
        if encoder.fingerprint != self._view.encoder_fingerprint:
            made = _described(self._view.encoder, self._view.encoder_fingerprint)
            given = _described(getattr(encoder, "spec", ""), encoder.fingerprint)
            raise Mismatch(f"{self._store}: made with encoder {made}, opened with {given}; give the same one")
        return encoder


def _check_query_encoder(store: Location, view: View, given: QueryEncoder) -> None:
    if given.dimensions != view.dimensions:
        raise Mismatch(
            f"{store}: its vectors have {view.dimensions} dimensions, those of query encoder "
            f"{given.fingerprint} {given.dimensions}; train one on this store"
        )
    if given.encoder != view.encoder_fingerprint:
        raise Mismatch(
            f"{store}: made with encoder {_described(view.encoder, view.encoder_fingerprint)}, query encoder "
            f"{given.fingerprint} was trained for {given.encoder}; train one on this store"
        )


def _described(spec: str, fingerprint: str) -> str:
    return f"{spec} ({fingerprint})" if spec else fingerprint
