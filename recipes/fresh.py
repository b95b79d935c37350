"""Text that SmolLM2 cannot have read: packages first released after it, fetched by pinned name and version.

    python recipes/fresh.py build                      # build/fresh: store, validation, test, facts, updates
    python recipes/fresh.py bits --model MODEL         # base bits per byte, beside text it may have read
    python recipes/fresh.py answers --model MODEL      # facts, without and with what they rest on

Go on after an interruption: the same command again. docs/fresh.md says what is in the data.
"""

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from fresh_text.build import build
from fresh_text.index import fetch, open_address, pip_index

from uptake.errors import UptakeError


def main() -> int:
    """Run the command that was asked for; return the status to exit with."""
    options = _parser().parse_args()
    try:
        made, text = options.run(options)
    except UptakeError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(made, indent=1) if options.json else text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    building = commands.add_parser("build", help="fetch the packages and make the data set")
    building.add_argument("out", nargs="?", type=Path, default=Path("build/fresh"))
    building.set_defaults(run=_build)
    shared = Path(os.environ.get("UPTAKE_SHARED", "../shared"))
    bits = commands.add_parser(
        "bits", help="base bits per byte on each part, and on the domains of a mini-Pile"
    )
    bits.add_argument("--minipile", type=Path, default=shared / "data" / "minipile")
    bits.add_argument("--documents", type=int, default=20, help="of each part (%(default)s)")
    bits.add_argument(
        "--characters", type=int, default=2048, help="of each document, its first (%(default)s)"
    )
    bits.set_defaults(run=_bits)
    answers = commands.add_parser("answers", help="questions on facts, closed book and with their passage")
    answers.add_argument("--facts", type=int, default=40)
    answers.set_defaults(run=_answers)
    for measuring in (bits, answers):
        measuring.add_argument("--model", required=True)
        measuring.add_argument("--data", type=Path, default=Path("build/fresh"))
    for command in (building, bits, answers):
        command.add_argument("--json", action="store_true", help="print JSON in place of lines for people")
    return parser


def _build(options: argparse.Namespace) -> tuple[Any, str]:
    say = partial(print, file=sys.stderr, flush=True)
    index = pip_index()
    archives = options.out / "archives"
    made = build(options.out, lambda release: fetch(release, archives, index, open_address), say)
    lines = [
        f"{name}: {entry['records']} records, {entry['bytes']:,} bytes"
        for name, entry in made["files"].items()
    ]
    return made, "\n".join([*made["missing"], *lines])


def _bits(options: argparse.Namespace) -> tuple[Any, str]:
    from fresh_text.measures import as_json, base_bits, bits_table

    rows = base_bits(options.model, options.data, options.minipile, options.documents, options.characters)
    return as_json(rows), bits_table(rows)


def _answers(options: argparse.Namespace) -> tuple[Any, str]:
    from fresh_text.measures import answered, answers_table, as_json

    rows = answered(options.model, options.data, options.facts)
    return as_json(rows), answers_table(rows)


if __name__ == "__main__":
    sys.exit(main())
