"""Writing a store's tokens: appended and committed, or written anew without those that are gone.

Whoever calls this holds the store's lease.
"""

import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from uptake.errors import UptakeError
from uptake.store.files import plain_errors
from uptake.store.table import Table
from uptake.store.tokens import FILES, FOLDER, RECORD, About, Commit, Records, Stored


class Growing:
    """The tokens of a store while somebody who holds its lease adds to them."""

    def __init__(self, store: Path, about: About) -> None:
        self.about = about
        self._store = store
        self._added = {name: hashlib.sha256() for name in FILES}
        self._ends = dict(about.ends)
        folder = about.folder(store)
        with plain_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._files = {name: (folder / name).open("ab") for name in FILES}
            for name, file in self._files.items():
                file.truncate(self._ends[name])  # what a crash left

    @classmethod
    def begin(cls, store: Path, name: str, fingerprint: str, dimensions: int) -> "Growing":
        """Begin with none; what was there before counts until the first commit."""
        return cls(store, About(secrets.token_hex(8), name, fingerprint, dimensions))

    @property
    def waiting(self) -> int:
        """How many tokens have been put since the last commit."""
        return (self._ends["values"] - self.about.ends["values"]) // 4

    def put(self, records: Records, keys: Any, values: Any, words: Any) -> None:
        """Add passages; their document must be whole before `commit`."""
        arrays = {
            "keys": np.ascontiguousarray(keys, "<f2"),
            "values": np.ascontiguousarray(values, "<i4"),
            "passages": np.ascontiguousarray(records, RECORD),
            "words": np.ascontiguousarray(words, "<u8"),
        }
        with plain_errors(self.about.folder(self._store)):
            for name, array in arrays.items():
                raw = array.tobytes()
                self._files[name].write(raw)
                self._added[name].update(raw)
                self._ends[name] += len(raw)

    def commit(self) -> None:
        """Make what was put so far good, whole or not at all."""
        with plain_errors(self.about.folder(self._store)):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
        made = Commit(dict(self._ends), {name: added.hexdigest() for name, added in self._added.items()})
        about = About(**{**vars(self.about), "commits": (*self.about.commits, made)})
        about.write(self._store)
        self.about = about
        self._added = {name: hashlib.sha256() for name in FILES}

    def close(self) -> None:
        """Close the files and delete those of tokens that have been replaced."""
        for file in self._files.values():
            file.close()
        current = About.read(self._store)
        for folder in (self._store / FOLDER).iterdir():
            if folder.is_dir() and (current is None or folder.name != current.id):
                shutil.rmtree(folder, ignore_errors=True)


def rewrite(store: Path, table: Table, bear: float = 0.0) -> None:
    """Write the tokens anew, without those of documents that are gone and what is damaged.

    Left alone where nothing is damaged and at most the share `bear` of the passages are gone. Files
    are never cut in place, for somebody may have them mapped. Raises Damaged.
    """
    about = About.read(store)
    if about is None:
        return
    bad = [number for number, _ in about.faults(store)]
    sound = About(**{**vars(about), "commits": about.commits[: min(bad)]}) if bad else about
    stored = Stored.mapped(sound, store)
    live = stored.live(table)
    if not bad and (~live).sum() <= bear * len(live):
        return
    growing = Growing.begin(store, about.name, about.fingerprint, about.dimensions)
    try:
        for records, (keys, values, words) in stored.parts(live):
            growing.put(records, keys, values, words)
        growing.commit()
    finally:
        growing.close()


def purge(store: Path, table: Table) -> None:
    """Leave no byte of what is gone: tokens that cannot be written anew are deleted, to be read again."""
    try:
        rewrite(store, table)
    except UptakeError:
        shutil.rmtree(store / FOLDER, ignore_errors=True)
