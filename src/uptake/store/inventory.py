"""What the files of a store must be: STORE/checksums.sha256 names each with its SHA-256, under its own sum.

It also says whose files these are, which version of the table counts, and whether somebody is at work. One
counts once it is named here: what a killed writer left beyond it is never read, and the next writer deletes
it. Lance writes files once and never changes them but keeps no sums, so nothing of a table is handed to Lance
before it is checked against this list. `sha256sum -c` reads it too.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from uptake.errors import Damaged, UptakeError
from uptake.sealed import from_lines, to_lines
from uptake.store.cache import Stamps
from uptake.store.files import (
    format_sums,
    one_line,
    parse_sums,
    plain_errors,
    sha256,
    sizes,
    write_atomically,
)
from uptake.store.remote.objects import Location

NAME = "checksums.sha256"
TABLE = "passages.lance"
STORE, VIEWS = "store.json", ("tokens/about.json", "chunks/about.json", "activations/about.json")
OTHERS = (*VIEWS, "unfinished.json")  # what changes between one writing and the next
CHANGED, MISSING = "not what was written", "missing"
State = Literal["complete", "writing", "deleting"]

_FIRST = re.compile(r"# uptake store 1 ([0-9a-f]{32}) version (\d{1,19}) (complete|writing|deleting)")
_SUM = re.compile(r"[0-9a-f]{64}  \S.*")
_CURE = "put it back from a copy, or build the store again"
_LIST_CURE = "put it back from a copy, or `uptake index verify --relist STORE` lists what is there anew"


@dataclass(frozen=True)
class Inventory:
    """The content of checksums.sha256. Only a `complete` one names every file that may be there."""

    uid: str
    version: int  # of the table
    state: State
    sums: Mapping[str, str]

    @classmethod
    def read(cls, store: Location) -> "Inventory":
        """Read the list of a store. Raises Damaged."""
        path = store / NAME
        with plain_errors(path):
            try:
                raw = path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                raise Damaged(f"{path}: missing; {_LIST_CURE}") from None
        first, *lines = from_lines(raw, path, "list of checksums", _LIST_CURE) or [""]
        about = _FIRST.fullmatch(first)
        if not about or not all(map(_SUM.fullmatch, lines)):
            raise Damaged(f"{path}: no list of checksums; {_LIST_CURE}")
        (state,) = (each for each in get_args(State) if each == about[3])
        return cls(about[1], int(about[2]), state, parse_sums(lines))

    def write(self, store: Location) -> None:
        """Write the list, whole or not at all."""
        first = f"# uptake store 1 {self.uid} version {self.version} {self.state}\n"
        write_atomically(store / NAME, to_lines(first + format_sums(self.sums)))

    @property
    def versions(self) -> list[int]:
        """The versions of the table that are stored, in order."""
        return sorted(version for name in self.sums if (version := version_of(name)) is not None)

    def files(self, *starts: str) -> list[str]:
        """Return the names that begin with one of `starts`."""
        return [name for name in self.sums if name.startswith(starts)]

    def check(self, store: Location, names: Iterable[str]) -> None:
        """Raise Damaged unless each of these files is there and is what was written."""
        for name, fault in self.faults(store, names).items():
            raise Damaged(f"{store / name}: {fault}; {self.cure(name)}")

    def faults(self, store: Location, names: Iterable[str], everything: bool = False) -> dict[str, str]:
        """Return file name -> what is wrong with it; see `Stamps` for `everything`."""
        found = {}
        with Stamps(Path(str(store)), everything) as stamps:
            for name in names:
                if fault := self._fault(store, name, stamps):
                    found[name] = fault
        return found

    def strays(self, store: Location) -> list[str]:
        """Return the files that are there and not listed, among those that are listed when all is written."""
        return sorted(name for name in _present(store) if name not in self.sums)

    def stray_versions(self, store: Location) -> list[str]:
        """Return the versions of the table that are there and not listed, by the names of their files."""
        names = (f"{TABLE}/_versions/{name}" for name, _ in sizes(store / TABLE / "_versions"))
        return sorted(name for name in names if version_of(name) is not None and name not in self.sums)

    def cure(self, name: str) -> str:
        """Return how to mend a damaged file."""
        if name.startswith(f"{TABLE}/_indices/"):
            return "`uptake index remove --purge STORE` makes it anew"
        if name in VIEWS:
            return f"`uptake index {name.partition('/')[0]} STORE --model M --fresh` makes it anew"
        if version_of(name) not in (None, self.version):
            return "`uptake index remove --purge STORE` drops that older version"
        return _CURE

    def _fault(self, store: Location, name: str, stamps: Stamps) -> str:
        if name not in self.sums:
            return f"not in {NAME}"
        path = store / name
        try:
            if isinstance(path, Path):
                whole = stamps.file(path, self.sums[name])
            else:
                whole = sha256(path) == self.sums[name]
            return "" if whole else CHANGED
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return MISSING
        except OSError as error:
            return f"cannot be read ({one_line(error)})"


def settled(store: Location, uid: str = "") -> Inventory:
    """Return a store's list; raises Damaged where it is another's or lacks versions."""
    while True:
        found = Inventory.read(store)
        if uid not in ("", found.uid):
            raise Damaged(f"{store / NAME}: of another store ({found.uid}, not {uid}); {_CURE}")
        strays = found.stray_versions(store) if found.state == "complete" else []
        if not strays:
            return found
        if Inventory.read(store) == found:  # else a writer has begun meanwhile
            raise Damaged(f"{store / strays[0]}: not in {NAME}; {_CURE}")


def check_listed(store: Path, name: str) -> bool:
    """Return whether a file that others than Lance write is there. Raises Damaged unless it is as listed."""
    while True:
        inventory = Inventory.read(store)
        there = (store / name).is_file()
        if inventory.state != "complete" or (not there and name not in inventory.sums):
            return there
        faults = inventory.faults(store, [name])
        if not faults:
            return True
        if Inventory.read(store) == inventory:  # else a writer has begun meanwhile
            raise Damaged(f"{store / name}: {faults[name]}; {inventory.cure(name)}")


class Recorder:
    """Keeps the list while somebody writes; the caller holds the store's lease."""

    def __init__(self, store: Location, inventory: Inventory) -> None:
        self.inventory = inventory
        self._store = store
        present = set(_present(store))
        # What was missing before stays listed, and so stays a fault; so does a view that has changed.
        self._lost = set() if inventory.state == "deleting" else inventory.sums.keys() - present
        listed = {name: inventory.sums[name] for name in OTHERS if name in inventory.sums.keys() & present}
        self._suspect = {
            name: (total, found) for name, total in listed.items() if (found := sha256(store / name)) != total
        }

    @classmethod
    @contextlib.contextmanager
    def at_work(cls, store: Location, uid: str) -> "Iterator[Recorder]":
        """Around all that one holder of the lease writes; whoever is interrupted in it is seen to be."""
        recorder = cls.begin(store, uid)
        try:
            yield recorder
        except Exception:
            with contextlib.suppress(UptakeError):  # the first reason is the one to tell
                recorder.end()
            raise
        recorder.end()

    @classmethod
    def begin(cls, store: Location, uid: str) -> "Recorder":
        """Say that somebody writes, after deleting versions that a killed writer left. Raises Damaged."""
        found = settled(store, uid)
        for name in found.stray_versions(store):
            _delete(store / name)
        recorder = cls(store, found)
        recorder._write("deleting" if found.state == "deleting" else "writing")
        return recorder

    @classmethod
    def new(cls, store: Location, uid: str, version: int, ahead: Mapping[str, str]) -> None:
        """Write the list of a new store; `ahead` has the sums of files that come last."""
        recorder = cls(store, Inventory(uid, version, "complete", {}))
        recorder._lost = set(ahead)
        recorder.inventory = replace(recorder.inventory, sums=dict(ahead))
        recorder._write("complete")

    def record(self, version: int, sums: Mapping[str, str] | None = None) -> None:
        """Sum every file that is not summed yet, nor has its sum in `sums`, and let `version` count."""
        known = {f"{TABLE}/data/{name}": total for name, total in (sums or {}).items()}
        self.inventory = replace(self.inventory, version=version, sums={**self.inventory.sums, **known})
        self._write("writing")

    def deleting(self, all_older: bool = False) -> None:
        """Say that files are about to be deleted: what is missing from then on is no fault.

        With `all_older` versions go before that are damaged: whoever deletes the others must not read them.
        """
        self._write("deleting")
        if all_older:
            for name in self._damaged_versions():
                _delete(self._store / name)

    def check_versions(self) -> None:
        """Raise Damaged unless what says which files each version uses is what was written."""
        for name, fault in self._damaged_versions().items():
            raise Damaged(f"{self._store / name}: {fault}; {self.inventory.cure(name)}")

    def _damaged_versions(self) -> dict[str, str]:
        names = [
            manifest(version) for version in self.inventory.versions if version != self.inventory.version
        ]
        return self.inventory.faults(self._store, names)

    def end(self) -> None:
        """Say that nobody writes any more: from now on each file must be as it is.

        A version that was made and never recorded, because there was no room for the list, goes.
        """
        for name in self.inventory.stray_versions(self._store):
            _delete(self._store / name)
        self._write("complete", others=True)

    def _write(self, state: State, others: bool = False) -> None:
        known = self.inventory.sums
        names = [name for name in sorted(_present(self._store)) if others or name not in OTHERS]
        with plain_errors(self._store / NAME):
            sums = {
                name: known[name] if name in known and name not in OTHERS else sha256(self._store / name)
                for name in names
            }
        for name in names:
            listed, found = self._suspect.get(name, ("", ""))
            sums[name] = listed if sums[name] == found else sums[name]
        kept = {name: total for name, total in known.items() if name in self._lost and name not in OTHERS}
        if state == "deleting":
            kept |= {name: total for name, total in known.items() if name not in OTHERS}
        self.inventory = replace(self.inventory, state=state, sums=kept | sums)
        self.inventory.write(self._store)


def manifest(version: int) -> str:
    """Return the file that holds a version of the table, as Lance names it."""
    return f"{TABLE}/_versions/{2**64 - 1 - version}.manifest"


def version_of(name: str) -> int | None:
    """Return the version of the table that a file holds, None where it is no such file."""
    found = re.fullmatch(rf"{re.escape(TABLE)}/_versions/(\d+)\.manifest", name)
    return 2**64 - 1 - int(found[1]) if found else None


def _present(store: Location) -> Iterator[str]:
    for name in (STORE, *OTHERS):
        if (store / name).is_file():
            yield name
    for name, _ in sizes(store / TABLE):
        if _listed(name):
            yield f"{TABLE}/{name}"


def _listed(name: str) -> bool:
    """Tell whether a file of the table never changes once it is there."""
    file = name.rpartition("/")[2]
    # The hint is the one file that Lance rewrites; it only saves a listing. What begins with a dot is
    # being written at this moment, or was when its writer died.
    return file != "latest_version_hint.json" and not file.startswith(".")


def _delete(path: Location) -> None:
    with plain_errors(path):
        if isinstance(path, Path):
            path.unlink(missing_ok=True)
        else:
            path.delete_object()
