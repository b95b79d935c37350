"""What stands at the head of a GGUF file: values by name, and where each tensor lies.

Read with bounds, since the file comes from anywhere: no count or size is believed before it fits into
the file, and nothing is allocated for it. Knows nothing of models or tokenizers.
Source: the GGUF specification of ggml, versions 2 and 3.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uptake.errors import BadInput, Missing

MAGIC = b"GGUF"
Value = str | int | float | bool | list[Any]
_Entry = tuple[str, tuple[int, ...], int, int]  # a tensor: name, shape, kind, offset

# What to do about a file that is damaged, and about one that is not understood.
AGAIN = "fetch the file again"
FOLDER = "give the model as a folder of safetensors"

_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# The code of a number's type, in the file and for `struct`.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MOST_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor in the file."""

    name: str
    shape: tuple[int, ...]  # as torch has it, the slowest dimension first
    kind: str  # how it is quantised: F32, Q4_1, ...
    offset: int  # of its first byte in the file
    size: int  # bytes

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The values of a GGUF file by name, and its tensors by name."""

    path: Path
    values: dict[str, Value]
    tensors: dict[str, Stored]

    def get(self, name: str, kind: type[Any], default: Any = None) -> Any:
        """Return a value of this kind; `default` where there is none. Raises BadInput for another kind."""
        value = self.values.get(name)
        if value is None:
            return default
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise BadInput(f"{self.path}: {name} is no {kind.__name__}; {AGAIN}")
        return value

    def need(self, name: str, kind: type[Any]) -> Any:
        """Return a value that must be there. Raises BadInput where it is missing or of another kind."""
        found = self.get(name, kind)
        if found is None:
            raise BadInput(f"{self.path} has no {name}: give a GGUF file of a whole language model")
        return found


def in_short(error: BaseException) -> str:
    """Return another library's error on one line, cut to what a message bears."""
    return " ".join(str(error).split())[-120:] or type(error).__name__


def is_gguf(name: str) -> bool:
    """Tell whether a model's name means a GGUF file: by its ending, or by how the file begins."""
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        return not path.is_dir()
    if not path.is_file():  # reading a pipe would wait for ever
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_header(path: Path) -> Header:
    """Read the head of a GGUF file. Raises Missing, or BadInput for one that is damaged or cut short."""
    if path.exists() and not path.is_file():
        raise BadInput(f"{path} is no regular file: give the GGUF file whole")
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise BadInput(f"{path} is not a GGUF file: it does not begin with GGUF")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Reader(path, content).header()
    except OSError as error:
        raise Missing(f"{path} cannot be read ({error.strerror}): give a GGUF file that is there") from None


class _Reader:
    """Reads from the beginning on, never past the end."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path, self._content = path, content
        self._size, self._place = len(content), len(MAGIC)

    def header(self) -> Header:
        version = self._number("I")
        if version not in _VERSIONS:
            swapped = version & 0xFFFF == 0 and version
            what = "is in the other byte order" if swapped else f"is GGUF of version {version}"
            raise BadInput(f"{self._path} {what}: convert the model with a newer llama.cpp")
        tensors, values = self._number("Q"), self._number("Q")
        self._must(24 * tensors + 13 * values <= self._size, f"{tensors:,} tensors and {values:,} values")
        found: dict[str, Value] = {}
        for _ in range(values):
            name = self._text()
            self._must(name not in found, f"the value {name[:60]!r} twice")
            found[name] = self._value(self._number("I"))
        table = [self._tensor() for _ in range(tensors)]
        return Header(self._path, found, self._placed(table, found.get("general.alignment", 32)))

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            number: Value = self._number(self._code(kind))
            return number
        kind, count = self._number("I"), self._number("Q")
        if kind == _STRING:
            self._must(8 * count <= self._size - self._place, f"a list of {count:,} texts")
            return [self._text() for _ in range(count)]
        code = self._code(kind)
        each = struct.calcsize("<" + code)
        self._must(each * count <= self._size - self._place, f"a list of {count:,} numbers")
        return list(struct.unpack(f"<{count}{code}", self._take(each * count)))

    def _tensor(self) -> _Entry:
        name, dimensions = self._text(), self._number("I")
        self._must(1 <= dimensions <= _MOST_DIMENSIONS, f"a tensor of {dimensions:,} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))
        return name, shape[::-1], self._number("I"), self._number("Q")

    def _placed(self, table: list[_Entry], alignment: Any) -> dict[str, Stored]:
        whole = type(alignment) is int and 0 < alignment <= 1 << 20 and alignment & (alignment - 1) == 0
        self._must(whole, f"an alignment of {alignment!r:.40}")
        first = -(-self._place // alignment) * alignment
        found: dict[str, Stored] = {}
        for name, shape, number, offset in table:
            kind, block, width = _kind(number, f"{self._path}: {name[:60]!r}")
            self._must(name not in found, f"the tensor {name[:60]!r} twice")
            self._must(
                all(shape) and shape[-1] % block == 0, f"{name[:60]!r} of shape {list(shape)} as {kind}"
            )
            size = math.prod(shape) // block * width
            self._must(offset % alignment == 0, f"{name[:60]!r} at {offset:,}")
            if first + offset + size > self._size:
                raise BadInput(
                    f"{self._path} is cut short: {name[:60]!r} ends at byte {first + offset + size:,} of "
                    f"{self._size:,}; {AGAIN}"
                )
            found[name] = Stored(name, shape, kind, first + offset, size)
        end = 0
        for stored in sorted(found.values(), key=lambda one: one.offset):
            self._must(stored.offset >= end, f"{stored.name[:60]!r} over another tensor")
            end = stored.offset + stored.size
        return found

    def _code(self, kind: int) -> str:
        self._must(kind in _NUMBERS, f"a value of kind {kind:,}")
        return _NUMBERS[kind]

    def _number(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _text(self) -> str:
        try:
            return self._take(self._number("Q")).decode()
        except UnicodeDecodeError:
            raise BadInput(f"{self._path}: a text in its head is not UTF-8; {AGAIN}") from None

    def _take(self, count: int) -> bytes:
        if count > self._size - self._place:
            raise BadInput(f"{self._path} is cut short, or its head is damaged; {AGAIN}")
        self._place += count
        return self._content[self._place - count : self._place]

    def _must(self, holds: bool, what: str) -> None:
        if not holds:
            raise BadInput(f"{self._path}: its head is damaged ({what}); {AGAIN}")


def _kind(number: int, where: str) -> tuple[str, int, int]:
    """Return a kind of tensor by its number: its name, elements a block, bytes a block."""
    try:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError as error:
        raise Missing("GGUF files need the package gguf: pip install 'uptake[gguf]'") from error
    try:
        kind = GGMLQuantizationType(number)
        block, width = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise BadInput(f"{where} is quantised in a way that is not known ({number:,}); {AGAIN}") from None
    return str(kind.name), int(block), int(width)
