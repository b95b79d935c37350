"""Processes of one machine that each load the model: what whoever starts them needs."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Let processes started in the block ignore Ctrl-C, which a terminal sends to all: this one ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say so
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
