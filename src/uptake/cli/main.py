"""The command line: its commands, and the one place where an error becomes one line and an exit code."""

import errno
import os
import sys
import warnings
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from uptake.cli import (
    adapt,
    cluster,
    compare,
    cost,
    delta,
    edit,
    eval,
    generate,
    index,
    keys,
    methods,
    serve,
    stream,
    train,
    tune,
)
from uptake.cli.options import examples
from uptake.cli.screen import InterruptedWork, echo, note
from uptake.errors import UptakeError


class Verbs(TyperGroup):
    """The commands, listed in the order in which people need them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return their names."""
        first, last = ["index", "eval", "compare", "stream", "generate"], ["methods"]
        others = [name for name in super().list_commands(ctx) if name not in first + last]
        return first + others + last

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; line breaks of its docstring are removed from its help text."""
        command = super().get_command(ctx, cmd_name)
        if command and command.help:
            command.help = "\n\n".join(" ".join(part.split()) for part in command.help.split("\n\n"))
        return command


app = typer.Typer(
    name="uptake",
    cls=Verbs,
    help="Adapt a trained language model to new text, and measure whether it helps.",
    epilog=examples(
        "uptake index build notes.store notes/ --retriever lexical",
        "uptake compare -m gpt2 -s notes.store --data test.jsonl --html report.html",
        'uptake generate -m gpt2 -s notes.store "The pump is reset by"',
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(index.app, name="index")
app.add_typer(cluster.app, name="cluster")
app.add_typer(keys.app, name="keys")
app.add_typer(delta.app, name="delta")
app.command("eval", epilog=eval.EXAMPLES)(eval.eval)
app.command(epilog=compare.EXAMPLES)(compare.compare)
app.command(epilog=stream.EXAMPLES)(stream.stream)
app.command(epilog=generate.EXAMPLES)(generate.generate)
app.command(epilog=edit.EXAMPLES)(edit.edit)
app.command(epilog=tune.EXAMPLES)(tune.tune)
app.command(epilog=train.EXAMPLES)(train.train)
app.command(epilog=cost.EXAMPLES)(cost.cost)
app.command(epilog=adapt.EXAMPLES)(adapt.adapt)
app.command(epilog=serve.EXAMPLES)(serve.serve)
app.command(epilog=methods.EXAMPLES)(methods.methods)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, metavar="")
    ] = False,
) -> None:
    if version:
        from uptake import __version__

        echo(f"uptake {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line. Bad input ends in one line on standard error and exit code 2."""
    _escape_unprintable()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: note(f"note: {message}")
            code = app(prog_name="uptake", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        _no_reader()
    except UptakeError as error:
        _exit_with(str(error))
    except InterruptedWork as work:
        _exit_with(str(work), 130)
    except (KeyboardInterrupt, typer.Abort):
        _exit_with("interrupted", 130)
    except OSError as error:
        _exit_with(_of_system(error))
    except MemoryError:
        _exit_with(_MEMORY)
    except RuntimeError as error:
        if "out of memory" not in str(error) and "allocate memory" not in str(error):
            raise
        _exit_with(_MEMORY)
    except Exception as error:
        if not hasattr(error, "format_message"):  # what typer raises for a command line it cannot read
            raise
        _wrong_usage(error)
    else:
        if code == 130:  # typer has caught Ctrl-C
            _exit_with("interrupted", 130)
        sys.exit(code if isinstance(code, int) else 0)


_MEMORY = "out of memory: use a smaller --batch, a smaller model, or --set trainable=lora"


def _exit_with(message: str, code: int = 2) -> NoReturn:
    note(f"uptake: {message}")
    sys.exit(code)


def _wrong_usage(error: Any) -> NoReturn:
    """Print one line about a mistake in the command line itself."""
    context = getattr(error, "ctx", None)
    verb = context.command_path if context else "uptake"
    if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed
        sys.exit(2)
    message = error.format_message().strip().removesuffix(".")
    reasons = getattr(error.__cause__, "errors", None)  # pydantic knows what was given; the message does not
    if callable(reasons) and "input" in (reason := reasons()[0]):
        rule, _, _ = reason["msg"].removeprefix("Input ").partition(",")
        message = f"{error.param.opts[0]} {reason['input']!r}: it {rule}"
    note(f"{verb}: {message[:1].lower()}{message[1:]} (see `{verb} --help`)")
    sys.exit(2)


def _of_system(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}the disk is full; free some space and run the same command again"
    return f"{where}{error.strerror or error}"


def _no_reader() -> NoReturn:
    """End silently when the reader of our output has closed it; Python flushes what is left to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


def _escape_unprintable() -> None:
    """Escape characters that the terminal cannot show, instead of failing on them."""
    for channel in (sys.stdout, sys.stderr):
        reconfigure = getattr(channel, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="backslashreplace")
