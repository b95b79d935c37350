"""Options that mean the same under every command, in the panels that `--help` shows them in."""

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uptake.errors import BadInput

if TYPE_CHECKING:
    from uptake.text.reading import Reading

MAIN = "Options"
PROTOCOL = "Protocol: when text is read, and what is scored"
LEAK = "Leak filter"
FILES = "Reading files"
BUDGET = "Budget of one query or document"
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
    str,
    option(MAIN, "NAME|DIR", "Base model: a Hugging Face name, a folder or a GGUF file.", "--model", "-m"),
]
Store = Annotated[
    str | None,
    option(
        MAIN, "DIR", "Datastore to retrieve neighbours from, made by `uptake index build`.", "--store", "-s"
    ),
]
Data = Annotated[
    list[str],
    option(
        MAIN,
        "FILE",
        'Documents to score: .jsonl of {"id", "text"}, text files, folders. For --protocol edits, edits: '
        '.jsonl of {"id", "prompt", "target"}.',
        "--data",
    ),
]
Method = Annotated[str, option(MAIN, "NAME", "Adaptation method; see `uptake methods`.", "--method")]
MethodOr = Annotated[
    str | None,
    option(
        MAIN,
        "NAME",
        "Adaptation method; see `uptake methods`. Default: ttt-nn, or the recipe's.",
        "--method",
    ),
]
Neighbours = Annotated[
    str, option(MAIN, "N", "Number of neighbours a query reads; several as in 1,5,20.", "-k")
]
NeighboursOr = Annotated[
    str | None,
    option(
        MAIN,
        "N",
        "Number of neighbours a query reads; several as in 1,5,20. Default: 20, or the recipe's.",
        "-k",
    ),
]
Setting = Annotated[
    list[str] | None,
    option(
        MAIN,
        "NAME=VALUE",
        "Set a method's setting; METHOD.NAME=VALUE sets it for one method only. See `uptake methods METHOD`.",
        "--set",
    ),
]
Recipe = Annotated[
    str | None,
    option(
        MAIN,
        "FILE",
        "File that `uptake tune` wrote: method, k and settings. Options on the command line override it.",
    ),
]
Encoder = Annotated[
    str | None,
    option(
        MAIN,
        "DIR|lm:MODEL",
        "Where the store's encoder is, if not under the name that the store has recorded.",
    ),
]

ProtocolName = Annotated[
    str,
    option(
        PROTOCOL,
        "NAME",
        "per-query: retrieve with a prefix, score what follows it. whole: retrieve with the scored text "
        "itself, as the TTT-NN paper does. running: score a segment, then read it; needs no store. holes: "
        "fill in blanks of Python files after reading the rest of the file. stream: read documents one after "
        "another, then answer --questions; `uptake stream` has all its options. edits: make all edits of "
        "--data, then ask what changed and what did not. questions: search with each question of --data, "
        "answer, forget.",
        "--protocol",
    ),
]
Prefix = Annotated[
    int,
    option(
        PROTOCOL,
        "N",
        "Characters of the prefix: used to retrieve and as context, not scored (per-query).",
        least=1,
    ),
]
Suffix = Annotated[int, option(PROTOCOL, "N", "Characters scored after the prefix (per-query).", least=1)]
Search = Annotated[
    int | None,
    option(PROTOCOL, "N", "Retrieve with the last N characters of the prefix (per-query), not all of it.",
           "--search", least=1),
]  # fmt: skip
Windows = Annotated[
    int, option(PROTOCOL, "N", "Maximum number of queries from one document (per-query, holes).", least=1)
]
Hole = Annotated[str, option(PROTOCOL, "KIND", "What is blanked out: identifier or line (holes).", "--hole")]
Around = Annotated[
    str,
    option(
        PROTOCOL,
        "SIDES",
        "Which side of the blank may be read: both, before, after or none (holes).",
        "--around",
    ),
]
Questions = Annotated[
    str | None, option(PROTOCOL, "FILE", "Questions about the documents (stream).", "--questions")
]
SegmentSize = Annotated[
    int,
    option(
        PROTOCOL,
        "N",
        "Characters of a segment, which is scored and then read (running).",
        "--segment",
        least=1,
    ),
]
Limit = Annotated[
    int | None,
    option(
        PROTOCOL, "N", "Maximum number of documents to score, or of edits to make.", least=1, most=1 << 40
    ),
]

Containment = Annotated[
    float,
    option(LEAK, "SHARE", "Withhold passages whose 13-gram containment with the document is at least this."),
]
Jaccard = Annotated[
    float,
    option(LEAK, "SHARE", "Withhold passages whose Jaccard similarity to the document is at least this."),
]
Letters = Annotated[
    float,
    option(
        LEAK,
        "SHARE",
        "Where words are written together, withhold passages of whose runs of 6 Chinese characters, or what "
        "18 letters are worth, at least this share stands in the document.",
    ),
]
SpacedLetters = Annotated[
    float,
    option(LEAK, "SHARE", "The same where words have spaces between them, of runs of 36 letters."),
]
NoFilter = Annotated[
    bool,
    option(LEAK, "", "Withhold nothing, not even the document itself. Report this if you publish.",
           "--no-leak-filter"),
]  # fmt: skip

MaxTokens = Annotated[int | None, option(BUDGET, "N", "Most tokens to train on, not to answer.", least=0)]
MaxSteps = Annotated[int | None, option(BUDGET, "N", "Maximum number of gradient steps.", least=0)]
MaxCpuSeconds = Annotated[
    float | None,
    option(
        BUDGET,
        "SECONDS",
        "Maximum CPU seconds of training; other queries of the batch do not count.",
        least=0,
    ),
]
MaxWallSeconds = Annotated[
    float | None,
    option(
        BUDGET,
        "SECONDS",
        "Maximum wall-clock seconds of training; other queries of the batch do not count.",
        least=0,
    ),
]

# The settings of text.reading.Reading, by their names; None stands for the usual value.
READING: dict[str, Any] = {
    "text_key": Annotated[
        str | None, option(FILES, "KEY", "Key or column that holds the text of a record. Default: text.")
    ],
    "encoding": Annotated[
        str | None,
        option(
            FILES,
            "NAME",
            "Encoding of files that are not UTF-8 and have no byte order mark, such as cp1252.",
        ),
    ],
    "max_document_bytes": Annotated[
        int | None,
        option(FILES, "N", "Leave out documents of more bytes. Default: 67108864.", least=1, most=1 << 40),
    ],
    "max_unpacked_bytes": Annotated[
        int | None,
        option(
            FILES, "N", "Stop a file that unpacks to more bytes. Default: 17179869184.", least=1, most=1 << 50
        ),
    ],
    "max_expansion": Annotated[
        int | None,
        option(
            FILES,
            "N",
            "Stop a file that unpacks to more than 64 MiB and to N times its size. Default: 1000.",
            least=1,
            most=1 << 40,
        ),
    ],
    "max_parse_seconds": Annotated[
        float | None,
        option(
            FILES, "SECONDS", "Give up a file whose parser gets nowhere for so long. Default: 60.", least=0.1
        ),
    ],
    "max_parse_bytes": Annotated[
        int | None,
        option(
            FILES,
            "N",
            "Memory that a file's parser may use. Default: 4294967296.",
            least=1 << 30,
            most=1 << 50,
        ),
    ],
}


def reading_of(given: dict[str, Any]) -> "Reading":
    """Take the options of `READING` out of those given, and return what they say."""
    from uptake.text.reading import Reading

    said = {name: given.pop(name) for name in READING}
    return Reading(**{name: value for name, value in said.items() if value is not None})


def reads_files(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say how files are read; it gets them as one argument, `reading`."""

    @functools.wraps(command)
    def made(**given: Any) -> None:
        reading = reading_of(given)
        command(**given, reading=reading)

    own = [each for name, each in inspect.signature(command).parameters.items() if name != "reading"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(name, keyword, default=None, annotation=kind) for name, kind in READING.items()
    ]
    parameters = [*(each.replace(kind=keyword) for each in own), *added]
    made.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    made.__annotations__ = {each.name: each.annotation for each in parameters}
    return made


Json = Annotated[
    str | None,
    option(
        OUTPUT,
        "FILE",
        "Write the report, with every query; an interrupted run resumes from FILE.journal. "
        "- prints the figures as JSON instead of the table.",
        "--json",
    ),
]
Html = Annotated[str | None, option(OUTPUT, "FILE", "Write the report as one self-contained page.", "--html")]
Fresh = Annotated[
    bool,
    option(OUTPUT, "", "Start from the beginning, and ignore what an interrupted run has saved.", "--fresh"),
]
AsJson = Annotated[bool, option(OUTPUT, "", "Print JSON.", "--json")]

Device = Annotated[str, option(MACHINE, "NAME", "Device that models run on: cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[
    str, option(MACHINE, "NAME", "Number format of the base model: float32, bfloat16, float16, float64.")
]
DtypeOr = Annotated[
    str | None,
    option(
        MACHINE,
        "NAME",
        "float32, bfloat16, float16 or float64. Default: float32; of a model of more than 50 million weights "
        "bfloat16, where a probe finds it faster here and no method reads what was made for the weights.",
        "--dtype",
    ),
]
EncoderDtype = Annotated[
    str, option(MACHINE, "NAME", "Number format of the encoder: bfloat16, float32, float16.")
]
Seed = Annotated[int, option(MACHINE, "N", "Random seed.", least=0, most=(1 << 63) - 1)]
Threads = Annotated[
    int | None, option(MACHINE, "N", "CPU threads. Default: chosen by PyTorch.", least=1, most=4096)
]
Batch = Annotated[int, option(MACHINE, "N", "Number of queries processed side by side.", least=1)]
BatchOr = Annotated[
    int | None,
    option(MACHINE, "N", "Queries processed side by side. Default: 1 on a CPU; 8 on a GPU or with lora.",
           "--batch", least=1),
]  # fmt: skip
Workers = Annotated[
    int,
    option(
        MACHINE,
        "N",
        "Processes that share the work, each with its own model and one thread; results are the same.",
        least=1,
        most=1024,
    ),
]
Ray = Annotated[
    str | None,
    option(
        MACHINE,
        "ADDRESS|local",
        "Run on --workers workers of a Ray cluster: host:port, auto, or local for this machine alone. "
        "All machines must see the same files.",
        "--ray",
    ),
]
ShardRows = Annotated[
    int | None,
    option(
        MACHINE,
        "N",
        "With --ray: split the store into shards of N rows, one actor each. Default: each worker opens all "
        "of the store.",
        least=1,
        most=1 << 40,
    ),
]
Missing = Annotated[
    str,
    option(
        MACHINE,
        "POLICY",
        "What to do while a shard is missing: fail, wait for it, or partial: search the rest, and report it.",
        "--missing",
    ),
]


def examples(*lines: str) -> str:
    """Return command lines as the last part of a help text."""
    return "\n".join(("Examples:", *("  " + line.replace("[", r"\[") for line in lines)))
