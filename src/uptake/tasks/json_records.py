"""The JSON objects of a file, whether one a line or in a list, packed or not; broken ones named."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uptake.codec import Malformed, parse
from uptake.text import formats
from uptake.text.files import read_lines, shown
from uptake.text.reading import File, Reading
from uptake.text.records import detail

_READING = Reading(max_unpacked_bytes=1 << 30)  # such a file is held whole
_LINE = 64 << 20


def records(path: Path) -> Iterator[tuple[dict[str, Any] | str, str]]:
    """Yield (object or the reason why there is none, where it stood). Raises OSError and SkipError."""
    if not path.exists() or path.is_dir():
        path.open("rb").close()  # raises what it has to say
    chunks = File(path, str(path), shown(path), _READING).text_chunks(lines=True)
    if formats.of(path) != "json_lines":
        whole = b"".join(chunks)
        try:
            data = parse(whole)
        except Malformed:
            pass  # TimeQA's .json files hold an object a line
        else:
            for number, one in enumerate(data if isinstance(data, list) else [data], 1):
                yield _object(one), f"{shown(path)}:{number}"
            return
        chunks = iter([whole])
    for number, line in enumerate(read_lines(chunks, _LINE), 1):
        where = f"{shown(path)}:{number}"
        if line is None:
            yield f"longer than {_LINE} bytes", where
        elif line.strip():
            yield _parsed(line), where


def encodes(*texts: str) -> bool:
    """Whether texts can be written as UTF-8: a lone surrogate cannot."""
    try:
        "".join(texts).encode("utf8")
    except UnicodeEncodeError:
        return False
    return True


def _parsed(line: bytes) -> dict[str, Any] | str:
    try:
        return _object(parse(line.decode("utf8")))
    except UnicodeDecodeError:
        return "not UTF-8"
    except Malformed as error:
        return f"broken JSON; {detail(error)}"


def _object(value: Any) -> dict[str, Any] | str:
    return value if isinstance(value, dict) else "not a JSON object"
