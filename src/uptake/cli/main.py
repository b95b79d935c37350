"""The command line: verbs, and the one place where errors become a line and an exit code."""

import sys

import typer

from uptake.cli import compare, eval, generate, index, methods
from uptake.errors import UptakeError

app = typer.Typer(
    name="uptake",
    help="Let a trained language model take new text up, and see whether it pays.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("eval")(eval.eval)
app.command()(compare.compare)
app.command()(generate.generate)
app.command()(methods.methods)
app.add_typer(index.app, name="index")


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and leave.", is_eager=True),
) -> None:
    if version:
        from uptake import __version__

        typer.echo(f"uptake {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line. Bad input ends in one line on standard error and exit code 2."""
    try:
        app()
    except UptakeError as error:
        _leave(str(error), 2)
    except KeyboardInterrupt:
        _leave("interrupted; what was finished is kept, run the same command again to go on", 130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has left: nothing to tell
        sys.exit(1)
    except OSError as error:
        _leave(f"{error.filename or 'the system'}: {error.strerror or error}", 2)
    except MemoryError:
        _leave("out of memory: use a smaller --batch, fewer --windows or a smaller model", 2)


def _leave(message: str, code: int) -> None:
    typer.echo("uptake: " + " ".join(message.split()), err=True)
    sys.exit(code)
