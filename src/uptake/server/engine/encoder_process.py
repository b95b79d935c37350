"""The process that embeds.

    python -m uptake.server.engine.encoder_process SOCKET

Over its socket come the sockets of those who ask; whoever asks has one piece with it at a time, and one
thread embeds them in the order in which they come. It ends with the engine.
"""

import base64
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from typing import Any

from uptake.errors import UptakeError
from uptake.server.link import Link
from uptake.server.sizes import LONGEST
from uptake.text.encoders import make_encoder

Asked = tuple[dict[str, Any], Link]


def serve(link: Link) -> None:
    """Embed for all whose sockets come over the link, until it ends."""
    asked = link.receive()
    if asked is None:
        return
    try:
        import torch

        if asked["threads"]:
            torch.set_num_threads(asked["threads"])
        encoder: Any = make_encoder(asked["spec"], asked["device"])
    except UptakeError as error:
        link.send({"failed": str(error)})
        return
    link.send({"ready": True})
    about = {
        name: getattr(encoder, name) for name in ("spec", "dtype", "fingerprint", "dimensions", "window")
    }
    waiting: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()

    def take() -> None:
        while (end := link.taken()) is not None:
            one = Link(end)
            one.send(about)
            threading.Thread(target=listen, args=[one], daemon=True).start()
        waiting.put(None)

    def listen(one: Link) -> None:
        while (frame := one.receive()) is not None:
            waiting.put((frame, one))

    threading.Thread(target=take, daemon=True).start()
    while (each := waiting.get()) is not None:
        frame, one = each
        try:
            one.send(_answered(encoder, frame))
        except OSError:
            continue  # whoever asked is gone


def _answered(encoder: Any, frame: dict[str, Any]) -> dict[str, Any]:
    """Return vectors as bytes and the number of tokens, or what is wrong with one of the texts."""
    texts, tokens = [], 0
    for place, given in enumerate(frame["texts"]):
        text = given
        if isinstance(given, list):
            most = len(encoder.tokenizer)
            wrong = next((i for i, token in enumerate(given) if token >= most), None)
            if wrong is not None:
                told = f"token {str(given[wrong])[:60]} is none of the encoder's {most:,}: send the text"
                return {"place": place, "within": [wrong], "refused": told}
            text = encoder.tokenizer.decode(given, skip_special_tokens=True)
        if frame["whole"]:
            size = _size(encoder, text)
            if size is None or size > encoder.window:
                told = f"{len(text):,} characters" if size is None else f"{size:,} tokens"
                if size is None and isinstance(given, list):
                    told = f"{len(given):,} tokens"
                told += f" are more than the {encoder.window:,} tokens that the encoder reads: cut the text"
                return {"place": place, "within": [], "refused": told}
            tokens += size
        texts.append(text)
    try:
        vectors = encoder.embed(texts)
    except Exception as error:  # models fail in manners of their own
        traceback.print_exception(error)
        return {"failed": "the encoder failed at a text; the server's log says why"}
    return {"vectors": base64.b64encode(vectors.astype("<f4").tobytes()).decode(), "tokens": tokens}


def _size(encoder: Any, text: str) -> int | None:
    """Return the tokens of a text, None for one that is far too long to be made tokens."""
    if len(text) > LONGEST * encoder.window:
        return None
    return len(encoder.tokenizer(text, truncation=False, verbose=False)["input_ids"])


def main() -> None:
    """Serve the engine at the other end of the socket that the argument names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve(Link(socket.socket(fileno=int(sys.argv[1]))))
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
