"""`uptake delta`: what was changed in a model, as files: added, scaled, taken away, shown."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uptake.cli import inputs, options, screen
from uptake.errors import BadInput
from uptake.report.formatting import many

if TYPE_CHECKING:
    from uptake.adaptation.delta import Delta

app = typer.Typer(
    help="Add, scale and subtract what was changed in a model (task vectors), and show what it holds.",
    no_args_is_help=True,
)
Out = Annotated[str, typer.Argument(metavar="OUT", help="File to write: .safetensors.")]
One = Annotated[str, typer.Argument(metavar="DELTA", help="A delta's file, or a folder of `uptake edit`.")]
Several = Annotated[
    list[str], typer.Argument(metavar="DELTA...", help="Files of deltas, or folders of edits.")
]


@app.command(epilog=options.examples("uptake delta make gpt2 tuned/ task.safetensors"))
def make(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The base model.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The same model after training.")],
    out: Out,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
) -> None:
    """Write what training changed: the tuned model less its base."""
    path = inputs.output_file("OUT", out)
    with screen.status("loading both models"):
        from uptake.adaptation.task_vectors import task_vector
        from uptake.lm import loading

        loading.check(device, dtype)
        one, other = loading.load(base, device, dtype), loading.load(tuned, device, dtype)
        delta = task_vector(one.module, other.module, one.fingerprint)
    assert path is not None
    delta.save(path)
    if not delta.names:
        screen.note(f"{out}: no weight differs, the two models are the same: name the tuned one second")
        return
    screen.note(f"{out}: {many(len(delta.names), 'weight differs', 'weights differ')}")


@app.command(epilog=options.examples("uptake delta add both.safetensors one.safetensors other.safetensors"))
def add(out: Out, deltas: Several) -> None:
    """Write the sum of deltas of one base."""
    from uptake.adaptation.task_vectors import added

    _check(out, *deltas)
    _write(out, added([_read(one) for one in deltas]))


@app.command(
    epilog=options.examples("uptake delta subtract less.safetensors both.safetensors other.safetensors")
)
def subtract(out: Out, delta: One, other: One) -> None:
    """Write the first delta less the second."""
    _check(out, delta, other)
    _write(out, _read(delta) - _read(other))


@app.command(epilog=options.examples("uptake delta scale forget.safetensors task.safetensors --by -0.5"))
def scale(
    out: Out,
    delta: One,
    by: Annotated[
        float, options.option(options.MAIN, "X", "Factor; below 0 it undoes, above 1 it overdoes.")
    ],
) -> None:
    """Write a delta times a number: what was learnt is forgotten by a negative one."""
    if by != by or abs(by) == float("inf"):
        raise BadInput(f"--by {by}: use a finite number")
    _check(out, delta)
    _write(out, _read(delta) * by)


@app.command(epilog=options.examples("uptake delta info fixes", "uptake delta info task.safetensors --json"))
def info(delta: One, as_json: options.AsJson = False) -> None:
    """Show what a delta holds: its base, and each part with its kind, shape, rank and size."""
    from dataclasses import asdict

    from uptake.adaptation.task_vectors import info as rows_of

    found = _read(delta)
    rows = rows_of(found)
    if as_json:
        parts = [asdict(row) for row in rows]
        screen.echo(
            json.dumps({"base": found.base, "fingerprint": found.fingerprint, "parts": parts}, indent=1)
        )
        return
    counted = many(len(rows), "part", "parts")
    screen.echo(f"base {found.base}, {counted}, {sum(row.bytes for row in rows):,} bytes")
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        rank = f", rank {row.rank}" if row.rank is not None else ""
        size = f", size {row.size:.4g}" if row.size is not None else ""
        screen.echo(f"{row.owner}  {row.path}  {row.kind} {shape}{rank}{size}")


def _check(out: str, *deltas: str) -> None:
    """Raise BadInput for an OUT that cannot be written or is one of the deltas."""
    inputs.check_outputs({"OUT": inputs.output_file("OUT", out)}, deltas)


def _read(path: str) -> "Delta":
    with screen.status("reading"):
        from uptake.adaptation.delta import Delta
        from uptake.editing import delta_file

        return Delta.read(delta_file(path))


def _write(out: str, delta: "Delta") -> None:
    path = inputs.output_file("OUT", out)
    assert isinstance(path, Path)
    if owner := _overflowing(delta):
        raise BadInput(f"OUT {out}: what {owner} changed is no longer finite: scale it by less")
    delta.save(path)
    screen.note(f"{out}: {many(len(delta.parts), 'part', 'parts')}")


def _overflowing(delta: "Delta") -> str:
    """Return the owner of a part that is no longer finite, "" where all are."""
    from itertools import chain
    from math import isfinite

    from uptake.adaptation.task_vectors import info as rows_of

    broken = (row.owner for row in rows_of(delta) if row.size is not None and not isfinite(row.size))
    inside = (
        name.owner
        for name, part in delta.parts.items()
        if not all(bool(tensor.isfinite().all()) for tensor in part.tensors().values())
    )
    return next(chain(broken, inside), "")
