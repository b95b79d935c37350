"""`uptake methods`: the ways of taking text up there are, and their settings."""

import json
from typing import Annotated

import typer


def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method's settings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the ways of taking text up, or one way's settings with their defaults."""
    from rich.console import Console
    from rich.table import Table

    from uptake import methods as found
    from uptake.settings import describe

    names = [name] if name else found.names()
    told = {
        each: {
            "summary": found.summary(each),
            "select": found.find(each).select.name if found.find(each).method.reads else None,
            "settings": describe(found.find(each).method),
        }
        for each in names
    }
    if as_json:
        typer.echo(json.dumps(told, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    if name:
        typer.echo(found.summary(name) + "\n")
        table.add_column("setting", no_wrap=True)
        table.add_column("default")
        for path, value in _flat(told[name]["settings"]):
            table.add_row(path, value)
    else:
        table.add_column("method", no_wrap=True)
        table.add_column("what it does")
        for each, entry in told.items():
            table.add_row(each, str(entry["summary"]))
    Console().print(table)


def _flat(settings: object, prefix: str = "") -> list[tuple[str, str]]:
    if not isinstance(settings, dict):
        return []
    rows = []
    for key, value in settings.items():
        if isinstance(value, dict):
            rows.append((prefix + key, str(value["kind"]).lower()))
            rows += _flat(value, f"{prefix}{key}.")
        elif key != "kind":
            rows.append(
                (prefix + key, str(value).lower() if value is None or isinstance(value, bool) else str(value))
            )
    return rows
