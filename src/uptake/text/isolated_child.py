"""The other end of isolated.py: reads one file after another as it is told to, under a bound of memory.

It is told by a line of JSON each, and answers in messages of JSON behind their length.
"""

import json
import math
import os
import resource
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from uptake.text import formats
from uptake.text.files import SkipError
from uptake.text.reading import File, Reading, Step
from uptake.text.types import Document

_IDLE_SECONDS = 60.0
_GRACE_SECONDS = 30  # after which a child ends by itself whose parent should have ended it


def main() -> None:
    """Serve until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this
    out = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # parsers may print
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # which gives back what it no longer needs
    _send(out, {"ready": True})
    while (line := _line(sys.stdin.buffer)) and _served(json.loads(line), out):
        pass


def _line(asked: BinaryIO) -> bytes:
    ready, _, _ = select.select([asked], [], [], _IDLE_SECONDS)
    return asked.readline() if ready else b""


def _served(asked: dict[str, Any], out: BinaryIO) -> bool:
    """Read one file; return whether another may follow."""
    reading = Reading(**asked["reading"])
    file = File(Path(asked["path"]), asked["name"], asked["where"], reading)
    form = formats.named(asked["format"])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = reading.max_parse_bytes if hard == resource.RLIM_INFINITY else min(reading.max_parse_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    seconds = math.ceil(reading.max_parse_seconds) + _GRACE_SECONDS
    reason = ""
    try:
        steps = _watched(form.read(file), seconds)
        for step in steps:
            _send(out, {"beat": True} if step is None else _message(*step))
    except SkipError as error:
        reason = str(error)
    except MemoryError:
        reason = f"parser that needs more than {most} bytes of memory{reading.allows_more('max_parse_bytes')}"
    except ImportError as error:
        reason = f"needs: pip install 'uptake[{form.extra}]'" if form.extra else f"parser that fails; {error}"
    except OSError:
        reason = "unreadable file"
    except Exception as error:  # no file may cost those after it
        reason = f"parser that fails; {type(error).__name__}"
    finally:
        signal.alarm(0)
    again = "memory" not in reason and _bytes_used() < most // 2
    _send(out, {"end": "done" if again else "last", "reason": reason})
    return again


def _watched(steps: Iterator[Step], seconds: int) -> Iterator[Step]:
    """Yield the steps; while one is made, an alarm waits that ends this process."""
    while True:
        signal.alarm(seconds)
        try:
            step = next(steps)
        except StopIteration:
            return
        finally:
            signal.alarm(0)
        yield step


def _message(found: Document | str, where: str) -> dict[str, Any]:
    if isinstance(found, str):
        return {"where": where, "reason": found}
    return {
        "where": where,
        "id": found.id,
        "text": found.text,
        "group": found.group,
        "meta": found.meta,
        "places": found.places,
    }


def _send(out: BinaryIO, message: dict[str, Any]) -> None:
    raw = json.dumps(message, ensure_ascii=False).encode("utf8", "backslashreplace")
    out.write(len(raw).to_bytes(4, "big") + raw)
    out.flush()


def _bytes_used() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return 0


if __name__ == "__main__":
    main()
