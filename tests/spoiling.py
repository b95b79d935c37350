"""Files of ours changed by a test, under sums that fit: what only a reader who checks the content finds."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from uptake.sealed import from_json, to_json
from uptake.store.inventory import TABLE, Inventory, Recorder


def content(path: Path) -> dict[str, Any]:
    """Return what a sealed JSON file holds."""
    return from_json(path.read_bytes(), path, "file", "none")


def change(path: Path, how: Callable[[dict[str, Any]], object]) -> None:
    """Let `how` change what the file holds."""
    data = content(path)
    how(data)
    path.write_bytes(to_json(data))


def sealed_anew(store: Path) -> None:
    """Let a store's list name its files as they are, and the newest version that Lance has made count."""
    names = (store / TABLE / "_versions").glob("*.manifest")
    recorder = Recorder(store, replace(Inventory.read(store), sums={}))
    recorder.record(max(2**64 - 1 - int(name.stem) for name in names))
    recorder.end()
