"""`uptake cluster`: shows the shards of datastores on a Ray cluster."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from uptake.cli import options, screen
from uptake.cli.options import examples
from uptake.showing import one_line

app = typer.Typer(help="Show the shards of datastores on a Ray cluster.", no_args_is_help=True)

Address = Annotated[
    str,
    options.option(
        options.MAIN, "ADDRESS", "The Ray cluster: host:port, or auto for this machine's.", "--ray"
    ),
]


@app.callback()
def _root() -> None:
    """Make `status` a subcommand, though it is the only one."""


@app.command(epilog=examples("uptake cluster status --ray head.example:6379"))
def status(address: Address = "auto", as_json: options.AsJson = False) -> None:
    """Show every shard: rows, versions, memory, queries, and which shards do not answer."""
    from uptake.store.cluster.status import status

    with screen.on_cluster(address), screen.status("asking the cluster"):
        shards = status(address)
    if as_json:
        screen.echo(json.dumps(shards, indent=1))
        return
    if not shards:
        screen.note("no shards are running: they end with the program that started them")
    ready = sum(shard["state"] == "ready" for shard in shards)
    for store in dict.fromkeys(shard["uid"] for shard in shards):
        _show([shard for shard in shards if shard["uid"] == store])
    if ready < len(shards):
        screen.note(f"{len(shards) - ready} of {len(shards)} do not answer")


def _show(shards: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    named = next((shard["store"] for shard in shards if "store" in shard), shards[0]["uid"])
    table = Table(title=Text(one_line(Path(named).name)), title_justify="left", box=None)
    for column in (
        "rows",
        "copy",
        "state",
        "versions",
        "passages",
        "MB own",
        "MB mapped",
        "queries",
        "a second",
    ):
        table.add_column(column, justify="left" if column == "state" else "right")
    for shard in shards:
        rows = f"{shard['first']:,}-{shard['stop']:,}"
        if shard["state"] != "ready":
            table.add_row(rows, str(shard["replica"]), Text(f"{shard['state']}: {shard['reason'][:60]}"))
            continue
        versions = shard["versions"]
        table.add_row(
            rows,
            str(shard["replica"]),
            shard["state"],
            ", ".join(map(str, sorted(map(int, versions)))),
            f"{max(versions.values(), default=0):,}",
            f"{shard.get('bytes_own', 0) / 1e6:,.0f}",
            f"{shard.get('bytes_mapped', 0) / 1e6:,.0f}",
            f"{shard['queries']:,}",
            f"{shard['queries_a_second']:.1f}",
        )
    screen.results().print(table)
