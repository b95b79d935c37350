"""`uptake keys`: who may ask a server."""

import json
from pathlib import Path
from typing import Annotated

import typer

from uptake.cli import options, screen
from uptake.showing import one_line

app = typer.Typer(help="Make, list and revoke the keys that a server's clients need.", no_args_is_help=True)
LIMITS = "Limits of the key"

File = Annotated[
    str, options.option(options.MAIN, "FILE", "File of keys, as `uptake serve --keys` takes it.", "--keys")
]


def _limit(text: str) -> object:
    return options.option(LIMITS, "N", text, least=1, most=1 << 50)


@app.command(epilog=options.examples("uptake keys add ada", "uptake keys add ops --scope metrics"))
def add(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Who owns what is stored with the key.")],
    file: File = "keys.db",
    scope: Annotated[
        list[str] | None,
        options.option(
            options.MAIN,
            "NAME",
            "infer, stores, metrics or admin; may be repeated. Default: infer, stores.",
        ),
    ] = None,
    note: Annotated[str, options.option(options.MAIN, "TEXT", "What the key is for.")] = "",
    requests: Annotated[int, _limit("Requests a minute.")] = 600,
    tokens: Annotated[int, _limit("Tokens read and written a minute.")] = 200_000,
    trained: Annotated[int, _limit("Tokens trained on a minute.")] = 2_000_000,
    concurrency: Annotated[int, _limit("Open requests.")] = 64,
    store_bytes: Annotated[int, _limit("Bytes of text that may be stored.")] = 1 << 30,
    state_bytes: Annotated[int, _limit("Bytes of adapted states kept in memory.")] = 256 << 20,
) -> None:
    """Make a key and print it, once: only its SHA-256 is stored."""
    from uptake.server.keys import Keys, Limits

    limits = Limits(requests, tokens, trained, concurrency, store_bytes, state_bytes)
    key, secret = Keys(Path(file), make=True).add(tenant, scope or ("infer", "stores"), limits, note)
    screen.note(f"{key.id} of {one_line(tenant)}: {', '.join(key.scopes)}; it is not shown again")
    screen.echo(secret)


@app.command("list")
def list_(file: File = "keys.db", as_json: options.AsJson = False) -> None:
    """List the keys: everything but the keys themselves."""
    from uptake.server.keys import Keys

    rows = [
        {
            "id": key.id,
            "tenant": tenant,
            "scopes": list(key.scopes),
            "created": round(key.created),
            "revoked": key.revoked is not None,
            "note": key.note,
        }
        for key, tenant in Keys(Path(file)).list()
    ]
    if as_json:
        screen.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        ended = "  revoked" if row["revoked"] else ""
        line = f"{row['id']}  {row['tenant']}  {','.join(row['scopes'])}{ended}  {row['note']}"  # type: ignore[arg-type]
        screen.echo(one_line(line.rstrip()))


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="The id that `uptake keys list` shows.")],
    file: File = "keys.db",
) -> None:
    """End a key: what runs under it ends within a second."""
    from uptake.server.keys import Keys

    Keys(Path(file)).revoke(key)
