"""`uptake methods`: list the adaptation methods and their settings."""

import dataclasses
import functools
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uptake.cli import options, screen

if TYPE_CHECKING:
    from uptake.methods.contract.method import MethodSpec

EXAMPLES = options.examples("uptake methods", "uptake methods ttt-nn")


def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this method's settings.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """List the adaptation methods, or one method's settings with their defaults."""
    from rich.table import Table

    from uptake import methods as found
    from uptake.settings import values

    names = [name] if name else found.names()
    entries = {
        each: {
            "summary": found.summary(each),
            "select": found.find(each).select.name if found.find(each).method.reads else None,
            "settings": _settings(found.find(each)),
        }
        for each in names
    }
    if as_json:
        screen.echo(json.dumps(entries, indent=1))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    if name is None:
        table.add_column("method", no_wrap=True)
        table.add_column("what it does")
        for each, entry in entries.items():
            table.add_row(each, str(entry["summary"]))
        hint = "`uptake methods NAME` shows a method's settings. A+B puts two on one model, A/B mixes them."
    else:
        screen.echo(f"{found.summary(name)}\n")
        spec = found.find(name)
        owners = {"": spec.method} | ({"select.": spec.select} if spec.searches else {})
        for heading in ("setting", "default", "values"):
            table.add_column(heading, no_wrap=heading == "setting")
        rows = [
            (prefix + path, _default(owner, path), written)
            for prefix, owner in owners.items()
            for path, written in values(owner).items()
        ]
        for row in rows:
            table.add_row(*row)
        hint = "It has no settings."
        if rows:
            # What can only be set part by part is no example.
            first = next((row[0] for row in rows if row[2] != "as below"), rows[0][0])
            hint = f"Change one with --set {first}=..., for this method alone with --set {name}.{first}=..."
    console = screen.results()
    if table.row_count:
        console.print(table, markup=False)
    console.print("\n" * bool(table.row_count) + hint, markup=False, soft_wrap=True)


def _settings(spec: "MethodSpec") -> dict[str, Any]:
    """Return the settings of a method and, where it retrieves passages, of its selection, as plain data."""
    from uptake.settings import describe

    return describe(spec.method) | ({"select": describe(spec.select)} if spec.searches else {})


def _default(settings: object, path: str) -> str:
    """Return the default of a setting; of a nested one only its name."""
    value: Any = functools.reduce(getattr, path.split("."), settings)
    if dataclasses.is_dataclass(value):
        return type(value).__name__.lower()
    if isinstance(value, str) and (not value or value != value.strip()):
        return repr(value)  # as it is written on the command line; bare it could not be seen
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
