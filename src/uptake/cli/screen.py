"""Output on the terminal: results on standard output, everything else on standard error.

Everything is printed from here, and shown as text: neither markup nor control characters of what files,
models and people say do anything (showing.py).
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import typer

from uptake import showing
from uptake.showing import one_line, visible

if TYPE_CHECKING:
    from rich.console import Console

    from uptake.text.readers import Skipped

Update = Callable[..., None]

_EXAMPLES = 8  # of what was left out: one a reason
_EVERY = 10.0  # seconds between lines of progress where there is no terminal


class InterruptedWork(Exception):
    """Work interrupted by Ctrl-C, with what was saved and how to resume."""


@contextmanager
def interruptible(hint: str | Callable[[], str]) -> Iterator[None]:
    """Let Ctrl-C in the block end the program with this hint, or what it returns by then."""
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedWork(f"interrupted; {hint if isinstance(hint, str) else hint()}") from None


@contextmanager
def on_cluster(address: str | None) -> Iterator[None]:
    """Wrap work on the Ray cluster at `address`, if any, and disconnect at the end.

    Ray reports on its machines on standard output; within the block that goes to standard error.
    """
    if address is None:
        yield
        return
    from uptake.store.cluster.connect import disconnect

    with redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            disconnect()


def messages() -> "Console":
    """Return the console for what is not the result itself."""
    return _console(stderr=True)


def _console(**settings: Any) -> "Console":
    """Return a console that shows all text as text, wherever in a table it stands."""
    from rich.console import Console
    from rich.segment import Segment

    class AsText:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __rich_console__(self, console: Console, options: Any) -> Iterator[Segment]:
            for part in console.render(self.inner, options):
                yield part if part.control else Segment(visible(part.text), part.style)

    class Hook:
        def process_renderables(self, renderables: list[Any]) -> list[Any]:
            return [AsText(each) for each in renderables]

    made = Console(**settings)
    made.push_render_hook(Hook())  # type: ignore[arg-type]  # rich declares it a class to inherit from
    return made


def results() -> "Console":
    """Return the console for results: as wide as the terminal, 100 columns into a file or a pipe."""
    wide = sys.stdout.isatty() or "COLUMNS" in os.environ
    return _console(width=None if wide else 100, highlight=False)


def note(message: str) -> None:
    """Print one line on standard error."""
    typer.echo(showing.message(message), err=True)


def echo(text: str = "", newline: bool = True) -> None:
    """Print text on standard output: a result, JSON, or what a model says."""
    typer.echo(visible(text), nl=newline)


def note_skipped(skipped: "Skipped") -> None:
    """Print what was left out while reading, if anything was, with an example of each reason."""
    if skipped.total:
        note(f"left out: {skipped}")
        for example in [*skipped.firsts.values()][1:_EXAMPLES]:
            note(f"  {example}")


@contextmanager
def status(what: str) -> Iterator[None]:
    """Show on a terminal what the program is doing."""
    screen = messages()
    if not screen.is_terminal:
        yield
        return
    with screen.status(what):
        yield


@contextmanager
def progress(
    what: str, skipped: "Skipped | None" = None, resumes: str | Callable[[int, int], str] = ""
) -> Iterator[Update]:
    """Show the progress of long work; the block calls the function it gets with (done, total or 0, name).

    A bar on a terminal, whose clock goes on; elsewhere a line every ten seconds, also while nothing is told
    of. Where the first call says that some is done, a line
    does too: that `resumes` is resumed, or what it returns of (done, total).
    """
    screen = messages()
    started = time.monotonic()
    first = True

    def note_resumed(done: int, total: int) -> None:
        nonlocal first
        if first and resumes and done:
            note(
                f"resuming {resumes}: {done:,} of {total:,} are done"
                if isinstance(resumes, str)
                else resumes(done, total)
            )
        first = first and not total  # before the whole is known, something is prepared

    if not screen.is_terminal:
        latest: tuple[int, int, str] = (0, 0, "")

        def line(done: int, total: int, name: str = "") -> None:
            nonlocal latest
            note_resumed(done, total)
            latest = (done, total, name)

        def tell() -> None:
            done, total, name = latest
            of = f" of {total:,}" if total else ""
            at = f"{done:,}{of}" if done or total or not name else name
            now = f", {name}" if name and at != name else ""
            passed = time.monotonic() - started
            note(f"{what}: {at}{now} after {passed:,.0f} s{_left_out(skipped)}")

        with _repeating(tell):
            yield line
        return

    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(24),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[name]}", markup=False, style="dim"),
    ]
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task(Text(what).plain, total=None, name="", count="")

        def update(done: int, total: int, name: str = "") -> None:
            note_resumed(done, total)
            count = (f"{done:,}/{total:,}" if total else f"{done:,}") + _left_out(skipped)
            bar.update(task, completed=done, total=total or None, count=count, name=one_line(name)[-32:])

        yield update


@contextmanager
def _repeating(tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` every so many seconds while the block runs, however long one step of it takes."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(_EVERY):
            tell()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _left_out(skipped: "Skipped | None") -> str:
    return f", {skipped.total:,} left out" if skipped and skipped.total else ""


def facts(values: dict[str, Any]) -> None:
    """Print names and values in two columns; what is empty is left out."""
    shown = {name.replace("_", " "): value for name, value in values.items() if value not in ("", {}, None)}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        echo(f"{name:{width}}  {showing.message(str(value))}")
