"""Damaged files as bits, and what reading one reaches: what recipes/energy_fuzz.py searches.

An input is a good file and up to four edits of its bytes, written as 84 bits, so that a model of bits can
propose it. A reader keeps its contract if it gives items or refuses in a way that it promises; whatever else
it raises is a fault, and so is a hang, or a file of ours that loads and then is not what it says.
"""

import io
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import uptake
from uptake.errors import UptakeError
from uptake.evaluation.tune import Recipe
from uptake.sealed import FIELD, digest
from uptake.text import formats
from uptake.text.files import SkipError
from uptake.text.reading import File, Reading

KINDS = ("nothing", "flip", "cut", "insert", "replace", "delete", "repeat", "swap")
SPANS = (1, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 1024)
PIECES = (
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b"'", b"\\", b"\n", b"\r\n", b",", b",,,",
    b":", b"{", b"}", b"[", b"]", b"[" * 300, b'{"a":' * 200, b"<div>" * 300, b"<!--", b"]]>", b"&#x110000;",
    b"</p>", b"NaN", b"1e999", b"-0", b"9" * 5000, b"null", b'"text"', b"---\n", b"# ", b"\xe2\x80\xa8",
)  # fmt: skip
EDITS = 4
FILE_BITS, KIND_BITS, PLACE_BITS, SPAN_BITS, PIECE_BITS = 4, 3, 8, 4, 5
EDIT_BITS = KIND_BITS + PLACE_BITS + SPAN_BITS + PIECE_BITS
BITS = FILE_BITS + EDITS * EDIT_BITS
SECONDS = 5.0  # after which reading a file of a few hundred bytes hangs
_READING = Reading(max_document_bytes=1 << 20)

Bits = NDArray[np.int8]


def numbers(bits: Bits) -> list[int]:
    """Return the file, then kind, place, span and piece of each edit."""
    sizes = [FILE_BITS, *[KIND_BITS, PLACE_BITS, SPAN_BITS, PIECE_BITS] * EDITS]
    found, at = [], 0
    for size in sizes:
        found.append(int(bits[at : at + size] @ (1 << np.arange(size - 1, -1, -1))))
        at += size
    return found


def bits_of(values: list[int]) -> Bits:
    """Return the bits that `numbers` reads these values from."""
    sizes = [FILE_BITS, *[KIND_BITS, PLACE_BITS, SPAN_BITS, PIECE_BITS] * EDITS]
    made = [(value >> np.arange(size - 1, -1, -1)) & 1 for value, size in zip(values, sizes, strict=True)]
    return np.concatenate(made).astype(np.int8)


def edited(raw: bytes, kind: int, place: int, span: int, piece: int) -> bytes:
    """Return the bytes after one edit; `place` is a 255th of the way."""
    at = place * len(raw) // 255
    to = min(len(raw), at + SPANS[span])
    name = KINDS[kind]
    if name == "flip" and at < len(raw):
        return raw[:at] + bytes([raw[at] ^ 1 << piece % 8]) + raw[at + 1 :]
    if name == "cut":
        return raw[:at]
    if name == "insert":
        return raw[:at] + PIECES[piece] + raw[at:]
    if name == "replace":
        return raw[:at] + PIECES[piece] + raw[to:]
    if name == "delete":
        return raw[:at] + raw[to:]
    if name == "repeat":
        return raw[:to] + raw[at:to] * (1 + piece) + raw[to:]
    if name == "swap":
        other = min(len(raw), to + SPANS[span])
        return raw[:at] + raw[to:other] + raw[at:to] + raw[other:]
    return raw


@dataclass(frozen=True)
class Target:
    """One good file and its reader; `promised` are what it may raise."""

    name: str
    raw: bytes
    read: Callable[[Path], object]
    promised: tuple[type[BaseException], ...]
    seal: Callable[[bytes], bytes] = bytes

    def damaged(self, values: list[int]) -> bytes:
        """Return the file after the edits; of a zip file the part that the first edit names is edited."""
        edits = [values[1 + 4 * number : 5 + 4 * number] for number in range(EDITS)]
        if not self.raw.startswith(b"PK"):
            return self.seal(_all(self.raw, edits))
        with zipfile.ZipFile(io.BytesIO(self.raw)) as whole:
            parts = {name: whole.read(name) for name in whole.namelist()}
        chosen = [*parts][edits[0][3] % len(parts)]
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as made:
            for name, part in parts.items():
                made.writestr(name, _all(part, edits) if name == chosen else part)
        return out.getvalue()


def _all(raw: bytes, edits: list[list[int]]) -> bytes:
    for edit in edits:
        raw = edited(raw, *edit)
    return raw


def _text_reader(suffix: str) -> Callable[[Path], object]:
    form = formats.named(formats.of(Path(f"a{suffix}")) or "plain")
    return lambda path: list(form.read(File(path, "in/a", "in/a", _READING)))


def sealed(body: bytes) -> bytes:
    """Return the body of a JSON file of ours under a sum that fits, so that its content is what is read."""
    return body + f',\n "{FIELD}": "{digest(body)}"\n}}\n'.encode()


def _recipe(path: Path) -> object:
    found = Recipe.read(path)
    found.write(path)
    if Recipe.read(path) != found:
        raise AssertionError("a recipe that loads comes back otherwise")
    return found


def targets(good: dict[str, bytes]) -> list[Target]:
    """Return a target a format that Python code of ours reads, and one of a file of ours under its sum."""
    made = [
        Target(suffix, raw, _text_reader(suffix), (SkipError, OSError))
        for suffix, raw in good.items()
        if suffix not in (".pdf", ".parquet", ".py", ".rst")  # parsed by others' code, or as .txt is
    ]
    body = (
        b'{\n "format": "uptake recipe 1",\n "method": "ttt-nn",\n "k": 5,\n'
        b' "settings": [\n  "clip=0.5"\n ],\n "chosen": {\n  "gain": 0.1,\n  "seed": 0\n }'
    )
    return [*made, Target("recipe", body, _recipe, (UptakeError,), sealed)]


class Watch:
    """Reads inputs and keeps which jumps from line to line of our readers' code were ever seen."""

    def __init__(self, some: list[Target], folder: Path) -> None:
        self.targets, self.folder = some, folder
        self.seen: dict[tuple[CodeType, int, int], int] = {}  # jump -> inputs that made it
        self.faults: dict[str, list[int]] = {}  # in words -> the first input
        self.inputs = 0
        root = Path(uptake.__file__).parent
        self._ours = tuple(str(root / name) for name in ("text", "codec", "sealed", "evaluation/tune"))

    def read(self, bits: Bits) -> tuple[set[tuple[CodeType, int, int]], bool]:
        """Read one input; return its jumps and whether any is new."""
        values = numbers(bits)
        target = self.targets[values[0] % len(self.targets)]
        path = self.folder / f"a{target.name}"
        path.write_bytes(target.damaged(values))
        jumps: set[tuple[CodeType, int, int]] = set()
        fault = ""
        try:
            with hanging(), self._traced(jumps):
                target.read(path)
        except target.promised:
            pass
        except Exception as error:
            fault = f"{target.name}: {type(error).__name__}: {str(error)[:120]}"
        if fault:
            self.faults.setdefault(fault, values)
        self.inputs += 1
        new = not jumps <= self.seen.keys()
        for jump in jumps:
            self.seen[jump] = self.seen.get(jump, 0) + 1
        return jumps, new

    @contextmanager
    def _traced(self, jumps: set[tuple[CodeType, int, int]]) -> Iterator[None]:
        def calls(frame: FrameType, event: str, _: Any) -> Any:
            code = frame.f_code
            if not code.co_filename.startswith(self._ours):
                return None
            last = 0

            def lines(frame: FrameType, event: str, _: Any) -> Any:
                nonlocal last
                if event == "line":
                    jumps.add((code, last, frame.f_lineno))
                    last = frame.f_lineno
                return lines

            return lines

        before = sys.gettrace()
        sys.settrace(calls)
        try:
            yield
        finally:
            sys.settrace(before)


class Hang(Exception):
    """Reading took too long."""


@contextmanager
def hanging() -> Iterator[None]:
    """Raise Hang in the block after SECONDS."""

    def rings(*_: object) -> None:
        raise Hang(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, rings)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
