"""Runs each script that is named up to where it has read its options, with every line of the docs.

python tests/doc_scripts.py recipes/fresh.py ...    # the last line printed: what is wrong with each, JSON
"""

import argparse
import contextlib
import json
import runpy
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from doc_commands import ROOT, STANDS_FOR, Command, commands


class Checked(Exception):
    """All options have been read; now the work would begin."""


class Refused(Exception):
    """What a script's parser says."""


def only(way: Callable[..., Any]) -> Callable[..., NoReturn]:
    def read(*given: Any, **more: Any) -> NoReturn:
        _, unknown = way(*given, **more)
        if unknown:
            raise Refused(f"unrecognized arguments: {' '.join(unknown)}")
        raise Checked

    return read


def refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    raise Refused(message)


def wrong_with(script: str, asked: list[Command]) -> list[str]:
    """Return what is wrong with each of these lines of a script."""
    if "ArgumentParser" not in (ROOT / script).read_text(encoding="utf8"):
        return [f"{command}: it takes no options" for command in asked if command.words]
    sys.path.insert(0, str((ROOT / script).parent))
    wrong = []
    for command in asked:
        sys.argv = [script, *(STANDS_FOR.get(word, word) for word in command.words)]
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
            wrong.append(f"{command}: it began without reading its options")
        except Checked:
            continue
        except Refused as error:
            if command.whole or "are required" not in str(error):
                wrong.append(f"{command}\n  {error}")
    sys.path.pop(0)
    return wrong


if __name__ == "__main__":
    scripts, parser = sys.argv[1:], argparse.ArgumentParser
    setattr(parser, "parse_args", only(parser.parse_known_args))  # noqa: B010
    setattr(parser, "parse_intermixed_args", only(parser.parse_known_intermixed_args))  # noqa: B010
    setattr(parser, "error", refuse)  # noqa: B010
    every = commands()
    with contextlib.redirect_stdout(sys.stderr):
        found = {
            script: wrong_with(script, [each for each in every if each.program == script])
            for script in scripts
        }
    print(json.dumps(found))
