"""Options about edits, of `compare` and of `edit`."""

from typing import Annotated

from uptake.cli import options

Turn = Annotated[
    int,
    options.option(
        options.PROTOCOL,
        "N",
        "Edits made in one go: 0 all at once, 1 one after another, 100 in turns of 100 (edits).",
        least=0,
    ),
]
Checkpoints = Annotated[
    str | None,
    options.option(
        options.PROTOCOL, "N", "Also ask after N edits, of those made so far; several as in 1,10,100 (edits)."
    ),
]
AnswerTokens = Annotated[
    int,
    options.option(
        options.PROTOCOL,
        "N",
        "Maximum number of tokens of an answer (edits, questions).",
        "--answer-tokens",
        least=1,
    ),
]
Shots = Annotated[
    int,
    options.option(
        options.PROTOCOL,
        "N",
        "Questions that stand with their answers before each of the others, and are not asked (questions).",
        least=0,
    ),
]
Probes = Annotated[
    int,
    options.option(
        options.PROTOCOL,
        "N",
        "Maximum number of rephrases, of neighbours, ... asked of an edit (edits).",
        least=0,
    ),
]
Contradictions = Annotated[
    str,
    options.option(
        options.PROTOCOL,
        "RULE",
        "Of edits that contradict after one prompt: refuse the later one, or let the last one stand (edits).",
    ),
]
Locality = Annotated[
    list[str] | None,
    options.option(options.PROTOCOL, "FILE", "Texts unrelated to the edits, to measure drift on (edits)."),
]
