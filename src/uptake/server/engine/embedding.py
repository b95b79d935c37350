"""Texts that clients want embedded, piece by piece, in a thread of their own."""

import base64
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from uptake.errors import UptakeError
from uptake.server.engine.encoder import Encoder
from uptake.server.errors import ApiError, of


class Embedder:
    """Answers requests for vectors, one after another."""

    def __init__(self, encoder: Encoder, send: Callable[[dict[str, Any]], None]) -> None:
        self._encoder, self._send = encoder, send
        self._wanted = set[int]()
        self._thread = ThreadPoolExecutor(1, "embedding")

    def about(self, name: str) -> dict[str, Any]:
        """Return what the door has to know."""
        encoder = self._encoder
        return {"id": name, "dimensions": encoder.dimensions, "window": encoder.window}

    def begin(self, frame: dict[str, Any]) -> None:
        """Let a request wait for its turn."""
        self._wanted.add(frame["id"])
        self._thread.submit(self._embed, frame["id"], frame["input"], frame["alone"])

    def cancel(self, number: int) -> None:
        """End a request, after the piece that is being embedded."""
        self._wanted.discard(number)

    def close(self) -> None:
        """End all of them."""
        self._wanted.clear()
        self._thread.shutdown(cancel_futures=True)
        self._encoder.close()

    def _embed(self, number: int, given: list[str | list[int]], alone: bool) -> None:
        vectors, tokens = bytearray(), 0
        try:
            for part, count in self._encoder.pieces(given, whole=True, alone=alone):
                if number not in self._wanted:
                    return
                vectors += part.astype("<f4").tobytes()
                tokens += count
        except Exception as error:
            if not isinstance(error, UptakeError | ApiError):
                traceback.print_exception(error)
            self._send({"id": number, "event": "error", "error": of(error).plain()})
        else:
            answer = {"vectors": base64.b64encode(vectors).decode(), "tokens": tokens}
            self._send({"id": number, "event": "answer", "answer": answer})
        finally:
            self._wanted.discard(number)
