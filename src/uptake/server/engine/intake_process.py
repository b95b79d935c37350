"""The process that reads files into stores, so that neither searches nor whoever writes waits for it.

    python -m uptake.server.engine.intake_process SOCKET LOCK [ENCODER]

It gives way to the engine where processors are few, holds the lock of the folder for as long as it lives,
and ends with the engine. Killed at any moment it leaves a store with every file whole or not there at all.
"""

import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from uptake.errors import BadInput, UptakeError
from uptake.server.engine.encoder import Encoder
from uptake.server.engine.encoder import opened as opened_link
from uptake.server.engine.folders import opened
from uptake.server.errors import ApiError, of
from uptake.server.link import Link
from uptake.text.files import Skipped
from uptake.text.formats import by_suffix
from uptake.text.readers import read
from uptake.text.reading import Reading
from uptake.text.types import Document

NICE = 10  # how far it gives way


def serve(link: Link, files: Sequence[int] = (), gone: Callable[[], None] = lambda: None) -> None:
    """Read into stores whatever the other end names; `gone` is called once there is nobody there.

    The second of the open files, if there is one, is a socket to the encoder.
    """
    encoder = Encoder(lambda: opened_link(Link(socket.socket(fileno=files[1])))) if len(files) > 1 else None
    asked: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def listen() -> None:
        while (frame := link.receive()) is not None:
            asked.put(frame)
        gone()
        asked.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while (frame := asked.get()) is not None:
        try:
            _take_in(frame, link, asked, encoder)
            link.send({"done": True})
        except Exception as error:  # a full disk, say: whatever it is, whoever waits hears of it
            try:
                link.send({"failed": _told(error)})
            except OSError:
                return


def _take_in(
    frame: dict[str, Any],
    link: Link,
    asked: "queue.SimpleQueue[dict[str, Any] | None]",
    encoder: Encoder | None,
) -> None:
    """Read a file into a store, once the other end has kept how many documents there will be."""
    store = opened(Path(frame["store"]), encoder)
    if store.layout.retriever != "lexical" and store.searching.by == "lexical":
        told = "the vector store was made with an encoder that the server has no more: make another store"
        raise BadInput(told)
    documents = documents_in(Path(frame["path"]), frame["file"], frame["filename"], Path(frame["uploads"]))
    link.send({"documents": len(documents)})
    if asked.get() is None:
        return
    store.add(documents, whole=True)


def documents_in(path: Path, file: str, filename: str, uploads: Path) -> list[Document]:
    """Return the documents in a file, each named by the file's id; the name given says its format."""
    suffix = Path(filename).suffix.lower()
    suffix = suffix if suffix in by_suffix() else ".txt"
    named = uploads / f"{file}{suffix}"
    named.unlink(missing_ok=True)
    os.link(path, named)
    try:
        reading = Reading(max_parse_bytes=2 << 30, fixed=True)
        found = list(read(named, skipped=Skipped(), reading=reading))
    except UptakeError as error:
        raise type(error)(str(error).replace(str(named), "the file")) from None
    finally:
        named.unlink(missing_ok=True)
    if not found:
        raise BadInput("the file holds no text that can be read")
    return [Document(f"{file}/{place}", each.text, file, {}, each.places) for place, each in enumerate(found)]


def _told(error: Exception) -> str:
    """Return what a client is told of a fault; the log says more of one that is not its own."""
    if isinstance(error, UptakeError):
        return str(error)
    if not isinstance(error, ApiError):
        traceback.print_exception(error)
    return of(error).message


def main() -> None:
    """Serve the engine at the other end of the socket that the first argument names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(NICE)
    end, *files = map(int, sys.argv[1:])  # the lock is held by being open
    serve(Link(socket.socket(fileno=end)), files, lambda: os._exit(1))


if __name__ == "__main__":
    main()
