"""Options that mean the same under every verb, in the panels that `--help` shows them in."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from uptake.errors import BadInput

MAIN = "Options"
PROTOCOL = "When text is read, and what is scored"
LEAK = "Leak filter"
BUDGET = "What a query may spend"
OUTPUT = "Output"
MACHINE = "Machine"

MOST = 1_000_000  # of anything that is counted: more is a typing error


def option(
    panel: str,
    metavar: str,
    help: str,
    *names: str,
    least: float | None = None,
    most: float = MOST,
    **more: Any,
) -> Any:
    """Return a typer option in a panel; `metavar` is what stands for its value, "" for a flag.

    With `least` its value has to lie between that and `most`.
    """
    if least is not None:
        more["callback"] = _between(least, most)
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, **more)


def _between(least: float, most: float) -> Callable[..., Any]:
    def check(parameter: typer.CallbackParam, value: Any) -> Any:
        if value is None or least <= value <= most:
            return value
        range_ = f"{least} to {most:,}" if value > most else f"{least} or more"
        raise BadInput(f"{parameter.opts[0]} {value:.6g}: use {range_}")

    return check


Model = Annotated[
    str, option(MAIN, "NAME|DIR", "Base model: a Hugging Face name or a folder.", "--model", "-m")
]
Store = Annotated[
    str | None,
    option(MAIN, "DIR", "Datastore to find neighbours in, from `uptake index build`.", "--store", "-s"),
]
Data = Annotated[
    list[str],
    option(MAIN, "FILE", 'Documents to score: .jsonl of {"id", "text"}, text files, folders.', "--data"),
]
Method = Annotated[str, option(MAIN, "NAME", "Way of taking text up; see `uptake methods`.", "--method")]
MethodOr = Annotated[
    str | None,
    option(
        MAIN,
        "NAME",
        "Way of taking text up; see `uptake methods`. Left out: ttt-nn, or the recipe's.",
        "--method",
    ),
]
Methods = Annotated[
    str, option(MAIN, "NAMES", "Ways of taking text up, with commas between; see `uptake methods`.")
]
Neighbours = Annotated[str, option(MAIN, "N", "Neighbours a query reads; several as in 1,5,20.", "-k")]
NeighboursOr = Annotated[
    str | None,
    option(MAIN, "N", "Neighbours a query reads; several as in 1,5,20. Left out: 20, or the recipe's.", "-k"),
]
Setting = Annotated[
    list[str] | None,
    option(
        MAIN,
        "NAME=VALUE",
        "A method's setting, for one method as METHOD.NAME=VALUE; see `uptake methods METHOD`.",
        "--set",
    ),
]
Recipe = Annotated[
    str | None,
    option(MAIN, "FILE", "Method, k and settings as `uptake tune` chose them; options given beside it win."),
]
Encoder = Annotated[
    str | None,
    option(MAIN, "DIR|lm:MODEL", "The store's encoder, where it is not found by its own name."),
]

ProtocolName = Annotated[
    str,
    option(
        PROTOCOL,
        "NAME",
        "per-query: retrieve with a prefix, score what follows. whole: retrieve with what is scored, as "
        "the paper does. running: score a segment, then read it; needs no store. holes: fill in holes of "
        "Python files, after reading the rest of the file. stream: documents one after another, then "
        "--questions; `uptake stream` has all its options.",
        "--protocol",
    ),
]
Prefix = Annotated[
    int,
    option(PROTOCOL, "N", "Characters that retrieve and are read, not scored (per-query).", least=1),
]
Suffix = Annotated[int, option(PROTOCOL, "N", "Characters scored after the prefix (per-query).", least=1)]
Search = Annotated[
    int | None,
    option(PROTOCOL, "N", "Retrieve with the last N characters of the prefix (per-query), not all of it.",
           "--search", least=1),
]  # fmt: skip
Windows = Annotated[
    int, option(PROTOCOL, "N", "Most queries made of one document (per-query, holes).", least=1)
]
Hole = Annotated[str, option(PROTOCOL, "KIND", "What is blanked: identifier or line (holes).", "--hole")]
Around = Annotated[
    str,
    option(
        PROTOCOL, "SIDES", "What of the file may be read: both, before, after or none (holes).", "--around"
    ),
]
Questions = Annotated[
    str | None, option(PROTOCOL, "FILE", "Questions on the documents (stream).", "--questions")
]
SegmentSize = Annotated[
    int, option(PROTOCOL, "N", "Characters scored, then read (running).", "--segment", least=1)
]
Limit = Annotated[int | None, option(PROTOCOL, "N", "Most documents to score.", least=1, most=1 << 40)]

Containment = Annotated[
    float, option(LEAK, "SHARE", "Withhold passages that share this much of 13-grams with the document.")
]
Jaccard = Annotated[float, option(LEAK, "SHARE", "Withhold passages of this Jaccard similarity.")]
NoFilter = Annotated[
    bool,
    option(LEAK, "", "Withhold nothing, not even the document itself. Say so if you publish.",
           "--no-leak-filter"),
]  # fmt: skip

MaxTokens = Annotated[int | None, option(BUDGET, "N", "Most tokens trained on.", least=0)]
MaxSteps = Annotated[int | None, option(BUDGET, "N", "Most gradient steps.", least=0)]
MaxCpuSeconds = Annotated[
    float | None,
    option(BUDGET, "SECONDS", "Most CPU seconds of training; others of its batch do not count.", least=0),
]
MaxWallSeconds = Annotated[
    float | None,
    option(BUDGET, "SECONDS", "Most seconds of training by the clock on the wall, likewise.", least=0),
]

Json = Annotated[
    str | None,
    option(
        OUTPUT,
        "FILE",
        "Write the report, every query included; an interrupted run goes on from FILE.journal. "
        "- prints the figures instead of the table.",
        "--json",
    ),
]
Html = Annotated[str | None, option(OUTPUT, "FILE", "Write the report as one self-contained page.", "--html")]
Fresh = Annotated[bool, option(OUTPUT, "", "Begin anew, whatever an interrupted run has left.", "--fresh")]
AsJson = Annotated[bool, option(OUTPUT, "", "Print JSON.", "--json")]

Device = Annotated[str, option(MACHINE, "NAME", "Where models run: cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[
    str, option(MACHINE, "NAME", "Number format of the base model: float32, bfloat16, float16, float64.")
]
EncoderDtype = Annotated[
    str, option(MACHINE, "NAME", "Number format of the encoder: bfloat16, float32, float16.")
]
Seed = Annotated[int, option(MACHINE, "N", "Seed of everything random.", least=0, most=(1 << 63) - 1)]
Threads = Annotated[
    int | None, option(MACHINE, "N", "CPU threads; left out, PyTorch chooses.", least=1, most=4096)
]
Batch = Annotated[int, option(MACHINE, "N", "Queries side by side.", least=1)]
Workers = Annotated[
    int,
    option(
        MACHINE,
        "N",
        "Processes that share the queries, a model and a thread each; results are the same.",
        least=1,
        most=1024,
    ),
]
Ray = Annotated[
    str | None,
    option(
        MACHINE,
        "ADDRESS|local",
        "Let workers of a Ray cluster do it, as many as --workers says: host:port, auto, or local for this "
        "machine alone. All must see the same files.",
        "--ray",
    ),
]
ShardRows = Annotated[
    int | None,
    option(
        MACHINE,
        "N",
        "With --ray: search by actors that hold N rows of the store each; else each worker opens all of it.",
        least=1,
        most=1 << 40,
    ),
]
Missing = Annotated[
    str,
    option(
        MACHINE,
        "POLICY",
        "What to do while a shard is missing: fail, wait for it, or partial, which the report then tells.",
        "--missing",
    ),
]


def examples(*lines: str) -> str:
    """Return command lines as the last part of a help text."""
    return "\n".join(("Examples:", *("  " + line.replace("[", r"\[") for line in lines)))
